"""The two jobs, end to end, on real files, with a small encoder of random weights.

Such an encoder scores a copy 1 and, being a function of the pixels alone, needs no training.
"""

import csv
import json
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import TINY, TINY_CONVNEXT, drawn
from PIL import Image, ImageOps

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import (
    DependencyMissing,
    InputError,
    InputMissing,
    ScanError,
    StoreMismatch,
    Unfinished,
)
from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.jobs import query as query_job
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query import run as query_run
from deepssim_scan.matching import evidence
from deepssim_scan.matching.config import CanaryConfig, EvidenceConfig, VerdictConfig
from deepssim_scan.reporting.describe import describe
from deepssim_scan.storage.files import shown
from deepssim_scan.store import embed_listing, reread
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

RUN = RunContext("cpu", workers=1)


def indexing(encoder, ingest=None):
    """An index that is not calibrated: most of these are of a few images."""
    return IndexConfig(encoder, ingest or IngestConfig(), calibrate=False)


def reference(top_k=5, similar=None, duplicate=0.999):
    """Verdicts by the score alone, which is 1 of a copy."""
    return VerdictConfig(top_k, "reference", None, similar, duplicate)


def asking(**parts):
    """A query whose verdicts are those of `reference`."""
    return QueryConfig(**({"verdict": reference()} | parts))


def encoder_file(path, seed=0):
    torch.manual_seed(seed)
    checkpoint.save(path, Encoder(TINY), {"test": True})
    return path


