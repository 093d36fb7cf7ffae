"""Which files of a report are cleared, and why the others are kept back.

report -> its items of which every frame may be released, and how many others by why

A file is cleared when every frame of it was judged and none is flagged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.check import check
from deepssim_scan.matching.cache import part_files
from deepssim_scan.matching.parts import read_part
from deepssim_scan.reporting.matches import verdicts_of
from deepssim_scan.reporting.partial import read_partial
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import EVIDENCE, SUMMARY
from deepssim_scan.storage.publish import read_job
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.store import Store

Images = list[tuple[ImageRecord, str | None]]
"""The images of an item, with the verdict of each that has one."""

Items = dict[tuple[str, str], Images]
"""The images of each item by its path and member."""

_UNVERIFIED = "not verified"
_PARTIAL = "a part is copied"
_DUPLICATE = "duplicate"
_FLAGGED = (_DUPLICATE, "undecidable", _UNVERIFIED, _PARTIAL)
_SIMILAR = "similar"


def summary_of(report: Path) -> dict[str, Any]:
    """Return what a whole report says.

    Raises InputMissing or InputError where there is none, or it is damaged.
    """
    checked = check(report)
    if checked.kind != "report":
        raise InputError(f"{report}: is no report of a query.")
    if checked.problems:
        problem = checked.problems[0]
        what = problem.what.rstrip(".")
        raise InputError(f"{report}: is damaged ({problem.where}: {what}). Query again.")
    return read_json(report / SUMMARY)


def index_of(report: Path) -> Path:
    """Return where the index was that a whole report was made with."""
    return Path((read_job(report) or {})["index"])


def digests_of(report: Path, summary: dict[str, Any]) -> dict[str, str]:
    """Return the digests of what a report was made with, and of its summary, by name."""
    return {SUMMARY: sha256(report / SUMMARY), **summary["fingerprints"]}


def cleared(
    report: Path, store: Store, summary: dict[str, Any], *, similar: bool = True
) -> tuple[Items, dict[str, int]]:
    """Return the items of which every frame may be released, and count the others by why.

    `store` is that of the report. Without `similar`, images with that verdict are kept back, too.
    """
    items: Items = {}
    verdicts = _verdicts(report, store, summary)
    cut = store.manifest.source["read_options"]["slices"] is not None
    for record, row in store.catalog.every():
        verdict = None if row is None else verdicts[row]
        items.setdefault(record.key[:2], []).append((record, verdict))
    kept_back: dict[str, int] = {}
    for key, images in [*items.items()]:
        whole = not (cut and any(record.frame for record, _ in images))
        why = _why_not(images, similar) if whole else "not judged whole: slices were chosen"
        if why:
            kept_back[why] = kept_back.get(why, 0) + 1
            del items[key]
    return items, kept_back


def _verdicts(report: Path, store: Store, summary: dict[str, Any]) -> list[str]:
    """Return the verdict of every image by its row, or what else keeps it back."""
    verdicts = verdicts_of(report)
    if summary["calibration"] is not None:
        for row in _unverified(report, store, summary["candidates"]):
            if verdicts[row] != _DUPLICATE:
                verdicts[row] = _UNVERIFIED
    for each in read_partial(report):
        verdicts[each.synthetic_row] = _PARTIAL
    return verdicts


def _unverified(report: Path, store: Store, candidates: int) -> Iterator[int]:
    """Give the rows of the images of which a candidate was not looked at, whatever its rank."""
    for number, shard in enumerate(store.table):
        part = read_part(part_files(report / EVIDENCE, number).evidence, shard.rows)
        missing = part.evidence.missing[:, :candidates].any(axis=1)
        yield from (shard.first + np.flatnonzero(missing)).tolist()


def _why_not(images: Images, similar: bool) -> str:
    """Say why an item is kept back; "" for one that is cleared."""
    found = {verdict for _, verdict in images if verdict is not None}
    if any(record.state == "rejected" for record, _ in images):
        return "rejected"
    if not found:
        return "blank"
    barred = _FLAGGED if similar else (*_FLAGGED, _SIMILAR)
    return next((verdict for verdict in barred if verdict in found), "")
