"""The images among the members of one archive.

archive -> an Item for each image or rejected member, and how many others
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from deepssim_scan.execution.answer import Answer
from deepssim_scan.ingest.archives import MemberLocation, list_members, read_member
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.isolated import Isolated
from deepssim_scan.ingest.listing import formats
from deepssim_scan.ingest.listing.formats import Kind
from deepssim_scan.ingest.listing.item import Item, item_of
from deepssim_scan.ingest.listing.walk import is_hidden
from deepssim_scan.ingest.rejection import Rejected, Rejection
from deepssim_scan.ingest.safe_open import open_regular

Members = tuple[list[Item], int]
"""The items of an archive, and how many of its members are no images."""


def members_of(archive: Item, folder: Path, *, named: bool) -> Members:
    """List the images in an archive of a folder, and count what else it holds.

    An archive without any counts as one file that is none, unless a manifest named it: then it
    is rejected, because every row of a manifest has an end.
    """
    try:
        with open_regular(folder / archive.path) as file:
            found = list_members(file)
            often = Counter(name for name, _ in found)
            items = [_member(file, archive, name, location) for name, location in found]
    except Rejected as error:
        return [archive.rejected(error.rejection)], 0
    images = {item.member: item for item in items if item is not None}
    twice = Rejection("bad-archive", "several members of this name")
    listed = [
        replace(item, location=None, rejection=twice) if often[name] > 1 else item
        for name, item in images.items()
    ]
    if not listed and named:
        listed.append(archive.rejected(Rejection("bad-archive", "no image in it")))
    return listed, max(items.count(None), not listed)


def listed(
    archives: Sequence[Item], work: "partial[Members]", run: RunContext
) -> Iterator[Members]:
    """List archives in one process beside this one; in this one when the run has no workers."""
    if run.isolation is None:
        yield from map(work, archives)
        return
    with closing(Isolated(run.isolation)) as process:
        answers = process.answers(partial(_members_packed, work), archives)
        for archive, answer in zip(archives, answers, strict=True):
            yield _members_unpacked(archive, answer)


def _members_packed(work: "partial[Members]", archive: Item) -> Answer:
    """List an archive, as plain values: the fields of its items, and how many are none."""
    items, others = work(archive)
    return Answer([[asdict(item) for item in items], others])


def _members_unpacked(archive: Item, answer: Answer | Rejection) -> Members:
    if isinstance(answer, Rejection):
        return [archive.rejected(answer)], 0
    try:
        items, others = answer.records
        return [item_of(archive, values) for values in items], int(others)
    except (TypeError, ValueError, KeyError) as error:
        wrong = Rejection("decoder-crashed", f"what its process answered is no answer: {error}")
        return [archive.rejected(wrong)], 0


def _member(
    file: BinaryIO, archive: Item, name: str, location: MemberLocation | Rejection
) -> Item | None:
    """Judge a member by its name and, where that is not enough, its first bytes; None: no image."""
    array = formats.array_folder(name.replace("\\", "/"))
    if array is not None:
        return replace(archive, member=array, rejection=formats.NOT_READ)
    parts = re.split(r"[/\\]", name)
    if any(is_hidden(part) and part not in (".", "..") for part in parts) or "__MACOSX" in parts:
        return None
    kind = formats.by_name(name)
    try:
        if kind in (Kind.UNKNOWN, Kind.CONTAINER):
            kind = _look(file, kind, location)
        if kind is Kind.IGNORED:
            return None
        return replace(archive, member=name, location=_checked(parts, kind, location))
    except Rejected as error:
        return replace(archive, member=name, rejection=error.rejection)


def _look(file: BinaryIO, kind: Kind, location: MemberLocation | Rejection) -> Kind:
    if isinstance(location, MemberLocation):
        return formats.by_both(kind, read_member(file, location, formats.HEAD))
    # A link leads to another member, which is listed; what cannot be read may be an image.
    return Kind.IGNORED if location.reason == "not-a-file" else Kind.IMAGE


def _checked(parts: list[str], kind: Kind, location: MemberLocation | Rejection) -> MemberLocation:
    """Return the location of a member that can be read; raises Rejected for any other."""
    if ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0]):
        raise Rejected("outside-folder", "an absolute name, or one with '..', in an archive")
    if kind is Kind.ARCHIVE:
        raise Rejected("unsupported", "an archive in an archive; unpack the outer one")
    rejection = formats.UNREAD.get(kind, location)
    if isinstance(rejection, Rejection):
        raise Rejected(rejection.reason, rejection.detail)
    return rejection
