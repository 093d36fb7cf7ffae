"""Opens the user's files, and only regular files inside the folder given.

Nothing here hangs on a FIFO or acts on a device. A path is checked before it is opened, because
opening a device may act on it, and again after, because it may have been replaced meanwhile.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deepssim_scan.ingest.rejection import Rejected

MAX_BYTES = 1 << 30
"""The largest image file, or member of an archive, that is read."""


def inside(root: str, path: str | Path) -> bool:
    """Tell whether a path, its links followed, stays under `root`, itself free of links."""
    return Path(os.path.realpath(path)).is_relative_to(root)


def regular_status(path: str | Path) -> os.stat_result:
    """Return the status of a regular file, without opening it.

    Raises Rejected: "vanished", "unreadable" or "not-a-file".
    """
    try:
        return _regular(os.stat(path))  # noqa: PTH116 - for every file, and Path.stat is slower
    except OSError as error:
        raise _rejected(error) from error


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file to read.

    Raises Rejected as `regular_status` does, for errors of the block that reads it as well.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    regular_status(path)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            _regular(os.fstat(file.fileno()))
            yield file
    except OSError as error:
        raise _rejected(error) from error


def _rejected(error: OSError) -> Rejected:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Rejected("vanished", "is not there, or no longer")
    return Rejected("unreadable", error.strerror or type(error).__name__)


def _regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("not-a-file", "a FIFO, device, socket or folder")
    return status