def table_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def picture(number):
    return Image.fromarray(drawn(number, 40))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A training folder of 30 pictures, an index of it, and 10 synthetic ones, 4 of them copies."""
    root = tmp_path_factory.mktemp("built")
    for number in range(30):
        save(picture(number), root / "training" / f"p{number // 10}" / f"{number:02d}.png")
    for number in range(10):
        save(picture(number if number < 4 else 100 + number), root / "synthetic" / f"{number}.png")
    encoder = encoder_file(root / "encoder.safetensors")
    build_index(root / "training", root / "index", indexing(encoder), RUN)
    return root


@pytest.fixture(scope="module")
def report(built):
    folder = built / "report"
    config = asking(evidence=EvidenceConfig(candidates=30), verdict=reference(3))
    query(built / "synthetic", built / "index", folder, config, RUN)
    return folder


def test_the_copies_are_flagged_with_their_source_and_the_others_are_not(report):
    rows = table_of(report / "flagged.csv")
    found = {row["synthetic"]: row["training"] for row in rows}
    assert found == {f"{n}.png": f"p0/{n:02d}.png" for n in range(4)}
    assert all(float(row["score"]) > 0.999 and row["rank"] == "1" for row in rows)


def strength(row):
    """What the matches of an image are ordered by."""
    verdict = ("different", "undecidable", "similar", "duplicate").index(row["verdict"])
    return verdict, -np.inf if row["statistic"] is None else row["statistic"], row["score"]


def test_matches_are_those_of_a_brute_force_search(built, report):
    encoder = checkpoint.load(built / "index" / "encoder.safetensors").encoder
    rule = encoder.architecture.standardisation
    with Store.open(built / "index" / "store") as known, Store.open(report / "synthetic") as asked:
        names = known.paths()
        images = [np.asarray(Image.open(built / "synthetic" / name)) for name in asked.paths()]
        pixels = np.stack([standardise(image.astype(np.float32), rule) for image in images])
        views = embed_tta(encoder, torch.from_numpy(pixels)).numpy().astype(float)
        np.testing.assert_allclose(views[:, 0], asked.read(0, 10), atol=1e-5)
        scores = (views @ known.read(0, 30).astype(float).T).max(1)
    order = np.argsort(-scores, axis=1)[:, :3]
    table = pq.read_table(report / "matches.parquet").to_pylist()
    assert [row["rank"] for row in table] == [1, 2, 3] * 10
    for number, best in enumerate(order):
        rows = table[3 * number : 3 * number + 3]
        found = {row["training"]: row["score"] for row in rows}
        assert found == {names[i]: pytest.approx(scores[number, i], abs=1e-6) for i in best}
        assert rows == sorted(rows, key=strength, reverse=True)


def test_a_folder_that_may_hold_images_of_many_people_is_nobody(tmp_path):
    """Fewer than 20 folders: calibration takes files for runs, and the report names no subject."""
    for number in range(12):
        save(picture(number), tmp_path / "training" / "site" / f"{number}.png")
    for number in range(3):
        save(picture(number), tmp_path / "synthetic" / f"{number}.png")
    encoder = encoder_file(tmp_path / "encoder.safetensors")
    build_index(tmp_path / "training", tmp_path / "index", indexing(encoder), RUN)
    found = query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", asking(), RUN)
    assert found.summary["counts"]["duplicate"] == 3
    assert found.summary["subjects"] == {"training": 0, "flagged": 3, "unnamed": 3}
    matches, copied = (
        pq.read_table(tmp_path / "report" / name).to_pydict()
        for name in ("matches.parquet", "subjects.parquet")
    )
    assert set(matches["subject"]) == {""}
    assert sorted(copied["subject"]) == [f"site/{number}.png" for number in range(3)]
    assert len({match.finding for match in found.strongest}) == 3


@pytest.mark.parametrize("views", [0, 5])
def test_views_that_there_are_not_are_refused(views):
    with pytest.raises(InputError, match=f"tta_views must be 1 to 4, found {views}"):
        EvidenceConfig(tta_views=views)


def test_with_more_views_no_score_is_lower(built, tmp_path):
    found = []
    for views in (1, len(TTA_VIEWS)):
        folder = tmp_path / str(views)
        config = asking(
            evidence=EvidenceConfig(tta_views=views, verify=False), verdict=reference(30)
        )
        result = query(built / "synthetic", built / "index", folder, config, RUN)
        assert result.summary["tta_views"] == views
        rows = pq.read_table(folder / "matches.parquet").to_pylist()
        found.append({(row["synthetic"], row["training"]): row["score"] for row in rows})
    one, many = found
    assert one.keys() == many.keys()
    assert all(many[pair] >= score - 1e-6 for pair, score in one.items())
    assert any(many[pair] > score + 1e-3 for pair, score in one.items())


def test_parquet_has_the_documented_columns(report):
    schema = pq.read_schema(report / "matches.parquet")
    types = {field.name: str(field.type) for field in schema}
    assert types == {
        "synthetic": "string",
        "rank": "int32",
        "training": "string",
        "score": "float",
        "verdict": "dictionary<values=string, indices=int8, ordered=0>",
        "ssim": "float",
        "transform": "struct<flip: string, degrees: float, right: float, down: float, "
        "gamma: float, scale: float, quarter_turn: bool, inverted: bool>",
        "ssim_confirmed": "bool",
        "subject": "string",
        "p_value": "double",
        "statistic": "double",
        "ncc": "float",
        "lcn": "float",
        "foreground": "float",
        "finding": "string",
        "synthetic_row": "int64",
        "training_row": "int64",
    }


def test_the_summary_counts_every_image_and_names_what_was_used(built, report):
    summary = json.loads((report / "summary.json").read_text())
    counts = summary["counts"]
    assert summary["complete"] is True
    assert counts["listed"] == counts["judged"] == 10
    assert counts["duplicate"] + counts["similar"] + counts["different"] == 10
    assert counts["duplicate"] == 4
    assert summary["bounds"] == {"similar": 0.6, "duplicate": 0.999}
    assert (summary["rule"], summary["calibration"], summary["canaries"]) == (
        "reference",
        None,
        None,
    )
    fingerprint = checkpoint.load(built / "encoder.safetensors").fingerprint
    assert summary["fingerprints"]["encoder"] == fingerprint
    assert describe(built / "index")["encoder"] == fingerprint


def test_row_38_what_is_written_is_private(built, report):
    for folder in (built / "index", report):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_bounds_can_be_chosen(built, tmp_path):
    config = asking(verdict=reference(similar=-1.0, duplicate=1.0))
    result = query(built / "synthetic", built / "index", tmp_path / "report", config, RUN)
    assert result.summary["counts"]["similar"] == 10
    assert result.flagged == 0


def test_row_27_k_over_the_training_set_is_clamped_and_said(built, tmp_path):
    config = asking(verdict=reference(99))
    result = query(built / "synthetic", built / "index", tmp_path / "report", config, RUN)
    assert result.summary["top_k"] == 30
    assert pq.read_metadata(tmp_path / "report" / "matches.parquet").num_rows == 300


def test_bad_files_are_named_and_the_run_is_not_complete(built, tmp_path):
    folder = tmp_path / "synthetic"
    save(picture(1), folder / "copy.png")
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "copy.png").read_bytes()[:300])
    Image.new("L", (40, 40), 7).save(folder / "flat.png")
    (folder / "notes.txt").write_text("not an image")
    result = query(folder, built / "index", tmp_path / "report", asking(), RUN)
    rows = table_of(tmp_path / "report" / "rejected.csv")
    reasons = {row["path"]: row["reason"] for row in rows}
    assert reasons == {"empty.png": "empty-file", "half.png": "damaged", "flat.png": "constant"}
    assert not result.complete
    assert result.flagged == 1
    assert result.summary["ignored"] == 1
    counts = result.summary["counts"]
    assert counts["judged"] + counts["rejected"] == counts["listed"] == 4


def test_a_rejected_training_image_makes_every_query_incomplete(built, tmp_path):
    for number in range(3):
        save(picture(number), tmp_path / "training" / f"{number}.png")
    (tmp_path / "training" / "bad.png").write_bytes(b"<html>")
    encoder = built / "encoder.safetensors"
    indexed = build_index(tmp_path / "training", tmp_path / "index", indexing(encoder), RUN)
    assert not indexed.complete
    config = asking()
    result = query(built / "synthetic", tmp_path / "index", tmp_path / "report", config, RUN)
    assert not result.complete
    assert result.summary["counts"]["training_rejected"] == 1


def test_row_26_no_readable_image_fails_and_keeps_the_old_report(built, tmp_path):
    config = asking()
    query(built / "synthetic", built / "index", tmp_path / "report", config, RUN)
    before = (tmp_path / "report" / "summary.json").read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 1 images .*\(1 empty-file\)"):
        query(tmp_path / "bad", built / "index", tmp_path / "report", config, RUN)
    assert (tmp_path / "report" / "summary.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "report"]


def test_row_18_an_embedding_that_is_not_finite_rejects_its_file(built, tmp_path):
    loaded = checkpoint.load(built / "encoder.safetensors")
    with torch.no_grad():
        loaded.encoder.fc.out.weight.fill_(float("inf"))
    embedder = Embedder(loaded, run=RunContext(workers=0))
    files = list_images(built / "synthetic").files
    ((entries, rows),) = embedder.embed_items(built / "synthetic", [files])
    assert [entry.reason for entry in entries] == ["embedding"] * 10
    assert rows.embeddings.shape == (0, 32)


def test_row_34_an_index_with_another_encoder_is_refused(built, tmp_path):
    build_index(
        built / "training", tmp_path / "index", indexing(built / "encoder.safetensors"), RUN
    )
    encoder_file(tmp_path / "index" / "encoder.safetensors", seed=1)
    with pytest.raises(StoreMismatch, match="the index was built with"):
        query(built / "synthetic", tmp_path / "index", tmp_path / "report", asking(), RUN)


def test_row_34_an_index_that_is_replaced_as_a_query_begins(built, tmp_path, monkeypatch):
    """The encoder of the old one must not judge by the embeddings of the new one."""
    other = checkpoint.load(encoder_file(tmp_path / "other.safetensors", seed=1))
    monkeypatch.setattr(query_job, "index_encoder", lambda index: other)
    with pytest.raises(StoreMismatch, match="it was replaced meanwhile"):
        query(built / "synthetic", built / "index", tmp_path / "r", asking(), RUN)


def test_row_34_an_encoder_that_is_replaced_while_it_is_copied(built, tmp_path, monkeypatch):
    path = encoder_file(tmp_path / "e.safetensors")
    opened = checkpoint.opened

    def replaced(path):
        found = opened(path)
        encoder_file(path, seed=1)
        return found

    monkeypatch.setattr(checkpoint, "opened", replaced)
    with pytest.raises(StoreMismatch, match="it was replaced meanwhile"):
        build_index(built / "training", tmp_path / "index", indexing(path), RUN)


def test_a_report_folder_of_any_name(built, tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xff")
    result = query(built / "synthetic", built / "index", folder, asking(), RUN)
    assert result.flagged == 4


def test_a_folder_of_something_else_is_never_replaced(built, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    encoder = built / "encoder.safetensors"
    with pytest.raises(InputError, match=r"holds thesis\.txt, so it is not replaced"):
        build_index(built / "training", tmp_path / "mine", indexing(encoder), RUN)
    with pytest.raises(InputError, match=r"holds thesis\.txt, so it is not replaced"):
        query(built / "synthetic", built / "index", tmp_path / "mine", asking(), RUN)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_missing_index_or_folder_is_named(built, tmp_path):
    with pytest.raises(InputMissing, match=r"nothing-here.*index\.json"):
        query(built / "synthetic", tmp_path / "nothing-here", tmp_path / "r", asking(), RUN)
    with pytest.raises(InputMissing, match="nowhere"):
        query(tmp_path / "nowhere", built / "index", tmp_path / "r", asking(), RUN)


class AnyOrder:
    """Runs blocks in this process in an order that is drawn."""

    workers, gpu = 0, None

    def __init__(self, random):
        self._random = random

    def map(self, block, tasks):
        tasks = [*tasks]
        order = [*range(len(tasks))]
        self._random.shuffle(order)
        answers = {number: block(tasks[number]) for number in order}
        return (answers[number] for number in range(len(tasks)))

    def close(self): ...


@pytest.fixture(scope="module")
def night(people, tmp_path_factory):
    """Copies of several kinds, other people, and a report on them, with canaries, by default."""
    root = tmp_path_factory.mktemp("night")
    training = [people / "training" / f"s{number:02d}" / "1.png" for number in range(3)]
    first, second, third = (Image.fromarray(np.asarray(Image.open(each))) for each in training)
    images = [first, second.transpose(Image.Transpose.FLIP_TOP_BOTTOM), third.rotate(9)]
    for number, image in enumerate([*images, *map(picture, range(6))]):
        save(image, root / "synthetic" / f"{number}.png")
    query(root / "synthetic", people / "index", root / "report", NIGHT, RunContext("cpu", 0))
    return root


NIGHT = QueryConfig(canaries=CanaryConfig(12))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 70), st.sampled_from([0, 0, 1, 3]), st.randoms(use_true_random=False))
def test_a_verdict_does_not_depend_on_who_computes_it_in_which_blocks_and_order(
    people, night, size, workers, random
):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        for module in (embed_listing, evidence, reread):
            patch.setattr(module, "CHUNK", size)
        patch.setattr(embed_listing, "chunks", partial(pipeline.chunks, most=size))
        run = RunContext("cpu", workers, executor=None if workers else AnyOrder(random))
        report = Path(name) / "report"
        query(night / "synthetic", people / "index", report, NIGHT, run)
        for each in ("matches.parquet", "subjects.parquet"):
            assert (report / each).read_bytes() == (night / "report" / each).read_bytes()
        found = [
            json.loads((each / "summary.json").read_text()) for each in (report, night / "report")
        ]
        assert len({json.dumps(each["canaries"]) for each in found}) == 1


def test_images_of_several_sizes_are_embedded_by_an_encoder_without_a_size(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "e.safetensors", Encoder(TINY_CONVNEXT), {})
    for number, side in enumerate((24, 40, 24, 32)):
        save(picture(number).resize((side, 40)), tmp_path / "training" / f"{number}.png")
    result = build_index(
        tmp_path / "training", tmp_path / "i", indexing(tmp_path / "e.safetensors"), RUN
    )
    assert (result.indexed, result.rejected) == (4, 0)
    found = query(tmp_path / "training", tmp_path / "i", tmp_path / "r", asking(), RUN)
    assert [match.synthetic == match.training for match in found.strongest] == [True] * 4


def test_row_25_odd_names_survive_and_are_escaped(built, tmp_path):
    names = [b"=cmd.png", b"@sum.png", b"new\nline.png", b"\xff\xfe.png", b"\x1b[31mred.png"]
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for number, name in enumerate(names):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:  # noqa: PTH123 - bytes
            picture(number).save(file, "PNG")
    query(folder, built / "index", tmp_path / "report", asking(), RUN)
    rows = table_of(tmp_path / "report" / "flagged.csv")
    expected = {
        "./=cmd.png",
        "./@sum.png",
        r"new\nline.png",
        r"\xff\xfe.png",
        r"\x1b[31mred.png",
    }
    assert {row["synthetic"] for row in rows} == expected
    assert expected == {shown(os.fsdecode(name)) for name in names}


@pytest.mark.parametrize(
    "make",
    [
        lambda: EmbedConfig(shard_rows=0),
        lambda: reference(top_k=0),
        lambda: EvidenceConfig(candidates=0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ScanError, match="must be >= 1, found 0"):
        make()


def test_bounds_in_the_wrong_order_are_refused(built, tmp_path):
    config = asking(verdict=reference(similar=0.9, duplicate=0.8))
    with pytest.raises(ScanError, match=r"similar \(0\.9\) must be <= duplicate \(0\.8\)"):
        query(built / "synthetic", built / "index", tmp_path / "r", config, RUN)


def test_describe_knows_the_four_kinds(built, report):
    kinds = {
        "index": built / "index",
        "store": built / "index" / "store",
        "report": report,
        "checkpoint": built / "encoder.safetensors",
    }
    for kind, path in kinds.items():
        assert describe(path)["kind"] == kind
    assert describe(built / "index")["rows"] == 30
    with pytest.raises(InputError, match="neither a store, an index, a report nor a checkpoint"):
        describe(built / "training")
    with pytest.raises(InputMissing, match="nothing is there"):
        describe(built / "absent")


# What a run needs not do again, and what makes it incomplete.


class Seen:
    """Progress that keeps the greatest number of each stage, and what was said."""

    def __init__(self):
        self.stages, self.said = {}, []

    def __call__(self, stage, done, total, note=""):
        assert done <= total
        assert done >= self.stages.get(stage, (0, total))[0]
        self.stages[stage] = done, total

    def warn(self, text):
        self.said.append(text)


def watched(built, report, config=None, **changes):
    """Query, and return the result with what was shown meanwhile."""
    seen = Seen()
    run = replace(RUN, progress=seen, **changes)
    return query(built / "synthetic", built / "index", report, config or asking(), run), seen


def matches_of(report):
    return pq.read_table(report / "matches.parquet").to_pylist()


def test_with_one_match_reported_as_many_candidates_are_verified(built, tmp_path):
    """The report's length decides nothing of what is found."""
    one, five = (asking(verdict=reference(k)) for k in (1, 5))
    short, seen = watched(built, tmp_path / "short", one)
    whole, _ = watched(built, tmp_path / "whole", five)
    assert seen.stages["pairs registered"] == (80, 80)
    assert short.summary["counts"] == whole.summary["counts"]
    assert short.summary["verification"] == whole.summary["verification"]
    first = [row for row in matches_of(tmp_path / "whole") if row["rank"] == 1]
    assert matches_of(tmp_path / "short") == first


