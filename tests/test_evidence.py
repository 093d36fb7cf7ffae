"""Pairs verified from their files: real images, real stores, and files that changed meanwhile."""

import csv
import gzip

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import TINY
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.errors import InputMissing
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig
from deepssim_scan.matching.decision import strongest_first
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=1)


@pytest.fixture(scope="module")
def heads():
    """Ten slices of pseudo-subjects, larger than what is registered."""
    volume = mni152()
    cut = [
        slices(volume, axis, [0.4, 0.6], 160, torch.Generator().manual_seed(seed))
        for seed, axis in enumerate([0, 1, 2, 1, 2])
    ]
    return [Image.fromarray((each * 255).byte().numpy()) for each in torch.cat(cut)]


@pytest.fixture
def built(heads, tmp_path):
    """Ten training images indexed; synthetic: a flipped one, a turned one, a stranger."""
    for name in ("training", "synthetic"):
        (tmp_path / name).mkdir()
    for number, image in enumerate(heads):
        image.save(tmp_path / "training" / f"{number}.png")
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    heads[3].transpose(flip).save(tmp_path / "synthetic" / "flipped.png")
    heads[5].rotate(-6, translate=(10, 5)).save(tmp_path / "synthetic" / "turned.png")
    noise = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "synthetic" / "noise.png")
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "encoder", Encoder(TINY), Thresholds(0.6, 0.99), {})
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(tmp_path / "encoder"), RUN)
    return tmp_path


def queried(root, *, report="report", top_k=10, **options):
    """Query with ten candidates, of which all are reported; options are of evidence or verdict."""
    evidence = {k: options.pop(k) for k in list(options) if k in EvidenceConfig.__slots__}
    verdict = {"similar": -1.0, "duplicate": 0.99} | options
    config = QueryConfig(
        evidence=EvidenceConfig(**{"candidates": 10} | evidence),
        verdict=VerdictConfig(top_k, **verdict),
    )
    result = query(root / "synthetic", root / "index", root / report, config, RUN)
    table = pq.read_table(root / report / "matches.parquet").to_pylist()
    return result, {(row["synthetic"], row["training"]): row for row in table}


def test_a_copy_is_found_with_what_was_done_to_it(built):
    result, pairs = queried(built)
    flipped, turned = pairs["flipped.png", "3.png"], pairs["turned.png", "5.png"]
    assert flipped["rank"] == turned["rank"] == 1
    assert flipped["transform"]["flip"] == "horizontal"
    assert flipped["transform"]["degrees"] == pytest.approx(0, abs=0.1)
    assert flipped["ssim"] == pytest.approx(1, abs=0.01)
    assert turned["transform"]["flip"] == "none"
    assert turned["transform"]["degrees"] == pytest.approx(-6, abs=0.2)
    assert turned["transform"]["right"] == pytest.approx(10 * 128 / 160, abs=0.3)
    assert turned["transform"]["down"] == pytest.approx(5 * 128 / 160, abs=0.3)
    assert turned["ssim"] > 0.9
    assert flipped["ssim_confirmed"]
    assert turned["ssim_confirmed"]
    assert not any(row["ssim_confirmed"] for (name, _), row in pairs.items() if name == "noise.png")
    confirmed = sum(row["ssim_confirmed"] for row in pairs.values())
    assert result.summary["verification"] == {
        "registered": 30,
        "ssim_confirmed": confirmed,
        "not_registered": 0,
    }


def test_candidates_are_ranked_by_verdict_then_ssim(built):
    _, pairs = queried(built, duplicate=1.0)
    for name in ("flipped.png", "turned.png", "noise.png"):
        rows = sorted((r for (s, _), r in pairs.items() if s == name), key=lambda r: r["rank"])
        assert [row["rank"] for row in rows] == list(range(1, 11))
        ssim = [row["ssim"] for row in rows]
        assert ssim == sorted(ssim, reverse=True)


