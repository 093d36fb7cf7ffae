"""A folder made beside its place and put there whole: one writer, and a killed run goes on.

    .NAME.partial   the folder in the making; job.json in it says what is being made
    .NAME.lock      held by the process that makes it
    .NAME.old       what NAME was, for the moment between two renames

A run that is killed, or that the disk stops, leaves `.NAME.partial`; the next run of the same
job finds it there and goes on, one of another job clears it. NAME itself is what it was until
the new folder is whole.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepssim_scan.errors import Busy, Damaged, InputError, InputMissing, ScanError, WriteFailed
from deepssim_scan.files import flush, shown
from deepssim_scan.records import read_json, write_json

JOB = "job.json"


@contextmanager
def publishing(path: Path, names: Collection[str], job: dict[str, Any]) -> Iterator[Path]:
    """Give the folder in which `path` is made, as a killed run of the same `job` left it, or new.

    When the block ends well the folder replaces `path`, which may be absent, empty, or one that
    was made so and holds `names` only. Where `path` is a link, what it leads to is replaced.

    Raises InputError for a folder of something else, Busy when another process is making it,
    WriteFailed when the disk does; `path` is intact then. What the block did is kept for the next
    run, but for an InputError, which the same input would bring again, and for Damaged.
    """
    refuse_foreign(path, names)
    path = path.resolve()
    partial, old = (path.with_name(f".{path.name}.{tag}") for tag in ("partial", "old"))
    with _write_errors(path, partial), locked(path):
        if old.exists() and not path.exists():  # a swap that stopped half-way is undone
            old.replace(path)
        _begin(partial, job)
        try:
            yield partial
        except (InputError, Damaged):
            shutil.rmtree(partial)
            raise
        refuse_foreign(path, names)  # again: the block may have taken hours
        _swap(partial, path, old)


def refuse_foreign(path: Path, names: Collection[str]) -> None:
    """Raise InputError when `path` is anything but a folder that we made, of `names`, or empty."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file, and a folder is to be written. Choose another name.")
    if path.is_mount():
        raise InputError(
            f"{path}: is a mount point, which cannot be replaced. Choose a folder inside of it."
        )
    found = {entry.name for entry in path.iterdir()}
    others = sorted(found - {JOB, *names})
    if others or (found and not _is_record(path / JOB)):
        what = f"holds {shown(others[0])}" if others else f"has no {JOB} of ours"
        raise InputError(
            f"{path}: {what}, so it is not replaced. Choose a new or empty folder, or remove it."
        )


def _is_record(path: Path) -> bool:
    try:
        read_json(path)
    except (InputMissing, Damaged):
        return False
    return True


def _begin(partial: Path, job: dict[str, Any]) -> None:
    """Keep what a run of the same job left, or start with an empty folder."""
    try:
        if read_json(partial / JOB) == json.loads(json.dumps(job)):
            return
    except (InputMissing, Damaged):
        pass
    _remove(partial)
    partial.mkdir(mode=0o700)
    write_json(partial / JOB, job)
    flush(partial.parent)


def _swap(partial: Path, path: Path, old: Path) -> None:
    """Put `partial` in the place of `path`, or leave `path` where it is."""
    _remove(old)
    if path.exists():
        path.replace(old)
    try:
        partial.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    flush(path.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _write_errors(path: Path, partial: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line."""
    try:
        yield
    except ScanError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        kept = (
            f" What was done is kept in {partial.name}: when the cause is gone, the same command "
            "goes on from there."
        )
        raise WriteFailed(
            f"{path}: not written: {error.strerror or error}{where}. What was there before is "
            f"intact.{kept if partial.exists() else ''}"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which the system lets go of when its process ends, however.

    Raises Busy, which names the holder, when another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, lock)
    try:
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        try:
            lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _acquire(path: Path, lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, lock):
                return descriptor  # and not a file that a run has removed at its end
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Busy(
                f"{path}: is being written by {holder}. Wait for it, or choose another folder."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # which has the lock, and has not said yet who it is
