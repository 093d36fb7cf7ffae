"""Our JSON files: an object that carries its own SHA-256, and is rendered in one way only.

    {"name": value, ..., "checksum": SHA-256 of the same object without this line}

So a single altered byte, white space included, is found when the file is read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, get_origin

from deepssim_scan.errors import Damaged, InputError, InputMissing
from deepssim_scan.storage.files import replacing

Record = TypeVar("Record")
CHECKSUM = "checksum"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON with its checksum, in place of what was there."""
    with replacing(path) as file:
        file.write(_render(value | {CHECKSUM: _checksum(value)}))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that `write_json` wrote.

    Raises InputMissing when the file is not there, Damaged when it is not what was written.
    """
    try:
        text = path.read_bytes()
        value = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputMissing(f"{path}: not there, or its making was not finished.") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not the JSON that was written ({error}). Make it again.") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path}: holds no JSON object. Make it again.")
    found = value.pop(CHECKSUM, None)
    if found != _checksum(value) or _render(value | {CHECKSUM: found}) != text:
        raise Damaged(
            f"{path}: was altered, or written by another version: its checksum does not fit. "
            "Make it again."
        )
    return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(_render(value)).hexdigest()


def _render(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")


def record(kind: type[Record], value: dict[str, Any], path: Path) -> Record:
    """Return the dataclass `kind` from the JSON object that `path` held, or raise Damaged."""
    try:
        return kind(**{name: value[name] for name in kind.__annotations__})
    except KeyError as error:
        raise Damaged(f"{path}: has no {error}. Make it again.") from error
    except InputError as error:
        raise Damaged(f"{path}: {error}. Make it again.") from error


def check_types(value: object) -> None:
    """Raise InputError when a field of a dataclass is not of the very type that it declares."""
    for name, kind in type(value).__annotations__.items():
        found = getattr(value, name)
        wanted: Any = get_origin(kind) or kind
        if type(found) is not wanted:
            raise InputError(f"{name} ({found!r}) must be of type {wanted.__name__}")
