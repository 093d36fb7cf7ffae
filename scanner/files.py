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
    try:
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
    """
    refuse_foreign(path, marker)
    partial, old = (path.with_name(f".{path.name}.{tag}") for tag in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    try:
        yield partial
        if path.exists():
            path.replace(old)
        partial.replace(path)
        flush(path.parent)
    finally:
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
