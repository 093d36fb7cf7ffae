"""The manifest that a user gives: a CSV file that names images, and perhaps their subjects.

Its header is `path` or `path,subject`, its encoding UTF-8; paths are relative to the folder.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.safe_open import open_regular


def read_manifest(manifest: Path) -> Iterator[tuple[str, str]]:
    """Give the path and subject of each row, in the spelling that a walk would give.

    Raises InputMissing when the file is not there, and InputError, naming the line, for a row that
    names no file, or one that is named above, and for a manifest without rows.
    """
    reader = csv.reader(io.StringIO(_text(manifest), newline=""), strict=True)
    seen: set[str] = set()
    try:
        header = next(reader, [])
        if header not in (["path"], ["path", "subject"]):
            raise ValueError("the header must be 'path' or 'path,subject'")
        for row in filter(None, reader):
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, and the header has {len(header)}")
            path = _normalised(row[0])
            if path in seen:
                raise ValueError("a path that is listed above")
            seen.add(path)
            yield path, "".join(row[1:])
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}, line {reader.line_num}: {error}.") from error
    if not seen:
        raise InputError(f"{manifest}: names no file.")


def _text(manifest: Path) -> str:
    try:
        with open_regular(manifest) as file:
            return file.read().decode("utf-8-sig", "surrogateescape")
    except Rejected as error:
        kind = InputMissing if error.rejection.reason == "vanished" else InputError
        raise kind(
            f"{manifest}: cannot be read as a manifest: {error.rejection.detail}."
        ) from error


def _normalised(path: str) -> str:
    """Spell a path in the one way that a walk would; ValueError when it can name no file."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or "\0" in path:
        raise ValueError("an empty path, or one that no file can have")
    return "/" * path.startswith("/") + "/".join(parts)
