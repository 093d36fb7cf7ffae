"""The store against a list in memory, through kills, damage and repairs in any order.

What is read is always what was added, or Damaged, which names the damaged rows; and the bytes in
the end are those of a store that was written in one go.
"""

import shutil
import tempfile
from pathlib import Path

import jobs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from jobs import INDEX

from deepssim_scan.errors import Damaged, InputError, ScanError
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.repair import repair
from deepssim_scan.storage.layout import ARRAY, CATALOG, STORE_MANIFEST, THUMBNAILS
from deepssim_scan.store.array import Made
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

SHARD, DIMENSION, SIDE = 3, 4, 2
MANIFEST = StoreManifest("ab" * 32, DIMENSION, SHARD, thumbnail=SIDE)
RECORDS = (STORE_MANIFEST, CATALOG, f"{ARRAY}/zarr.json", f"{THUMBNAILS}/zarr.json")

items = st.lists(
    st.lists(st.sampled_from([None, None, "constant", "blank"]), min_size=1, max_size=4), max_size=8
)
harms = st.tuples(st.sampled_from(["flip", "cut", "remove", "others"]), st.integers(0, 10**6))
of_shards = st.dictionaries(st.integers(0, 9), harms, max_size=2)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def harm(path, how):
    """Change a bit of a file, cut it short, remove it, or write other rows to a chunk."""
    what, number = how
    data = bytearray(path.read_bytes())
    if what == "remove":
        path.unlink()
    elif what == "others" and path.name.startswith("c."):  # whole, and with a Crc32c that fits
        array = zarr.open_array(path.parent, mode="r+")
        first = int(path.name.split(".")[1]) * array.chunks[0]
        array[first : first + array.chunks[0]] = array[first : first + array.chunks[0]][:, ::-1]
    elif what == "cut":
        path.write_bytes(data[: number % len(data)])
    else:
        data[number % len(data)] ^= 1 << number % 8
        path.write_bytes(data)


def chunk(folder, shard, array=ARRAY):
    return folder / array / f"c.{shard}.0"


def small(rows):
    """Return thumbnails of which each tells its row."""
    return np.rint(100 * rows).astype(np.int8)


def records_of(item, reasons):
    """Return a record for each frame of a file, of which there is one or more."""
    frames = [f"frame={n}" for n in range(len(reasons))] if len(reasons) > 1 else [""]
    facts = 10, 1_700_000_000_123_456_789, "cd" * 32, "L", ""
    return [
        ImageRecord(
            f"{item:03d}.png", "", frame, len(reasons), *facts, reason, "why" if reason else ""
        )
        for frame, reason in zip(frames, reasons, strict=True)
    ]


