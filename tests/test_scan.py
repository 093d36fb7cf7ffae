"""The two jobs, end to end, on real files, with a small encoder of random weights.

Such an encoder scores a copy 1 and, being a function of the pixels alone, needs no training.
"""

import csv
import json
import os
import stat
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import TINY, TINY_CONVNEXT, drawn
from PIL import Image

from deepssim_scan import checkpoint, scan
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.describe import describe
from deepssim_scan.embed import EmbedConfig, embed_decoded
from deepssim_scan.embeddings import Store
from deepssim_scan.encoder import Encoder
from deepssim_scan.errors import InputError, InputMissing, ScanError, StoreMismatch
from deepssim_scan.files import shown
from deepssim_scan.images import decode_images
from deepssim_scan.listing import list_images
from deepssim_scan.scan import QueryConfig
from deepssim_scan.views import VIEWS

ONE = EmbedConfig(device="cpu", workers=1)


def encoder_file(path, seed=0):
    torch.manual_seed(seed)
    checkpoint.save(path, Encoder(TINY), Thresholds(0.6, 0.999), {"test": True})
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
    scan.build_index(root / "training", root / "index", encoder, ONE)
    return root


@pytest.fixture(scope="module")
def report(built):
    folder = built / "report"
    scan.query(built / "synthetic", built / "index", folder, QueryConfig(3, embed=ONE))
    return folder


def test_the_copies_are_flagged_with_their_source_and_the_others_are_not(report):
    rows = table_of(report / "flagged.csv")
    found = {row["synthetic"]: row["training"] for row in rows}
    assert found == {f"{n}.png": f"p0/{n:02d}.png" for n in range(4)}
    assert all(float(row["score"]) > 0.999 and row["rank"] == "1" for row in rows)


def strength(row):
    """What the matches of an image are ordered by."""
    verdict = ("different", "similar", "duplicate").index(row["verdict"])
    return verdict, -2 if row["ssim"] is None else row["ssim"], row["score"]


def test_matches_are_those_of_a_brute_force_search(built, report):
    with Store.open(built / "index" / "store") as known, Store.open(report / "synthetic") as asked:
        names = known.paths()
        views = asked.manifest.by_view(asked.read(0, 10)).astype(float)
        scores = (views @ known.read(0, 30).astype(float).T).max(1)
    assert views.shape == (10, len(VIEWS), TINY.dimension)
    order = np.argsort(-scores, axis=1)[:, :3]
    table = pq.read_table(report / "matches.parquet").to_pylist()
    assert [row["rank"] for row in table] == [1, 2, 3] * 10
    for number, best in enumerate(order):
        rows = table[3 * number : 3 * number + 3]
        found = {row["training"]: row["score"] for row in rows}
        assert found == {names[i]: pytest.approx(scores[number, i], abs=1e-6) for i in best}
        assert rows == sorted(rows, key=strength, reverse=True)


@pytest.mark.parametrize("views", [0, 6])
def test_views_that_there_are_not_are_refused(views):
    with pytest.raises(InputError, match=f"views must be 1 to 5, found {views}"):
        QueryConfig(views=views)


def test_with_more_views_no_score_is_lower(built, tmp_path):
    found = []
    for views in (1, len(VIEWS)):
        folder = tmp_path / str(views)
        config = QueryConfig(top_k=30, views=views, verify=False, embed=ONE)
        result = scan.query(built / "synthetic", built / "index", folder, config)
        assert result.summary["views"] == describe(folder / "synthetic")["views"] == views
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
        "gamma: float>",
        "verified": "bool",
    }


def test_the_summary_counts_every_image_and_names_what_was_used(built, report):
    summary = json.loads((report / "summary.json").read_text())
    counts = summary["counts"]
    assert summary["complete"] is True
    assert counts["listed"] == counts["judged"] == 10
    assert counts["duplicate"] + counts["similar"] + counts["different"] == 10
    assert counts["duplicate"] == 4
    assert summary["thresholds"] == asdict(Thresholds(0.6, 0.999))
    fingerprint = checkpoint.load(built / "encoder.safetensors").fingerprint
    assert summary["fingerprints"]["encoder"] == fingerprint
    assert describe(built / "index")["encoder"] == fingerprint


