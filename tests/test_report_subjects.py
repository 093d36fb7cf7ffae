"""Who is reproduced: counted again from the flagged matches."""

import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepssim_scan.calibration.groups import Groups
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query.proof import rarity
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.matches import best_matches
from deepssim_scan.reporting.subjects import read_subjects, reproduced, write_subjects
from deepssim_scan.training.pseudo_subjects import mni152, slices


def match(number, subject, training):
    """The flagged match of a number; the higher, the weaker."""
    p_value = number / 100
    found = Match(f"{number}.png", 1, training, 1 - p_value, "duplicate", subject=subject)
    return replace(found, p_value=p_value)


@st.composite
def flagged(draw):
    """Flagged matches, the strongest first; "" where nobody is told apart."""
    whom = st.sampled_from(["", "a", "b", "t1.png"])
    subjects = {f"t{number}.png": draw(whom) for number in range(6)}
    images = draw(st.lists(st.sampled_from(sorted(subjects)), max_size=12))
    return [match(number, subjects[image], image) for number, image in enumerate(images)]


@given(flagged())
def test_every_subject_is_counted_once_the_worst_first(matches):
    found = reproduced(matches)
    whom = [(each.subject or each.training, bool(each.subject)) for each in matches]
    counts = Counter(whom)
    assert {(each.subject, each.named): each.synthetic_images for each in found} == counts
    assert len(found) == len(counts)
    strength = [(-each.synthetic_images, each.p_value) for each in found]
    assert strength == sorted(strength)
    for each in found:
        key = each.subject, each.named
        mine = [m for m, who in zip(matches, whom, strict=True) if who == key]
        assert each.training_images == len({m.training for m in mine})
        strongest = min(mine, key=lambda m: m.p_value)
        assert (each.synthetic, each.training) == (strongest.synthetic, strongest.training)
        assert (each.p_value, each.score) == (strongest.p_value, strongest.score)


@pytest.mark.parametrize("count", [0, 3])
def test_what_is_written_is_read_again(tmp_path, count):
    found = reproduced([match(number, f"s{number}", "t.png") for number in range(count)])
    write_subjects(tmp_path, found)
    near = [replace(each, score=pytest.approx(each.score)) for each in found]
    assert read_subjects(tmp_path) == near
    table = pq.read_table(tmp_path / "subjects.parquet")
    assert table["subject"].to_pylist() == [f"s{number}" for number in range(count)]
    assert table.schema.names == [
        *("subject", "named", "synthetic_images", "training_images"),
        *("p_value", "score", "synthetic", "training", "training_row", "rarity"),
    ]


def test_row_of_subjects_of_a_report(people, tmp_path):
    """Two images of one subject, three copies in all, and one of another."""
    training = people / "training"
    copies = {"a": "s05/0.png", "b": "s05/1.png", "c": "s09/2.png", "d": "s05/0.png"}
    (tmp_path / "synthetic").mkdir()
    for name, source in copies.items():
        Image.open(training / source).save(tmp_path / "synthetic" / f"{name}.png")
    config = QueryConfig(canaries=CanaryConfig(0))
    result = query(
        tmp_path / "synthetic", people / "index", tmp_path / "report", config, RunContext("cpu", 1)
    )
    assert result.flagged == 4
    rows = pq.read_table(tmp_path / "report" / "subjects.parquet").to_pylist()
    assert [
        (row["subject"], row["named"], row["synthetic_images"], row["training_images"])
        for row in rows
    ] == [("s05", True, 3, 2), ("s09", True, 1, 1)]
    assert result.summary["subjects"] == {"training": 60, "flagged": 2, "unnamed": 0}
    matches = {each.synthetic: each for each in best_matches(tmp_path / "report")}
    for row in rows:
        best = matches[row["synthetic"]]
        assert row["training"] == best.training == copies[row["synthetic"][0]]
        assert row["p_value"] == best.p_value <= result.summary["calibration"]["false_alarm"]
        assert row["score"] == pytest.approx(best.score)


def test_who_is_unlike_all_others_is_rare(people, tmp_path):
    """Of 180 axial slices of pseudo-people one is replaced by a sagittal one."""
    shutil.copytree(people / "training", tmp_path / "training")
    odd, run = tmp_path / "training" / "s30" / "1.png", RunContext("cpu", 0)
    person = torch.Generator().manual_seed(30)
    to_image(slices(mni152(), 0, [0.5], 128, person)[0]).save(odd)
    built = IndexConfig(adapt="never")
    build_index(tmp_path / "training", tmp_path / "index", built, run)
    for name, source in (("odd", odd), ("plain", tmp_path / "training" / "s20" / "1.png")):
        (tmp_path / "synthetic").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "synthetic" / f"{name}.png")
    config = QueryConfig(canaries=CanaryConfig(0))
    query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", config, run)
    found = {each.synthetic: each for each in read_subjects(tmp_path / "report")}
    assert found["odd.png"].rare
    assert not found["plain.png"].rare
    assert "1 of them is rare" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("searched", [1000, 5])
def test_the_nearest_of_another_subject_is_found_or_not_known(monkeypatch, searched):
    """Against all inner products; not known where too many nearer ones show the same subject."""
    monkeypatch.setattr(rarity, "_SEARCHED", searched)
    rng = np.random.default_rng(0)
    rows, number = rng.normal(size=(60, 8)), np.repeat(np.arange(6), 10)
    rows[:10] = rows[0] + 0.01 * rng.normal(size=(10, 8))  # all of one subject beside each other
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def search(queries, k):
        scores = queries @ rows.T
        order = np.argsort(-scores, 1)[:, :k]
        return SimpleNamespace(rows=order, scores=np.take_along_axis(scores, order, 1))

    index = SimpleNamespace(vectors=lambda start, stop: rows[start:stop], search=search)
    gallery = SimpleNamespace(
        groups=Groups(number, subjects=True, known=True, certain=number >= 0),
        search=index,
    )
    found = rarity.nearest_other(gallery, np.arange(60))
    every = np.where(number[:, None] == number, -np.inf, rows @ rows.T).max(1)
    assert np.isnan(found[:10]).all() == (searched == 5)
    there = ~np.isnan(found)
    assert there.sum() >= 40
    np.testing.assert_allclose(found[there], every[there], atol=1e-6)
