"""Read and verify everything of a store, an index, a report or a checkpoint; mend what can be.

    path -> Checked: what was looked at, and every Problem found
    path -> repair -> Checked, after the damaged rows were embedded again

What is damaged is named: the file, and where they can be told, the rows. A repair puts back the
same bytes or nothing: the images must have the SHA-256 that the catalog has of them, and the
embeddings the one that their shard was written with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan import checkpoint
from deepssim_scan.catalog import Entry, Shard
from deepssim_scan.checkpoint import BUNDLED, Checkpoint
from deepssim_scan.describe import kind_of
from deepssim_scan.embed import WORKERS, Report, embed_into, silent
from deepssim_scan.embeddings import Store, Vectors, first_not_unit, rows_sha256
from deepssim_scan.encoder import pick_device
from deepssim_scan.errors import Damaged, InputError, InputMissing, ScanError, StoreMismatch
from deepssim_scan.files import check_sha256
from deepssim_scan.images import Decoded
from deepssim_scan.index import IndexManifest, TrainingIndex, build, flat
from deepssim_scan.listing import Listing
from deepssim_scan.publish import JOB, locked
from deepssim_scan.records import read_json
from deepssim_scan.report import (
    MATCHES,
    REJECTED,
    SUMMARY,
    count_matches,
    count_verdicts,
    write_rejected,
)
from deepssim_scan.scan import BESIDE, ENCODER, STORE, SYNTHETIC, index_encoder
from deepssim_scan.sources import decode_entries, listing_of
from deepssim_scan.workers import Limits

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written: where, what, and the rows (first, last) if known."""

    where: str
    what: str
    rows: tuple[int, int] | None = None


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


@dataclass(slots=True)
class _Findings:
    """What a check has found so far."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: Path, what: str, rows: tuple[int, int] | None = None) -> None:
        self.problems.append(Problem(str(where), what, rows))

    @contextmanager
    def collecting(self, where: Path) -> Iterator[None]:
        """Take down what the block fails with, and go on."""
        try:
            yield
        except (ScanError, OSError) as error:
            self.add(where, str(error))


def check(path: Path, report: Report = silent) -> Checked:
    """Verify all of what lies at `path`; InputMissing, InputError when that is nothing of ours."""
    kind = kind_of(path)
    findings = _Findings()
    if kind == "checkpoint":
        with findings.collecting(path):
            checkpoint.load(path)
    elif kind == "store":
        _check_store(path, findings, report)
    elif kind == "index":
        _check_index(path, findings, report)
    else:
        _check_report(path, findings, report)
    return Checked(path, kind, findings.counts, tuple(findings.problems))


def _check_store(folder: Path, findings: _Findings, report: Report) -> None:
    """Check the seal, the catalog, and every row."""
    with findings.collecting(folder), Store.open(folder) as store:
        seal, catalog = store.seal, store.catalog
        findings.counts |= {"listed": seal.listed, "rows": seal.rows, "rejected": seal.rejected}
        if catalog.items() != seal.items or catalog.miscounted() or not catalog.in_order():
            findings.add(catalog.path, "has not one entry for each image, in row order")
        for shard in store.table:
            _check_shard(store, shard, findings)
            report("rows checked", shard.stop, store.rows)


def _check_shard(store: Store, shard: Shard, findings: _Findings) -> None:
    last = shard.stop - 1
    try:
        rows = store.read(shard.first, shard.stop)
        bad = first_not_unit(store.manifest.by_view(rows))
    except Damaged as error:
        findings.add(store.folder, str(error), (shard.first, last))
        return
    if bad is not None:
        findings.add(store.folder, "not of unit norm", (shard.first + bad, last))


def _check_index(folder: Path, findings: _Findings, report: Report) -> None:
    """Check the store, the encoder, the files, and the index against the store."""
    _check_store(folder / STORE, findings, report)
    with findings.collecting(folder / flat.MANIFEST):
        digests = IndexManifest.read(folder).files
        beside = {name: digest for name, digest in digests.items() if name != flat.INDEX}
        _check_files(folder, beside, findings)
    with findings.collecting(folder / ENCODER):
        index_encoder(folder)
    with findings.collecting(folder / flat.INDEX), Store.open(folder / STORE) as store:
        index = TrainingIndex.open(folder, store)
        for shard in store.table:
            rows = index.vectors(shard.first, shard.stop)
            if rows_sha256(rows) != shard.sha256:
                where = (shard.first, shard.stop - 1)
                findings.add(folder / flat.INDEX, "not the rows of the store", where)


def _check_report(folder: Path, findings: _Findings, report: Report) -> None:
    """Check the store, the files, and the matches against the summary."""
    _check_store(folder / SYNTHETIC, findings, report)
    with findings.collecting(folder / SUMMARY):
        summary = _summary(folder)
        _check_files(folder, summary["files"], findings)
        wanted = summary["counts"]["judged"] * summary["top_k"]
        found = findings.counts["matches"] = count_matches(folder)
        verdicts = count_verdicts(folder)
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


def _check_files(folder: Path, digests: Mapping[str, str], findings: _Findings) -> None:
    for name, digest in digests.items():
        with findings.collecting(folder / name):
            check_sha256(folder / name, digest)


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Where a repair takes images and encoder from; None: where the store says they were."""

    images: Path | None = None
    encoder: Path | None = None
    workers: int = WORKERS
    limits: Limits = field(default_factory=Limits)