def test_row_38_what_is_written_is_private(built, report):
    for folder in (built / "index", report):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_thresholds_can_be_overridden(built, tmp_path):
    config = QueryConfig(similar=-1.0, duplicate=1.0, ssim=1.0, embed=ONE)
    result = scan.query(built / "synthetic", built / "index", tmp_path / "report", config)
    assert result.summary["counts"]["similar"] == 10
    assert result.flagged == 0


def test_row_27_k_over_the_training_set_is_clamped_and_said(built, tmp_path):
    config = QueryConfig(top_k=99, embed=ONE)
    result = scan.query(built / "synthetic", built / "index", tmp_path / "report", config)
    assert result.summary["top_k"] == 30
    assert pq.read_metadata(tmp_path / "report" / "matches.parquet").num_rows == 300


def test_bad_files_are_named_and_the_run_is_not_complete(built, tmp_path):
    folder = tmp_path / "synthetic"
    save(picture(1), folder / "copy.png")
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "copy.png").read_bytes()[:300])
    Image.new("L", (40, 40), 7).save(folder / "flat.png")
    (folder / "notes.txt").write_text("not an image")
    result = scan.query(folder, built / "index", tmp_path / "report", QueryConfig(embed=ONE))
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
    indexed = scan.build_index(tmp_path / "training", tmp_path / "index", encoder, ONE)
    assert not indexed.complete
    config = QueryConfig(embed=ONE)
    result = scan.query(built / "synthetic", tmp_path / "index", tmp_path / "report", config)
    assert not result.complete
    assert result.summary["counts"]["training_rejected"] == 1


