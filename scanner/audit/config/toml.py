"""Reads TOML files that people write: every mistake is named with its line.

file, a model of what it may hold -> the model's value, or an InputError with a line a mistake
"""

import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deepssim_scan.errors import InputError, InputMissing

_LONGEST = 65_536  # bytes of a file
_MOST = 20  # mistakes that are told at once
_SHOWN = 60  # characters of a value
_Path = Sequence[str | int]


class Part(BaseModel):
    """A table of a file: its keys and their types are those of the class, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=Part)


def as_tuple(value: Any) -> Any:
    """Return an array of a file as a tuple, and anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def read_toml(path: Path, model: type[Model]) -> Model:
    """Return what a file holds.

    In keys, "-" is the same as "_". Raises InputMissing when the file is not there, InputError for
    every mistake in it.
    """
    text = _text(path)
    value = _parsed(path, text)
    try:
        return model.model_validate(_normal(path, text, value), context={"folder": path.parent})
    except ValidationError as error:
        found = [_told(path, text, dict(each)) for each in error.errors()]
        more = [f"and {len(found) - _MOST} more mistakes"] if len(found) > _MOST else []
        raise InputError("\n".join([*found[:_MOST], *more])) from None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes() if path.stat().st_size <= _LONGEST else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputMissing(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    if data is None:
        raise InputError(f"{path}: is larger than {_LONGEST:,} bytes, so it is none of ours.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: is not UTF-8: {error.reason}.") from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}.") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting that is too large
        line = next(n for n in range(1, len(text) + 2) if not _is_harmless(_first(text, n)))
        raise InputError(f"{path}:{line}: {error}.") from error


def _is_harmless(text: str) -> bool:
    """Tell whether a text is TOML, or is none for want of what follows it."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return True


def _first(text: str, lines: int) -> str:
    return "\n".join(text.split("\n")[:lines])


def _normal(path: Path, text: str, value: Any, where: tuple[str | int, ...] = ()) -> Any:
    """Return a value with "_" for "-" in all keys; InputError where two become one."""
    if isinstance(value, list):
        return [_normal(path, text, each, (*where, at)) for at, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, each in value.items():
        name = key.replace("-", "_")
        if name in found:
            line = _line(text, (*where, name))
            raise InputError(f"{path}:{line}: {_shown((*where, name))} is given twice.")
        found[name] = _normal(path, text, each, (*where, name))
    return found


def _told(path: Path, text: str, error: dict[str, Any]) -> str:
    """Say where a mistake is, what it is, and what was found."""
    where, kind = error["loc"], error["type"]
    cause = error.get("ctx", {}).get("error")
    if kind == "extra_forbidden":
        what = "there is no such key"
    elif kind == "missing":
        what = "is missing"
    elif cause is not None:
        what = str(cause)
    else:
        value = repr(error["input"])
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        what = f"{error['msg'][:1].lower()}{error['msg'][1:]}, found {shown}"
    return f"{path}:{_line(text, where)}: {_shown(where)}: {what}".replace(": :", ":")


def _shown(where: _Path) -> str:
    parts = [f"[{each + 1}]" if isinstance(each, int) else f".{each}" for each in where]
    return "".join(parts).removeprefix(".")


def _line(text: str, where: _Path) -> int:
    """Return the line, from 1, on which a key begins, or the nearest table around it.

    The first lines of a file are TOML but for the inside of a value. So the key begins on the
    first line with which, or with the rest of its value, it is there.
    """
    count = text.count("\n") + 1
    for depth in range(len(where), 0, -1):
        key = where[:depth]
        line = bisect_left(range(1, count + 1), True, key=lambda n: _has(_whole(text, n), key))
        if line < count:
            return line + 1
    return 1


def _whole(text: str, lines: int) -> Any:
    """Parse the first lines, and as many more as are needed to make TOML of them."""
    for end in range(lines, text.count("\n") + 2):
        with suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(_first(text, end))
    return None


def _has(value: Any, where: _Path) -> bool:
    """Tell whether a value has a key; an element of a list counts once the list is there."""
    for key in where:
        if isinstance(value, list) and isinstance(key, int):
            if key >= len(value):
                return False
            value = value[key]
        elif isinstance(value, dict):
            names = {name.replace("-", "_"): name for name in value}
            if key not in names:
                return False
            value = value[names[str(key)]]
        else:
            return False
    return True
