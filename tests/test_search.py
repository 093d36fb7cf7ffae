"""Approximate indexes: what they propose is scored as an exact search scores it, and no more is
left out than is said.
"""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import damaged, given_bytes, unit, write_store

from deepssim_scan.cli import main
from deepssim_scan.cli.commands import build_index as commands
from deepssim_scan.errors import Damaged, InputError, InputMissing
from deepssim_scan.index import approximate, kinds
from deepssim_scan.index import build as index_build
from deepssim_scan.index.build import build, require_type
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.faiss_io import serialised
from deepssim_scan.index.manifest import IndexManifest, SearchType
from deepssim_scan.index.recall import measured
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import IndexResult, build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query import run as query_run
from deepssim_scan.jobs.repair import repair
from deepssim_scan.matching.config import CanaryConfig, EvidenceConfig, VerdictConfig
from deepssim_scan.progress import Collected
from deepssim_scan.store.store import Store

RUN = RunContext("cpu", workers=0)
ROWS, DIMENSION = 3000, 16
KINDS = "ivf", "ivfpq", "hnsw", "IVF30,RaBitQ", "OPQ8_16,IVF30,SQ8", "IVF30,PQ8x4fs", "PQ8"
FILES = "approximate.faiss", "flat.faiss", "index.json"


def grouped(count: int, seed: int) -> np.ndarray:
    """Rows about 60 centres, as images of people are about views."""
    rng = np.random.default_rng(seed)
    rows = unit(60, DIMENSION)[rng.integers(0, 60, count)] + 0.4 * unit(count, DIMENSION, seed + 1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return grouped(ROWS, 0)


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    with Store.open(write_store(tmp_path_factory.mktemp("of") / "store", rows)) as store:
        yield store


@pytest.fixture(scope="module", params=KINDS)
def index(request, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    build(store, folder, config=SearchConfig(request.param), run=RUN)
    return folder


def exact(rows, queries):
    """All scores of all queries, exact in float64 but for the last rounding."""
    return (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)


def test_what_is_proposed_has_the_scores_and_the_order_of_an_exact_search(rows, store, index):
    queries = grouped(200, 7)
    found = TrainingIndex.open(index, store).search(queries, 10)
    scores = exact(rows, queries)
    assert np.allclose(found.scores, np.take_along_axis(scores, found.rows, 1), atol=1e-6)
    assert (np.diff(found.scores) <= 0).all()
    assert all(len(set(each)) == 10 for each in found.rows.tolist())
    best = TrainingIndex.open(index, store, exact=True).search(queries, 10)
    for ours, theirs in zip(found.rows, best.rows, strict=True):
        kept = [row for row in theirs.tolist() if row in set(ours.tolist())]
        assert kept == [row for row in ours.tolist() if row in set(theirs.tolist())]


def test_what_is_stated_of_recall_is_what_a_count_finds(rows, store, index):
    queries = grouped(500, 9)
    search = TrainingIndex.open(index, store)
    told = measured(search, queries, 5)
    wanted = np.argsort(-exact(rows, queries), axis=1, kind="stable")[:, :5]
    found = search.search(queries, 5).rows
    assert told.queries == 500
    assert told.matches == 2500
    assert told.best == (found[:, 0] == wanted[:, 0]).sum()
    assert told.found == sum(len({*a} & {*b}) for a, b in zip(found, wanted, strict=True))


def test_the_effort_is_the_least_that_finds_most(index, store):
    manifest = IndexManifest.read(index)
    search = TrainingIndex.open(index, store)
    assert (search.proposer.kind, search.proposer.effort) == (manifest.factory, manifest.effort)
    *tried, told = manifest.curve
    most = max(point["found"] for point in tried)
    assert manifest.effort == min(p["effort"] for p in tried if p["found"] == most)
    assert told["effort"] == manifest.effort
    assert told["found"] >= 0.99 * most
    assert manifest.search.recall == told["found"] / told["queries"]
    assert all(point["queries"] == ROWS // 2 for point in manifest.curve)


def test_the_curve_counts_best_matches_of_other_subjects(rows, tmp_path):
    """Five rows a subject, near each other: what is found of them is no measure of the others."""
    near = np.repeat(rows[: ROWS // 5], 5, 0) + 0.02 * unit(ROWS, DIMENSION, 4)
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    subjects = [f"s{row // 5}" for row in range(ROWS)]
    with Store.open(write_store(tmp_path / "store", near, subjects=subjects)) as store:
        manifest = build(store, tmp_path / "index", config=SearchConfig("IVF60,Flat"), run=RUN)
        search = TrainingIndex.open(tmp_path / "index", store)
        found = search.search(near, 30)
    own = np.arange(ROWS) // 5
    scores = exact(near, near)
    scores[own[:, None] == own] = -2
    others = np.where(own[found.rows] == own[:, None], -2, found.scores).max(1)
    hits = (others >= scores.max(1) - 1e-6).sum()
    chosen = [each["found"] for each in manifest.curve if each["effort"] == manifest.effort]
    assert len(chosen) == 2
    assert sum(chosen) == hits
    alone = manifest.curve[0]
    assert alone["found"] < 0.98 * alone["queries"], "one list finds all: this test tests nothing"


def test_recall_that_cannot_be_reached_is_warned_of(store, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "_efforts", lambda _: ("nprobe", (1,)))
    told = Collected()
    build(store, tmp_path / "i", config=SearchConfig("ivf"), run=replace(RUN, progress=told))
    assert any("of the best matches, and 99.90% were asked for" in each for each in told.warnings)


def test_recall_is_reached_where_a_tenth_of_the_rows_must_be_compared(tmp_path):
    """Rows in all directions are hard to put into lists."""
    with Store.open(write_store(tmp_path / "store", unit(2000, 8))) as store:
        manifest = build(store, tmp_path / "index", config=SearchConfig("ivf"), run=RUN)
    *tried, told = manifest.curve
    assert told["compared"] > 2000 / 10, "fewer suffice: this test tests nothing"
    assert tried[-1]["found"] >= 0.999 * tried[-1]["queries"]
    assert told["found"] >= 0.99 * told["queries"]


@pytest.mark.parametrize("kind", ["hnsw", "RR32,HNSW32", "HNSW32_SQ8,RFlat"])
def test_of_many_images_that_are_one_each_is_found(kind, tmp_path):
    """A graph of many equal rows leaves some that no search reaches: they are searched exactly."""
    rows = np.concatenate([np.repeat(unit(2, 32), 100, 0), unit(4000, 32, 1)])
    with Store.open(write_store(tmp_path / "store", rows)) as repeated:
        build(repeated, tmp_path / "index", config=SearchConfig(kind), run=RUN)
        search = TrainingIndex.open(tmp_path / "index", repeated)
        assert search.proposer.effort >= 64
        unfound = IndexManifest.read(tmp_path / "index").unfound
        assert unfound, "the graph finds every row: this test tests nothing"
        found = search.search(rows, 5)
        assert (found.scores[:, 0] > 1 - 1e-6).all()
        assert all(len(set(each)) == 5 for each in found.rows.tolist())


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw", "OPQ8_16,IVF30,SQ8"])
def test_the_same_bytes_by_any_number_of_workers(kind, store, tmp_path):
    made = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        build(store, folder, config=SearchConfig(kind), run=replace(RUN, workers=workers))
        made.append((folder / "approximate.faiss").read_bytes())
    assert made[0] == made[1]


def test_lists_are_those_that_faiss_makes_of_the_same_rows(rows, store, tmp_path, monkeypatch):
    monkeypatch.setattr("deepssim_scan.index.lists._BLOCK", 700)
    monkeypatch.setattr("deepssim_scan.index.lists._GATHERED", 90)
    build(store, tmp_path / "index", config=SearchConfig("IVF30,SQ8"), run=RUN)
    theirs = faiss.read_index(str(tmp_path / "index" / "approximate.faiss"))
    theirs.reset()
    theirs.add(rows)
    file = tmp_path / "theirs.faiss"
    faiss.write_index(theirs, str(file))
    assert file.read_bytes() == (tmp_path / "index" / "approximate.faiss").read_bytes()


def test_where_too_few_rows_are_proposed_all_are_searched(rows, store, tmp_path):
    build(store, tmp_path / "index", config=SearchConfig("IVF200,Flat"), run=RUN)
    search = TrainingIndex.open(tmp_path / "index", store)
    search.proposer.use(1)
    queries = grouped(20, 3)
    wanted = TrainingIndex.open(tmp_path / "index", store, exact=True).search(queries, 500)
    found = search.search(queries, 500)
    assert (found.rows == wanted.rows).all()
    assert (found.scores == wanted.scores).all()
    near, far = (each.search(queries, 1).scores for each in (search, search.exact()))
    assert (near < far).any(), "the best match is in the first list: this test tests nothing"


@pytest.mark.parametrize("index", ["ivf"], indirect=True)
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_changed_byte_and_a_cut_file_are_found(index, store, name, where, bit, cut):
    data = damaged((index / name).read_bytes(), where, bit, cut=cut)
    with given_bytes(index, name, data), pytest.raises((Damaged, InputMissing)):
        TrainingIndex.open(index, store)


@pytest.mark.parametrize("index", ["hnsw"], indirect=True)
@pytest.mark.parametrize("foreign", ["IVF30,SQ8", "Flat", "HNSW32_SQ8"])
def test_a_foreign_index_is_refused_even_when_the_manifest_agrees(index, store, rows, foreign):
    other = faiss.index_factory(DIMENSION, foreign, faiss.METRIC_INNER_PRODUCT)
    other.train(rows)
    other.add(rows[:-1])
    data = serialised(other)
    with (
        given_bytes(index, "approximate.faiss", data, agreed=True),
        pytest.raises(Damaged, match=r"approximate\.faiss: holds .*Build it again"),
    ):
        TrainingIndex.open(index, store)


@pytest.mark.parametrize(
    "kind", ["what", "PQ5", "hnsw32", "HNSW0", "IVF10_HNSW1,SQ8", "HNSW01", "NSG16"]
)
def test_an_unknown_type_is_refused_by_name(kind):
    with pytest.raises(InputError, match=r"no index of type .* Choose one of auto"):
        require_type(kind, DIMENSION)


@pytest.mark.parametrize(
    ("kind", "count", "reason"),
    [
        ("ivf", 100, "it needs 1,024 images, and there are 100"),
        ("IVF0,SQ8", ROWS, "an inverted file needs a list"),
        ("IVF2900,SQ8", 2000, "training points"),
        ("IDMap,Flat", ROWS, "FAISS|not"),
    ],
)
def test_where_a_type_cannot_be_the_index_is_flat_and_says_so(kind, count, reason, tmp_path):
    told = Collected()
    with Store.open(write_store(tmp_path / "store", grouped(count, 0))) as some:
        config, run = SearchConfig(kind), replace(RUN, progress=told)
        assert build(some, tmp_path / "index", config=config, run=run).factory == "Flat"
        assert TrainingIndex.open(tmp_path / "index", some).is_exact
    (warning,) = told.warnings
    assert re.search(reason, warning)
    assert "The index is flat" in warning
    assert not (tmp_path / "index" / "approximate.faiss").exists()


GIB = 2**30


@pytest.mark.parametrize(
    ("rows", "memory", "wanted"),
    [
        (500_000, 64 * GIB, "Flat"),
        (500_001, 64 * GIB, "IVF2828,SQ8"),
        (1_000_000, 2 * GIB, "IVF4000,SQ8"),
        (10_000_000, 24 * GIB, "IVF12649,SQ8"),
        (10_000_000, 8 * GIB, "IVF12649,SQ8"),
        (10_000_000, 4 * GIB, "IVF12649,PQ64"),
    ],
)
def test_auto_goes_by_rows_and_memory(rows, memory, wanted):
    assert kinds.factory("auto", rows, 256, memory) == wanted


def test_a_product_quantiser_takes_half_a_byte_a_dimension_and_64_at_most():
    wanted = {256: "PQ64", 128: "PQ64", 64: "PQ32", 16: "PQ8", 6: "PQ3", 7: "PQ1", 1: "PQ1"}
    found = {dimension: kinds.factory("ivfpq", 4, dimension, GIB) for dimension in wanted}
    assert found == {dimension: f"IVF8,{each}" for dimension, each in wanted.items()}


OF_FEW = {"FEWEST": 10, "_REDUCED_FROM": 10, "_SETTLED": -1}


@pytest.fixture(scope="module")
def approximate_people(people, tmp_path_factory):
    """The pseudo-subjects of `people`, indexed by a graph that is searched with no effort."""
    root = tmp_path_factory.mktemp("near")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OF_FEW.items():
            patch.setattr(index_build, name, value)
        config = IndexConfig(adapt="never", calibrate=False, search=SearchConfig("hnsw"))
        build_index(people / "training", root / "index", config, RunContext("cpu", workers=1))
    return root


def asked(least=0.3):
    return QueryConfig(
        evidence=EvidenceConfig(min_recall=least, verify=False),
        verdict=VerdictConfig(rule="reference"),
        canaries=CanaryConfig(0),
    )


def test_a_query_of_few_images_is_exact(people, approximate_people):
    report = approximate_people / "exact"
    found = query(people / "training" / "s00", approximate_people / "index", report, asked(), RUN)
    assert found.complete
    assert found.summary["search"]["exact"]
    assert found.summary["search"]["type"] == "Flat"


def test_a_query_of_many_tells_what_it_found_and_is_not_complete_with_less(
    people, approximate_people, monkeypatch
):
    monkeypatch.setattr(query_run, "SAMPLE", 2)
    index = approximate_people / "index"
    told = query(people / "training" / "s00", index, approximate_people / "near", asked(), RUN)
    search = told.summary["search"]
    assert told.complete
    assert search["type"] == "HNSW32_SQ8"
    assert search["sample"]["queries"] == search["sample"]["best_found"] == 3

    def lost(self, queries, wanted):
        scores, rows = type(self).honest(self, queries, wanted)
        return scores[:, 1:], rows[:, 1:]

    monkeypatch.setattr(approximate.Approximate, "honest", approximate.Approximate.propose, False)
    monkeypatch.setattr(approximate.Approximate, "propose", lost)
    blind = query(people / "training" / "s01", index, approximate_people / "blind", asked(), RUN)
    assert not blind.complete
    assert blind.summary["search"]["sample"]["best_found"] == 0
    assert not blind.summary["search"]["passed"]


@pytest.mark.parametrize("name", ["approximate.faiss", "reduced.faiss", "directions.npy"])
def test_a_damaged_file_is_named_and_made_again(approximate_people, monkeypatch, name):
    path = approximate_people / "index" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    checked = check(approximate_people / "index")
    assert [problem.where for problem in checked.problems] == [str(path)]
    for constant, value in OF_FEW.items():
        monkeypatch.setattr(index_build, constant, value)
    repaired = repair(approximate_people / "index", run=RUN)
    assert repaired.intact
    assert path.read_bytes() == whole


def test_info_draws_what_is_found_by_effort(approximate_people, monkeypatch, capsys):
    index = str(approximate_people / "index")
    monkeypatch.setenv("COLUMNS", "100")
    for arguments in ([index], [index, "--json"]):
        monkeypatch.setattr(sys, "argv", ["deepssim-scan", "info", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert ("rows compared" in shown) == (len(arguments) == 1)
    assert json.loads(shown)["factory"] == "HNSW32_SQ8"


@pytest.mark.parametrize(("kind", "told"), [("PQ32", True), ("IVF9,SQ8", True), ("Flat", False)])
def test_that_a_search_is_approximate_is_told_though_it_has_no_effort(capsys, kind, told):
    """Of a product quantiser without lists, which compares all rows by codes, nothing was said."""
    search = SearchType(kind, 8 if "IVF" in kind else 0, 0.7)
    counts = 9, 9, 0, 0, 0, 0
    commands._show(IndexResult(Path("x"), "ab", *counts, 1.0, None, None, search=search))
    assert (f"approximate ({kind}" in capsys.readouterr().out) == told


def test_a_type_that_is_unknown_is_told_before_an_image_is_read(people, tmp_path):
    config = IndexConfig(search=SearchConfig("hnws"))
    with pytest.raises(InputError, match="no index of type 'hnws'"):
        build_index(people / "training", tmp_path / "index", config, RUN)
    assert [*tmp_path.iterdir()] == []


BESIDE = """import sys
import faiss
import SimpleITK
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_index import unit, write_store
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.faiss_io import serialised
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.store.store import Store

folder, rows = Path(sys.argv[1]), unit(2000, 16)
with Store.open(write_store(folder / "store", rows)) as store:
    build(store, folder / "index", config=SearchConfig("ivfpq"), run=RunContext("cpu", workers=0))
    found = TrainingIndex.open(folder / "index", store).search(rows[:50], 1)
print(found.rows[:, 0].tolist() == list(range(50)))
"""


@pytest.mark.skipif(not importlib.util.find_spec("SimpleITK"), reason="SimpleITK is not installed")
def test_an_index_is_made_beside_another_module_of_swig(tmp_path):
    """SimpleITK, imported after FAISS, has FAISS's vectors for its own."""
    command = [sys.executable, "-c", BESIDE, tmp_path, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