def test_row_26_no_readable_image_fails_and_keeps_the_old_report(built, tmp_path):
    config = QueryConfig(embed=ONE)
    scan.query(built / "synthetic", built / "index", tmp_path / "report", config)
    before = (tmp_path / "report" / "summary.json").read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 1 images .*\(1 empty-file\)"):
        scan.query(tmp_path / "bad", built / "index", tmp_path / "report", config)
    assert (tmp_path / "report" / "summary.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "report"]


def test_row_18_an_embedding_that_is_not_finite_rejects_its_file(built, tmp_path):
    loaded = checkpoint.load(built / "encoder.safetensors")
    encoder = loaded.encoder
    with torch.no_grad():
        encoder.fc.out.weight.fill_(float("inf"))
    listing = list_images(built / "synthetic")
    decoded = [
        image for item in decode_images(listing, TINY.standardisation, workers=0) for image in item
    ]
    entries, rows = embed_decoded(encoder, decoded)
    assert [entry.reason for entry in entries] == ["embedding"] * 10
    assert rows.shape == (0, 32)


def test_row_34_an_index_with_another_encoder_is_refused(built, tmp_path):
    scan.build_index(built / "training", tmp_path / "index", built / "encoder.safetensors", ONE)
    encoder_file(tmp_path / "index" / "encoder.safetensors", seed=1)
    with pytest.raises(StoreMismatch, match="the index was built with"):
        scan.query(built / "synthetic", tmp_path / "index", tmp_path / "report", QueryConfig())


def test_row_34_an_index_that_is_replaced_as_a_query_begins(built, tmp_path, monkeypatch):
    """The encoder of the old one must not judge by the embeddings of the new one."""
    other = checkpoint.load(encoder_file(tmp_path / "other.safetensors", seed=1))
    monkeypatch.setattr(scan, "index_encoder", lambda index: other)
    with pytest.raises(StoreMismatch, match="it was replaced meanwhile"):
        scan.query(built / "synthetic", built / "index", tmp_path / "r", QueryConfig(embed=ONE))


def test_row_34_an_encoder_that_is_replaced_while_it_is_copied(built, tmp_path, monkeypatch):
    path = encoder_file(tmp_path / "e.safetensors")
    load = checkpoint.load

    def replaced(path):
        loaded = load(path)
        encoder_file(path, seed=1)
        return loaded

    monkeypatch.setattr(checkpoint, "load", replaced)
    with pytest.raises(StoreMismatch, match="it was replaced meanwhile"):
        scan.build_index(built / "training", tmp_path / "index", path, ONE)


def test_a_report_folder_of_any_name(built, tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xff")
    result = scan.query(built / "synthetic", built / "index", folder, QueryConfig(embed=ONE))
    assert result.flagged == 4


def test_a_folder_of_something_else_is_never_replaced(built, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    encoder = built / "encoder.safetensors"
    with pytest.raises(InputError, match=r"holds thesis\.txt, so it is not replaced"):
        scan.build_index(built / "training", tmp_path / "mine", encoder, ONE)
    with pytest.raises(InputError, match=r"holds thesis\.txt, so it is not replaced"):
        scan.query(built / "synthetic", built / "index", tmp_path / "mine", QueryConfig(embed=ONE))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_missing_index_or_folder_is_named(built, tmp_path):
    with pytest.raises(InputMissing, match=r"nothing-here.*index\.json"):
        scan.query(built / "synthetic", tmp_path / "nothing-here", tmp_path / "r", QueryConfig())
    with pytest.raises(InputMissing, match="nowhere"):
        scan.query(tmp_path / "nowhere", built / "index", tmp_path / "r", QueryConfig(embed=ONE))


def test_the_result_does_not_depend_on_batch_or_workers(built, tmp_path):
    found = []
    for batch, workers in ((64, 1), (3, 2)):
        config = QueryConfig(embed=EmbedConfig(device="cpu", batch=batch, workers=workers))
        folder = tmp_path / f"report-{batch}"
        scan.query(built / "synthetic", built / "index", folder, config)
        table = pq.read_table(folder / "matches.parquet")
        found.append((table["training"].to_pylist(), np.array(table["score"])))
    assert found[0][0] == found[1][0]
    assert np.abs(found[0][1] - found[1][1]).max() < 1e-6


def test_images_of_several_sizes_are_embedded_by_an_encoder_without_a_size(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "e.safetensors", Encoder(TINY_CONVNEXT), Thresholds(), {})
    for number, side in enumerate((24, 40, 24, 32)):
        save(picture(number).resize((side, 40)), tmp_path / "training" / f"{number}.png")
    result = scan.build_index(
        tmp_path / "training", tmp_path / "i", tmp_path / "e.safetensors", ONE
    )
    assert (result.indexed, result.rejected) == (4, 0)
    query = scan.query(
        tmp_path / "training", tmp_path / "i", tmp_path / "r", QueryConfig(embed=ONE)
    )
    assert [match.synthetic == match.training for match in query.strongest] == [True] * 4


def test_row_25_odd_names_survive_and_are_escaped(built, tmp_path):
    names = [b"=cmd.png", b"@sum.png", b"new\nline.png", b"\xff\xfe.png", b"\x1b[31mred.png"]
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for number, name in enumerate(names):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:  # noqa: PTH123 - bytes
            picture(number).save(file, "PNG")
    scan.query(folder, built / "index", tmp_path / "report", QueryConfig(embed=ONE))
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
        lambda: EmbedConfig(batch=0),
        lambda: EmbedConfig(shard_rows=0),
        lambda: QueryConfig(top_k=0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ScanError, match="must be >= 1, found 0"):
        make()


def test_thresholds_in_the_wrong_order_are_refused(built, tmp_path):
    config = QueryConfig(similar=0.9, duplicate=0.8, embed=ONE)
    with pytest.raises(ScanError, match=r"similar 0\.9, duplicate 0\.8"):
        scan.query(built / "synthetic", built / "index", tmp_path / "r", config)


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
