"""The store: what is written comes back, however it was added; any damage is found and named."""

import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.errors import Damaged, InputError, InputMissing, StoreMismatch
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage import files
from deepssim_scan.storage.records import read_json, write_json
from deepssim_scan.store.array import Made
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

ENCODER = "ab" * 32
SHARD, DIMENSION = 4, 8


def unit(count: int, dimension: int = DIMENSION, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(rows: np.ndarray) -> Made:
    """Return what was made of images without thumbnails."""
    return Made(rows, np.empty((len(rows), 0), np.int8))


def record(path: str, reason: str | None = None, detail: str = "") -> ImageRecord:
    return ImageRecord(
        path, "", "", 1, 10, 1_700_000_000_123_456_789, "cd" * 32, "L", "", reason, detail
    )


def write(
    folder: Path, records: list[ImageRecord], rows: np.ndarray, cuts: tuple[int, ...] = ()
) -> Path:
    """Write a store, its records cut into calls of `add` at `cuts`."""
    with StoreWriter(folder, StoreManifest(ENCODER, rows.shape[1], SHARD)) as writer:
        taken = 0
        for start, stop in zip((0, *cuts), (*cuts, len(records)), strict=True):
            part = records[start:stop]
            count = sum(item.reason is None for item in part)
            writer.add(part, rows[taken : taken + count])
            taken += count
        writer.finish(items=len({(each.path, each.member) for each in records}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten rows in three shards (4, 4, 2), and one rejected file."""
    records = [record(f"{i}.png") for i in range(10)]
    return write(tmp_path / "store", [*records, record("x.png", "truncated")], unit(10))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def edit(folder: Path, **values: object) -> None:
    """Change store.json, with the checksum of what it then says."""
    write_json(folder / "store.json", read_json(folder / "store.json") | values)


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[ImageRecord], np.ndarray, tuple[int, ...]]:
    reasons = draw(st.lists(st.sampled_from([None, None, "constant", "blank"]), max_size=15))
    records = [record(f"d/{i}", reason, f"file {i}") for i, reason in enumerate(reasons)]
    cuts = draw(st.lists(st.integers(0, len(records)), max_size=5))
    return records, unit(reasons.count(None), seed=len(reasons)), tuple(sorted(cuts))


@settings(max_examples=25, deadline=None)
@given(stores())
def test_a_store_comes_back_and_its_bytes_do_not_depend_on_how_it_was_added(case) -> None:
    records, rows, cuts = case
    with tempfile.TemporaryDirectory() as name:
        whole = write(Path(name, "whole"), records, rows)
        parts = write(Path(name, "parts"), records, rows, cuts)
        assert contents(whole) == contents(parts)
        with Store.open(parts) as store:
            assert (store.rows, store.dimension) == rows.shape
            ends = store.rows, store.rejected_count, store.blank_count
            assert store.listed == len(records) == sum(ends)
            assert store.read(0, store.rows).tobytes() == rows.tobytes()
            assert list(store.embedded()) == [r for r in records if r.reason is None]
            assert list(store.rejections()) == [r for r in records if r.reason == "constant"]
            assert list(store.blanks()) == [r for r in records if r.reason == "blank"]
            assert store.paths() == [r.path for r in records if r.reason is None]


def test_rows_are_read_by_range_and_by_shard(folder: Path) -> None:
    rows = unit(10)
    with Store.open(folder) as store:
        for start in range(11):
            for stop in range(start, 11):
                assert np.array_equal(store.read(start, stop), rows[start:stop])
        shards = list(store.shards())
        assert [first for first, _ in shards] == [0, 4, 8]
        assert np.array_equal(np.concatenate([part for _, part in shards]), rows)
        assert store.paths(np.array([9, 0, 9])) == ["9.png", "0.png", "9.png"]
        for start, stop in ((-1, 2), (3, 2), (0, 11)):
            with pytest.raises(InputError, match="0 to 10"):
                store.read(start, stop)
        for row in (-1, 10):
            with pytest.raises(InputError, match=f"row {row} "):
                store.paths(np.array([0, row]))


def test_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    raw = [b"\xff\xfe.png", b"a\nb.png", b"n" * 251 + b".png", b"=cmd|'/c'!A1", b"<script>", b"@x"]
    names = [os.fsdecode(name) for name in raw]
    rejected = record(os.fsdecode(b"r\x80"), "unreadable", f"no {names[0]} \ud800 \0 here")
    rejected = replace(rejected, subject=names[0], subject_known=True)
    folder = write(tmp_path / os.fsdecode(b"s\xff"), [*map(record, names), rejected], unit(6))
    with Store.open(folder) as store:
        assert [os.fsencode(path) for path in store.paths()] == raw
        assert list(store.rejections()) == [rejected]


def test_one_name_in_two_folders_is_two_rows(tmp_path: Path) -> None:
    with Store.open(
        write(tmp_path / "s", [record("a/1.png"), record("b/1.png")], unit(2))
    ) as store:
        assert store.paths(np.array([0, 1])) == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1.01])
def test_a_row_that_is_not_unit_norm_is_refused_and_nothing_is_taken(
    tmp_path: Path, value: float
) -> None:
    rows = unit(3)
    rows[1] = 0
    rows[1, 0] = value
    records = [record("a"), record("bad"), record("c")]
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        with pytest.raises(InputError, match="'bad' is not finite with norm 1"):
            writer.add(records, rows)
        writer.add(records[:1], rows[:1])
        writer.finish(items=1)
    with Store.open(tmp_path / "s") as store:
        assert store.paths() == ["a"]


@pytest.mark.parametrize(
    "rows", [unit(1), unit(3), unit(2, 7), unit(2).astype(np.float64), unit(2)[0]]
)
def test_rows_that_do_not_fit_the_entries_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    writer = StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION))
    with writer, pytest.raises(InputError, match=r"need float32 \(2, 8\)"):
        writer.add([record("a"), record("r", "constant"), record("b")], rows)


@pytest.mark.parametrize("items", [10, 12])
def test_a_count_that_does_not_sum_leaves_no_store(tmp_path: Path, items: int) -> None:
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        writer.add([*(record(str(i)) for i in range(10)), record("r", "constant")], unit(10))
        with pytest.raises(InputError, match=f"{items} files were listed and 11 are in the"):
            writer.finish(items)
    with pytest.raises(InputMissing, match=r"store\.json"):
        Store.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("frames", "total"),
    [(["0", "1"], 3), (["0", "0"], 2), (["0", "1", "2"], 2), (["0", "1"], 1)],
)
def test_a_file_without_one_entry_a_frame_leaves_no_store(
    tmp_path: Path, frames: list[str], total: int
) -> None:
    records = [replace(record("v.nii"), frame=frame, frames=total) for frame in frames]
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        writer.add([record("a.png"), *records], unit(1 + len(records)))
        with pytest.raises(InputError, match=r"1 of them not .* the first 'v.nii#0'"):
            writer.finish(2)


def test_frames_and_members_are_named(tmp_path: Path) -> None:
    records = [
        replace(record("v.nii"), frame="axis=2,slice=0", frames=2),
        replace(record("v.nii"), frame="axis=2,slice=1", frames=2),
        replace(record("a.zip"), member="b/c.png"),
        replace(record("a.zip"), member="d.tif", frame="frame=0"),
    ]
    with Store.open(write(tmp_path / "s", records, unit(4))) as store:
        names = ["v.nii#axis=2,slice=0", "v.nii#axis=2,slice=1"]
        assert store.paths() == [*names, "a.zip#member=b/c.png", "a.zip#member=d.tif,frame=0"]
        assert (store.footer.items, store.listed) == (3, 4)
        assert list(store.embedded()) == records


PARTS = st.text("a#,=/", max_size=6)


@given(st.tuples(PARTS, PARTS, PARTS), st.tuples(PARTS, PARTS, PARTS))
def test_row_24_no_two_images_have_one_name(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    frames = ["", "frame=1", "axis=0,slice=1"]
    records = [
        replace(record(path), member=member, frame=frames[len(frame) % 3])
        for path, member, frame in (one, two)
    ]
    keys = {(each.path, each.member, each.frame) for each in records}
    assert len({each.name for each in records}) == len(keys)


@settings(max_examples=25, deadline=None)
@given(stores(), st.integers(0, 15))
def test_row_30_a_store_gone_on_with_is_the_same_to_the_byte(case, stop: int) -> None:
    records, rows, cuts = case
    stop = min(stop, len(records))
    count = sum(item.reason is None for item in records[:stop])
    with tempfile.TemporaryDirectory() as name:
        whole = write(Path(name, "whole"), records, rows, cuts)
        folder = Path(name, "stopped")
        manifest = StoreManifest(ENCODER, DIMENSION, SHARD)
        with StoreWriter(folder, manifest) as writer:
            writer.add(records[:stop], rows[:count])
        with StoreWriter(folder, manifest) as writer:
            last = writer.last_item()
            done = records.index(last[0]) + last[1] if last else 0
            assert writer.rows == count - count % SHARD
            assert done <= stop
            writer.add(records[done:], rows[writer.rows :])
            writer.finish(len(records))
        assert contents(whole) == contents(folder)


@pytest.mark.parametrize("name", ["c.0.0", "c.1.0", "zarr.json"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_row_30_a_shard_that_is_damaged_meanwhile_is_written_again(
    tmp_path: Path, name: str, damage: str
) -> None:
    records, rows = [record(f"{i}.png") for i in range(10)], unit(10)
    whole = write(tmp_path / "whole", records, rows)
    manifest = StoreManifest(ENCODER, DIMENSION, SHARD)
    with StoreWriter(tmp_path / "s", manifest) as writer:
        writer.add(records, rows)
    path = tmp_path / "s/embeddings.zarr" / name
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        flip(path, 5)
    else:
        os.truncate(path, 3)
    with StoreWriter(tmp_path / "s", manifest) as writer:
        assert writer.rows == {"c.0.0": 0, "c.1.0": 4, "zarr.json": 8}[name]
        writer.add(records[writer.rows :], rows[writer.rows :])
        writer.finish(10)
    assert contents(whole) == contents(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE images SET mtime_ns = 7 WHERE row = 5",
        "UPDATE images SET path = x'61ff' WHERE row = 5",
        "UPDATE images SET reason = NULL, row = 99 WHERE reason = 'constant'",
        "UPDATE images SET sha256 = 'other' WHERE row = 7",
        "UPDATE shards SET images_sha256 = 'other' WHERE shard = 1",
        "DELETE FROM images WHERE row = 6",
    ],
)
def test_row_32_entries_that_are_damaged_meanwhile_are_written_again(
    tmp_path: Path, change: str
) -> None:
    """Nothing of the catalog before the shard in question is lost, and nothing altered is kept."""
    rejected = record("r", "constant")
    records, rows = [record(f"{i}.png") for i in range(10)], unit(10)
    records.insert(6, rejected)
    whole = write(tmp_path / "whole", records, rows)
    manifest = StoreManifest(ENCODER, DIMENSION, SHARD)
    with StoreWriter(tmp_path / "s", manifest) as writer:
        writer.add(records, rows)
    with closing(sqlite3.connect(tmp_path / "s/catalog.sqlite")) as catalog, catalog:
        catalog.execute(change)
    with StoreWriter(tmp_path / "s", manifest) as writer:
        assert writer.rows == 4
        writer.add(records[4:], rows[4:])
        writer.finish(11)
    assert contents(whole) == contents(tmp_path / "s")


def test_an_unfinished_store_of_another_run_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        writer.add([record(str(i)) for i in range(5)], unit(5))
    with pytest.raises(InputError, match="unfinished store of another run"):
        StoreWriter(tmp_path / "s", StoreManifest("cd" * 32, DIMENSION, SHARD))


def test_a_repaired_shard_has_the_same_bytes(folder: Path) -> None:
    before = contents(folder)
    for name in ("c.1.0", "c.2.0"):
        flip(folder / "embeddings.zarr" / name, 9)
    with Store.open(folder) as store:
        second, third = store.damaged()
        assert [(second.first, second.stop), (third.first, third.stop)] == [(4, 8), (8, 10)]
        with pytest.raises(Damaged, match="rows 4 to 7, 8 to 9 are missing or not"):
            store.verify()
        with pytest.raises(InputError, match="rows 4 to 7 were computed again"):
            store.repair(second, made(unit(4, seed=9)))
        store.repair(second, made(unit(10)[4:8]))
        store.repair(third, made(unit(10)[8:]))
        store.verify()
    assert contents(folder) == before


def test_the_entries_of_a_shard(folder: Path, tmp_path: Path) -> None:
    rejected = record("r", "constant")
    records = [rejected, *(record(str(i)) for i in range(5)), replace(rejected, path="s")]
    with Store.open(write(tmp_path / "s", records, unit(5))) as store:
        assert [store.records_of(shard) for shard in store.table] == [records[:5], records[5:]]


def test_a_shard_is_on_disk_before_its_rows_are_in_the_catalog(tmp_path: Path) -> None:
    """What another reader sees after six rows: the first shard, its four rows, no more."""
    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        writer.add([record(str(i)) for i in range(6)], unit(6))
        with closing(sqlite3.connect(tmp_path / "s/catalog.sqlite")) as catalog:
            assert catalog.execute("SELECT count(row), max(row) FROM images").fetchone() == (4, 3)
            assert catalog.execute("SELECT count(*) FROM shards").fetchone() == (1,)
        assert (tmp_path / "s/embeddings.zarr/c.0.0").is_file()
        assert not (tmp_path / "s/embeddings.zarr/c.1.0").exists()


def test_a_failed_shard_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
        monkeypatch.setattr(files, "flush", full)
        with pytest.raises(OSError, match="No space"):
            writer.add([record(str(i)) for i in range(4)], unit(4))
    with closing(sqlite3.connect(tmp_path / "s/catalog.sqlite")) as catalog:
        assert catalog.execute("SELECT count(*) FROM images").fetchone() == (0,)


def test_a_store_is_not_written_over_anything(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match=r"holds store\.json, and"):
        StoreWriter(folder, StoreManifest(ENCODER, DIMENSION))
    assert contents(folder) == before


def test_folders_are_0700_and_files_0600(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with StoreWriter(tmp_path / "s", StoreManifest(ENCODER, DIMENSION, SHARD)) as writer:
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
            writer.add([record("a")], unit(1))
            writer.finish(1)
    finally:
        os.umask(old)
    for path in (tmp_path / "s", *(tmp_path / "s").rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_store_is_read_without_writing(folder: Path) -> None:
    """As from read-only media: no file changes, and none is added beside it."""
    before = contents(folder)
    with Store.open(folder) as store:
        store.read(0, 10)
        store.paths()
    assert contents(folder) == before


def test_a_missing_chunk_names_its_rows(folder: Path) -> None:
    (folder / "embeddings.zarr/c.1.0").unlink()
    with Store.open(folder) as store:
        assert np.array_equal(store.read(0, 4), unit(10)[:4])
        with pytest.raises(Damaged, match="rows 4 to 7 are missing"):
            store.read(3, 5)
        with pytest.raises(Damaged, match="rows 4 to 7 are missing"):
            list(store.shards())


@pytest.mark.parametrize("position", [0, 63, 64, 127, 131])
def test_a_flipped_bit_in_a_chunk_names_its_rows(folder: Path, position: int) -> None:
    """In the rows, in the filling after them, and in the checksum."""
    flip(folder / "embeddings.zarr/c.2.0", position)
    with Store.open(folder) as store, pytest.raises(Damaged, match="rows 8 to 9 cannot be read"):
        store.read(8, 10)


@pytest.mark.parametrize("size", [0, 2, 4, 70])
def test_a_truncated_chunk_names_its_rows(folder: Path, size: int) -> None:
    os.truncate(folder / "embeddings.zarr/c.0.0", size)
    with Store.open(folder) as store, pytest.raises(Damaged, match="rows 0 to 3 cannot be read"):
        store.read(0, 1)


def test_a_valid_chunk_in_the_wrong_place_is_found(folder: Path) -> None:
    shutil.copy(folder / "embeddings.zarr/c.0.0", folder / "embeddings.zarr/c.1.0")
    with Store.open(folder) as store, pytest.raises(Damaged, match="rows 4 to 7 are not those"):
        store.read(4, 8)


def test_a_flipped_bit_anywhere_in_the_catalog_is_found(folder: Path) -> None:
    whole = (folder / "catalog.sqlite").read_bytes()
    digest = sqlite_digest(folder)
    for position in (0, 100, whole.index(b"7.png"), whole.index(digest.encode()), len(whole) - 1):
        flip(folder / "catalog.sqlite", position)
        with pytest.raises(Damaged, match=r"catalog\.sqlite: its SHA-256"):
            Store.open(folder)
        (folder / "catalog.sqlite").write_bytes(whole)
    with Store.open(folder):
        pass


def sqlite_digest(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as catalog:
        return catalog.execute("SELECT sha256 FROM shards WHERE shard = 1").fetchone()[0]


@pytest.mark.parametrize("name", ["store.json", "embeddings.zarr/zarr.json"])
def test_row_32_every_flipped_bit_in_the_metadata_is_found(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for position in range(len(whole)):
        flip(folder / name, position)
        with pytest.raises((Damaged, StoreMismatch)):
            Store.open(folder)
        (folder / name).write_bytes(whole)


def test_a_catalog_that_is_none_is_damaged_not_a_traceback(folder: Path) -> None:
    (folder / "catalog.sqlite").write_bytes(b"no database" * 100)
    edit(folder, catalog=files.sha256(folder / "catalog.sqlite"))
    with pytest.raises(Damaged, match="not a database"):
        Store.open(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rows": 9, "listed": 10},
        {"rejected": 0, "listed": 10},
        {"rejected": 2},
        {"rejected": 0, "blank": 1},
        {"blank": 1, "listed": 12},
        {"listed": "11"},
        {"items": 11.0},
        {"array": "00" * 32},
        {"digest": "00" * 32},
        {"catalog": "00" * 32},
        {"dimension": 7},
        {"dimension": 8.0},
        {"shard_rows": 5},
        {"dtype": "float16"},
        {"encoder": "encoder"},
    ],
)
def test_a_changed_manifest_is_found(folder: Path, values: dict[str, object]) -> None:
    edit(folder, **values)
    with pytest.raises(Damaged):
        Store.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"format": 1}'])
def test_a_manifest_that_is_not_ours_is_damaged(folder: Path, text: str) -> None:
    (folder / "store.json").write_text(text, encoding="latin-1")
    with pytest.raises(Damaged, match=r"store\.json"):
        Store.open(folder)


def test_another_format_is_a_mismatch(folder: Path) -> None:
    edit(folder, format=1)
    with pytest.raises(StoreMismatch, match="format 1, and this version reads 6"):
        Store.open(folder)


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match=r"nowhere/store\.json"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(InputMissing, match="not there"):
        Store.open(folder / "catalog.sqlite")
    (folder / "embeddings.zarr/zarr.json").write_text("{}")
    with pytest.raises(Damaged, match=r"embeddings\.zarr"):
        Store.open(folder)
    shutil.rmtree(folder / "embeddings.zarr")
    with pytest.raises(Damaged, match=r"embeddings\.zarr"):
        Store.open(folder)


def test_a_missing_catalog_is_named(folder: Path) -> None:
    (folder / "catalog.sqlite").unlink()
    with pytest.raises(Damaged, match=r"catalog\.sqlite: is missing"):
        Store.open(folder)


@pytest.mark.parametrize(
    "values",
    [{"encoder": ""}, {"encoder": "xyz"}, {"dimension": 0}, {"shard_rows": 0}, {"dimension": "8"}],
)
def test_a_manifest_checks_itself(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(StoreManifest(ENCODER, DIMENSION), **values)
