"""The manifest that a user gives: a CSV file that names images, and what is known of them.

Its header has a column `path`, perhaps `subject`, and any others, such as `seed`. Its encoding is
UTF-8; paths are relative to the folder.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.safe_open import open_regular

_OURS = "path", "subject"


def read_manifest(manifest: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the path of each row, in the spelling that a walk would give, and its other columns.

    Raises InputMissing when the file is not there, and InputError, naming the line, for a row that
    names no file, or one that is named above, and for a manifest without rows.
    """
    reader = csv.reader(io.StringIO(_text(manifest), newline=""), strict=True)
    seen: set[str] = set()
    try:
        header = next(reader, [])
        _check_header(header)
        for row in filter(None, reader):
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, and the header has {len(header)}")
            columns = dict(zip(header, row, strict=True))
            path = _normalised(columns.pop("path"))
            if path in seen:
                raise ValueError("a path that is listed above")
            seen.add(path)
            yield path, columns
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}, line {reader.line_num}: {error}.") from error
    if not seen:
        raise InputError(f"{manifest}: names no file.")


def _check_header(header: list[str]) -> None:
    """Raise ValueError for a header without `path`, or with a column that may be meant as ours."""
    for name in header:
        if not name.strip() or header.count(name) > 1:
            raise ValueError(f"the header has the column {name!r} twice, or one without a name")
        if name not in _OURS and name.strip().lower() in _OURS:
            raise ValueError(f"the column {name!r} must be spelt {name.strip().lower()!r}")
    if "path" not in header:
        raise ValueError("the header must have a column 'path', and commas between columns")


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
