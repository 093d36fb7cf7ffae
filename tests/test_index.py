"""The index: the same matches as brute force, whatever the batch; any damage is refused."""

import math
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.errors import (
    Damaged,
    DependencyMissing,
    InputError,
    InputMissing,
    StoreMismatch,
)
from deepssim_scan.index import build as index_build
from deepssim_scan.index import flat, search
from deepssim_scan.index.build import build
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.rescore import Matches
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage import files
from deepssim_scan.storage.records import read_json, write_json
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

ENCODER = "ab" * 32


def unit(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_store(
    folder: Path, rows: np.ndarray, encoder: str = ENCODER, subjects: Sequence[str] = ()
) -> Path:
    facts = ("", "", 1, 1, 1, "", "L")
    names = subjects or [""] * len(rows)
    entries = [ImageRecord(f"{i}.png", *facts, names[i]) for i in range(len(rows))]
    shard_rows = max(16, len(rows) // 3)
    with StoreWriter(folder, StoreManifest(encoder, rows.shape[1], shard_rows)) as writer:
        writer.add(entries, rows)
        writer.finish(len(rows))
    return folder


@contextmanager
def indexed(rows: np.ndarray, *, reduced: bool = False) -> Iterator[TrainingIndex]:
    """An index, with reduced rows that propose two more than are asked for, or without them."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        if reduced:
            patch.setattr(index_build, "_REDUCED_FROM", 1)
            patch.setattr(index_build, "_SETTLED", -1)
            patch.setattr(search, "_wider", lambda k: k + 2)
        with Store.open(write_store(folder / "store", rows)) as store:
            build(store, folder / "index")
            opened = TrainingIndex.open(folder / "index", store)
            assert (opened.reduced is not None) == reduced
            yield opened


@contextmanager
def given_bytes(folder: Path, name: str, data: bytes, *, agreed: bool = False) -> Iterator[None]:
    """Give a file of an index other bytes; `agreed`: index.json says that they are right."""
    before = {path: path.read_bytes() for path in (folder / name, folder / "index.json")}
    (folder / name).write_bytes(data)
    if agreed:
        edit(
            folder,
            files=read_json(folder / "index.json")["files"] | {name: files.sha256(folder / name)},
        )
    try:
        yield
    finally:
        for path, whole in before.items():
            path.write_bytes(whole)


def damaged(whole: bytes, where: float, bit: int, *, cut: bool) -> bytes:
    """Flip a bit, or cut the bytes short."""
    at = int(where * len(whole))
    return whole[:at] + (b"" if cut else bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> Matches:
    """Sort every pair: products exact in float64, summed exactly, rounded once."""
    products = queries[:, None].astype(np.float64) * rows[None].astype(np.float64)
    scores = np.array([[math.fsum(pair) for pair in query] for query in products])
    scores = np.clip(scores.astype(np.float32), -1, 1).reshape(len(queries), len(rows))
    order = [sorted(range(len(rows)), key=lambda i: (-query[i], i))[:k] for query in scores]
    found = np.array(order, np.int64).reshape(len(queries), min(k, len(rows)))
    scores = np.take_along_axis(scores, found, 1)
    return Matches(found, scores, np.zeros(found.shape, np.int8))


def same(left: Matches, right: Matches) -> bool:
    names = ("rows", "scores", "views")
    pairs = ((getattr(left, name), getattr(right, name)) for name in names)
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    with Store.open(write_store(tmp_path / "store", unit(40))) as store:
        build(store, tmp_path / "index")
    return tmp_path / "store", tmp_path / "index"


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Rows with many exact duplicates and near ties, queries among them, k, and a cut."""
    dimension = draw(st.sampled_from([1, 3, 8, 33]))
    base = unit(draw(st.integers(1, 6)), dimension, draw(st.integers(0, 99)))
    base = np.concatenate([base, np.nextafter(base, np.float32(0)), np.eye(1, dimension)])
    base = base.astype(np.float32)
    picks = draw(st.lists(st.integers(0, len(base) - 1), min_size=1, max_size=70))
    queries = np.concatenate([base, -base, unit(3, dimension, 7)])
    k = draw(st.integers(1, 80))
    return base[picks], queries, k, draw(st.integers(0, len(queries)))


@pytest.mark.parametrize("reduced", [False, True])
@settings(max_examples=40, deadline=None)
@given(case=searches())
def test_the_matches_are_those_of_brute_force_in_any_batches(case, reduced) -> None:
    rows, queries, k, cut = case
    with indexed(rows, reduced=reduced) as opened:
        whole = opened.search(queries, k)
        assert same(whole, brute_force(rows, queries, k))
        parts = [opened.search(part, k) for part in (queries[:cut], queries[cut:])]
        ones = [opened.search(query[None], k) for query in queries]
        for found in (parts, ones):
            names = ("rows", "scores", "views")
            joined = (np.concatenate([getattr(part, name) for part in found]) for name in names)
            assert same(Matches(*joined), whole)


@pytest.mark.parametrize(("copies", "k"), [(200, 1), (200, 5), (30, 40)])
def test_more_ties_than_the_margin_still_go_to_the_first_rows(copies: int, k: int) -> None:
    rows = unit(300)
    rows[50 : 50 + copies] = rows[7]
    with indexed(rows) as opened:
        found = opened.search(rows[[7]], k)
        assert same(found, brute_force(rows, rows[[7]], k))
        assert found.rows[0, 0] == 7


@pytest.mark.parametrize("reduced", [False, True])
def test_more_near_ties_than_the_margin_are_ordered_by_their_true_scores(reduced) -> None:
    """Rows a few ulp apart: FAISS's own float32 sums order them wrongly and lose the best."""
    jitter = np.random.default_rng(1).integers(-2, 3, (300, 256)) * np.float32(2**-27)
    rows = (unit(1, 256) + jitter).astype(np.float32)
    queries = unit(20, 256, seed=2)
    wanted = brute_force(rows, queries, 3)
    with indexed(rows, reduced=reduced) as opened:
        assert same(opened.search(queries, 3), wanted)
        _, lists = opened.flat.propose(queries, 3 + search.MARGIN)
    lost = [set(best) - set(ids) for best, ids in zip(wanted.rows, lists, strict=True)]
    assert any(lost), "FAISS alone found them all: this test no longer tests the second look"


@st.composite
def looks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows with duplicates, queries in several views among which rows and views recur, and k."""
    base = unit(draw(st.integers(1, 5)), 8, draw(st.integers(0, 99)))
    rows = base[draw(st.lists(st.integers(0, len(base) - 1), min_size=1, max_size=40))]
    seen = np.concatenate([base, unit(4, 8, 7)])
    views = draw(st.integers(1, 4))
    picks = st.lists(st.integers(0, len(seen) - 1), min_size=views, max_size=views)
    queries = seen[np.array(draw(st.lists(picks, max_size=5)), np.int64).reshape(-1, views)]
    return rows, queries, draw(st.integers(1, 50))


@settings(max_examples=40, deadline=None)
@given(looks())
def test_of_several_views_the_best_counts_and_is_named(case) -> None:
    """By brute force: a row has the score of its best view, the first of those that tie."""
    rows, queries, k = case
    count = min(k, len(rows))
    with indexed(rows) as opened:
        found = opened.search_views(queries, k)
        assert same(opened.search_views(queries[:, :1], k), opened.search(queries[:, 0], k))
    assert found.rows.shape == found.scores.shape == found.views.shape == (len(queries), count)
    assert (found.rows.dtype, found.scores.dtype, found.views.dtype) == ("i8", "f4", "i1")
    for query, views in enumerate(queries):
        every = brute_force(rows, views, len(rows))
        scores = np.empty((len(views), len(rows)), np.float32)
        np.put_along_axis(scores, every.rows, every.scores, 1)
        best, view = scores.max(0), scores.argmax(0)
        wanted = sorted(range(len(rows)), key=lambda row: (-best[row], row))[:count]
        assert found.rows[query].tolist() == wanted
        assert found.scores[query].tolist() == best[wanted].tolist()
        assert found.views[query].tolist() == view[wanted].tolist()


def test_matches_are_cut_and_reordered_as_numpy_does(folders: tuple[Path, Path]) -> None:
    with Store.open(folders[0]) as store:
        opened = TrainingIndex.open(folders[1], store)
        found = opened.search_views(unit(15, seed=3).reshape(5, 3, 8), 7)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(7), (5, 1)), axis=1)[:, :4]
    for name in ("rows", "scores", "views"):
        every = getattr(found, name)
        assert (getattr(found.part(slice(1, 3), 2), name) == every[1:3, :2]).all()
        wanted = np.take_along_axis(every, order, 1)
        assert (getattr(found.reordered(order), name) == wanted).all()
    assert len(np.unique(found.views)) == 3


@pytest.mark.parametrize("reduced", [False, True])
def test_blocks_and_threads_do_not_change_a_byte(
    monkeypatch: pytest.MonkeyPatch, reduced: bool
) -> None:
    rows, queries = unit(500, 64), unit(60, 64, seed=1)
    threads = faiss.omp_get_max_threads()
    with indexed(rows, reduced=reduced) as opened:
        whole = opened.search(queries, 10)
        assert same(whole, brute_force(rows, queries, 10))
        sizes = (
            (search, "QUERY_BLOCK", 7),
            (search, "CANDIDATE_BLOCK", 30),
            (flat, "PAIR_BLOCK", 11),
        )
        for module, name, value in sizes:
            monkeypatch.setattr(module, name, value)
            assert same(opened.search(queries, 10), whole)
        try:
            for count in (1, 2):
                faiss.omp_set_num_threads(count)
                assert same(opened.search(queries, 10), whole)
        finally:
            faiss.omp_set_num_threads(threads)


def test_rows_of_a_file_that_memory_may_not_hold_are_asked_for_ahead(monkeypatch) -> None:
    asked = []

    class Pages(mmap.mmap):
        def madvise(self, what: int, start: int, size: int) -> None:
            assert what == mmap.MADV_WILLNEED
            assert start % mmap.PAGESIZE == 0
            asked.append(self[start : start + size][-32:])

    rows, queries = unit(300), unit(2, seed=1)
    with indexed(rows) as opened:
        wanted = opened.search(queries, 3)
    monkeypatch.setattr(mmap, "mmap", Pages)
    monkeypatch.setattr(flat, "memory", lambda: 2 * rows.nbytes)
    with indexed(rows) as opened:
        assert same(opened.search(queries, 3), wanted)
    near = {rows[row].tobytes() for row in wanted.rows.flat}
    assert near < set(asked) < {row.tobytes() for row in rows}


def test_k_shrinks_to_the_training_set() -> None:
    with indexed(unit(3)) as opened:
        found = opened.search(unit(2, seed=1), 5000)
        assert found.rows.shape == found.scores.shape == (2, 3)
        assert opened.rows == 3
        assert opened.search(unit(0), 2).rows.shape == (0, 2)


def test_scores_stay_within_one() -> None:
    """A row and a query whose norms, within the tolerance, multiply to more than 1."""
    rows = (unit(20) * np.float32(1.0005)).astype(np.float32)
    with indexed(rows) as opened:
        assert opened.search(rows, 1).scores.max() == 1
        assert opened.search(-rows, 20).scores.min() == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.99])
def test_a_query_that_is_not_unit_norm_is_refused(value: float) -> None:
    queries = unit(3)
    queries[1] = 0
    queries[1, 2] = value
    with indexed(unit(5)) as opened, pytest.raises(InputError, match="query 1 is not finite"):
        opened.search(queries, 1)


def test_queries_of_another_shape_or_k_are_refused() -> None:
    with indexed(unit(5)) as opened:
        for queries in (unit(2, 7), unit(2)[0], unit(2).astype(np.float64)):
            with pytest.raises(InputError, match=r"needs float32 \(Q, 8\)"):
                opened.search(queries, 1)
        with pytest.raises(InputError, match=r"k \(0\) must be >= 1"):
            opened.search(unit(2), 0)


def test_an_id_of_minus_one_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with indexed(unit(5)) as opened:
        none = (np.zeros((1, 5), np.float32), np.array([[0, 1, 2, 3, -1]]))
        monkeypatch.setattr(opened.flat, "propose", lambda *_: none)
        with pytest.raises(Damaged, match="fewer than 5 of 5 rows"):
            opened.search(unit(1), 5)


def test_a_gpu_out_of_memory_gives_the_matches_of_the_cpu() -> None:
    class Full:
        searches = 0

        def search(self, queries: np.ndarray, k: int) -> None:
            self.searches += 1
            raise RuntimeError("out of memory")

    with indexed(unit(3000)) as opened:
        whole = opened.search(unit(4, seed=1), 3)
        gpu = opened.flat._gpu = Full()
        opened.search(unit(1), flat.GPU_MAX_K)  # more candidates than a GPU selects
        assert gpu.searches == 0
        assert same(opened.search(unit(4, seed=1), 3), whole)
        assert gpu.searches == 1


def test_an_index_records_what_it_is_of(folders: tuple[Path, Path]) -> None:
    store_folder, folder = folders
    with Store.open(store_folder) as store:
        manifest = IndexManifest.read(folder)
        assert asdict(manifest) == {
            "encoder": ENCODER,
            "store": store.digest,
            "rows": 40,
            "dimension": 8,
            "files": {"flat.faiss": files.sha256(folder / "flat.faiss")},
            "faiss": faiss.__version__,
            "factory": "Flat",
            "reduced": 0,
            "recall": 0.999,
            "effort": 0,
            "curve": [],
            "unfound": [],
            "format": 4,
        }
        opened = TrainingIndex.open(folder, store, device="cuda")
        assert (opened.rows, opened.dimension, opened.proposer.kind) == (40, 8, "Flat")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["flat.faiss", "index.json"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_any_folder_name_will_do(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"i\xff\n")
    with Store.open(write_store(tmp_path / "store", unit(3))) as store:
        build(store, folder)
        assert TrainingIndex.open(folder, store).rows == 3


def test_an_empty_store_is_not_indexed(tmp_path: Path) -> None:
    empty = Store.open(write_store(tmp_path / "store", unit(0)))
    with empty as store, pytest.raises(InputError, match="nothing to index"):
        build(store, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_damaged_store_is_not_indexed(folders: tuple[Path, Path]) -> None:
    store_folder, folder = folders
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (store_folder / "embeddings.zarr/c.1.0").unlink()
    with Store.open(store_folder) as store, pytest.raises(Damaged, match="rows 16 to 31 are"):
        build(store, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_a_row_that_is_not_unit_norm_never_reaches_the_index(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    rows = unit(16)
    rows[3, 0] = value
    monkeypatch.setattr(Store, "shards", lambda self: iter([(16, rows)]))
    with Store.open(folders[0]) as store, pytest.raises(Damaged, match="row 19 "):
        build(store, folders[1])


def test_a_lost_tail_is_found_and_the_old_index_stays(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_folder, folder = folders
    before = {path: path.read_bytes() for path in folder.iterdir()}
    fsync = os.fsync

    def losing(descriptor: int) -> None:
        os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - 1))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", losing)
    with Store.open(store_folder) as store, pytest.raises(Damaged, match="was written"):
        build(store, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_an_error_and_the_old_index_stays(folders: tuple[Path, Path]) -> None:
    """In a process of its own that may write no file over 512 bytes."""
    store_folder, folder = folders
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from deepssim_scan.index.build import build\n"
        "from deepssim_scan.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])) as store:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "    build(store, Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(store_folder), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_flipped_bit_or_a_cut_in_the_index_is_found(folders: tuple[Path, Path]) -> None:
    store_folder, folder = folders
    path = folder / "flat.faiss"
    whole = path.read_bytes()
    flips = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 9, 50, len(whole) - 1)]
    with Store.open(store_folder) as store:
        for data in (*flips, whole[:-4], whole[:20], b"", whole + b"\0", b"foreign" * 99):
            path.write_bytes(data)
            with pytest.raises(Damaged, match=r"flat\.faiss: its SHA-256"):
                TrainingIndex.open(folder, store)
        path.unlink()
        with pytest.raises(Damaged, match=r"flat\.faiss: is missing"):
            TrainingIndex.open(folder, store)


def foreign(kind: str) -> object:
    made = faiss.IndexFlatL2(8) if kind == "l2" else faiss.IndexFlatIP(8)
    made.add(unit(39 if kind == "short" else 40))
    return made


@pytest.mark.parametrize("kind", ["l2", "short", "bytes", "cut"])
def test_a_foreign_index_is_refused_even_when_the_manifest_agrees(
    folders: tuple[Path, Path], kind: str
) -> None:
    store_folder, folder = folders
    path = folder / "flat.faiss"
    faiss.write_index(foreign(kind), str(path))
    if kind == "bytes":
        path.write_bytes(b"foreign" * 99)
    if kind == "cut":
        os.truncate(path, 300)
    edit(folder, files={"flat.faiss": files.sha256(path)})
    with Store.open(store_folder) as store, pytest.raises(Damaged, match=r"flat\.faiss"):
        TrainingIndex.open(folder, store)


def edit(folder: Path, **values: object) -> None:
    path = folder / "index.json"
    write_json(path, read_json(path) | values)


@pytest.mark.parametrize(
    "values",
    [
        {"format": 1},
        {"files": {}},
        {"factory": "IVF8"},
        {"rows": 0},
        {"rows": "40"},
        {"faiss": None},
    ],
)
def test_a_changed_manifest_is_found(folders: tuple[Path, Path], values: dict[str, object]) -> None:
    edit(folders[1], **values)
    with Store.open(folders[0]) as store, pytest.raises(Damaged, match=r"index\.json"):
        TrainingIndex.open(folders[1], store)


def test_an_index_of_another_store_or_encoder_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    others = {
        "encoder": write_store(tmp_path / "a", unit(40), encoder="cd" * 32),
        "store digest": write_store(tmp_path / "b", unit(40, seed=1)),
    }
    for name, other in others.items():
        with Store.open(other) as store, pytest.raises(StoreMismatch, match=f"its {name} is"):
            TrainingIndex.open(folders[1], store)


def test_an_index_of_the_same_rows_under_other_names_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    facts = ("", "", 1, 1, 1, "", "L", "", None, "")
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, 8, 16)) as writer:
        writer.add([ImageRecord(f"other-{i}.png", *facts) for i in range(40)], unit(40))
        writer.finish(40)
    with (
        Store.open(tmp_path / "s") as store,
        pytest.raises(StoreMismatch, match="its store digest is"),
    ):
        TrainingIndex.open(folders[1], store)


def test_an_index_that_is_not_there_is_missing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with Store.open(folders[0]) as store, pytest.raises(InputMissing, match=r"index\.json"):
        TrainingIndex.open(tmp_path / "nowhere", store)


def test_without_faiss_the_error_names_both_extras(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with Store.open(folders[0]) as store:
        for use in (build, lambda s, f: TrainingIndex.open(f, s)):
            with pytest.raises(DependencyMissing, match=r"\[cpu\].*\[gpu\]"):
                use(store, folders[1])