class StoreMachine(RuleBasedStateMachine):
    """A store that is being written, and then read, and the records that it was given."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="store-"))
        self.folder = self.base / "0"
        self.records: list[ImageRecord] = []
        self.items = 0
        self.damaged: dict[int, str] = {}  # the array of each damaged shard
        self.finished = False
        self.writer: StoreWriter | None = None
        self.whole: dict[str, bytes] = {}

    @property
    def rows(self):
        """The row of each record that was embedded, different for every one."""
        count = sum(record.reason is None for record in self.records)
        rows = np.random.default_rng(0).standard_normal((count, DIMENSION))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    @property
    def shards(self):
        """The first row, and the row after the last, of each shard; the last may not be full."""
        count = len(self.rows)
        return [(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]

    def committed(self, shards):
        """Return how many records there are up to the last row of so many full shards."""
        embedded = [index for index, record in enumerate(self.records) if record.reason is None]
        return embedded[shards * SHARD - 1] + 1 if shards else 0

    def full(self):
        return len(self.rows) // SHARD

    def add_from(self, index):
        rows = sum(record.reason is None for record in self.records[:index])
        self.writer.add(self.records[index:], self.rows[rows:], small(self.rows[rows:]))

    @precondition(lambda self: self.writer is None and not self.finished)
    @rule()
    def begin_or_resume(self):
        kept = min(self.damaged, default=self.full())
        self.writer = StoreWriter(self.folder, MANIFEST)
        assert self.writer.rows == kept * SHARD
        last = self.records[: self.committed(kept)]
        same = sum(record.path == last[-1].path for record in last) if last else 0
        assert self.writer.last_item() == ((last[-1], same) if last else None)
        self.damaged.clear()
        self.add_from(len(last))

    @precondition(lambda self: self.writer is not None)
    @rule(added=items)
    def add(self, added):
        index = len(self.records)
        for reasons in added:
            self.records += records_of(self.items, reasons)
            self.items += 1
        self.add_from(index)

    def close(self):
        with self.writer:
            self.writer = None

    def harm_some(self, harmed, shards):
        for shard, how in harmed.items():
            if shard < shards and shard not in self.damaged:
                array = (ARRAY, THUMBNAILS)[how[1] % 2]
                harm(chunk(self.folder, shard, array), how)
                self.damaged[shard] = array

    @precondition(lambda self: self.writer is not None)
    @rule(harmed=of_shards)
    def stop(self, harmed):
        self.close()
        self.harm_some(harmed, self.full())

    @precondition(lambda self: self.writer is not None)
    @rule(harmed=of_shards)
    def kill(self, harmed):
        """Go on with the folder as it is on the disk in the midst of writing."""
        killed = self.folder.with_name(f"{int(self.folder.name) + 1}")
        shutil.copytree(self.folder, killed)
        self.close()
        self.folder = killed
        self.harm_some(harmed, self.full())

    @precondition(lambda self: self.writer is not None)
    @rule()
    def finish(self):
        with pytest.raises(InputError, match="files were listed"):
            self.writer.finish(self.items + 1)
        self.close()
        with pytest.raises(ScanError):
            Store.open(self.folder)
        self.begin_or_resume()
        self.writer.finish(self.items)
        self.close()
        self.finished, self.whole = True, contents(self.folder)

    @precondition(lambda self: self.finished)
    @rule()
    def write_again(self):
        with pytest.raises(InputError, match=r"store\.json"):
            StoreWriter(self.folder, MANIFEST)

    @precondition(lambda self: self.finished)
    @rule(one=st.integers(0, 99), other=st.integers(0, 99))
    def read(self, one, other):
        start, stop = sorted(number % (len(self.rows) + 1) for number in (one, other))
        with Store.open(self.folder) as store:
            touched = [
                (first, after)
                for shard, (first, after) in enumerate(self.shards)
                if self.damaged.get(shard) == ARRAY
                and first < stop
                and start < after
                and start < stop
            ]
            if not touched:
                assert store.read(start, stop).tobytes() == self.rows[start:stop].tobytes()
                return
            with pytest.raises(Damaged, match=named(touched[0])):
                store.read(start, stop)

    @precondition(lambda self: self.finished)
    @rule()
    def read_thumbnails(self):
        harmed = [s for s in sorted(self.damaged) if self.damaged[s] == THUMBNAILS]
        with Store.open(self.folder) as store:
            if not harmed:
                found = [part for _, part in store.thumbnails()]
                wanted = small(self.rows).reshape(-1, SIDE, SIDE)
                assert np.array_equal(np.concatenate([wanted[:0], *found]), wanted)
                return
            with pytest.raises(Damaged, match=named(self.shards[harmed[0]])):
                list(store.thumbnails())

    @precondition(lambda self: self.finished)
    @rule()
    def read_catalog(self):
        with Store.open(self.folder) as store:
            assert list(store.embedded()) == [r for r in self.records if r.reason is None]
            assert list(store.rejections()) == [r for r in self.records if r.reason == "constant"]
            assert list(store.blanks()) == [r for r in self.records if r.reason == "blank"]

    @precondition(lambda self: self.finished)
    @rule(harmed=of_shards)
    def harm_shards(self, harmed):
        self.harm_some(harmed, len(self.shards))

    @precondition(lambda self: self.finished)
    @rule(name=st.sampled_from(RECORDS), how=harms)
    def damage_record(self, name, how):
        path = self.folder / name
        before = path.read_bytes()
        harm(path, how)
        with pytest.raises(ScanError):
            Store.open(self.folder).close()
        path.write_bytes(before)

    @precondition(lambda self: self.finished)
    @rule()
    def check(self):
        wanted = [self.shards[shard] for shard in sorted(self.damaged)]
        checked = check(self.folder)
        assert [problem.rows for problem in checked.problems] == [(a, b - 1) for a, b in wanted]
        with Store.open(self.folder) as store:
            if not wanted:
                store.verify()
                return
            with pytest.raises(Damaged) as error:
                store.verify()
        for first, after in wanted:
            assert f"{first} to {after - 1}" in str(error.value)

    @precondition(lambda self: self.damaged and self.finished)
    @rule()
    def repair(self):
        with Store.open(self.folder) as store:
            found = store.damaged()
            assert [shard.first // SHARD for shard in found] == sorted(self.damaged)
            for shard in found:
                rows = self.rows[shard.first : shard.stop]
                for other in (Made(-rows, small(rows)), Made(rows, -small(rows))):
                    with pytest.raises(InputError, match="not the same to the last bit"):
                        store.repair(shard, other)
                store.repair(shard, Made(rows, small(rows)))
        self.damaged.clear()
        assert contents(self.folder) == self.whole

    def teardown(self):
        if not self.finished:
            if self.writer is None:
                self.begin_or_resume()
            self.writer.finish(self.items)
            self.close()
        if self.damaged:
            self.repair()
        with StoreWriter(self.base / "undisturbed", MANIFEST) as writer:
            writer.add(self.records, self.rows, small(self.rows))
            writer.finish(self.items)
        assert contents(self.folder) == contents(self.base / "undisturbed")
        shutil.rmtree(self.base)


def named(rows):
    first, after = rows
    return f"rows {first} to {after - 1} "


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Images, good and bad, an encoder, and an index of them."""
    folder = tmp_path_factory.mktemp("built")
    inputs = jobs.write_inputs(folder / "inputs")
    config = IndexConfig(inputs / jobs.ENCODER, embed=jobs.SMALL)
    build_index(inputs / jobs.TRAINING, folder / INDEX, config, jobs.RUN)
    return folder / INDEX


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.integers(0, 2), harms),
    st.sets(st.sampled_from(["flat.faiss", "index.json", "rejected.csv"])),
    harms,
)
def test_a_repair_from_the_images_gives_the_very_bytes(built, shards, others, how):
    with tempfile.TemporaryDirectory() as name:
        index = shutil.copytree(built, Path(name, "index"))
        for shard, harmed in shards.items():
            array = (ARRAY, THUMBNAILS)[harmed[1] % 2]
            harm(chunk(index / "store", shard, array), harmed)
        for other in others:
            harm(index / other, ("flip", how[1]) if other == "index.json" else how)
        rows = {problem.rows for problem in check(index).problems if problem.rows}
        assert rows >= {(8 * shard, min(8 * shard + 8, count_rows(built)) - 1) for shard in shards}
        assert repair(index, run=jobs.RUN).intact
        assert contents(index) == contents(built)


def count_rows(index):
    with Store.open(index / "store") as store:
        return store.rows
