"""Verifies a report or a release: its bytes, its signature, and a sample of it computed again.

report or release folder -> Checked, as `check` gives it
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from deepssim_scan.audit.release.release import STATEMENT
from deepssim_scan.audit.release.statement import listed_in, opened, read_public_key
from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing.item import Item
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.ingest.pipeline import decode_item
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.check import Checked, check
from deepssim_scan.jobs.check.findings import Findings
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.reporting.matches import verdicts_of
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import SYNTHETIC
from deepssim_scan.storage.publish import read_job
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader, ingest_of
from deepssim_scan.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """How much is verified: `sample` images of a report are embedded again, drawn by `seed`.

    `key` is a file with the public Ed25519 key that a release must be signed with. `report` is the
    report that a release was made from: of the released files a sample is embedded again, too.
    """

    sample: int = 100
    seed: int = 0
    key: Path | None = None
    report: Path | None = None


def verify(path: Path, config: VerifyConfig, run: RunContext) -> Checked:
    """Verify a report or a release.

    Raises InputMissing or InputError when it is neither, or the key cannot be read, or a report is
    given to verify a report with.
    """
    if (path / STATEMENT).is_file():
        return _verify_release(path, config, run)
    if config.report is not None:
        raise InputError(f"{path}: is no release. A report is given to verify a release with.")
    checked = check(path, run.progress)
    if checked.kind != "report" or not checked.intact:
        return checked
    findings = Findings(dict(checked.counts))
    with findings.collecting(path):
        _embed_again(path, config, run, findings)
    return replace(checked, counts=findings.counts, problems=tuple(findings.problems))


def _verify_release(folder: Path, config: VerifyConfig, run: RunContext) -> Checked:
    """Compare every file with the statement, and look for others."""
    key = None if config.key is None else read_public_key(config.key)
    findings, path = Findings(), folder / STATEMENT
    listed: dict[str, str] = {}
    with findings.collecting(path):
        statement, signed = opened(path, path.read_bytes(), key)
        listed = listed_in(path, statement)
        findings.counts["signatures verified"] = int(signed)
    there: dict[str, Path] = {}
    with findings.collecting(folder):
        there = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    for name, digest in listed.items():
        with findings.collecting(folder / name):
            if name not in there or there[name].is_symlink() or not there[name].is_file():
                findings.add(folder / name, "is gone, or is no file")
            elif sha256(there[name]) != digest:
                findings.add(folder / name, "is not the file that was released")
    for name in sorted(there.keys() - listed.keys() - {STATEMENT}):
        findings.add(folder / name, "is not in the release: it was added")
    findings.counts["files"] = len(listed)
    if config.report is not None and not findings.problems:
        with findings.collecting(config.report):
            _judged_again(folder, listed, config.report, config, run, findings)
    return Checked(folder, "release", findings.counts, tuple(findings.problems))


def _entries(folder: Path) -> Iterator[Path]:
    """Give all that lies in a folder and is no folder; a link to a folder is none.

    Raises OSError for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for inside, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(inside) / name).is_symlink()]
        yield from (Path(inside) / name for name in [*names, *links])


def _embed_again(report: Path, config: VerifyConfig, run: RunContext, findings: Findings) -> None:
    """Read a sample of the images again, and compare their embeddings with those of the report."""
    job = read_job(report) or {}
    loaded = index_encoder(Path(job["index"]))
    with run.opened() as run, Store.open(report / SYNTHETIC) as store:
        rows = _drawn(range(store.rows), config)
        files = Lookup(Path(store.manifest.source["folder"]), run)
        rule = loaded.architecture.standardisation
        pixels = dict(Reader(store, files, rule, run).pixels(rows))
        names = dict(zip(rows, store.paths(np.array(rows)), strict=True))
        there = sorted(pixels)
        again = Embedder(loaded, run=run).embed_pixels([pixels[row] for row in there])
        for row in set(rows) - pixels.keys():
            findings.add(
                files.folder / names[row], "is gone, or is not what was judged", (row, row)
            )
        for row, embedding in zip(there, again, strict=True):
            if not np.array_equal(embedding, store.read(row, row + 1)[0]):
                findings.add(files.folder / names[row], "is embedded differently now", (row, row))
        findings.counts["images embedded again"] = len(there)


def _judged_again(
    folder: Path,
    listed: Mapping[str, str],
    report: Path,
    config: VerifyConfig,
    run: RunContext,
    findings: Findings,
) -> None:
    """Embed a sample of the released files, and compare with what the report judged and cleared."""
    names = _drawn(sorted(listed), config)
    wanted = {listed[name] for name in names}
    loaded = index_encoder(Path((read_job(report) or {})["index"]))
    verdicts = verdicts_of(report)
    with run.opened() as run, Store.open(report / SYNTHETIC) as store:
        rows = {
            (record.sha256, record.frame): row
            for row, record in enumerate(store.embedded())
            if record.sha256 in wanted
        }
        rule, ingest = loaded.architecture.standardisation, ingest_of(store)
        images = [(name, each) for name in names for each in _frames(folder, name, rule, ingest)]
        again = Embedder(loaded, run=run).embed_pixels([pixels for _, (_, pixels) in images])
        for (name, (record, _)), embedding in zip(images, again, strict=True):
            row = rows.get((record.sha256, record.frame))
            if row is None or verdicts[row] == "duplicate":
                findings.add(folder / name, "was not cleared by the report")
            elif not np.array_equal(embedding, store.read(row, row + 1)[0]):
                findings.add(folder / name, "is embedded differently now")
        findings.counts["images embedded again"] = len(images)


def _frames(
    folder: Path, name: str, rule: Standardisation, ingest: IngestConfig
) -> Iterator[tuple[ImageRecord, Pixels]]:
    """Give the images of a released file that can be judged, standardised."""
    status = (folder / name).stat()
    item = Item(name, size=status.st_size, mtime_ns=status.st_mtime_ns)
    for image in decode_item(folder, item, rule, ingest):
        if image.pixels is not None:
            yield image.record, image.pixels


def _drawn(every: Sequence[T], config: VerifyConfig) -> list[T]:
    """Return a sample, in its order."""
    rng = np.random.default_rng(config.seed)
    count = min(config.sample, len(every))
    return [every[n] for n in np.sort(rng.choice(len(every), count, replace=False)).tolist()]
