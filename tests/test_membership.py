"""Members told from others by their nearest synthetic image, against scikit-learn and chance."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_rule import calibration

from deepssim_scan.calibration.groups import Groups
from deepssim_scan.calibration.membership import (
    FALSE_POSITIVES,
    HeldOut,
    Side,
    membership,
    nearest,
)
from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import CalibrateConfig, QueryConfig
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query.proof.membership import membership_of
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=0)


def side(rng, people, images, shift=0.0, spread=0.0):
    """Scores of people with as many images each, which have something in common."""
    common = rng.normal(0, spread, people).repeat(images)
    scores = rng.normal(shift, 1, people * images) + common
    return Side(scores, np.arange(people).repeat(images))


def test_auc_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    ours, theirs = side(rng, 60, 3, 0.5), side(rng, 50, 2)
    ours, theirs = (
        Side(ours.scores.round(1), ours.subjects),
        Side(theirs.scores.round(1), theirs.subjects),
    )
    found = membership(ours, theirs)
    scores = np.concatenate([ours.scores, theirs.scores])
    wanted = roc_auc_score(np.arange(280) < 180, scores)
    assert found.auc.value == pytest.approx(wanted, abs=1e-12)
    assert found.auc.low < wanted < found.auc.high
    assert (found.members, found.non_members) == (180, 100)


def test_true_positives_are_counted_above_the_score_that_so_many_others_pass():
    rng = np.random.default_rng(1)
    ours, theirs = side(rng, 400, 1, 2.0), side(rng, 1000, 1)
    found = membership(ours, theirs)
    for rate in FALSE_POSITIVES:
        bound = np.sort(theirs.scores)[::-1][int(rate * 1000)]
        assert found.true_positives[rate].value == pytest.approx((ours.scores > bound).mean())


@pytest.mark.parametrize(("people", "images", "spread"), [(100, 1, 0.0), (60, 5, 1.0)])
def test_intervals_of_sides_that_are_alike_cover_a_half(people, images, spread):
    """Also where the images of a person are alike: the interval is over people."""
    covered = {"auc": 0, "control": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        sides = (side(rng, people, images, 0, spread) for _ in range(2))
        found = membership(*sides, seed)
        for name in covered:
            estimate = getattr(found, name)
            covered[name] += estimate.low <= 0.5 <= estimate.high
    assert min(covered.values()) >= 90


@pytest.mark.parametrize(("subjects", "told"), [(1, False), (3, False), (4, True)])
def test_a_hold_out_of_few_subjects_tells_nothing(subjects, told):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, 8)).astype(np.float32)
    held = HeldOut(rows[:12], np.arange(12) % subjects)
    rule = CalibratedRule(replace(calibration(), holdout=held), 0.05)
    groups = Groups(
        np.arange(48) // 2,
        subjects=True,
        known=True,
        certain=np.ones(48, bool),
    )
    search = SimpleNamespace(vectors=lambda start, stop: rows[12 + start : 12 + stop])
    store = SimpleNamespace(embedded=lambda: [SimpleNamespace(digest="x")] * 48)
    gallery = SimpleNamespace(groups=groups, search=search, store=store)
    embedder = SimpleNamespace(loaded=SimpleNamespace(seen=frozenset()))
    synthetic = SimpleNamespace(shards=lambda: iter([(0, rows)]))
    found = membership_of(gallery, embedder, rule, synthetic)
    assert (found is not None) == told
    if found:
        assert found["members"] == 48


def test_a_hold_out_is_read_as_it_was_written():
    rng = np.random.default_rng(4)
    held = HeldOut(rng.normal(size=(5, 3)).astype(np.float32), np.arange(5))
    again = HeldOut.from_json(json.loads(json.dumps(held.as_json())))
    assert np.array_equal(again.rows, held.rows)
    assert np.array_equal(again.subjects, held.subjects)


def test_the_nearest_is_found_over_all_shards():
    rng = np.random.default_rng(2)
    rows, synthetic = (rng.normal(size=(count, 16)).astype(np.float32) for count in (7, 90))
    rows, synthetic = (
        each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, synthetic)
    )
    found = nearest(rows, np.array_split(synthetic, 4))
    np.testing.assert_allclose(found, (rows @ synthetic.T).max(1), atol=1e-6)


def codes(found):
    return {each["code"] for each in found.summary["mismatches"]}


def test_a_query_tells_members_from_a_hold_out(people, tmp_path):
    """Of half of the subjects all images are copied, which gives an AUC of 0.75."""
    index, volume = tmp_path / "index", mni152()
    shutil.copytree(people / "index", index)
    for subject in range(30):
        person = torch.Generator().manual_seed(500_000 + subject)
        folder = tmp_path / "others" / f"s{subject:02d}"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(slices(volume, 2, [0.35, 0.45, 0.6], 128, person)):
            to_image(pixels).save(folder / f"{number}.png")
    for subject in range(0, 60, 2):
        shutil.copytree(people / "training" / f"s{subject:02d}", tmp_path / "copies" / f"{subject}")
    calibrate(index, CalibrateConfig(holdout=tmp_path / "others"), RUN)
    config = QueryConfig(canaries=CanaryConfig(0))
    found = query(tmp_path / "copies", index, tmp_path / "report", config, RUN)
    assert "holdout_synthetic" not in codes(found)
    told = found.summary["membership"]
    assert (told["members"], told["non_members"], told["seen"]) == (180, 90, False)
    assert told["auc"]["value"] == pytest.approx(0.75, abs=0.08)
    assert told["auc"]["low"] > 0.5
    assert told["true_positives"]["0.01"]["value"] == pytest.approx(0.5, abs=0.05)
    assert told["control"]["low"] < 0.5 < told["control"]["high"]
    assert (
        "told from 90 of the hold-out: AUC 0.7" in (tmp_path / "report" / "report.html").read_text()
    )
    for subject in range(2):
        shutil.copytree(
            tmp_path / "others" / f"s{subject:02d}", tmp_path / "copies" / f"o{subject}"
        )
    again = query(tmp_path / "copies", index, tmp_path / "report", config, RUN)
    assert "holdout_synthetic" in codes(again)
    assert "holds synthetic images (6)" in (tmp_path / "report" / "report.html").read_text()