def repair(path: Path, config: RepairConfig | None = None, report: Report = silent) -> Checked:
    """Embed damaged rows again, of a store or of the one in an index or a report; then check.

    An index is made again of its store where its own files are damaged. Raises InputError when
    the images are not there any more as they were, or the rows do not come out as they were, and
    Damaged when the store's own records are.
    """
    config = config or RepairConfig()
    kind = kind_of(path)
    inside = {"store": path, "index": path / STORE, "report": path / SYNTHETIC}
    with locked(path.resolve()):
        if kind in inside:
            _repair_store(inside[kind], config.encoder or _encoder_near(path), config, report)
        if kind == "index":
            _repair_index(path, report)
    return check(path, report)


def _repair_store(folder: Path, encoder: Path, config: RepairConfig, report: Report) -> None:
    with Store.open(folder) as store:
        damaged = store.damaged()
        if not damaged:
            return
        loaded = _encoder_of(store, encoder)
        try:
            listing = listing_of(store, config.images)
        except InputMissing as error:
            raise InputMissing(f"{error} Say where the images are now with --images.") from error
        for done, shard in enumerate(damaged):
            report("shards repaired", done, len(damaged))
            store.mend(shard, _embed_again(store, shard, listing, loaded, config))
        report("shards repaired", len(damaged), len(damaged))


def _repair_index(folder: Path, report: Report) -> None:
    """Make the index of the store again when a file of it is damaged."""
    findings = _Findings()
    _check_index(folder, findings, report)
    ours = {str(folder / name) for name in (flat.INDEX, flat.MANIFEST, REJECTED)}
    if not {problem.where for problem in findings.problems} & ours:
        return
    read_json(folder / JOB)  # Damaged when it is: its SHA-256 is about to be recorded
    with Store.open(folder / STORE) as store:
        _encoder_of(store, folder / ENCODER)
        write_rejected(folder, store.rejections())
        build(store, folder, BESIDE)


def _encoder_near(path: Path) -> Path:
    """Return the encoder of an index, or of the index that a report is of, or the bundled one."""
    job = path / JOB
    index = Path(read_json(job).get("index", path)) if job.is_file() else path
    return index / ENCODER if (index / ENCODER).is_file() else BUNDLED


def _encoder_of(store: Store, path: Path) -> Checkpoint:
    loaded = checkpoint.load(path)
    if loaded.fingerprint != store.manifest.encoder:
        raise StoreMismatch(
            f"{path}: is encoder {loaded.fingerprint[:12]}, and {store.folder} was made with "
            f"{store.manifest.encoder[:12]}. Give that one with --encoder."
        )
    return loaded


@dataclass(slots=True)
class _Rows:
    """Takes the rows of one shard."""

    room: int
    rows: list[Vectors] = field(default_factory=list)

    def add(self, entries: Sequence[Entry], embeddings: Vectors) -> None:
        self.rows.append(embeddings)
        self.room -= len(embeddings)


def _embed_again(
    store: Store, shard: Shard, listing: Listing, loaded: Checkpoint, config: RepairConfig
) -> Vectors:
    """Return the rows of a shard, computed again batch by batch as they first were."""
    source = store.manifest.source
    # Those without an embedding were in the batches too.
    wanted = {
        (entry.path, entry.member, entry.frame): entry
        for entry in store.entries(shard)
        if entry.reason in (None, "embedding", "too-small")
    }
    decoded = decode_entries(
        store,
        wanted.values(),
        listing,
        loaded.architecture.standardisation,
        workers=config.workers,
        limits=config.limits,
    )
    encoder = loaded.encoder.to(pick_device(source["device"]))
    rows = _Rows(store.manifest.shard_rows)
    with closing(decoded):
        images = (_unchanged(image, wanted, store) for image in decoded)
        kept = (image for image in images if image is not None)
        embed_into(rows, kept, encoder, source["batch"], store.manifest.views)
    if wanted:
        entry = next(iter(wanted.values()))
        raise InputError(
            f"{store.folder}: {len(wanted)} images of damaged rows are gone, the first "
            f"{entry.name!r}. Put them back, say where they are with --images, or build it again."
        )
    return np.concatenate(rows.rows)


def _unchanged(image: Decoded, wanted: dict[Key, Entry], store: Store) -> Decoded | None:
    """Return an image when it is wanted, and strike it off; None for others."""
    entry = wanted.pop((image.path, image.member, image.frame), None)
    if entry is None:
        return None
    if image.sha256 == entry.sha256 and image.rejection:
        raise InputError(
            f"{store.folder}: {entry.name!r} cannot be decoded any more ({image.rejection.reason}: "
            f"{image.rejection.detail}). Where it is a limit, raise it."
        )
    if (image.sha256, image.pixels is None) != (entry.sha256, False):
        raise InputError(
            f"{store.folder}: {entry.name!r} is not the image any more that was embedded. Put the "
            "original back, or build the store again."
        )
    return image
