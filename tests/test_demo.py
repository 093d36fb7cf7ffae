"""The demo's own machinery, with the bundled encoder on the real template."""

import csv

import numpy as np
import pytest
from pictures import drawn
from PIL import Image, ImageChops

from deepssim_scan import demo
from deepssim_scan.errors import InputError
from deepssim_scan.scan import EmbedConfig

ONE = EmbedConfig(device="cpu", workers=1)


def pictures(first, count):
    """Procedural images by name: p/000 and so on."""
    images = {}
    for number in range(first, first + count):
        images[f"p/{number:03d}"] = Image.fromarray(drawn(number, demo.SIDE))
    return images


def test_an_audit_counts_what_the_report_says(tmp_path):
    training, strangers = pictures(0, 40), pictures(500, 12)
    result = demo.audit(
        tmp_path / "out", training, {"stranger": strangers}, copies_per_kind=4, config=ONE
    )
    assert result.training_images == 40
    assert [row.kind for row in result.rows] == [*demo.COPIES, "stranger"]
    assert [row.images for row in result.rows] == [4] * len(demo.COPIES) + [12]
    identity = result.rows[0]
    assert (identity.found, identity.flagged) == (4, 4)
    copies = result.total(copies=True)
    assert copies.images == 4 * len(demo.COPIES)
    assert copies.found == sum(row.found for row in result.rows if row.copies)
    with (tmp_path / "out" / "truth.csv").open(newline="") as file:
        truth = list(csv.DictReader(file))
    assert len(truth) == copies.images + 12
    for row in truth:
        assert (tmp_path / "out" / "synthetic" / row["synthetic"]).is_file()
        assert not row["source"] or (tmp_path / "out" / "training" / row["source"]).is_file()


def test_every_kind_of_copy_but_identity_changes_the_pixels():
    image = next(iter(pictures(3, 1).values()))
    for kind, change in demo.COPIES.items():
        changed = change(image, np.random.default_rng(0))
        assert changed.size == image.size
        same = ImageChops.difference(changed.convert("L"), image).getbbox() is None
        assert same == (kind == "identity"), kind


def test_strangers_are_not_among_the_training_images(tmp_path):
    result = demo.run(tmp_path / "out", config=ONE)
    training = {p.read_bytes() for p in (tmp_path / "out" / "training").rglob("*.png")}
    strangers = [
        path.read_bytes()
        for kind in ("stranger, same slice", "stranger, other slice")
        for path in (tmp_path / "out" / "synthetic" / kind).iterdir()
    ]
    assert len(training) == result.training_images >= 1000
    assert not training & set(strangers)
    copies = result.total(copies=True)
    assert len(strangers) == copies.images == 280
    # What `make demo` promises, on the encoder that ships.
    assert copies.found >= 0.95 * copies.images
    assert copies.flagged >= 0.90 * copies.images
    assert result.total(copies=False).flagged <= 0.02 * len(strangers)


def test_an_audit_without_strangers_of_a_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="strangers of every kind"):
        demo.audit(tmp_path / "out", pictures(0, 2), {"none": {}})
