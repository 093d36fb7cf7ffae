"""Find the training image that each synthetic image may copy, and judge the two.

    synthetic folder -> listing -> store -> candidates -> evidence -> verdicts -> report

What was embedded, what was searched and verified, and what was judged have an identity each
(`Stage`): a run of which only the last differs begins there, with what an interrupted run left or
what the report in place holds. A run is not complete when an image was rejected, now or when the
index was built, or when a pair could not be verified.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.errors import CheckpointError, InputError, InputMissing, ScanError
from deepssim_scan.imaging.devices import pick_device
from deepssim_scan.index.flat import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.rejection import MAY_PASS
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.identity import (
    embedded,
    index_encoder,
    list_for_store,
    require_encoder,
)
from deepssim_scan.jobs.query_run import QueryRun, depth
from deepssim_scan.matching.config import VerdictConfig
from deepssim_scan.reporting.matches import (
    Match,
    read_counts,
)
from deepssim_scan.storage.files import link, sha256
from deepssim_scan.storage.layout import (
    BLANK,
    EVIDENCE,
    FLAGGED,
    MATCHES,
    REJECTED,
    REPORT_FILES,
    STORE,
    SUMMARY,
    SYNTHETIC,
)
from deepssim_scan.storage.publish import Job, Stage, publishing, read_job, refuse_foreign
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import listing_of
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What `query` found: summary.json's content, and the strongest matches."""

    folder: Path
    summary: dict[str, Any]
    strongest: list[Match]

    @property
    def complete(self) -> bool:
        """Whether every training and every synthetic image was looked at, and every pair."""
        return bool(self.summary["complete"])

    @property
    def flagged(self) -> int:
        """How many synthetic images are duplicates."""
        return int(self.summary["counts"]["duplicate"])


def query(
    synthetic: Path,
    index: Path,
    report: Path,
    config: QueryConfig | None = None,
    run: RunContext | None = None,
) -> QueryResult:
    """Find each synthetic image's most similar training images, and judge them.

    Writes the folder `report`. Raises InputMissing, InputError, StoreMismatch or Damaged when
    there is nothing to judge, or the index is not whole; Unfinished when an interrupted run had
    other options; Busy, WriteFailed. What was there before is intact.
    """
    config, run = config or QueryConfig(), run or RunContext()
    refuse_foreign(report, REPORT_FILES)
    loaded = index_encoder(index)
    thresholds = chosen_thresholds(loaded.thresholds, config.verdict)
    embedder = Embedder(loaded, config.ingest, config.embed, run, config.evidence.tta_views)
    with Store.open(index / STORE) as training:
        require_encoder(index / STORE, training.manifest.encoder, loaded.fingerprint)
        training.verify()
        gallery = _gallery(training, config, run) if config.evidence.verify else None
        search = TrainingIndex.open(index, training, pick_device(run.device))
        listing = list_for_store(synthetic, config.ingest, run)
        job = _job(embedded(listing, embedder, SYNTHETIC), training, index, thresholds, config)
        with publishing(
            report, REPORT_FILES, job, restart=config.restart, progress=run.progress
        ) as folder:
            _reuse(report.resolve(), folder, job)
            querying = QueryRun(folder, training, search, gallery, embedder, thresholds, config)
            if not _is_finished(folder):
                querying.work(listing)
            summary = read_json(folder / SUMMARY)
            _, counts = read_counts(folder)
    return QueryResult(report, summary, counts.strongest)


def chosen_thresholds(default: Thresholds, config: VerdictConfig) -> Thresholds:
    """Return the encoder's thresholds, with those in their place that were given.

    Raises InputError when they do not fit together. A `high_ssim` that was not given is never
    below the `ssim` that was.
    """
    given = {name: getattr(config, name) for name in ("similar", "duplicate", "ssim", "high_ssim")}
    if config.ssim is not None and config.high_ssim is None:
        given["high_ssim"] = max(default.high_ssim, config.ssim)
    try:
        return replace(default, **{name: each for name, each in given.items() if each is not None})
    except CheckpointError as error:
        raise InputError(str(error)) from error


def _gallery(training: Store, config: QueryConfig, run: RunContext) -> Listing | None:
    """List the training images as they are now; None where they are gone.

    Raises InputMissing or InputError where the user said that they are, and they are not.
    """
    given = config.evidence.training
    try:
        listing = listing_of(training, run, given)
    except (InputMissing, InputError):
        if given is not None:
            raise
        run.progress.warn(
            f"{training.manifest.source['folder']}: the training images are not there any more, so "
            "no pair can be verified. Say where they are with --training, or give --no-verify."
        )
        return None
    there = {(item.path, item.member) for item in listing.files}
    if given is not None and not any((r.path, r.member) in there for r in training.embedded()):
        raise InputError(
            f"{given}: holds none of the {training.rows:,} training images under the names that "
            "the index has. Give the folder that was indexed, or the one it was moved to."
        )
    return listing


def _job(
    first: Stage, training: Store, index: Path, thresholds: Thresholds, config: QueryConfig
) -> Job:
    evidence = config.evidence
    searched = Stage(
        "searched",
        {"candidates": evidence.candidates, "verify": evidence.verify},
        {"training": training.digest, "depth": depth(config)},
        (EVIDENCE,),
    )
    judged = Stage(
        "judged",
        {},
        {"thresholds": asdict(thresholds), "top_k": config.verdict.top_k},
        (MATCHES, FLAGGED, REJECTED, BLANK, SUMMARY),
    )
    return Job("query", (first, searched, judged), {"index": str(index.absolute())})


def _is_finished(folder: Path) -> bool:
    """Tell whether an interrupted run had done all; pairs without evidence are tried again."""
    if not (folder / SUMMARY).is_file():
        return False
    pairs = read_json(folder / SUMMARY)["verification"] or {}
    return not pairs.get("not_registered")


def _reuse(published: Path, folder: Path, job: Job) -> None:
    """Take over from the report in place what this job would make again.

    Nothing is taken that is damaged, or that lacks an image which may be readable by now.
    """
    same = {stage.name for stage in job.same_as(read_job(published) or {})}
    if "embedded" not in same or (folder / SYNTHETIC).exists() or (folder / EVIDENCE).exists():
        return
    try:
        with Store.open(published / SYNTHETIC) as store:
            store.verify()
            if any(record.reason in MAY_PASS for record in store.rejections()):
                return
        digests = read_json(published / SUMMARY)["files"]
    except (ScanError, KeyError):
        return
    link(published / SYNTHETIC, folder / SYNTHETIC)
    if "searched" in same and (published / EVIDENCE).is_dir():
        parts = (published / EVIDENCE).glob("*.parquet")
        if all(sha256(part) == digests.get(f"{EVIDENCE}/{part.name}") for part in parts):
            link(published / EVIDENCE, folder / EVIDENCE)
