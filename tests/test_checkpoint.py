"""Checkpoints: whole round trips, and refusal of all else."""

import hashlib
import json
import os
import re
import stat
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import TINY_CONVNEXT
from safetensors import safe_open
from safetensors.torch import save as serialise

from deepssim_scan import __version__
from deepssim_scan.encoder.architecture import FAST, SMALL
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.checkpoint import fingerprint, load, save
from deepssim_scan.encoder.checkpoint_file import FORMAT
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.torchscript import convert
from deepssim_scan.errors import CheckpointError, InputMissing

TRAINING = {"config": {"steps": 3, "learning_rate": 0.5}, "images": 64, "note": "Größe"}


@pytest.fixture
def saved(tmp_path, tiny, make_encoder):
    path = tmp_path / "encoder.safetensors"
    save(path, make_encoder(tiny), TRAINING)
    return path


def _opened(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _write_whole(path, weights, metadata, *, digest_too=True):
    """Write a checkpoint of any metadata, with the SHA-256 that makes it whole."""
    old, zeros = metadata.get("sha256", ""), "0" * 64
    data = serialise(weights, metadata | {"sha256": zeros} if old else metadata)
    digest = hashlib.sha256(data).hexdigest() if digest_too else old
    path.write_bytes(data.replace(zeros.encode(), digest.encode(), 1) if old else data)


def _refused(path):
    """Load what must be refused, and give the message, which is one line naming the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


# What is whole.


def test_a_checkpoint_comes_back_bit_for_bit(saved, tiny, make_encoder):
    found, encoder, images = load(saved), make_encoder(tiny), torch.randn(3, 32, 32)
    assert not found.encoder.training
    assert torch.equal(embed(found.encoder, images), embed(encoder, images))
    assert found.architecture == tiny
    assert found.training == TRAINING
    assert found.version == __version__
    assert found.fingerprint == fingerprint(saved)


def test_every_part_of_the_architecture_comes_back(tmp_path, tiny):
    for number, architecture in enumerate((tiny, TINY_CONVNEXT, SMALL)):
        path = tmp_path / "new folder" / str(number)
        save(path, Encoder(architecture), {})
        assert load(path).architecture == architecture


def test_the_bundled_encoder_is_the_fast_one_and_its_card_tells_its_figures():
    found = load()
    assert found.architecture == FAST
    assert BUNDLED.stat().st_size <= 16_000_000
    card = (Path(__file__).parents[1] / "docs" / "bundled-encoder.md").read_text()
    assert found.fingerprint in card


def test_the_same_encoder_gives_the_same_file(saved, tmp_path, tiny, make_encoder):
    save(tmp_path / "again", make_encoder(tiny), TRAINING)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    metadata, weights = _opened(saved)
    assert sorted(metadata) == ["architecture", "format", "sha256", "training", "version"]
    assert struct.unpack("<Q", saved.read_bytes()[:8])[0] % 8 == 0
    torch.testing.assert_close(weights, dict(make_encoder(tiny).state_dict()), rtol=0, atol=0)


def test_the_fingerprint_covers_what_makes_embeddings(saved, tmp_path, tiny, make_encoder):
    """Every weight, every shape, and the architecture; not how the weights came about."""
    path, before = tmp_path / "other", load(saved).fingerprint
    metadata, weights = _opened(saved)
    save(path, make_encoder(tiny), {"images": 65})
    assert load(path).fingerprint == before
    assert path.read_bytes() != saved.read_bytes()
    _write_whole(path, weights, metadata | {"version": "0.0.9"})
    assert fingerprint(path) == before
    found = {before}
    for name, value in weights.items():
        if value.is_floating_point():
            changed = value.clone()
            changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))
            _write_whole(path, weights | {name: changed}, metadata)
            found.add(fingerprint(path))
    assert len(found) == 1 + sum(each.is_floating_point() for each in weights.values())


def test_the_fingerprint_covers_the_architecture_and_where_each_weight_belongs(saved, tmp_path):
    metadata, weights = _opened(saved)
    path, found = tmp_path / "other", {fingerprint(saved)}
    for edit in (_edited("architecture", dimension=9), _weight(lambda bias: bias[None].clone())):
        facts, changed = dict(metadata), dict(weights)
        edit(facts, changed)
        _write_whole(path, changed, facts)
        found.add(fingerprint(path))
    bias = weights["fc.out.bias"]
    renamed = {name: value for name, value in weights.items() if name != "fc.out.bias"}
    _write_whole(path, renamed | {"fc.out.bits": bias}, metadata)
    found.add(fingerprint(path))
    assert len(found) == 4


def test_the_fingerprint_is_that_of_the_weights_bytes_under_the_header_of_the_file(saved):
    """Computed here from the file alone."""
    data = saved.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    facts = header.pop("__metadata__")
    told = json.dumps([json.loads(facts["architecture"]), header], sort_keys=True)
    wanted = hashlib.sha256(told.encode() + data[8 + length :]).hexdigest()
    assert load(saved).fingerprint == fingerprint(saved) == wanted


def test_row_38_a_checkpoint_is_private(tmp_path, tiny):
    before = os.umask(0)
    try:
        save(tmp_path / "x", Encoder(tiny), {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_row_29_a_failed_save_keeps_what_was_there(saved, tiny):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save(saved, Encoder(tiny), {"not json": object()})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# Row 35: what is not a checkpoint.


@pytest.mark.parametrize("function", [load, lambda path: convert(path, path.with_name("out"))])
def test_a_missing_file_and_a_folder_are_missing(function, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputMissing, match=re.escape(f"{path}: no such")):
            function(path)


class _Payload:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_row_35_a_pickle_is_refused_and_never_run(tmp_path, as_zip):
    path, mark = tmp_path / "encoder.pt", tmp_path / "mark"
    torch.save({"weights": _Payload(mark)}, path, _use_new_zipfile_serialization=as_zip)
    assert "Pickled checkpoints are never loaded" in _refused(path)
    with pytest.raises(CheckpointError, match="not TorchScript weights"):
        convert(path, tmp_path / "out")
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the payload is live
    assert mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        bytes(range(256)) * 50,
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 9) + b"[1, 2, 3]",
    ],
)
def test_row_35_garbage_is_refused(tmp_path, data):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(data)
    assert "safetensors file" in _refused(path)
    with pytest.raises(CheckpointError, match="not TorchScript weights"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_row_35_a_file_cut_short_anywhere_is_refused(saved):
    data = saved.read_bytes()
    header = struct.unpack("<Q", data[:8])[0] + 8
    for length in (7, 8, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        assert "not a safetensors file" in _refused(saved)


def test_row_35_bytes_after_the_end_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"more")
    _refused(saved)


def _edited(name, **changes):
    def edit(metadata, weights):
        metadata[name] = json.dumps(json.loads(metadata[name]) | changes)

    return edit


def _set(name, text):
    return lambda metadata, weights: metadata.update({name: text})


def _without(name):
    return lambda metadata, weights: metadata.pop(name)


def _weight(change):
    def edit(metadata, weights):
        weights["fc.out.bias"] = change(weights["fc.out.bias"])

    return edit


def _spoiled(value):
    def change(bias):
        bias[1] = value
        return bias

    return change


HOSTILE = {
    "no metadata": (lambda metadata, weights: metadata.clear(), "its format is None"),
    "another format": (_set("format", "deepssim-scan checkpoint 7"), "checkpoint 7', not"),
    "an older format": (_set("format", "deepssim-scan checkpoint 4"), "checkpoint 4', not"),
    "no architecture": (_without("architecture"), "'architecture' is missing"),
    "no training": (_without("training"), "'training' is missing"),
    "no version": (_without("version"), "'version' is missing"),
    "no JSON": (_set("architecture", "{"), "Expecting"),
    "deep JSON": (_set("training", "[" * 100_000), "recursion"),
    "architecture null": (_set("architecture", "null"), "NoneType where an object"),
    "architecture a list": (_set("architecture", "[1]"), "list where an object"),
    "training a list": (_set("training", "[]"), "list where an object"),
    "standardisation null": (_edited("architecture", standardisation=None), "mapping"),
    "no depths": (_set("architecture", '{"standardisation": {}}'), "'depths' is missing"),
    "unknown field": (_edited("architecture", dropout=0.5), "dropout"),
    "unknown trunk": (_edited("architecture", trunk="__class__"), "'__class__'"),
    "trunk a list": (_edited("architecture", trunk=["flips"]), "unknown trunk"),
    "no pose": (_edited("architecture", pose=[]), "widths of the pose estimator .pose."),
    "huge expansion": (_edited("architecture", expansion=10**9), "do not fit"),
    "expansion fractional": (_edited("architecture", expansion=1.5), "empty\\(\\)"),
    "huge pose": (_edited("architecture", pose=[16 * 10**6]), "16000000 channels"),
    "depths a number": (_edited("architecture", depths=1), "not iterable"),
    "depths of text": (_edited("architecture", depths="11"), "not supported"),
    "depths fractional": (_edited("architecture", depths=[1.5, 1]), "integer"),
    "depths negative": (_edited("architecture", depths=[-1, 1]), ">= 1"),
    "depths NaN": (_edited("architecture", depths=[1, float("nan")]), "float"),
    "huge widths": (_edited("architecture", widths=[10**6, 10**6]), "2000000 channels"),
    "huge depths": (_edited("architecture", depths=[1, 10**9]), "1000000001 blocks"),
    "endless depths": (_edited("architecture", depths=[1, 900_000]), "900001"),
    "many stages": (_edited("architecture", depths=[1] * 5000, widths=[16] * 5000), "found size"),
    "a million zeros": (_edited("architecture", depths=[0] * 10**6, widths=[1] * 10**6), ">= 1"),
    "wide": (_edited("architecture", widths=[16, 90_000]), "do not fit the architecture"),
    "huge dimension": (_edited("architecture", dimension=10**8), "do not fit"),
    "dimension over": (_edited("architecture", dimension=10**12), "overflow"),
    "dimension beyond 64 bits": (_edited("architecture", dimension=10**30), "[Oo]verflow"),
    "dimension infinite": (_edited("architecture", dimension=float("inf")), "float"),
    "huge size": (
        _edited("architecture", standardisation={"size": 10**9, "pad": "darkest"}),
        "from 8 to 4096",
    ),
    "other size": (
        _edited("architecture", standardisation={"size": 64, "pad": "darkest"}),
        "do not fit",
    ),
    "unknown padding": (
        _edited("architecture", standardisation={"size": 32, "pad": "zeros"}),
        "darkest",
    ),
    "other depths": (_edited("architecture", depths=[1, 2]), "'feature_extractor.6.gain'"),
    "tensor missing": (
        lambda metadata, weights: weights.pop("fc.out.bias"),
        "'fc.out.bias': found none",
    ),
    "tensor extra": (
        lambda metadata, weights: weights.update({"fc.9.bias": torch.zeros(1)}),
        "'fc.9.bias': found torch.float32 .1., wanted none",
    ),
    "all tensors missing": (lambda metadata, weights: weights.clear(), "tensors do not fit"),
    "tensor longer": (_weight(lambda bias: torch.zeros(5)), "float32 .5., wanted .* .8."),
    "tensor reshaped": (_weight(lambda bias: bias[None].clone()), "float32 .1, 8., wanted"),
    "half precision": (_weight(lambda bias: bias.half()), "found torch.float16"),
    "double precision": (_weight(lambda bias: bias.double()), "found torch.float64"),
    "whole numbers": (_weight(lambda bias: bias.int()), "found torch.int32"),
    "NaN": (_weight(_spoiled(torch.nan)), "fc.out.bias holds values that are not finite"),
    "infinite": (_weight(_spoiled(torch.inf)), "fc.out.bias holds values that are not finite"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_row_35_hostile_safetensors_are_refused(kind, saved):
    edit, words = HOSTILE[kind]
    metadata, weights = _opened(saved)
    edit(metadata, weights)
    _write_whole(saved, weights, metadata)
    assert re.search(words, _refused(saved))


def test_the_untouched_file_passes_where_the_hostile_ones_fail(saved):
    metadata, weights = _opened(saved)
    _write_whole(saved, weights, metadata)
    assert load(saved).training == TRAINING
    _write_whole(saved, weights, metadata | {"version": "0.0.9"}, digest_too=False)
    assert "damaged: its bytes are not those that were written" in _refused(saved)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_row_32_flipped_bits_are_refused(data, saved, tmp_path):
    original = bytearray(saved.read_bytes())
    header = struct.unpack("<Q", original[:8])[0] + 8
    places = st.one_of(
        st.integers(0, 8 * header - 1), st.integers(8 * header, 8 * len(original) - 1)
    )
    damaged = bytearray(original)
    for place in data.draw(st.sets(places, min_size=1, max_size=4)):
        damaged[place // 8] ^= 1 << place % 8
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    _refused(path)


def test_row_35_a_converted_checkpoint_is_not_mistaken_for_torchscript(saved, tmp_path):
    with pytest.raises(CheckpointError, match="not TorchScript"):
        convert(saved, tmp_path / "out")
    assert _opened(saved)[0]["format"] == FORMAT