def test_the_verdict_of_a_registered_pair_is_by_its_ssim(built):
    """The noise scores like any other image to a random encoder; its SSIM says what it is."""
    _, pairs = queried(built, duplicate=-1.0)
    assert pairs["flipped.png", "3.png"]["verdict"] == "duplicate"
    assert {row["verdict"] for (name, _), row in pairs.items() if name == "noise.png"} == {
        "similar"
    }
    result, pairs = queried(built, duplicate=-1.0, verify=False)
    assert {row["verdict"] for row in pairs.values()} == {"duplicate"}
    assert all(
        row["ssim"] is row["transform"] is row["ssim_confirmed"] is None for row in pairs.values()
    )
    assert result.summary["verification"] is None


def test_a_copy_that_scores_low_is_a_duplicate_by_its_ssim(built):
    """Also where the score alone would have called it different."""
    options = {"similar": 0.99999, "duplicate": 0.99999, "high_ssim": 0.9}
    _, pairs = queried(built, **options)
    turned = pairs["turned.png", "5.png"]
    assert turned["score"] < 0.99999
    assert turned["ssim"] > 0.9
    assert (turned["rank"], turned["verdict"]) == (1, "duplicate")
    _, pairs = queried(built, **options, verify=False)
    assert pairs["turned.png", "5.png"]["verdict"] == "different"


def test_flagged_csv_has_the_transform_in_columns(built):
    queried(built)
    with (built / "report" / "flagged.csv").open(newline="") as file:
        rows = {row["synthetic"]: row for row in csv.DictReader(file)}
    assert rows["flipped.png"]["flip"] == "horizontal"
    assert rows["flipped.png"]["ssim_confirmed"] == "true"
    assert float(rows["flipped.png"]["ssim"]) > 0.99


def test_a_training_image_that_is_gone_or_another_now_leaves_the_score_to_judge(built):
    (built / "training" / "3.png").unlink()
    Image.effect_noise((160, 160), 40).save(built / "training" / "5.png")
    result, pairs = queried(built, duplicate=-1.0)
    for (_, training), row in pairs.items():
        assert (row["ssim"] is None) == (training in ("3.png", "5.png"))
        if training in ("3.png", "5.png"):
            assert row["verdict"] == "duplicate"  # as without verification
    assert result.summary["verification"]["not_registered"] == 6


def test_a_training_folder_that_moved_can_be_named(built):
    (built / "training").rename(built / "moved")
    result, _ = queried(built)
    assert result.summary["verification"] == {
        "registered": 0,
        "ssim_confirmed": 0,
        "not_registered": 30,
    }
    (built / "report").rename(built / "old")
    with pytest.raises(InputMissing):
        queried(built, training=built / "nowhere")
    result, pairs = queried(built, training=built / "moved")
    assert result.summary["verification"]["registered"] == 30
    assert pairs["flipped.png", "3.png"]["ssim"] > 0.99


def test_slices_of_a_volume_are_verified_one_by_one(built, heads):
    for file in (built / "training").iterdir():
        file.unlink()
    stack = np.stack([np.asarray(image).T for image in heads], 2)
    image = nibabel.Nifti1Image(stack, np.eye(4))
    with gzip.open(built / "training" / "scan.nii.gz", "wb") as file:
        file.write(image.to_bytes())
    build_index(built / "training", built / "index", IndexConfig(built / "encoder"), RUN)
    _, pairs = queried(built)
    assert len(pairs) == 30
    assert all(row["ssim"] is not None for row in pairs.values())
    best = max((r for (s, _), r in pairs.items() if s == "flipped.png"), key=lambda r: r["ssim"])
    assert best["training"] == "scan.nii.gz#axis=2,slice=3"
    assert best["rank"] == 1


@given(st.data())
def test_the_order_is_that_of_a_plain_sort(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    verdicts = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 2)))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    scores = data.draw(hnp.arrays(np.float32, shape, elements=values))
    ssim = data.draw(
        hnp.arrays(np.float32, shape, elements=st.one_of(values, st.just(float("nan"))))
    )
    found = strongest_first(verdicts, ssim, scores)
    for row in range(shape[0]):
        wanted = sorted(
            range(shape[1]),
            key=lambda k: (
                -verdicts[row, k],
                -np.nan_to_num(ssim[row, k], nan=-9),
                -scores[row, k],
            ),
        )
        assert found[row].tolist() == wanted
