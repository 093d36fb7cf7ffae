"""What `check` finds and names, and what `repair` puts back to the byte."""

import csv
import os
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import TINY, TINY_CONVNEXT
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder import inference as embed
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import (
    Busy,
    CheckpointError,
    Damaged,
    InputError,
    InputMissing,
    StoreMismatch,
)
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.check.findings import Findings
from deepssim_scan.jobs.check.without import look_for_subject
from deepssim_scan.jobs.config import IndexConfig, QueryConfig, RepairConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.repair import repair
from deepssim_scan.matching.config import VerdictConfig
from deepssim_scan.storage.files import sha256, shown
from deepssim_scan.storage.publish import locked
from deepssim_scan.storage.records import read_json, write_json
from deepssim_scan.store.config import EmbedConfig

SMALL = EmbedConfig(shard_rows=8)
RUN = RunContext("cpu", workers=0)


def save(folder, numbers, seed=0):
    folder.mkdir(parents=True)
    for number in numbers:
        samples = np.random.default_rng(seed + number).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(samples).save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index of 20 images and one that is none, in three shards, and a report on ten."""
    root = tmp_path_factory.mktemp("made")
    save(root / "training", range(20))
    (root / "training" / "05b.png").touch()
    volume = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    np.save(root / "training" / "09b.npy", volume)
    save(root / "synthetic", range(10), seed=5)
    torch.manual_seed(0)
    checkpoint.save(root / "encoder.safetensors", Encoder(TINY), {})
    build_index(
        root / "training",
        root / "index",
        IndexConfig(root / "encoder.safetensors", embed=SMALL),
        RUN,
    )
    config = QueryConfig(embed=SMALL, verdict=VerdictConfig(3, "reference"))
    query(root / "synthetic", root / "index", root / "report", config, RUN)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy of it to damage; the index still names the folders that it was made of."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip(path, position=7):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


MAY_BE_GONE = ("index.json", "summary.json", "store.json", "calibration.json")
"""Without the first three a folder is none of ours; an index need not be calibrated."""

PLACES = {
    "checkpoint": "encoder.safetensors",
    "index": "index",
    "store": "index/store",
    "report": "report",
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_intact_is_said_to_be(made, kind):
    before = contents(made)
    checked = check(made / PLACES[kind])
    assert (checked.kind, checked.problems, checked.intact) == (kind, (), True)
    expected = {
        "index": {"listed": 24, "rows": 23, "rejected": 1, "blank": 0},
        "report": {"listed": 10, "rows": 10, "rejected": 0, "blank": 0, "matches": 30},
        "checkpoint": {},
    }
    assert checked.counts == expected.get(kind, expected["index"])
    assert contents(made) == before


@pytest.mark.parametrize("place", PLACES.values())
def test_row_32_every_file_is_looked_at(made, tmp_path, place):
    """Each file, in turn, flipped, cut, and removed: found, and named."""
    files = [place] if (made / place).is_file() else list(contents(made / place))
    for name in files:
        for number, damage in enumerate((flip, lambda p: os.truncate(p, 3), lambda p: p.unlink())):
            copy = tmp_path / f"{number}"
            shutil.copytree(made, copy)
            target = copy / place if name == place else copy / place / name
            damage(target)
            if target.exists() or target.name not in MAY_BE_GONE:
                if target == copy / place and not target.exists():
                    with pytest.raises(InputMissing):
                        check(copy / place)
                else:
                    checked = check(copy / place)
                    assert not checked.intact, name
                    named = " ".join(problem.where for problem in checked.problems)
                    assert target.name in named or "store" in named or "synthetic" in named
            shutil.rmtree(copy)


def test_row_32_damaged_rows_are_named(root):
    flip(root / "index/store/embeddings.zarr/c.0.0")
    (root / "index/store/embeddings.zarr/c.2.0").unlink()
    problems = check(root / "index").problems
    assert [problem.rows for problem in problems] == [(0, 7), (16, 22)]


def test_a_store_that_is_not_that_of_the_index(root):
    other = root / "other"
    build_index(
        root / "synthetic", other, IndexConfig(root / "encoder.safetensors", embed=SMALL), RUN
    )
    shutil.rmtree(root / "index/store")
    shutil.copytree(other / "store", root / "index/store")
    problems = [problem.what for problem in check(root / "index").problems]
    assert any("store digest is" in what for what in problems)
    assert set(problems) - {"is of another store or encoder"} == {problems[0]}


def test_an_index_of_other_rows_than_the_store(root):
    """One that agrees with its manifest, in everything but the vectors."""
    import faiss

    path = root / "index/flat.faiss"
    index = faiss.read_index(str(path))
    rows = index.reconstruct_n(0, index.ntotal)
    changed = faiss.IndexFlatIP(index.d)
    changed.add(np.concatenate([rows[:8], rows[:8], rows[16:]]))
    faiss.write_index(changed, str(path))
    value = read_json(root / "index/index.json")
    value["files"]["flat.faiss"] = sha256(path)
    write_json(root / "index/index.json", value)
    (problem,) = check(root / "index").problems
    assert (problem.what, problem.rows) == ("not the rows of the store", (8, 15))


def test_a_match_that_is_gone_from_a_report(root):
    """With digests that fit, so that the counts must tell."""
    path = root / "report/matches.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)
    value = read_json(root / "report/summary.json")
    value["files"]["matches.parquet"] = sha256(path)
    write_json(root / "report/summary.json", value)
    (problem,) = check(root / "report").problems
    assert problem.what.startswith("29 matches")


def test_a_verdict_that_was_changed_in_a_report(root):
    path = root / "report/matches.parquet"
    table = pq.read_table(path)
    verdicts = table["verdict"].cast(pa.string()).to_pylist()
    verdicts[0] = "similar" if verdicts[0] != "similar" else "different"
    column = pa.array(verdicts).dictionary_encode().cast(table.schema.field("verdict").type)
    pq.write_table(table.set_column(4, "verdict", column), path)
    value = read_json(root / "report/summary.json")
    value["files"]["matches.parquet"] = sha256(path)
    write_json(root / "report/summary.json", value)
    (problem,) = check(root / "report").problems
    assert "not as in summary.json" in problem.what


def test_a_column_of_a_report_that_is_called_otherwise(root):
    path = root / "report/matches.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns({"verdict": "verdics"}), path)
    value = read_json(root / "report/summary.json")
    value["files"]["matches.parquet"] = sha256(path)
    write_json(root / "report/summary.json", value)
    (problem,) = check(root / "report").problems
    assert "its columns are synthetic, rank, training, score, verdics" in problem.what


def test_what_is_none_of_ours_is_refused(tmp_path):
    with pytest.raises(InputMissing):
        check(tmp_path / "absent")
    with pytest.raises(InputError, match="neither a store"):
        check(tmp_path)
    (tmp_path / "file").write_bytes(b"text")
    assert "not a safetensors file" in check(tmp_path / "file").problems[0].what


# Repair.


@pytest.mark.parametrize(("place", "store"), [("index", "store"), ("report", "synthetic")])
def test_damaged_rows_are_embedded_again_to_the_byte(made, root, place, store):
    chunks = sorted((root / place / store / "embeddings.zarr").glob("c.*"))
    flip(chunks[0])
    chunks[-1].unlink()
    checked = repair(root / place, run=RUN)
    assert checked.intact
    assert contents(root / place) == contents(made / place)


def test_images_too_small_were_in_the_batches_too(tmp_path, monkeypatch):
    exact = embed.embed_views
    # Rows that depend on how many images are in their batch, as last bits may.
    monkeypatch.setattr(embed, "embed_views", lambda *given: exact(*given).roll(len(given[1]), 1))
    save(tmp_path / "training", range(8))
    small = np.random.default_rng(0).integers(0, 256, (6, 6), np.uint8)
    Image.fromarray(small).save(tmp_path / "training" / "01b.png")
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "encoder", Encoder(TINY_CONVNEXT), {})
    index = tmp_path / "index"
    build_index(tmp_path / "training", index, IndexConfig(tmp_path / "encoder", embed=SMALL), RUN)
    before = contents(index)
    assert b"too-small" in before["rejected.csv"]
    flip(index / "store/embeddings.zarr/c.0.0")
    assert repair(index, run=RUN).intact
    assert contents(index) == before


def test_a_store_alone_is_repaired_with_its_encoder(made, root):
    flip(root / "index/store/embeddings.zarr/c.1.0")
    shutil.move(root / "index/store", root / "store")
    with pytest.raises(StoreMismatch, match="Give that one with --encoder"):
        repair(root / "store", run=RUN)
    checked = repair(root / "store", RepairConfig(encoder=root / "encoder.safetensors"), RUN)
    assert checked.intact
    assert contents(root / "store") == contents(made / "index/store")


@pytest.mark.parametrize("name", ["flat.faiss", "index.json", "rejected.csv"])
@pytest.mark.parametrize("and_rows", [False, True])
def test_an_index_is_made_again_of_its_store(made, root, name, and_rows):
    flip(root / "index" / name)
    if and_rows:
        flip(root / "index/store/embeddings.zarr/c.1.0")
    assert repair(root / "index", run=RUN).intact
    assert contents(root / "index") == contents(made / "index")


@pytest.mark.parametrize("name", ["encoder.safetensors", "job.json"])
def test_what_cannot_be_made_again_is_left_and_named(root, name):
    flip(root / "index" / name, 40)
    flip(root / "index/flat.faiss")
    before = contents(root / "index")
    with pytest.raises((Damaged, StoreMismatch, CheckpointError)):
        repair(root / "index", run=RUN)
    assert contents(root / "index") == before


def test_row_31_a_repair_is_a_writer(root):
    flip(root / "index/store/embeddings.zarr/c.0.0")
    before = contents(root / "index")
    with locked(root / "index"), pytest.raises(Busy, match="is being written by process"):
        repair(root / "index", run=RUN)
    assert contents(root / "index") == before


def test_images_that_are_not_where_they_were(root):
    flip(root / "report/synthetic/embeddings.zarr/c.0.0")
    value = read_json(root / "report/synthetic/store.json")
    value["source"]["folder"] = str(root / "nowhere")
    write_json(root / "report/synthetic/store.json", value)
    with pytest.raises(InputMissing, match="Say where the images are now with --images"):
        repair(root / "report", run=RUN)


def test_a_summary_that_is_none(root):
    write_json(root / "report/summary.json", {"command": "query"})
    problems = check(root / "report").problems
    assert "is no summary of a query" in problems[-1].what


def test_a_report_of_another_store(root):
    other = QueryConfig(embed=SMALL, verdict=VerdictConfig(3, "reference"))
    save(root / "more", range(12), seed=5)
    query(root / "more", root / "index", root / "other", other, RUN)
    shutil.rmtree(root / "report/synthetic")
    shutil.copytree(root / "other/synthetic", root / "report/synthetic")
    assert "is of another store" in " ".join(p.what for p in check(root / "report").problems)


def test_a_damaged_catalog_is_not_guessed_at(root):
    flip(root / "index/store/catalog.sqlite", 5000)
    with pytest.raises(Damaged, match=r"catalog\.sqlite"):
        repair(root / "index", run=RUN)


def test_images_that_changed_are_not_embedded(root):
    """The same name and other pixels: the hash tells."""
    flip(root / "index/store/embeddings.zarr/c.0.0")
    save(root / "moved", [20])
    shutil.copytree(root / "training", root / "moved", dirs_exist_ok=True)
    shutil.copy(root / "moved/20.png", root / "moved/03.png")
    before = contents(root / "index")
    with pytest.raises(InputError, match=r"'03.png' is not the image any more"):
        repair(root / "index", RepairConfig(root / "moved"), RUN)
    (root / "moved/03.png").unlink()
    with pytest.raises(InputError, match=r"1 images of damaged rows are gone, the first '03.png'"):
        repair(root / "index", RepairConfig(root / "moved"), RUN)
    assert contents(root / "index") == before
    shutil.copy(root / "training/03.png", root / "moved/03.png")
    assert repair(root / "index", RepairConfig(root / "moved"), RUN).intact


def test_rows_that_come_out_otherwise_are_not_written(root, monkeypatch):
    flip(root / "index/store/embeddings.zarr/c.0.0")
    before = contents(root / "index")
    exact = embed.embed_views

    def shaky(*given):
        rows = exact(*given)
        return rows * torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))

    monkeypatch.setattr(embed, "embed_views", shaky)
    with pytest.raises(InputError, match="not the same to the last bit"):
        repair(root / "index", run=RUN)
    assert contents(root / "index") == before


def test_a_subject_is_found_in_tables_that_are_packed(made):
    """Parquet keeps of a name what is not as in the name before it."""
    path = made / "report/matches.parquet"
    for name in set(pq.read_table(path)["training"].to_pylist()):
        problems = check(made / "report", without=[name]).problems
        assert str(path) in {problem.where for problem in problems}


@pytest.mark.parametrize("name", ["Müller", "p&1", 'p"1', "p\\1", "=1", "p\udc801"])
def test_a_subject_is_found_however_a_file_writes_its_name(tmp_path, name):
    write_json(tmp_path / "calibration.json", {"duplicates": [[f"{name}/1.png", "x"]]})
    (tmp_path / "report.html").write_text(f"<td>{escape(shown(name))}</td>")
    with (tmp_path / "rejected.csv").open("w", newline="") as file:
        csv.writer(file).writerow([shown(f"{name}/1.png"), "damaged"])
    pq.write_table(pa.table({"training": [shown(f"{name}/1.png")]}), tmp_path / "matches.parquet")
    findings = Findings()
    look_for_subject(tmp_path, [name], findings)
    found = {Path(problem.where).name for problem in findings.problems}
    assert found == {path.name for path in tmp_path.iterdir()}


def test_a_table_that_cannot_be_looked_through_is_told(root):
    path = root / "report/subjects.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    found = [p.what for p in check(root / "report", without=["nobody"]).problems]
    assert any("cannot be read" in what for what in found)
