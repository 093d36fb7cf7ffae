"""Files of ours: private (0600, folders 0700), whole or absent, replaced in one step."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepssim_scan.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there takes its place, flushed.

    When the block raises, `path` keeps what it had and the temporary file is gone.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.touch(mode=0o600, exist_ok=False)  # private from the first byte on
        yield partial
        partial.chmod(0o600)
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, marker: str) -> Iterator[Path]:
    """Give an empty private folder beside `path`; when the block ends well, it replaces `path`.

    `path` may be absent, empty, or a folder that holds `marker`, which is what one of ours
    always has; anything else raises InputError, so that no stranger's folder is ever removed.
    Where `path` is a link to a folder, that folder is replaced.
    """
    refuse_foreign(path, marker)
    path = path.resolve()
    partial, old = (path.with_name(f".{path.name}.{tag}") for tag in ("partial", "old"))
    _clear(path, partial, old)
    partial.mkdir(mode=0o700, parents=True)
    try:
        yield partial
        if path.exists():
            path.replace(old)
        partial.replace(path)
        flush(path.parent)
    finally:
        _clear(path, partial, old)


def _clear(path: Path, partial: Path, old: Path) -> None:
    """Remove what a replacement leaves behind; one that stopped half-way is undone first."""
    if old.exists() and not path.exists():
        old.replace(path)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)


def refuse_foreign(path: Path, marker: str) -> None:
    """Raise InputError when `path` is something that we did not make."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file, and a folder is to be written. Choose another name.")
    if any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(
            f"{path}: holds other files and no {marker}, so it is not replaced. "
            "Choose a new or empty folder."
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON, in place of what was there."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
