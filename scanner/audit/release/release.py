"""A release: the synthetic images that were judged and are no copies, and what binds them.

report -> the files that are cleared -> a folder of them, with release.json

`cleared` says which those are. A file is copied only when its bytes are those that were judged, and
hold no image beside its frames.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepssim_scan.audit.release.cleared import (
    Images,
    Items,
    cleared,
    digests_of,
    index_of,
    summary_of,
)
from deepssim_scan.audit.release.statement import Released, read_private_key, sealed, statement_of
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.decode import beside_frames
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.ingest.pipeline import read_item
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.storage.files import HashingFile, flush, make_private, shown
from deepssim_scan.storage.layout import STORE, SUMMARY, SYNTHETIC
from deepssim_scan.storage.publish import locked
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.manifest import read_manifest
from deepssim_scan.store.store import Store

STATEMENT = "release.json"
"""In a release: the files, their digests and verdicts, signed or not."""


@dataclass(frozen=True, slots=True)
class ReleaseConfig:
    """What is released.

    `key` is a file with an Ed25519 key in PEM to sign with. `similar`: images with the verdict
    similar, too. `incomplete`: of a report that is not complete, too, or of other training images
    than the index has by now.
    """

    key: Path | None = None
    similar: bool = True
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """A folder of `released` files; `kept_back` were not, by why."""

    folder: Path
    released: int
    kept_back: dict[str, int]
    signed: bool


def release(report: Path, out: Path, config: ReleaseConfig, run: RunContext) -> Release:
    """Copy the images of a report that are cleared to a new folder.

    Raises InputError where the report is not complete, the index has other training images now,
    `out` is there, an image is not what was judged any more, or another report takes the place of
    this one meanwhile; Damaged where the report is. Nothing is at `out` then.
    """
    key = None if config.key is None else read_private_key(config.key)
    summary = _summary(report, config)
    source = Path(read_manifest(report / SYNTHETIC)[0].source["folder"]).resolve()
    for folder in (report.resolve(), source):
        if out.resolve().is_relative_to(folder):
            raise InputError(f"{out}: lies in {folder}. A release is a folder beside it.")
    if out.exists():
        raise InputError(f"{out}: is there already. A release is a new folder: name another.")
    partial = out.with_name(f".{out.name}.partial")
    with locked(out.resolve()), Store.open(report / SYNTHETIC) as store:
        items, kept_back = cleared(report, store, summary, similar=config.similar)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            files = list(_copied(store, items, partial, run, kept_back))
            if not files:
                raise InputError(f"{report}: has no image that is cleared, so there is no release.")
            statement = stated(files, report, store, summary)
            _require_same(report, summary)
            with HashingFile(partial / STATEMENT) as file:
                file.write(sealed(statement, key))
            make_private(partial)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        flush(out.parent)
    return Release(out, len(files), kept_back, key is not None)


def _summary(report: Path, config: ReleaseConfig) -> dict[str, Any]:
    """Return what a whole report says; it must be complete."""
    summary = summary_of(report)
    if not summary["complete"] and not config.incomplete:
        raise InputError(
            f"{report}: is not complete: copies of what was not looked at are not found. Repair "
            "what was rejected and query again, or ask for a release of an incomplete report."
        )
    if not config.incomplete:
        _require_compared(report, summary)
    return summary


def _require_compared(report: Path, summary: dict[str, Any]) -> None:
    """Raise InputError where the index, if it is there, has other training images by now.

    Raises Damaged or StoreMismatch where its store cannot be read.
    """
    index, found = index_of(report), summary["fingerprints"]["training"]
    try:
        with Store.open(index / STORE) as training:
            now = training.digest
    except InputMissing:
        return
    if now != found:
        raise InputError(
            f"{report}: was compared with training images {found[:12]}, and {index} has "
            f"{now[:12]} now: copies of those that were added are not found. Query again, or ask "
            "for a release of an incomplete report."
        )


def _require_same(report: Path, summary: dict[str, Any]) -> None:
    """Raise InputError where a query replaced the report: its verdicts are of other rows."""
    if read_json(report / SUMMARY) != summary:
        raise InputError(f"{report}: was replaced by another report meanwhile. Release again.")


def stated(
    files: Iterable[Released], report: Path, store: Store, summary: dict[str, Any]
) -> dict[str, Any]:
    """Return the statement that a report makes of files; `store` is its own."""
    told = _passed(summary), _warned(summary, store)
    return statement_of(files, digests_of(report, summary), *told)


def said_of(images: Images) -> dict[str, Any]:
    """Return what a statement says of a file, by its images."""
    verdicts = sorted({verdict for _, verdict in images if verdict})
    return {"verdicts": verdicts, "images": len(images)}


def _passed(summary: dict[str, Any]) -> list[str]:
    """Say which test the files passed."""
    found, bound = summary["calibration"], summary["bounds"]["duplicate"]
    if found is None:
        return [f"no duplicate by fixed scores: {bound:.4g} at most"]
    return [f"no duplicate at a false-alarm rate of {found['false_alarm']:.2g}"]


def _warned(summary: dict[str, Any], store: Store) -> list[str]:
    """Say what lessens what the test proves."""
    rule, found = summary["rule"], summary["calibration"]
    window = store.manifest.source["read_options"]["window"]
    bundled = found is not None and found["non_members"]["from"] == "bundled"
    warnings = {
        "the report is not complete": not summary["complete"],
        "pairs were not verified, and judged by the score alone": summary["verification"] is None,
        "how often the verdicts are wrong is not known": rule == "reference" or bundled,
        "no planted copies were looked for": summary["canaries"] is None,
        "copies of a part were not looked for": summary["partial"] is None,
        f"values outside of the window ({window}) were not judged": window is not None,
    }
    unfit = [each["text"] for each in summary["mismatches"]]
    return [text for text, holds in warnings.items() if holds] + unfit


def _copied(
    store: Store, items: Items, folder: Path, run: RunContext, kept_back: dict[str, int]
) -> Iterator[Released]:
    """Copy items, and give what is said of each; count those that hold more than was judged."""
    files = Lookup(Path(store.manifest.source["folder"]), run)
    for (path, member), images in items.items():
        name = f"{path}/{member}" if member else path
        target = _inside(folder, name)
        item = files.find(path, member)
        try:
            data = read_item(files.folder, item) if item else None
        except Rejected:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != images[0][0].sha256:
            raise InputError(
                f"{files.folder}: {shown(name)} is gone, or is not what was judged any more. "
                "Query again."
            )
        if beside := beside_frames(data, images[0][0].frames):
            why = f"not judged whole: it holds {beside}"
            kept_back[why] = kept_back.get(why, 0) + 1
            continue
        digest = _written(target, name, data)
        yield Released(_text(target.relative_to(folder).as_posix()), digest, said_of(images))


def _written(target: Path, name: str, data: bytes) -> str:
    """Write a file of a release; return its SHA-256."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with HashingFile(target) as file:
            file.write(data)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{shown(name)}: another image takes its place in the release. Rename one of them."
        ) from error
    return file.sha256


def _inside(folder: Path, name: str) -> Path:
    """Return where a file goes, which must be inside the folder, and not be the statement."""
    target = Path(os.path.normpath(folder / name))
    statement = target.is_relative_to(folder / STATEMENT)
    if not target.is_relative_to(folder) or target == folder or statement:
        raise InputError(f"{shown(name)}: cannot be released under this name. Rename it.")
    return target


def _text(name: str) -> str:
    """Return a name as text; InputError for one that is not UTF-8, which no statement can hold."""
    try:
        return name.encode("utf-8").decode()
    except UnicodeEncodeError as error:
        raise InputError(f"{shown(name)}: is not UTF-8, so it cannot be released.") from error
