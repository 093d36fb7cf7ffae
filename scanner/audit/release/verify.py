"""Verifies a report or a release: its bytes, its signature, and a sample of it computed again.

report or release folder -> Checked, as `check` gives it
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deepssim_scan.audit.release.cleared import cleared, digests_of, index_of, summary_of
from deepssim_scan.audit.release.release import STATEMENT, said_of, stated
from deepssim_scan.audit.release.statement import listed_in, made_with, opened, read_public_key
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import InputError, StoreMismatch
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.decode import beside_frames
from deepssim_scan.ingest.listing.item import Item
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.jobs.check import Checked, check
from deepssim_scan.jobs.check.findings import Findings
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import SUMMARY, SYNTHETIC
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader, ingest_of
from deepssim_scan.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """How much is verified: `sample` images of a report are embedded again, drawn by `seed`.

    `key` is a file with the public Ed25519 key that a release must be signed with. `report` is the
    report that a release was made from: it must have cleared every released file, and of these a
    sample is embedded again, too.
    """

    sample: int = 100
    seed: int = 0
    key: Path | None = None
    report: Path | None = None


def verify(path: Path, config: VerifyConfig, run: RunContext) -> Checked:
    """Verify a report or a release.

    Raises InputMissing or InputError when it is neither, or the key cannot be read, when the report
    that is given is none or damaged, or a key or a report is given to verify a report with.
    """
    if (path / STATEMENT).is_file():
        return _verify_release(path, config, run)
    if config.report is not None:
        raise InputError(f"{path}: is no release. A report is given to verify a release with.")
    if config.key is not None:
        raise InputError(
            f"{path}: is no release ({STATEMENT} is not there), so it has no signature to verify "
            f"with {config.key}."
        )
    checked = check(path, run.progress)
    if checked.kind != "report" or not checked.intact:
        return checked
    findings = Findings(dict(checked.counts))
    with findings.collecting(path):
        _embed_again(path, config, run, findings)
    return replace(checked, counts=findings.counts, problems=tuple(findings.problems))


def _verify_release(folder: Path, config: VerifyConfig, run: RunContext) -> Checked:
    """Compare every file with the statement, look for others, and ask the report about each."""
    key = None if config.key is None else read_public_key(config.key)
    if config.report is not None:
        summary_of(config.report)  # which is needed last: that it is of no use is told first
    findings, path = Findings(), folder / STATEMENT
    listed: dict[str, str] = {}
    statement: Mapping[str, Any] = {}
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
            _judged_again(folder, statement, config.report, config, run, findings)
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
    loaded = _encoder(report)
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
    statement: Mapping[str, Any],
    report: Path,
    config: VerifyConfig,
    run: RunContext,
    findings: Findings,
) -> None:
    """Compare a release with its report: what it was made from, and what the report cleared.

    Of what is cleared, a sample is embedded again.
    """
    path, summary = folder / STATEMENT, read_json(report / SUMMARY)
    listed = listed_in(path, statement)
    if made_with(path, statement) != digests_of(report, summary):
        findings.add(path, f"was made from another report than {report}")
    with Store.open(report / SYNTHETIC) as store:
        items, _ = cleared(report, store, summary)
        tests = stated((), report, store, summary)["predicate"]
    if {**statement["predicate"], "configuration": None} != {**tests, "configuration": None}:
        findings.add(path, "does not say what the report says of the tests, and of their limits")
    frames = {record.sha256: record.frames for images in items.values() for record, _ in images}
    others = [name for name, digest in listed.items() if digest not in frames]
    for name in others:
        findings.add(folder / name, "was not cleared by the report")
    said = {images[0][0].sha256: said_of(images) for images in items.values()}
    for each in statement["subject"]:
        if each["name"] not in others and each.get("annotations") != said[listed[each["name"]]]:
            findings.add(folder / each["name"], "has other verdicts in the report")
    names = sorted(listed.keys() - others)
    for name in names:
        if beside := beside_frames((folder / name).read_bytes(), frames[listed[name]]):
            findings.add(folder / name, f"holds {beside}, which was not judged")
    names = _drawn(names, config)
    _release_embedded_again(folder, names, report, run, findings)


def _release_embedded_again(
    folder: Path, names: Sequence[str], report: Path, run: RunContext, findings: Findings
) -> None:
    """Embed released files, one by one, and compare their embeddings with those of the report."""
    loaded, count = _encoder(report), 0
    with run.opened() as run, Store.open(report / SYNTHETIC) as store:
        rows = {(each.sha256, each.frame): row for row, each in enumerate(store.embedded())}
        embedder = Embedder(loaded, ingest_of(store), run=run)
        blocks = ([_item(folder, name)] for name in names)
        with closing(embedder.embed_items(folder, blocks)) as answers:
            for name, (records, made) in zip(names, answers, strict=True):
                there = [each for each in records if each.state == "embedded"]
                found = [rows.get((each.sha256, each.frame)) for each in there]
                left_out = [each.reason for each in records if each.state == "rejected"]
                if left_out or not there:
                    findings.add(folder / name, f"cannot be judged now: {(*left_out, 'blank')[0]}")
                elif not _are_rows(made.embeddings, store, found):
                    findings.add(folder / name, "is embedded differently now")
                count += len(there)
    findings.counts["images embedded again"] = count


def _are_rows(embeddings: Vectors, store: Store, rows: Sequence[int | None]) -> bool:
    """Tell whether embeddings are rows of a store; None is a row that it does not have."""
    return all(
        row is not None and np.array_equal(each, store.read(row, row + 1)[0])
        for each, row in zip(embeddings, rows, strict=True)
    )


def _item(folder: Path, name: str) -> Item:
    status = (folder / name).stat()
    return Item(name, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _encoder(report: Path) -> Checkpoint:
    """Load the encoder of a report whose files are whole.

    Raises StoreMismatch when its index has another one now.
    """
    index = index_of(report)
    loaded, wanted = index_encoder(index), read_json(report / SUMMARY)["fingerprints"]["encoder"]
    if loaded.fingerprint != wanted:
        raise StoreMismatch(
            f"{report}: was made with encoder {wanted[:12]}, and {index} has "
            f"{loaded.fingerprint[:12]} now, so that no image can be embedded as it was. "
            "Bring the index back, or query and release again."
        )
    return loaded


def _drawn(every: Sequence[T], config: VerifyConfig) -> list[T]:
    """Return a sample, in its order."""
    rng = np.random.default_rng(config.seed)
    count = min(config.sample, len(every))
    return [every[n] for n in np.sort(rng.choice(len(every), count, replace=False)).tolist()]
