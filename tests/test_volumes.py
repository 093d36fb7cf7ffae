"""Volumes: one finding each, and confirmed in three dimensions, on NIfTI files."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from test_rule import calibration

from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.imaging.registration.volumes import align
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query.proof.volumes import _least
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.reporting.match import Match, finding_of, strongest_of_each
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.reporting.volumes import copied_volumes, read_volumes
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=0)


def head(number, count=20):
    """Axial slices of a pseudo-person, as a volume (96, 96, count)."""
    person = torch.Generator().manual_seed(700_000 + number)
    places = np.linspace(0.3, 0.7, count).tolist()
    return slices(mni152(), 2, places, 96, person, shell=False).permute(1, 2, 0).numpy()


def save(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), path)


# Findings.


def record(sha256, frame="", frames=1, mode="uint8", subject=""):
    return ImageRecord("a", "", frame, frames, 1, 1, sha256, mode, subject)


def test_slices_of_a_volume_are_one_finding_and_images_of_an_array_are_not():
    nifti, training = ("nifti:float32", record("t", "axis=2,slice=5", 9, "nifti:int16"))
    ours = [record("s", f"axis=2,slice={number}", 9, nifti) for number in range(3)]
    assert len({finding_of(each, training) for each in ours}) == 1
    assert finding_of(ours[0], training) == finding_of(ours[0], replace(training, frame="x"))
    assert finding_of(ours[0], training) != finding_of(ours[0], replace(training, sha256="u"))
    stack = [replace(each, mode="npy:uint8") for each in ours]
    assert len({finding_of(each, training) for each in stack}) == 3


def test_a_volume_that_copies_images_of_a_subject_is_one_finding():
    ours = record("s", "frame=1", 9, "dicom:MONOCHROME2:int16")
    images = [record(f"t{number}", subject="p1") for number in range(3)]
    assert len({finding_of(ours, each) for each in images}) == 1
    assert finding_of(ours, images[0]) != finding_of(ours, replace(images[0], subject="p2"))
    alone = [replace(each, subject="") for each in images]
    assert len({finding_of(ours, each) for each in alone}) == 3
    assert len({finding_of(replace(ours, frames=1), each) for each in images}) == 3


def matches(*findings):
    return [Match(f"{n}.png", 1, "t", 0.9, "duplicate", finding=f) for n, f in enumerate(findings)]


def test_of_each_finding_the_strongest_stands_for_all():
    found = strongest_of_each(matches("a", "b", "a", "c", "a"))
    assert [(each.synthetic, each.images) for each in found] == [
        ("0.png", 3),
        ("1.png", 1),
        ("3.png", 1),
    ]


# Which volumes are copies.


def slice_match(synthetic, training, statistic=5.0):
    return Match(
        f"s#{synthetic}", 1, f"t#{training}", 0.9, "duplicate",
        p_value=1e-4, finding="f", synthetic_row=synthetic, training_row=training,
    )  # fmt: skip


@pytest.mark.parametrize(("step", "order"), [(1, 1.0), (-1, -1.0)])
def test_the_training_volume_of_most_slices_is_copied_and_their_order_is_told(step, order):
    flagged = [slice_match(10 + n, 50 + step * n) for n in range(6)] + [slice_match(17, 90)]
    mine, theirs = dict.fromkeys(range(10, 20), "s"), dict.fromkeys(range(40, 60), "t")
    (found,) = copied_volumes(flagged, {"s": 10}, mine, theirs | {90: "u"}, {"s": 6})
    assert (found.verdict, found.training) == ("duplicate", "t")
    assert (found.slices, found.flagged, found.copied) == (10, 7, 6)
    assert found.order == pytest.approx(order)
    (found,) = copied_volumes(flagged, {"s": 10}, mine, theirs | {90: "u"}, {"s": 7})
    assert found.verdict == "slices"


def test_slices_that_copy_one_slice_have_no_order():
    """They had one by how they were listed: 1 if by their rows, and -1 if the other way round."""
    mine, shuffled = dict.fromkeys(range(10, 20), "s"), (13, 11, 17, 12, 19, 14)
    for rows in (range(10, 16), range(15, 9, -1), shuffled):
        flagged = [slice_match(row, 50) for row in rows]
        (found,) = copied_volumes(flagged, {"s": 10}, mine, {50: "t"}, {"s": 2})
        assert (found.copied, found.order) == (6, None)
    for rows in (range(10, 16), range(15, 9, -1), shuffled):
        flagged = [slice_match(row, 50 + row // 14) for row in rows]
        (found,) = copied_volumes(flagged, {"s": 10}, mine, {50: "t", 51: "t"}, {"s": 2})
        same = scipy.stats.spearmanr(rows, [50 + row // 14 for row in rows]).statistic
        assert found.order == pytest.approx(same)


def test_more_slices_are_asked_for_than_false_alarms_explain():
    """Of 2,000 volumes without a copy, hardly one has so many slices flagged."""
    rule = CalibratedRule(calibration(np.arange(1000.0)), 0.01)
    upper = rule.calibration.null.upper_bound(rule.bounds.duplicate, 0.975)
    flagged = np.random.default_rng(0).binomial(100, upper, 2000)
    assert 0 <= (flagged >= _least(100, rule)).mean() <= 0.003
    assert _least(1, rule) == 2


# Three dimensions.


@pytest.mark.parametrize(("flip", "axes"), [(0, ()), (1, (2,)), (2, (1,))])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_rigid_motion_by_scipy_is_undone(flip, axes, reverse):
    volume = head(1, 40).transpose(2, 0, 1)
    moved = scipy.ndimage.rotate(volume, 8, (1, 2), reshape=False, order=1)
    moved = scipy.ndimage.shift(moved, (1.5, 4, -3), order=1)
    moved = np.flip(moved, axes + ((0,) if reverse else ())).copy()
    ours, theirs = torch.from_numpy(moved), torch.from_numpy(volume)
    found = align(ours, theirs, flip, reverse=reverse)
    assert found.ncc > 0.97
    assert found.ssim > 0.8
    assert max(map(abs, found.degrees)) == pytest.approx(8, abs=1.5)
    assert found.scale == pytest.approx(1, abs=0.03)
    other = align(torch.from_numpy(head(2, 40).transpose(2, 0, 1).copy()), theirs, 0, reverse=False)
    assert other.ncc < found.ncc - 0.03


# As a user runs it.


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """24 training volumes; of 6 synthetic ones two are copies, one of them upside down.

    The name of the other is not UTF-8, and that of a training volume is no formula in a table.
    """
    root = tmp_path_factory.mktemp("volumes")
    for number in range(24):
        first = "=" if number == 7 else "p"
        save(head(number), root / "training" / f"{first}{number:02d}.nii.gz")
    for number in range(4):
        save(head(100 + number), root / "synthetic" / f"new{number}.nii.gz")
    moved = scipy.ndimage.shift(head(3), (3, -2, 0), order=1)
    save(moved, root / "synthetic" / "copy3\udcff.nii.gz")
    save(head(7)[:, ::-1, ::-1] ** 1.2, root / "synthetic" / "copy7.nii.gz")
    built = IndexConfig(adapt="never")
    build_index(root / "training", root / "index", built, RUN)
    config = QueryConfig(canaries=CanaryConfig(0))
    query(root / "synthetic", root / "index", root / "report", config, RUN)
    return root / "report"


def test_copied_volumes_are_told_with_the_volume_that_they_copy(report):
    summary = json.loads((report / "summary.json").read_text())
    assert summary["volumes"]["judged"] == 6
    assert summary["volumes"]["duplicate"] == 2
    copies = {v.synthetic: v for v in read_volumes(report) if v.verdict == "duplicate"}
    assert {name: each.training for name, each in copies.items()} == {
        r"copy3\xff.nii.gz": "p03.nii.gz",
        "copy7.nii.gz": "./=07.nii.gz",
    }
    assert copies[r"copy3\xff.nii.gz"].order > 0.9
    assert copies["copy7.nii.gz"].order < -0.9
    for each in copies.values():
        assert each.slices == 20
        assert each.copied > 10
        assert each.ncc > 0.9
    assert check(report).intact


def test_a_volume_is_one_finding_of_the_page(report):
    _, counts = read_counts(report)
    of_copies = [each for each in counts.findings if each.synthetic.startswith("copy")]
    assert len(of_copies) == 2
    assert sum(each.images for each in of_copies) > 20
    text = (report / "report.html").read_text()
    assert "2 of 6 volumes are copies." in text
    assert "./=07.nii.gz" in text
