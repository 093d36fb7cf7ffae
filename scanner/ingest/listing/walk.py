"""Every file of a folder, or of a manifest, and what it is.

    folder -> (Item, Kind) for each file, in the order of their paths

A folder that is not walked comes where its files would. A manifest has the order of its rows.

Links are followed only to files inside the folder, and never to folders, so no loop can occur.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import formats
from deepssim_scan.ingest.listing.formats import Kind
from deepssim_scan.ingest.listing.item import Item
from deepssim_scan.ingest.listing.manifest_csv import read_manifest
from deepssim_scan.ingest.rejection import Rejected, Rejection
from deepssim_scan.ingest.safe_open import inside, open_regular, regular_status
from deepssim_scan.storage.layout import (
    INDEX_FILES,
    INDEX_MANIFEST,
    JOB,
    REPORT_FILES,
    SUMMARY,
    foreign,
)
from deepssim_scan.storage.publish import read_job

Found = tuple[Item, Kind]
_WALKED, _LINK = "/", "\0"  # what paths of what is pending end in; no name has them
_CONTENT_DECIDES = (Kind.UNKNOWN, Kind.CONTAINER)
_TO_HIDDEN = Rejection(
    "outside-folder",
    "a link to a hidden folder, whose files are not listed; give that folder, or leave the link "
    "out with --exclude",
)


def walk(folder: Path, selection: Selection) -> Iterator[Found]:
    """Give every file of a folder, and folders that cannot be listed or hold one array.

    Not recursive, so any depth will do. Raises InputError when `folder` itself cannot be listed.
    """
    root = os.path.realpath(folder)
    pending = [os.fsencode(_WALKED)]
    while pending:
        path = os.fsdecode(pending.pop())
        if path.endswith(_LINK):
            yield _link(root, folder, path[:-1], _chosen(path[:-1], selection))
            continue
        if not path.endswith(_WALKED):
            yield _file(Item(path), f"{folder}/{path}", _chosen(path, selection))
            continue
        parent = path[:-1]
        try:
            children = _children(folder, parent)
        except OSError as error:
            if not parent:
                raise InputError(f"{folder}: cannot be listed: {error.strerror}.") from error
            yield _folder(parent, selection, Rejection("unreadable", f"folder: {error.strerror}"))
            continue
        if parent and not selection.include and _is_array(parent, children):
            yield _folder(parent, selection, formats.NOT_READ)
            continue
        patterns = _patterns_of_ours(folder, parent, children) if parent else ()
        if patterns:
            yield Item(parent), Kind.IGNORED
            children = _beside(folder, parent, patterns)
        pending += reversed(children)


def named(folder: Path, manifest: Path, selection: Selection) -> Iterator[Found]:
    """Give every file that a manifest names; whatever its name, it is meant to be an image."""
    root = os.path.realpath(folder)
    for path, columns in read_manifest(manifest):
        subject = columns.get("subject", "").strip()
        item, kind = Item(path, subject=subject), formats.by_name(path)
        if selection.excludes(path):
            yield item, Kind.EXCLUDED
        elif path.startswith("/") or ".." in path.split("/") or not inside(root, folder / path):
            yield _refused(item, Rejection("outside-folder", "a path or link out of the folder"))
        else:
            asked = kind in (Kind.UNKNOWN, Kind.IGNORED)
            yield _file(item, folder / path, Kind.IMAGE if asked else kind)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden, and so ignored."""
    return name.startswith(".")


def _children(folder: Path, parent: str) -> list[bytes]:
    """Return the paths of what is in a folder, relative to the first, in their order."""
    with os.scandir(folder / parent) as entries:
        return sorted(
            _child(f"{parent}/{each.name}" if parent else each.name, each) for each in entries
        )


def _child(path: str, entry: os.DirEntry[str]) -> bytes:
    """Return a path, marked where it is of a link, or of a folder that is to be walked."""
    if entry.is_symlink():
        return os.fsencode(path + _LINK)
    walked = entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name)
    return os.fsencode(path + _WALKED if walked else path)


def _is_array(parent: str, children: list[bytes]) -> bool:
    paths = (os.fsdecode(path).removesuffix(_LINK) for path in children)
    marked = any(formats.array_folder(path) == parent for path in paths)
    return marked or formats.names_array(parent)


def _patterns_of_ours(folder: Path, parent: str, children: list[bytes]) -> tuple[str, ...]:
    """Return the patterns of the files of an index or a report of ours; () for another folder."""
    job, index, report = (
        any(os.fsencode(f"{parent}/{name}{mark}") in children for mark in ("", _LINK))
        for name in (JOB, INDEX_MANIFEST, SUMMARY)
    )
    if not job or not (index or report) or read_job(folder / parent) is None:
        return ()
    return INDEX_FILES if index else REPORT_FILES


def _beside(folder: Path, parent: str, patterns: tuple[str, ...]) -> list[bytes]:
    """Return what lies in an index or a report of ours, at any depth, and is not of ours."""
    found = foreign(folder / parent, patterns)
    return sorted(_child(os.path.relpath(entry.path, folder), entry) for entry in found)


def _folder(path: str, selection: Selection, rejection: Rejection) -> Found:
    """Return what stands for a folder that is not walked."""
    item = Item(path)
    return (item, Kind.EXCLUDED) if selection.excludes(path) else _refused(item, rejection)


def _chosen(path: str, selection: Selection) -> Kind:
    """Tell what a path is by its name, and by the patterns where there are any."""
    if is_hidden(path.rpartition("/")[2]):
        return Kind.IGNORED
    if selection.excludes(path):
        return Kind.EXCLUDED
    kind = formats.by_name(path)
    if not selection.include:
        return kind
    if not selection.includes(path):
        return Kind.IGNORED
    return Kind.IMAGE if kind is Kind.UNKNOWN else kind


def _link(root: str, folder: Path, path: str, kind: Kind) -> Found:
    """Judge a link: one that leaves the folder is rejected, one to a folder in it ignored.

    What is in a hidden folder is not listed under its own name, so a link there is rejected.
    """
    where = folder / path
    to_folder = os.path.isdir(where)  # noqa: PTH112 - False where it cannot be looked at
    left_out = kind is Kind.EXCLUDED or is_hidden(where.name)
    if left_out or (kind is Kind.IGNORED and not to_folder):
        return Item(path), kind
    if not inside(root, where):
        return _refused(Item(path), Rejection("outside-folder", "a link to outside of the folder"))
    if not to_folder:
        return _file(Item(path), where, kind)
    target = Path(os.path.realpath(where)).relative_to(root)
    hidden = any(is_hidden(part) for part in target.parts)
    return _refused(Item(path), _TO_HIDDEN) if hidden else (Item(path), Kind.IGNORED)


def _refused(item: Item, rejection: Rejection) -> Found:
    return item.rejected(rejection), Kind.IMAGE


def _file(item: Item, path: str | Path, kind: Kind) -> Found:
    """Add the size and time of what is at `path`, and look into it where its name is not enough."""
    if kind in (Kind.IGNORED, Kind.EXCLUDED):
        return item, kind
    try:
        status = regular_status(path)
        item = Item(item.path, "", status.st_size, status.st_mtime_ns, None, item.subject)
        if kind in _CONTENT_DECIDES:
            with open_regular(path) as file:
                kind = formats.by_both(kind, file.read(formats.HEAD))
    except Rejected as error:
        if kind is Kind.UNKNOWN and error.rejection.reason == "not-a-file":
            return item, Kind.IGNORED
        return _refused(item, error.rejection)
    unread = formats.UNREAD.get(kind)
    return _refused(item, unread) if unread else (item, kind)
