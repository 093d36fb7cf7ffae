"""The demo's own machinery, with the bundled encoder on the real template."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import drawn
from PIL import Image, ImageChops

from deepssim_scan.cli import main
from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.planted import COPIES, Tally
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs import demo

RUN = RunContext("cpu", workers=1)


def pictures(first, count):
    """Procedural images by name: p/000 and so on."""
    images = {}
    for number in range(first, first + count):
        images[f"p/{number:03d}"] = Image.fromarray(drawn(number, demo.SIDE))
    return images


def test_a_planted_benchmark_counts_what_the_report_says(tmp_path):
    training, others = pictures(0, 16), pictures(500, 12)
    result = demo.planted_benchmark(
        tmp_path / "out", training, {"non-member": others}, copies_per_kind=4, run=RUN
    )
    assert result.training_images == 16  # too few to be calibrated, which takes a minute
    assert [row.kind for row in result.rows] == [*COPIES, "non-member"]
    assert [row.images for row in result.rows] == [4] * len(COPIES) + [12]
    identity = result.rows[0]
    assert (identity.found, identity.flagged) == (4, 4)
    copies = result.total(copies=True)
    assert copies.images == 4 * len(COPIES)
    assert copies.found == sum(row.found for row in result.rows if row.copies)
    with (tmp_path / "out" / "truth.csv").open(newline="") as file:
        truth = list(csv.DictReader(file))
    assert len(truth) == copies.images + 12
    for row in truth:
        assert (tmp_path / "out" / "synthetic" / row["synthetic"]).is_file()
        assert not row["source"] or (tmp_path / "out" / "training" / row["source"]).is_file()


def test_an_image_that_cannot_be_judged_is_neither_found_nor_flagged(tmp_path):
    others = {"p/black": Image.new("L", (demo.SIDE, demo.SIDE))} | pictures(500, 2)
    result = demo.planted_benchmark(
        tmp_path / "out", pictures(0, 4), {"non-member": others}, copies_per_kind=1, run=RUN
    )
    assert result.rows[-1] == Tally("non-member", copies=False, images=3, found=0, flagged=0)


def test_every_kind_of_copy_but_identity_changes_the_pixels():
    image = next(iter(pictures(3, 1).values()))
    for kind, change in COPIES.items():
        changed = change(image, np.random.default_rng(0))
        assert changed.size == image.size
        same = ImageChops.difference(changed.convert("L"), image).getbbox() is None
        assert same == (kind == "identity"), kind


def test_non_members_are_not_among_the_training_images(tmp_path, monkeypatch):
    """Whether they are told apart, the program says itself: `.ci/run` runs it."""
    given = {}

    def planted(out, training, others, **rest):
        given.update(training=training, **others)

    monkeypatch.setattr(demo, "planted_benchmark", planted)
    monkeypatch.setattr(demo, "SUBJECTS", 6)
    monkeypatch.setattr(demo, "NEW_SUBJECTS", 4)
    demo.demo(tmp_path)
    training, *others = ([each.tobytes() for each in images.values()] for images in given.values())
    assert len({*training}) == len(training) == 6 * demo.POSITIONS
    assert [len({*each}) for each in others] == [28, 28]
    assert not {*training} & {*others[0], *others[1]}


COUNTS = Tally("a", True, 100, 95, 90), Tally("b", False, 50, 0, 1)


@pytest.mark.parametrize(
    ("changes", "works"),
    [
        ({}, True),
        ({"found": 94}, False),
        ({"flagged": 89}, False),
        ({"images": 106}, False),
    ],
)
def test_an_installation_that_finds_too_little_does_not_work(changes, works):
    rows = replace(COUNTS[0], **changes), COUNTS[1]
    assert demo.DemoResult(Path("out"), 9, rows).works is works


def test_an_installation_that_flags_non_members_does_not_work(monkeypatch, capsys):
    result = demo.DemoResult(Path("out"), 9, (COUNTS[0], replace(COUNTS[1], flagged=2)))
    assert not result.works
    monkeypatch.setattr(demo, "demo", lambda *_: result)
    monkeypatch.setattr(sys, "argv", ["deepssim-scan", "demo", "--json"])
    with pytest.raises(SystemExit, match="1"):
        main()
    said = capsys.readouterr()
    assert json.loads(said.out)["works"] is False
    assert "at most 2% of the non-members. Do not rely on this installation" in said.err


def test_a_planted_benchmark_without_non_members_of_a_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="non-members of every kind"):
        demo.planted_benchmark(tmp_path / "out", pictures(0, 2), {"none": {}})