def test_a_source_that_is_not_the_first_by_score_is_found(built, tmp_path):
    """Whatever the length of the report: registration finds it among the candidates."""
    build_index(
        built / "training", tmp_path / "index", IndexConfig(built / "encoder.safetensors"), RUN
    )
    sources = {f"{n}.png": f"p{n // 10}/{n:02d}.png" for n in range(30)}
    for number in range(30):
        save(picture(number).rotate(9, translate=(2, 1)), tmp_path / "synthetic" / f"{number}.png")
    verdict = VerdictConfig(30, false_alarm=0.05)
    config = QueryConfig(verdict=verdict, canaries=CanaryConfig(0))
    query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "all", config, RUN)
    rows = matches_of(tmp_path / "all")
    second = set()
    for name, source in sources.items():
        mine = {row["training"]: row for row in rows if row["synthetic"] == name}
        better = sum(row["score"] > mine[source]["score"] for row in mine.values())
        if better and (mine[source]["rank"], mine[source]["verdict"]) == (1, "duplicate"):
            second.add(name)
    assert second
    config = replace(config, verdict=replace(verdict, top_k=1))
    query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "one", config, RUN)
    found = {row["synthetic"]: row for row in matches_of(tmp_path / "one")}
    assert {name: found[name]["training"] for name in second} == {n: sources[n] for n in second}
    assert {found[name]["verdict"] for name in second} == {"duplicate"}


