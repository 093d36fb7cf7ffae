"""A folder to the list of its image files, and to a count of the others.

What is listed, walking the folder in the byte order of the paths:

- By default, files with the suffix of a format that we read, in any case. With `include`,
  every file that a pattern matches, whatever its suffix.
- Names that start with a dot are ignored, `include` or not; a hidden folder counts once.
- A link to a file inside the folder is a file. A link that leaves the folder is rejected.
- A link to a folder is never walked, so no loop can occur: inside the folder its files are
  listed under their own name, and the link is ignored; outside, it is rejected.
- Folders that cannot be listed, and image names on FIFOs, devices and sockets, are rejected.
  Nothing is opened to tell.

In `include`, `*`, `?` and `[...]` match within one part of the path, `**` matches any number
of parts: `*.png` is the top level only, `**/*.png` every level, `*/training.png` one down.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deepssim_scan.decode import Rejection
from deepssim_scan.errors import InputError, InputMissing

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class Item:
    """One file to decode, or one that its name and kind already rule out.

    `path` is relative to the folder, with `/`; bytes that are not UTF-8 are kept by Python's
    surrogateescape, so `os.fsencode(path)` gives the name on disk.
    """

    path: str
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The image files of a folder, sorted by the bytes of their paths, and how many others."""

    folder: Path
    files: tuple[Item, ...]
    ignored: int


def list_images(folder: Path, include: Sequence[str] = ()) -> Listing:
    """List a folder's image files; the module's text says which those are.

    Raises InputMissing when the folder is absent, and InputError when it is not a folder, a
    pattern is not relative, or no image is listed: an empty input has no result.
    """
    _check_folder(folder)
    patterns = [_parts(pattern) for pattern in include]
    root = os.path.realpath(folder)
    found: list[Item] = []
    ignored = 0
    for entry, path in _walk(folder, found):
        wanted = _is_image(path, patterns)
        if entry.is_symlink() and _is_folder(entry):
            wanted = not inside(root, entry.path)
        if wanted and not _hidden(path):
            found.append(Item(path, _refuse(root, entry)))
        else:
            ignored += 1
    if not found:
        raise InputError(
            f"{folder}: no image to read ({ignored} other files). Images are named "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)}; --include PATTERN, relative to "
            "the folder, takes others, as in --include '**/*.img'."
        )
    return Listing(folder, tuple(sorted(found, key=_by_bytes)), ignored)


def _by_bytes(item: Item) -> bytes:
    return os.fsencode(item.path)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputMissing(f"{folder}: there is no such folder. Check the path.")
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder. Give the folder that holds the images.")


def _walk(folder: Path, failed: list[Item]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Give every entry that is not a plain folder, with its relative path, in no fixed order.

    Folders that cannot be listed are added to `failed`. Not recursive, so any depth will do.
    """
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(folder / parent) as entries:
                children = list(entries)
        except OSError as error:
            if not parent:
                raise InputError(f"{folder}: cannot be listed: {error.strerror}.") from error
            failed.append(Item(parent, Rejection("unreadable", f"folder: {error.strerror}")))
            continue
        for entry in children:
            path = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir(follow_symlinks=False) and not _hidden(path):
                pending.append(path)
            else:
                yield entry, path


def _hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops
        return False


def _is_image(path: str, patterns: list[list[str]]) -> bool:
    if not patterns:
        return path.lower().endswith(SUFFIXES)
    return any(_matches(path.split("/"), pattern) for pattern in patterns)


def _parts(pattern: str) -> list[str]:
    """Split a pattern, refusing one that could never match a relative path."""
    parts = pattern.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise InputError(
            f"include pattern {pattern!r} must be relative to the folder, with no '.', '..' or "
            "empty part, as in '*/training.png'"
        )
    return parts


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def inside(root: str, path: str | Path) -> bool:
    """Tell whether a path, its links followed, stays under `root`, itself free of links."""
    return Path(os.path.realpath(path)).is_relative_to(root)


def _refuse(root: str, entry: os.DirEntry[str]) -> Rejection | None:
    """Rule out links that leave the folder and what is not a regular file; opens nothing."""
    if entry.is_symlink() and not inside(root, entry.path):
        return Rejection("outside-folder", "a link to outside of the folder")
    try:
        if stat.S_ISREG(entry.stat().st_mode):
            return None
    except FileNotFoundError:
        return Rejection("vanished", "a link to nothing, or removed while listing")
    except OSError as error:
        return Rejection("unreadable", error.strerror or type(error).__name__)
    return Rejection("not-a-file", "a FIFO, device or socket")
