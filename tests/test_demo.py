"""The demo's own machinery, with the bundled encoder on the real template."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import drawn
from PIL import Image, ImageChops

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


def test_non_members_are_not_among_the_training_images(tmp_path):
    """As a user runs it, calibrated on more images than other tests are."""
    program = Path(sys.executable).with_name("deepssim-scan")
    command = [program, "demo", "--out", tmp_path / "out", "--workers", "1", "--json"]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    kinds = {row["kind"]: row for row in result["kinds"]}
    training = {p.read_bytes() for p in (tmp_path / "out" / "training").rglob("*.png")}
    others = [
        path.read_bytes()
        for kind in ("non-member, same slice", "non-member, other slice")
        for path in (tmp_path / "out" / "synthetic" / kind).iterdir()
    ]
    assert len(training) == result["training_images"] >= 1000
    assert not training & set(others)
    copies = kinds["all copies"]
    assert len(others) == copies["images"] == 280
    # What `make demo` promises, on the encoder that ships.
    assert copies["found"] >= 0.95 * copies["images"]
    assert copies["flagged"] >= 0.90 * copies["images"]
    assert kinds["all non-members"]["flagged"] <= 0.02 * len(others)


def test_a_planted_benchmark_without_non_members_of_a_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="non-members of every kind"):
        demo.planted_benchmark(tmp_path / "out", pictures(0, 2), {"none": {}})
