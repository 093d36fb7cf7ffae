"""What is fuzzed holds on the inputs that fuzzing begins with, and on all that it ever found."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.rejection import Rejected

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import own_files
import targets

SEEDS = Path(__file__).parent / "fuzz" / "seeds"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_was_once_a_finding_is_none(name):
    seeds = targets.seeds_of(name, SEEDS)
    assert seeds
    for seed in seeds:
        targets.TARGETS[name].check(seed)
        targets.TARGETS[name].check(seed[: len(seed) // 2])


def float64(data, options):
    yield Frame("", "L", np.zeros((4, 4)), "")


def opens(data, options):
    with Path(os.devnull).open():
        yield from ()
    raise Rejected("damaged", "whatever")


def prints(data, options):
    print("a tag")
    yield from ()


def fails(data, options):
    raise KeyError("not ours")
    yield


def differs(data, options, seen=[]):  # noqa: B006
    seen.append(data)
    yield Frame("", "L", np.eye(4, dtype=np.float32) * len(seen), "")


@pytest.mark.parametrize("decoder", [float64, opens, prints, fails, differs])
def test_a_reader_that_does_what_it_must_not_is_noticed(decoder, monkeypatch):
    monkeypatch.setattr(targets, "decode", decoder)
    with pytest.raises((AssertionError, KeyError)):
        targets.decodes(b"data\0")


def test_damage_that_a_reader_does_not_see_is_noticed(monkeypatch):
    own_files.made.cache_clear()
    whole = own_files.bytes_of("index.json")
    monkeypatch.setattr(
        own_files.IndexManifest, "read", lambda folder: (folder / "index.json").read_bytes()
    )
    targets.TARGETS["index.json"].check(whole)
    with pytest.raises(AssertionError, match="as if it were whole"):
        targets.TARGETS["index.json"].check(whole + b" ")
    own_files.made.cache_clear()
