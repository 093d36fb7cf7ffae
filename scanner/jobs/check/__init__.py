"""Read and verify everything of a store, an index, a report or a checkpoint.

    path -> Checked: what was looked at, and every Problem found

What is damaged is named: the file, and where they can be told, the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder import checkpoint
from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.jobs.check.findings import Findings, Problem
from deepssim_scan.jobs.check.without import look_for_subject
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.progress import SILENT, Progress
from deepssim_scan.reporting.describe import kind_of
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.storage.files import check_sha256
from deepssim_scan.storage.layout import (
    CALIBRATION,
    ENCODER,
    INDEX,
    INDEX_MANIFEST,
    MATCHES,
    SEARCHED,
    STORE,
    SUMMARY,
    SYNTHETIC,
)
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.array import first_not_unit, rows_sha256
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read and verified, as counts by name, and what was wrong with it."""

    path: Path
    kind: str
    counts: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


def check(path: Path, progress: Progress = SILENT, without: Sequence[str] = ()) -> Checked:
    """Verify all of what lies at `path`; InputMissing, InputError when that is nothing of ours.

    `without` are names of a subject that no file may tell of (`jobs.check.without`).
    """
    kind = kind_of(path)
    findings = Findings()
    if kind == "checkpoint":
        with findings.collecting(path):
            checkpoint.load(path)
    elif kind == "store":
        _check_store(path, findings, progress)
    elif kind == "index":
        check_index(path, findings, progress)
    else:
        _check_report(path, findings, progress)
    if without:
        if not path.is_dir():
            raise InputError(f"{path}: names no subject. Look for one in a store, index or report.")
        look_for_subject(path, without, findings)
    return Checked(path, kind, findings.counts, tuple(findings.problems))


def _check_store(folder: Path, findings: Findings, progress: Progress) -> None:
    """Check the footer, the catalog, and every row."""
    with findings.collecting(folder), Store.open(folder) as store:
        footer, catalog = store.footer, store.catalog
        findings.counts |= {
            "listed": footer.listed,
            "rows": footer.rows,
            "rejected": footer.rejected,
            "blank": footer.blank,
        }
        if catalog.items() != footer.items or catalog.miscounted() or not catalog.in_order():
            findings.add(catalog.path, "has not one entry for each image, in row order")
        for shard in store.table:
            _check_shard(store, shard, findings)
            progress("rows checked", shard.stop, store.rows)


def _check_shard(store: Store, shard: Shard, findings: Findings) -> None:
    last = shard.stop - 1
    try:
        bad = first_not_unit(store.made_of(shard).embeddings)
    except Damaged as error:
        findings.add(store.folder, str(error), (shard.first, last))
        return
    if bad is not None:
        findings.add(store.folder, "not of unit norm", (shard.first + bad, last))


def check_index(folder: Path, findings: Findings, progress: Progress) -> None:
    """Check the store, the encoder, the files, and the index against the store."""
    _check_store(folder / STORE, findings, progress)
    with findings.collecting(folder / INDEX_MANIFEST):
        _check_files(folder, IndexManifest.read(folder).files, findings)
        _check_searched(folder, findings)
    with findings.collecting(folder / ENCODER):
        index_encoder(folder)
    with findings.collecting(folder / CALIBRATION):
        if (folder / CALIBRATION).is_file():
            Calibration.read(folder)
    if (folder / CALIBRATION).is_file():
        with findings.collecting(folder / CALIBRATION), Store.open(folder / STORE) as store:
            found = Calibration.read(folder)
            if (found.encoder, found.store) != (store.manifest.encoder, store.digest):
                findings.add(folder / CALIBRATION, "is of another store or encoder")


def _check_searched(folder: Path, findings: Findings) -> None:
    """Open the index, if its files are whole, and check its rows against the store."""
    files = IndexManifest.read(folder).files
    for name in SEARCHED:
        if name not in files and (folder / name).exists():
            findings.add(folder / name, "is of no index. Build the index again.")
    if {str(folder / name) for name in SEARCHED} & {each.where for each in findings.problems}:
        return
    with findings.collecting(folder / INDEX), Store.open(folder / STORE) as store:
        index = TrainingIndex.open(folder, store)
        for shard in store.table:
            rows = index.vectors(shard.first, shard.stop)
            if rows_sha256(rows) != shard.sha256:
                where = (shard.first, shard.stop - 1)
                findings.add(folder / INDEX, "not the rows of the store", where)


def _check_report(folder: Path, findings: Findings, progress: Progress) -> None:
    """Check the store, the files, and the matches against the summary."""
    _check_store(folder / SYNTHETIC, findings, progress)
    with findings.collecting(folder / SUMMARY):
        summary = _summary(folder)
        _check_files(folder, summary["files"], findings)
        wanted = summary["counts"]["judged"] * summary["top_k"]
        found, matches = read_counts(folder)
        findings.counts["matches"], verdicts = found, matches.verdicts
        if found != wanted or any(summary["counts"][name] != n for name, n in verdicts.items()):
            findings.add(folder / MATCHES, f"{found} matches, {verdicts}: not as in {SUMMARY}")
        with Store.open(folder / SYNTHETIC) as store:
            ours = {"encoder": store.manifest.encoder, "synthetic": store.digest}
            counts = {"listed": store.listed, "judged": store.rows}
        if not (ours.items() <= summary["fingerprints"].items()) or not (
            counts.items() <= summary["counts"].items()
        ):
            findings.add(folder / SUMMARY, f"is of another store than {SYNTHETIC}")


def _summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / SUMMARY)
    if missing := {"counts", "files", "fingerprints", "top_k"} - summary.keys():
        raise Damaged(f"{folder / SUMMARY}: is no summary of a query: it has no {min(missing)}.")
    return summary


def _check_files(folder: Path, digests: Mapping[str, str], findings: Findings) -> None:
    for name, digest in digests.items():
        with findings.collecting(folder / name):
            check_sha256(folder / name, digest)
