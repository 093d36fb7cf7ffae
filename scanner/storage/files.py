"""Files of ours: private (0600, folders 0700), whole or absent, replaced in one step."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepssim_scan.errors import Damaged

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class HashingFile(io.BufferedIOBase):
    """A new private file that is written once, from its start to its end, and hashed meanwhile."""

    def __init__(self, path: Path) -> None:
        """Create `path`, 0600 from the first byte on; FileExistsError when it is there."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.name = str(path)
        self._file = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of all that was to be written."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Tell the wrappers for text and Parquet that they may write."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Take all of `data`; return its length in bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def close(self) -> None:
        """Bring the bytes to the disk and close the file."""
        try:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            super().close()


@contextmanager
def replacing(path: Path) -> Iterator[HashingFile]:
    """Give a new file beside `path`, which takes its place once what was written reads back.

    When the block raises, or the disk lost a byte (Damaged), `path` keeps what it had.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with HashingFile(partial) as file:
            yield file
        check_sha256(partial, file.sha256)
        partial.replace(path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes, in place of what `target` had."""
    with source.open("rb") as file, replacing(target) as copied:
        shutil.copyfileobj(file, copied)


def link(source: Path, target: Path) -> None:
    """Give the files of a folder a second name each under `target`; copies where links cannot be.

    `target` is there once all files are, so that nothing goes on with a part of them, in files that
    `source` has too. Only for files that are replaced and never written in place.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.copytree(source, partial, copy_function=_link)
    make_private(partial)
    partial.replace(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, wanted: str) -> None:
    """Raise Damaged when `path` is absent or its bytes have another SHA-256."""
    if not path.is_file():
        raise Damaged(f"{path}: is missing. Make it again.")
    found = sha256(path)
    if found != wanted:
        raise Damaged(
            f"{path}: its SHA-256 is {found[:12]}, and {wanted[:12]} was written. Make it again."
        )


def flush(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder where there is none, and those above it, and bring their names to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode, exist_ok=True)
        flush(path.parent)


def make_private(folder: Path) -> None:
    """Give a folder of ours and all in it 0700 and 0600, and bring them to the disk."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o700 if path.is_dir() else 0o600)
        flush(path)


def shown(path: str) -> str:
    """Return a path as text that is safe in a table, a log or a terminal, and can be undone.

    Backslashes, control and other unprintable characters, and bytes that are not UTF-8 become
    Python's escapes. A first `=`, `+`, `-` or `@`, which a spreadsheet would run as a formula,
    gets `./` before it, which names the same file.
    """
    text = "".join(_printable(character) for character in path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text


def _printable(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is not UTF-8, by surrogateescape
        return f"\\x{ord(character) - 0xDC00:02x}"
    if "\x80" <= character <= "\xff" and not character.isprintable():
        return f"\\u{ord(character):04x}"  # not \x, which stands for a byte
    if character == "\\" or not character.isprintable():
        return character.encode("unicode_escape").decode("ascii")
    return character
