"""Small jobs on which the harness is proved: one that does all right, and others that each fail.

A job makes the folder `made` in the working directory: rows in SQLite, numbers in Zarr, shard by
shard, and last of all made.json with the digests. A killed run is resumed.
"""

import hashlib
import json
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import zarr

from deepssim_scan.errors import Damaged, InputError, ScanError

MADE, PARTIAL, OLD = Path("made"), Path(".made.partial"), Path(".made.old")
SHARDS, ROWS = 3, 4


def five_calls() -> int:
    """Create, write, flush, close and rename, and nothing else here; return the bytes written."""
    Path(os.devnull).write_bytes(b"elsewhere")
    descriptor = os.open("a.new", os.O_WRONLY | os.O_CREAT)
    written = os.write(descriptor, b"12345678")
    os.fsync(descriptor)
    os.close(descriptor)
    Path("a.new").rename("a")
    return written


def four_looks() -> list[str]:
    """Look at a file, open and read it, and list the folder: the first, two and last a call."""
    Path("old").stat()
    descriptor = os.open("old", os.O_RDONLY)
    os.read(descriptor, 8)
    os.close(descriptor)
    return [path.name for path in Path().iterdir()]


def put(forgets: str = "") -> None:
    """Put a new file in the place of `made`, and keep it through a power cut, but for one thing.

    Forgotten is to flush the "data" or the "name", to rename "after" the data was flushed, or to
    "check" what is left of a run before; or it "asks" for that to be removed.
    """
    new = Path(".made.new")
    if new.exists() and forgets == "asks":
        raise InputError(f"{new}: is left of another run. Remove it.")
    if not new.exists() or forgets != "check":
        with new.open("wb") as file:
            file.write(bytes(range(1, 201)) * 8)
            file.flush()
            if forgets == "after":
                new.replace(MADE)
            if forgets != "data":
                os.fsync(file.fileno())
    if forgets != "after":
        new.replace(MADE)
    if forgets != "name":
        _flush(Path())


def put_mapped() -> None:
    """Write to a file in a way that the shim does not see."""
    with MADE.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:3] = b"new"


def careful() -> None:
    """Do it as it should be done."""
    _recover()
    _fill(PARTIAL)
    _publish()


def in_place() -> None:
    """Write where the finished folder stands: a reader may find half of it."""
    _fill(MADE)


def forgetful() -> None:
    """Take a failed call for done, and say nothing."""
    _recover()
    with suppress(OSError, ScanError):
        _fill(PARTIAL)
        (PARTIAL / "made.json").touch()
    _publish()


def repeating() -> None:
    """Resume one shard too early, so that its rows are there twice."""
    _recover()
    _fill(PARTIAL, again=1)
    _publish()


def untidy() -> None:
    """Leave a killed run's folder for ever beside the finished one."""
    with suppress(FileExistsError):
        Path(f".made.{os.getpid()}").mkdir()
    careful()
    Path(f".made.{os.getpid()}").rmdir()


def crashing() -> None:
    """Let a failed call out as an error that nobody would expect of it."""
    try:
        careful()
    except OSError as error:
        raise KeyError("made") from error


def hanging() -> None:
    """Wait for ever once a call has failed."""
    try:
        careful()
    except (OSError, ScanError):
        threading.Event().wait()


def stop_midway(folder: str, child: bool) -> None:
    """Fill most of a folder, say so in ../ready, and wait to be killed; the next time, end."""
    ready, folder_path = Path("..", "ready"), Path(folder)
    _recover()
    _fill(folder_path)
    if not ready.exists():
        (folder_path / "sealed").unlink()
        if child:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        ready.touch()
        threading.Event().wait()
    if folder_path == PARTIAL:
        _publish()


def verified() -> int:
    """Read the folder, every byte of it against its digest."""
    for name, digest in _manifest().items():
        if _sha256(MADE / name) != digest:
            raise Damaged(f"{name} is not what was written")
    return _sum()


def believed() -> int:
    """Read the folder without looking at the digests."""
    _manifest()
    try:
        return _sum()
    except sqlite3.Error as error:
        raise Damaged(str(error)) from error


def dying() -> int:
    """Abort the process at the sight of a changed byte."""
    try:
        return verified()
    except Damaged:
        os.abort()


def rows(made: Path) -> list[str]:
    """Return the names in a finished folder's table."""
    if not (made / "rows.sqlite").is_file():
        return []
    with closing(sqlite3.connect(f"file:{made}/rows.sqlite?mode=ro&immutable=1", uri=True)) as base:
        return [name for (name,) in base.execute("SELECT name FROM rows")]


def _recover() -> None:
    if OLD.exists() and not MADE.exists():
        OLD.replace(MADE)
    shutil.rmtree(OLD, ignore_errors=True)


def _fill(folder: Path, again: int = 0) -> None:
    """Add the shards that are not yet there, but for the last `again`; then the digests."""
    if not (folder / "zarr" / "zarr.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shape, chunks = (SHARDS * ROWS,), (ROWS,)
        zarr.create_array(folder / ".zarr", shape=shape, chunks=chunks, dtype="f4")
        (folder / ".zarr").replace(folder / "zarr")
    with _sqlite(folder / "rows.sqlite") as base:
        base.execute("CREATE TABLE IF NOT EXISTS rows (name TEXT)")
        done = base.execute("SELECT count(*) FROM rows").fetchone()[0] // ROWS
        for shard in range(max(0, done - again), SHARDS):
            _add(folder, base, shard)
    for leftover in (folder / "zarr" / "c").glob("*.partial"):
        leftover.unlink()
    _write(folder / "made.json", json.dumps(_digests(folder), indent=1).encode())
    _write(folder / "sealed", hashlib.sha256((folder / "made.json").read_bytes()).digest())


def _add(folder: Path, base: sqlite3.Connection, shard: int) -> None:
    names = [(f"{shard}/{row}",) for row in range(ROWS)]
    numbers = np.random.default_rng(shard).random(ROWS, np.float32)
    zarr.open_array(folder / "zarr", mode="r+")[shard * ROWS : (shard + 1) * ROWS] = numbers
    _flush(folder / "zarr" / "c" / str(shard))
    with base:
        base.executemany("INSERT INTO rows VALUES (?)", names)


def _publish() -> None:
    if MADE.exists():
        MADE.replace(OLD)
    try:
        PARTIAL.replace(MADE)
    except OSError:
        if OLD.exists():
            OLD.replace(MADE)
        raise
    if OLD.exists():
        shutil.rmtree(OLD)


@contextmanager
def _sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path)) as base:
            yield base
    except sqlite3.Error as error:
        raise Damaged(f"{path}: {error}") from error


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(data)
    if partial.read_bytes() != data:
        raise Damaged(f"{path}: did not read back")
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(folder: Path) -> dict[str, str]:
    last = ("made.json", "sealed", ".made.json", ".sealed")
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in last)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in found}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _manifest() -> dict[str, str]:
    text = (MADE / "made.json").read_bytes()
    if hashlib.sha256(text).digest() != (MADE / "sealed").read_bytes():
        raise Damaged("made.json is not what was written")
    digests: dict[str, str] = json.loads(text)
    return digests


def _sum() -> int:
    return len(rows(MADE)) + int(zarr.open_array(MADE / "zarr", mode="r")[:].sum())
