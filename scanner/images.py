"""Folders of image files to standardised pixels, with a reason for every file left out.

    list_images(folder) -> Listing -> decode_images -> one Decoded per file, in its order

Every file that is listed comes out exactly once, as pixels (H', W') float32 or as a
rejection. Sizes are bytes, times nanoseconds.
"""

import hashlib
import os
import signal
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from deepssim_scan.decode import (
    MAX_PIXELS,
    REASONS,
    Pixels,
    Rejected,
    Rejection,
    Standardisation,
    decode,
    standardise,
)
from deepssim_scan.errors import InputError, ScanError
from deepssim_scan.listing import SUFFIXES, Item, Listing, inside, list_images

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "REASONS",
    "SUFFIXES",
    "Decoded",
    "Item",
    "Listing",
    "Pixels",
    "Rejected",
    "Rejection",
    "Standardisation",
    "decode_file",
    "decode_images",
    "list_images",
    "standardise",
]

MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What became of one file: pixels (H', W') float32, standardised, or a rejection.

    `sha256` is of the very bytes that were decoded; it and `mode` are empty, and the numbers
    0, where the file did not get that far.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    mode: str
    pixels: Pixels | None
    rejection: Rejection | None

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.rejection is None):
            raise ValueError(f"{self.path!r} must have either pixels or a rejection")


def decode_file(
    folder: Path, path: str, rule: Standardisation, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Read, hash, decode and standardise one file of `folder`; every failure is a rejection.

    The bytes are read once, and the hash is of those that were decoded.
    """
    size, mtime_ns, sha256, mode = 0, 0, "", ""
    try:
        data, mtime_ns = _read(folder, path)
        size, sha256 = len(data), hashlib.sha256(data).hexdigest()
        mode, pixels = decode(data, max_pixels)
        standard = standardise(pixels, rule)
    except Rejected as error:
        return Decoded(path, size, mtime_ns, sha256, mode, None, error.rejection)
    except MemoryError:
        rejection = Rejection("too-large", "not enough memory")
        return Decoded(path, size, mtime_ns, sha256, mode, None, rejection)
    return Decoded(path, size, mtime_ns, sha256, mode, standard, None)


def _read(folder: Path, path: str) -> tuple[bytes, int]:
    """Return a regular file's bytes and its modification time, which did not change meanwhile."""
    file_path = folder / path
    if not inside(os.path.realpath(folder), file_path):
        raise Rejected("outside-folder", "the path leaves the folder")
    try:
        # Looked at before it is opened, because opening a device may act on it, and after,
        # because it may have been replaced; without blocking, so that a FIFO cannot hang.
        _check_regular(file_path.stat())
        descriptor = os.open(file_path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            _check_regular(before)
            data = file.read(before.st_size + 1)
            after = os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("vanished", "was listed, and is no longer there") from error
    except OSError as error:
        raise Rejected("unreadable", error.strerror or type(error).__name__) from error
    sizes = {before.st_size, len(data), after.st_size}
    if len(sizes) > 1 or before.st_mtime_ns != after.st_mtime_ns:
        raise Rejected("changed", "its size or time changed while it was read")
    return data, after.st_mtime_ns


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("not-a-file", "not a regular file")
    if status.st_size > MAX_BYTES:
        raise Rejected("too-large", f"{status.st_size} bytes, over the limit of {MAX_BYTES}")


def decode_images(
    listing: Listing,
    rule: Standardisation,
    *,
    workers: int,
    max_pixels: int = MAX_PIXELS,
    chunk: int = 32,
) -> Generator[Decoded, None, None]:
    """Decode every file of a listing, in its order: exactly one Decoded per item.

    `workers` processes (0: this one) take `chunk` files at a time. At most 2 * workers + 2
    chunks of standardised images are held, so memory does not grow with the folder; where
    images are large and never resized, a smaller `chunk` holds fewer. Closing the generator
    ends the processes. The result does not depend on `workers` or `chunk`.

    Raises InputError for numbers out of range, at the call; ScanError while iterating, when
    no process can be started.
    """
    if workers < 0 or chunk < 1 or max_pixels < 1:
        raise InputError(
            f"workers ({workers}) must be >= 0, chunk ({chunk}) and max_pixels ({max_pixels}) >= 1"
        )
    one = partial(decode_file, listing.folder, rule=rule, max_pixels=max_pixels)
    paths = (item.path for item in listing.files if item.rejection is None)
    results = _pooled(one, paths, workers, chunk) if workers else (one(path) for path in paths)
    return _in_order(listing, results)


def _in_order(
    listing: Listing, results: Generator[Decoded, None, None]
) -> Generator[Decoded, None, None]:
    with closing(results):
        for item in listing.files:
            yield next(results) if item.rejection is None else _undecoded(item.path, item.rejection)


def _undecoded(path: str, rejection: Rejection) -> Decoded:
    return Decoded(path, 0, 0, "", "", None, rejection)


_Decode = Callable[[str], Decoded]


def _pooled(
    one: _Decode, paths: Iterator[str], workers: int, chunk: int
) -> Generator[Decoded, None, None]:
    """Run `one` on every path in worker processes, in order, a bounded number ahead.

    When a process dies, its pool is lost with all that was in flight, and which file did it is
    not known: what is waiting runs again one file at a time, and a new pool takes the rest.
    """
    waiting: deque[tuple[list[str], Future[list[Decoded]]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < 2 * workers + 2 and (batch := list(islice(paths, chunk))):
                waiting.append((batch, _submit(pool, one, batch)))
            if not waiting:
                return
            try:
                results = waiting[0][1].result()
            except BrokenProcessPool:
                pool.shutdown()
                yield from _one_by_one(one, [path for batch, _ in waiting for path in batch])
                waiting.clear()
                pool = _pool(workers)
            else:
                waiting.popleft()
                yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, one: _Decode, batch: list[str]) -> Future[list[Decoded]]:
    """Give a batch to a pool; when the pool is broken already, the future says so."""
    try:
        return pool.submit(_decode_all, one, batch)
    except BrokenProcessPool as error:
        broken: Future[list[Decoded]] = Future()
        broken.set_exception(error)
        return broken


def _one_by_one(one: _Decode, paths: list[str]) -> Generator[Decoded, None, None]:
    """Run `one` on each path alone, in a process that is fresh after each death.

    A file that kills two of these is "decoder-crashed": one may have died by bad luck.
    """
    pool = _started_pool()
    try:
        for path in paths:
            results = [_undecoded(path, Rejection("decoder-crashed", "its process died twice"))]
            for _ in range(2):
                try:
                    results = pool.submit(_decode_all, one, [path]).result()
                    break
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = _started_pool()
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned: a process forked after torch or FAISS ran threads can hang.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ignore_interrupts)


def _started_pool() -> ProcessPoolExecutor:
    """Return a pool of one running process, so that who dies in it did so by what it decoded."""
    pool = _pool(1)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        pool.shutdown()
        raise ScanError(
            "decoding: worker processes die as they start. Decode with 0 workers; in a script, "
            "start the run under if __name__ == '__main__'."
        ) from error
    return pool


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which then ends its workers without a traceback from each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode_all(one: _Decode, paths: list[str]) -> list[Decoded]:
    return [one(path) for path in paths]
