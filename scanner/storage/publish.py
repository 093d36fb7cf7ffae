"""A folder made beside its place and put there whole: one writer, and a killed run goes on.

    .NAME.partial   the folder in the making; job.json in it says what is being made
    .NAME.lock      held by the process that makes it
    .NAME.old       what NAME was, for the moment between two renames

A run that is killed, or that the disk stops, leaves `.NAME.partial`; the next run of the same
job finds it there and goes on. A job has stages, and what is left of the first ones is kept as
long as they are the same. NAME itself is what it was until the new folder is whole.
"""

import fcntl
import json
import os
import shutil
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from deepssim_scan.errors import (
    Busy,
    Damaged,
    InputError,
    InputMissing,
    ScanError,
    Unfinished,
    WriteFailed,
)
from deepssim_scan.progress import SILENT, Progress
from deepssim_scan.storage.files import flush, make_folder, shown
from deepssim_scan.storage.layout import JOB, foreign
from deepssim_scan.storage.records import read_json, write_json

_ANEW = ".anew"
"""In a folder in the making of which nothing is taken from what is in place."""

_NOBODY = 65534  # whose the files of root are on a network file system that does not trust it


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a job, from whose result a later run may go on.

    `options` is what was asked for: a run with others than an interrupted one is refused, so that
    nothing is dropped by a slip. `inputs` is what they were applied to: with others the stage, and
    all after it, begins anew. Both hold values of JSON. `leaves` names what it writes.
    """

    name: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    leaves: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what identifies the stage's result, as JSON gives it back."""
        value = {"options": self.options, "inputs": self.inputs}
        return cast("dict[str, Any]", json.loads(json.dumps(value)))


@dataclass(frozen=True, slots=True)
class Job:
    """What is made: stages in their order, each of which takes the result of those before it.

    `facts` are recorded beside them, and make no difference.
    """

    command: str
    stages: tuple[Stage, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what job.json holds."""
        stages = {stage.name: stage.record() for stage in self.stages}
        return self.facts | {"command": self.command, "stages": stages}

    def same_as(self, record: dict[str, Any]) -> tuple[Stage, ...]:
        """Return the first stages, as many as are the same in job.json of another run."""
        if record.get("command") != self.command:
            return ()
        found = record.get("stages", {})
        same = takewhile(lambda stage: found.get(stage.name) == stage.record(), self.stages)
        return tuple(same)


@contextmanager
def publishing(
    path: Path,
    names: Collection[str],
    job: Job,
    *,
    restart: bool = False,
    anew: bool = False,
    progress: Progress = SILENT,
) -> Iterator[Path]:
    """Give the folder in which `path` is made, as a killed run of the same `job` left it, or new.

    When the block ends well the folder replaces `path`, which may be absent, empty, or one that
    was made so and holds only files of the patterns `names`. Where `path` is a link, what it leads
    to is replaced. `restart` drops what a killed run left; `anew` does unless that run was to make
    everything anew, too: others take something from what is in place.

    Raises InputError for a folder of something else, or when a killed run had other options, Busy
    when another process is making it, WriteFailed when the disk does; `path` is intact then. What
    the block did is kept for the next run, but for an InputError, which the same input would bring
    again, and for Damaged.
    """
    refuse_foreign(path, names)
    path = path.resolve()
    partial, old = (path.with_name(f".{path.name}.{tag}") for tag in ("partial", "old"))
    with _write_errors(path, partial), locked(path):
        for beside in (partial, old):
            _require_ours(beside)
        if old.exists() and not path.exists():  # a swap that stopped half-way is undone
            old.replace(path)
        if restart:
            _remove(partial)
        _begin(partial, job, progress, anew=anew)
        _mark(partial, anew=anew)
        try:
            yield partial
        except (InputError, Damaged):
            shutil.rmtree(partial)
            raise
        _mark(partial, anew=False)
        refuse_foreign(path, names)  # again: the block may have taken hours
        _swap(partial, path, old)


def _require_ours(path: Path) -> None:
    """Raise InputError for a link, and for what another user has put where we are to write."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    squashed = os.geteuid() == 0 and status.st_uid == _NOBODY
    if stat.S_ISLNK(status.st_mode) or not (status.st_uid == os.geteuid() or squashed):
        what = "is a link" if stat.S_ISLNK(status.st_mode) else f"is of user {status.st_uid}"
        raise InputError(
            f"{path}: {what}, and this is where a run keeps what it makes. Remove it, or write to "
            "a folder in which no one else may write."
        )


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
    found = next(foreign(path, names), None)
    if found is not None or (any(path.iterdir()) and read_job(path) is None):
        holds = f"holds {shown(os.path.relpath(found.path, path))}" if found else ""
        what = holds or f"has no {JOB} of ours"
        raise InputError(
            f"{path}: {what}, so it is not replaced. Choose a new or empty folder, or remove it."
        )


def read_job(folder: Path) -> dict[str, Any] | None:
    """Return what job.json of a folder says, None where there is none that is whole."""
    try:
        return read_json(folder / JOB)
    except (InputMissing, Damaged):
        return None


def _begin(partial: Path, job: Job, progress: Progress, *, anew: bool) -> None:
    """Keep what an earlier run left of the stages that are the same, or begin a new folder."""
    for leftover in partial.glob(".*.partial"):  # of a file or folder that was not whole yet
        _remove(leftover)
    left, of_use = read_job(partial), not anew or (partial / _ANEW).exists()
    if left == job.record() and of_use:
        return
    if left is not None:
        _refuse_others(partial, left, job)
    kept = job.same_as(left or {}) if of_use else ()
    if not kept:
        if left is not None:
            others = "of other images, or of other versions of this program and its libraries"
            why = others if of_use else "of a run that was not to read everything again"
            progress.warn(f"{partial.name}: what an interrupted run left is {why}. It begins anew.")
        _remove(partial)
        partial.mkdir(mode=0o700)
    for stage in job.stages[len(kept) :]:
        for name in stage.leaves:
            _remove(partial / name)
    write_json(partial / JOB, job.record())
    flush(partial.parent)


def _mark(partial: Path, *, anew: bool) -> None:
    """Note on the disk whether nothing in a folder is taken from what is in place."""
    mark = partial / _ANEW
    if mark.exists() != anew:
        mark.touch(0o600) if anew else mark.unlink()
        flush(partial)


def _refuse_others(partial: Path, left: dict[str, Any], job: Job) -> None:
    """Raise InputError when an interrupted run had other options; what it left is kept."""
    changes = _changes({"command": left.get("command")}, {"command": job.command})
    for stage in job.stages:
        found = left.get("stages", {}).get(stage.name, {}).get("options", stage.options)
        changes += _changes(found, stage.record()["options"])
    if changes:
        raise Unfinished(
            f"{partial}: an interrupted run left this, with other options: {'; '.join(changes)}. "
            "Give the same options to go on from there, or --restart to drop it and begin anew."
        )


def _changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Say which values differ, by their names."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {shown(str(old))}, is {shown(str(new))}")
    return found


def _swap(partial: Path, path: Path, old: Path) -> None:
    """Put `partial` in the place of `path`, or leave `path` where it is."""
    _remove(old)
    flush(partial)  # what was renamed into it last
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    make_folder(path.parent)
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
        if lock.is_symlink():
            raise InputError(f"{lock}: is a link. Remove it.")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(lock, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink > 1:
                raise InputError(f"{lock}: is a second name of another file. Remove it.")
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
