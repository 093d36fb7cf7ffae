"""Reduced rows: their products bound those of the rows, so an exact search stays exact."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import damaged, given_bytes, unit, write_store

from deepssim_scan.errors import Damaged, InputMissing
from deepssim_scan.index import build as index_build
from deepssim_scan.index import search as index_search
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.reduced import Directions
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.store.store import Store

RUN = RunContext("cpu", workers=0)
ROWS, DIMENSION = 3000, 32
FILES = "flat.faiss", "reduced.faiss", "directions.npy", "approximate.faiss", "index.json"


def long_along(count: int, directions: int, seed: int) -> np.ndarray:
    """Rows that differ along some directions, and hardly along the others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, directions)) @ unit(directions, DIMENSION, 5)
    rows += 0.01 * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def _of_few_rows(monkeypatch):
    monkeypatch.setattr(index_build, "_REDUCED_FROM", 1000)


@pytest.fixture(scope="module")
def rows():
    return long_along(ROWS, 6, 0)


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    with Store.open(write_store(tmp_path_factory.mktemp("of") / "store", rows)) as store:
        yield store


@pytest.fixture(scope="module")
def index(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_build, "_REDUCED_FROM", 1000)
        build(store, folder, config=SearchConfig("IVF30,SQ8"), run=RUN)
    return folder


@settings(deadline=None)
@given(
    st.integers(2, 40),
    st.data(),
    st.integers(0, 99),
    st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    st.sampled_from([1.0, 0.9995, 1.0005]),
)
def test_products_of_reduced_rows_are_upper_bounds(dimension, data, seed, beside, norm):
    """Of rows within the directions, or nearly, or not, with norms as far from 1 as may be."""
    reduced = data.draw(st.integers(2, dimension))
    rows = unit(50, dimension, seed)
    directions = Directions.fitted(rows, reduced)
    spanned = (rows @ directions.basis @ directions.basis.T + beside * rows).astype(np.float32)
    spanned *= norm / np.linalg.norm(spanned, axis=1, keepdims=True)
    bounds = directions.reduced(spanned).astype(np.float64)
    exact = spanned.astype(np.float64)
    assert bounds.shape == (50, reduced)
    assert (bounds @ bounds.T >= exact @ exact.T - (reduced + 8) * 2.0**-23).all()


def test_an_exact_search_by_bounds_is_that_by_all_numbers(rows, store, index):
    search = TrainingIndex.open(index, store, exact=True)
    assert search.is_exact
    queries = long_along(300, 6, 7)
    settled = search.settled(search.reduced, queries, 10)
    assert settled > 250, "the bounds tell nothing: this test tests nothing"
    found, whole = search.search(queries, 10), TrainingIndex(search.flat).search(queries, 10)
    assert (found.rows == whole.rows).all()
    assert found.scores.tobytes() == whole.scores.tobytes()
    best = (queries.astype(np.float64) @ rows.astype(np.float64).T).argmax(1)
    assert (found.rows[:, 0] == best).all()


def test_where_bounds_do_not_tell_all_numbers_do(store, index, monkeypatch):
    monkeypatch.setattr(index_search, "_wider", lambda k: k + 1)
    search = TrainingIndex.open(index, store, exact=True)
    queries = unit(50, DIMENSION, 8)
    assert search.settled(search.reduced, queries, 10) < 50, "this test tests nothing"
    whole = TrainingIndex(search.flat).search(queries, 10)
    assert (search.search(queries, 10).rows == whole.rows).all()


def test_an_approximate_index_is_of_the_reduced_rows(store, index):
    manifest, search = IndexManifest.read(index), TrainingIndex.open(index, store)
    search.proposer.use(10)
    assert manifest.reduced == DIMENSION // 4
    queries = long_along(300, 6, 7)
    found, exact = search.search(queries, 5), search.exact().search(queries, 5)
    assert (found.scores[:, 0] == exact.scores[:, 0]).mean() > 0.99
    assert (index / "approximate.faiss").stat().st_size < ROWS * (DIMENSION // 4 + 8) + 2**14


@pytest.mark.parametrize(("directions", "reduced"), [(6, 8), (14, 16), (32, 0)])
def test_rows_are_reduced_as_far_as_bounds_suffice(directions, reduced, tmp_path, monkeypatch):
    monkeypatch.setattr(index_search, "_wider", lambda k: k + 10)
    some = long_along(ROWS, directions, 0)
    with Store.open(write_store(tmp_path / "store", some)) as made:
        build(made, tmp_path / "index", run=RUN)
        assert IndexManifest.read(tmp_path / "index").reduced == reduced
        there = {path.name for path in (tmp_path / "index").iterdir()}
        assert there == {"index.json", *(FILES[:3] if reduced else FILES[:1])}
        TrainingIndex.open(tmp_path / "index", made).search(some[:5], 3)


def test_the_same_bytes_by_any_number_of_workers(store, index, tmp_path):
    build(store, tmp_path, config=SearchConfig("IVF30,SQ8"), run=RunContext("cpu", workers=2))
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (index / name).read_bytes()


def test_an_index_that_is_made_again_without_them_has_none(rows, store, tmp_path, monkeypatch):
    build(store, tmp_path, run=RUN)
    monkeypatch.setattr(index_build, "_REDUCED_FROM", ROWS + 1)
    build(store, tmp_path, run=RUN)
    assert {path.name for path in tmp_path.iterdir()} == {"flat.faiss", "index.json"}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=15, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_changed_byte_and_a_cut_file_are_found(index, store, name, where, bit, cut):
    data = damaged((index / name).read_bytes(), where, bit, cut=cut)
    with given_bytes(index, name, data), pytest.raises((Damaged, InputMissing)):
        TrainingIndex.open(index, store)


@pytest.mark.parametrize("kind", ["scaled", "shape", "pickled", "float32", "nan", "text"])
def test_foreign_directions_are_refused_even_when_the_manifest_agrees(index, store, kind):
    basis = np.load(index / "directions.npy")
    foreign = {
        "scaled": 0.99 * basis,
        "shape": basis[:, :-1],
        "pickled": basis.astype(object),
        "float32": basis.astype(np.float32),
        "nan": np.full_like(basis, np.nan),
    }
    data = io.BytesIO(b"no matrix")
    if kind in foreign:
        np.save(data, foreign[kind])
    with (
        given_bytes(index, "directions.npy", data.getvalue(), agreed=True),
        pytest.raises(Damaged, match=r"directions\.npy: is .* Build the index again"),
    ):
        TrainingIndex.open(index, store)