def test_another_false_alarm_rate_embeds_and_registers_nothing_again(people, tmp_path):
    """A report that is finished is judged anew, as a new one would be."""
    for name in ("s03/0.png", "s07/1.png"):
        path = tmp_path / "synthetic" / name
        path.parent.mkdir(parents=True)
        shutil.copy(people / "training" / name, path)
    save(picture(5), tmp_path / "synthetic" / "other.png")

    def asked(report, rate):
        verdict, seen = VerdictConfig(false_alarm=rate), Seen()
        config = QueryConfig(verdict=verdict, canaries=CanaryConfig(0))
        run = replace(RUN, progress=seen)
        return query(tmp_path / "synthetic", people / "index", report, config, run), seen

    first, seen = asked(tmp_path / "report", None)
    assert seen.stages["synthetic images"] == (3, 3)
    assert seen.stages["pairs registered"] == (24, 24)
    second, seen = asked(tmp_path / "report", 0.3)
    assert not {"synthetic images", "pairs registered"} & seen.stages.keys()
    assert second.summary["calibration"]["false_alarm"] == 0.3
    assert second.summary["bounds"]["duplicate"] < first.summary["bounds"]["duplicate"]
    fresh, _ = asked(tmp_path / "fresh", 0.3)
    assert matches_of(tmp_path / "report") == matches_of(tmp_path / "fresh")
    assert second.summary["counts"] == fresh.summary["counts"]


@pytest.fixture
def movable(built, tmp_path):
    """A copy of the training images with an index of its own, to take away; and the others."""
    shutil.copytree(built / "training", tmp_path / "training")
    (tmp_path / "synthetic").symlink_to(built / "synthetic")
    build_index(
        tmp_path / "training", tmp_path / "index", indexing(built / "encoder.safetensors"), RUN
    )
    return tmp_path


def test_row_46_a_run_without_its_training_images_is_incomplete(movable):
    (movable / "training").rename(movable / "gone")
    result, seen = watched(movable, movable / "report")
    assert not result.complete
    assert result.summary["verification"] == {"registered": 0, "not_registered": 80}
    assert "are not there any more" in seen.said[0]
    (movable / "gone").rename(movable / "training")
    result, _ = watched(movable, movable / "report")
    assert result.complete
    assert result.summary["verification"]["registered"] == 80


def test_row_46_asked_for_it_is_complete_and_says_so(movable):
    (movable / "training").rename(movable / "gone")
    config = asking(evidence=EvidenceConfig(verify=False))
    result, seen = watched(movable, movable / "report", config)
    assert result.complete
    assert result.summary["verification"] is None
    assert not seen.said


class Killed(BaseException):
    """What ends a run in these tests, as no handler of errors would."""


def test_row_46_a_resumed_run_verifies_what_was_judged_without(movable, monkeypatch):
    (movable / "training").rename(movable / "gone")
    monkeypatch.setattr(query_run, "writing_matches", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        watched(movable, movable / "report")
    monkeypatch.undo()
    (movable / "gone").rename(movable / "training")
    result, seen = watched(movable, movable / "report")
    assert "synthetic images" not in seen.stages
    assert result.complete
    assert result.summary["verification"]["registered"] == 80
    watched(movable, movable / "other")
    assert matches_of(movable / "report") == matches_of(movable / "other")


@pytest.mark.parametrize("training", ["empty", "others"])
def test_row_50_training_images_that_are_not_there_fail_before_any_work(built, tmp_path, training):
    """What an earlier run left is kept."""
    (tmp_path / "empty").mkdir()
    save(picture(7), tmp_path / "others" / "x.png")
    config = asking(evidence=EvidenceConfig(training=tmp_path / training))
    seen = Seen()
    partial = tmp_path / ".report.partial"
    partial.mkdir()
    (partial / "left").write_text("by an earlier run")
    with pytest.raises(InputError, match=r"no image to read|none of the 30 training images"):
        query(
            built / "synthetic",
            built / "index",
            tmp_path / "report",
            config,
            RunContext(progress=seen),
        )
    assert not seen.stages
    assert (partial / "left").read_text() == "by an earlier run"


def test_row_51_another_option_is_named_and_nothing_is_lost(built, tmp_path, monkeypatch):
    monkeypatch.setattr(query_run, "writing_matches", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        watched(built, tmp_path / "report")
    monkeypatch.undo()
    before = sorted(path.name for path in (tmp_path / ".report.partial").rglob("*"))
    other = asking(ingest=IngestConfig(subject_regex="a"))
    with pytest.raises(Unfinished, match=r"source\.subject_regex was None, is a\..*--restart"):
        watched(built, tmp_path / "report", other)
    fewer = asking(evidence=EvidenceConfig(candidates=2))
    with pytest.raises(Unfinished, match=r"candidates was 8, is 2\..*--restart"):
        watched(built, tmp_path / "report", fewer)
    assert sorted(path.name for path in (tmp_path / ".report.partial").rglob("*")) == before
    _, seen = watched(built, tmp_path / "report", replace(other, restart=True))
    assert seen.stages["synthetic images"] == (10, 10)


@pytest.mark.parametrize("killed", [False, True])
def test_row_52_other_bounds_or_top_k_embed_and_register_nothing(
    built, tmp_path, monkeypatch, killed
):
    """Neither after a report was finished nor after a run was killed."""
    if killed:
        broken = lambda folder: (_ for _ in ()).throw(Killed)  # noqa: E731
        monkeypatch.setattr(query_run, "writing_matches", broken)
        with pytest.raises(Killed):
            watched(built, tmp_path / "report")
        monkeypatch.undo()
    else:
        watched(built, tmp_path / "report")
    config = asking(verdict=reference(2, similar=-1.0, duplicate=1.0))
    result, seen = watched(built, tmp_path / "report", config)
    assert not {"synthetic images", "pairs registered"} & seen.stages.keys()
    assert result.summary["counts"]["similar"] == 10
    fresh, _ = watched(built, tmp_path / "fresh", config)
    assert matches_of(tmp_path / "report") == matches_of(tmp_path / "fresh")
    assert result.summary["counts"] == fresh.summary["counts"]


def test_a_report_that_is_damaged_is_not_built_upon(built, tmp_path):
    watched(built, tmp_path / "report")
    (chunk,) = (tmp_path / "report" / "synthetic" / "embeddings.zarr").glob("c.*")
    data = bytearray(chunk.read_bytes())
    data[50] ^= 1
    chunk.write_bytes(data)
    result, seen = watched(built, tmp_path / "report")
    assert seen.stages["synthetic images"] == (10, 10)
    assert result.flagged == 4


def test_row_30_a_run_killed_as_it_takes_over_a_report_leaves_it_intact(
    built, tmp_path, monkeypatch
):
    """Files that both reports have are never written: neither then, nor by the run after it."""
    watched(built, tmp_path / "report")
    before = (tmp_path / "report" / "matches.parquet").read_bytes()
    linked, real = [], os.link

    def killed(source, target):
        if linked:
            raise Killed
        linked.append(real(source, target))

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(Killed):
        watched(built, tmp_path / "report")
    monkeypatch.setattr(os, "link", real)
    monkeypatch.setattr(query_run, "writing_matches", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        watched(built, tmp_path / "report")
    assert check(tmp_path / "report").intact
    monkeypatch.undo()
    watched(built, tmp_path / "report")
    assert check(tmp_path / "report").intact
    assert (tmp_path / "report" / "matches.parquet").read_bytes() == before
    shutil.rmtree(tmp_path / "report" / "evidence")
    result, seen = watched(built, tmp_path / "report")
    assert seen.stages["pairs registered"] == (80, 80)
    assert result.flagged == 4


def test_row_47_a_users_file_deep_in_an_index_is_not_deleted(built, tmp_path):
    config = indexing(built / "encoder.safetensors")
    build_index(built / "training", tmp_path / "index", config, RUN)
    precious = tmp_path / "index" / "store" / "notes.txt"
    precious.write_text("years of work")
    with pytest.raises(InputError, match=r"holds store/notes\.txt, so it is not replaced"):
        build_index(built / "training", tmp_path / "index", config, RUN)
    assert precious.read_text() == "years of work"


def test_row_43_blank_slices_are_counted_apart_and_leave_a_run_complete(built, tmp_path):
    """A volume whose end slices are empty, on both sides, beside a frame with one copy."""
    slices = np.zeros((5, 40, 40), np.float32)
    slices[1:4] = [np.asarray(picture(n)) for n in (50, 51, 3)]
    for side in ("training", "synthetic"):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / "scan.npy", slices)
    config = indexing(built / "encoder.safetensors")
    indexed = build_index(tmp_path / "training", tmp_path / "index", config, RUN)
    assert (indexed.listed, indexed.indexed, indexed.rejected, indexed.blank) == (5, 3, 0, 2)
    result = query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", asking(), RUN)
    assert indexed.complete
    assert result.complete
    assert result.summary["counts"]["blank"] == 2
    assert result.flagged == 3
    for folder in ("index", "report"):
        names = [row["path"] for row in table_of(tmp_path / folder / "blank.csv")]
        assert names == ["scan.npy#axis=0,slice=0", "scan.npy#axis=0,slice=4"]
        assert table_of(tmp_path / folder / "rejected.csv") == []


def test_files_left_out_on_purpose_are_counted(built, tmp_path):
    selection = Selection(exclude=("p1/*", "*.h5"))
    (tmp_path / "training").mkdir()
    shutil.copytree(built / "training", tmp_path / "training", dirs_exist_ok=True)
    (tmp_path / "training" / "more.h5").write_bytes(b"\x89HDF")
    config = indexing(built / "encoder.safetensors", IngestConfig(selection))
    result = build_index(tmp_path / "training", tmp_path / "index", config, RUN)
    assert (result.indexed, result.excluded, result.complete) == (20, 11, True)


def test_subjects_of_the_training_images_are_in_the_report(built, tmp_path):
    config = indexing(built / "encoder.safetensors", IngestConfig(subject_regex=r"p\d/(\d)\d\.png"))
    build_index(built / "training", tmp_path / "index", config, RUN)
    result = query(built / "synthetic", tmp_path / "index", tmp_path / "report", asking(), RUN)
    assert result.summary["subjects"] == {"training": 3, "flagged": 1, "unnamed": 0}
    rows = table_of(tmp_path / "report" / "flagged.csv")
    assert {row["subject"] for row in rows} == {"0"}
    by_folder, _ = watched(built, tmp_path / "folders")
    nobody = {"training": 0, "flagged": 4, "unnamed": 4}  # three folders may be anyone's
    assert by_folder.summary["subjects"] == nobody
    assert {row["subject"] for row in matches_of(tmp_path / "folders")} == {""}


def test_an_image_without_a_known_subject_among_known_ones_is_nobodys(built, tmp_path):
    """The copied images are of p0, of which the expression says nothing."""
    config = indexing(built / "encoder.safetensors", IngestConfig(subject_regex=r"p[12]/(\d)\d"))
    build_index(built / "training", tmp_path / "index", config, RUN)
    result = query(built / "synthetic", tmp_path / "index", tmp_path / "report", asking(), RUN)
    assert result.summary["subjects"] == {"training": 2, "flagged": 4, "unnamed": 4}
    rows = table_of(tmp_path / "report" / "flagged.csv")
    assert [row["subject"] for row in rows] == [""] * 4


def test_an_index_and_a_report_inside_the_folder_are_no_images(built, tmp_path):
    """`--training .` twice: what the first run wrote is not listed by the second."""
    shutil.copytree(built / "training", tmp_path, dirs_exist_ok=True)
    config = indexing(built / "encoder.safetensors")
    build_index(tmp_path, tmp_path / "deepssim-index", config, RUN)
    query(tmp_path, tmp_path / "deepssim-index", tmp_path / "deepssim-report", asking(), RUN)
    again = build_index(tmp_path, tmp_path / "deepssim-index", config, RUN)
    assert (again.listed, again.rejected, again.ignored) == (30, 0, 2)
    picture(90).save(tmp_path / "deepssim-report" / "made.png")
    more = build_index(tmp_path, tmp_path / "more" / "index", config, RUN)
    assert (more.listed, more.rejected, more.ignored) == (31, 0, 2)
    (tmp_path / "deepssim-report" / "job.json").write_text("{}")  # not ours any more
    result = build_index(tmp_path, tmp_path / "other", config, RUN)
    assert not result.complete


def test_row_50_without_faiss_nothing_is_embedded(built, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    seen = Seen()
    with pytest.raises(DependencyMissing, match=r"pip install 'deepssim-scan\[cpu\]'"):
        build_index(built / "training", tmp_path / "index", run=RunContext(progress=seen))
    assert not seen.stages
    assert not list(tmp_path.iterdir())


def source_of(people):
    """A slice of a pseudo-subject, and the name that it has in the index."""
    return Image.open(people / "training" / "s20" / "1.png"), "s20/1.png"


def found_of(people, folder, report):
    """Query a folder with the defaults; return the strongest match of each image by name."""
    config = QueryConfig(canaries=CanaryConfig(0))
    summary = query(folder, people / "index", report, config, RUN).summary
    return summary, {row["synthetic"]: row for row in matches_of(report) if row["rank"] == 1}


def test_row_41_copies_that_are_turned_or_transposed_are_found(people, tmp_path):
    image, name = source_of(people)
    for turn in Image.Transpose:
        save(image.transpose(turn), tmp_path / "synthetic" / f"{turn.name}.png")
    np.save(tmp_path / "synthetic" / "transposed.npy", np.asarray(image).T)
    summary, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert len(found) == 8
    assert {row["training"] for row in found.values()} == {name}
    assert {row["verdict"] for row in found.values()} == {"duplicate"}
    turned = {key for key, row in found.items() if row["transform"]["quarter_turn"]}
    assert turned == {key for key in found if "FLIP" not in key and "180" not in key}
    assert summary["counts"]["duplicate"] == 8


def test_row_42_copies_that_are_scaled_or_inverted_are_found(people, tmp_path):
    image, name = source_of(people)
    for percent in (89, 94, 106, 112):
        side = round(128 * percent / 100)
        scaled = image.resize((side, side), Image.Resampling.BICUBIC)
        start = (side - 128) // 2
        box = (start, start, start + 128, start + 128)  # beyond the image, crop gives black
        save(scaled.crop(box), tmp_path / "synthetic" / f"{percent}.png")
    save(image.point(lambda grey: 255 - grey), tmp_path / "synthetic" / "inverted.png")
    _, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert {row["training"] for row in found.values()} == {name}
    assert {row["verdict"] for row in found.values()} == {"duplicate"}
    for key, row in found.items():
        percent = key.removesuffix(".png")
        if percent.isdigit():
            assert row["transform"]["scale"] == pytest.approx(int(percent) / 100, abs=0.02)
        else:
            assert row["transform"]["inverted"]


def test_row_64_a_copy_with_an_outlier_is_found(people, tmp_path):
    image, name = source_of(people)
    (tmp_path / "synthetic").mkdir()
    for value in (-1e3, 1e3, -1e30):
        pixels = np.asarray(image, np.float32) / 255
        pixels[3, 3] = value
        np.save(tmp_path / "synthetic" / f"{value:g}.npy", pixels)
    _, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert len(found) == 3
    assert {row["training"] for row in found.values()} == {name}
    assert {row["verdict"] for row in found.values()} == {"duplicate"}


def test_row_66_a_copy_with_text_far_brighter_than_the_image_is_found(people, tmp_path):
    (tmp_path / "synthetic").mkdir()
    image, name = source_of(people)
    for grey in (4095, 65535):
        pixels = 8 * np.asarray(image, np.uint16)
        pixels[4:12, 4:24] = grey
        Image.fromarray(pixels).save(tmp_path / "synthetic" / f"{grey}.png")
    _, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert len(found) == 2
    assert {row["training"] for row in found.values()} == {name}
    assert {row["verdict"] for row in found.values()} == {"duplicate"}


def test_row_65_copies_in_a_light_frame_are_found(people, tmp_path):
    (tmp_path / "synthetic").mkdir()
    image, name = source_of(people)
    for width in (2, 4, 16):
        framed = ImageOps.expand(image, width, 255)
        framed.save(tmp_path / "synthetic" / f"{width}.png")
        framed.save(tmp_path / "synthetic" / f"{width}.jpg", quality=75)
    _, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert len(found) == 6
    assert {row["training"] for row in found.values()} == {name}
    assert {row["verdict"] for row in found.values()} == {"duplicate"}


def test_row_44_an_image_of_small_spots_is_undecidable_and_counted_apart(people, tmp_path):
    rows, columns = np.mgrid[:128, :128]
    spots = np.zeros((128, 128))
    for row, column in ((40, 50), (80, 70)):
        spots += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)
    save(Image.fromarray((255 * spots).astype(np.uint8)), tmp_path / "synthetic" / "spots.png")
    summary, found = found_of(people, tmp_path / "synthetic", tmp_path / "report")
    assert found["spots.png"]["verdict"] == "undecidable"
    assert found["spots.png"]["foreground"] < 0.02
    counts = summary["counts"]
    assert (counts["undecidable"], counts["judged"], counts["different"]) == (1, 1, 0)
