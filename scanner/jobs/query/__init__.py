"""Find the training image that each synthetic image may copy, and judge the two.

    synthetic folder -> listing -> store -> candidates -> evidence -> verdicts -> report

What was embedded, what was searched and verified, and what was judged have an identity each
(`Stage`): a run of which only the last differs begins there, with what an interrupted run left or
what the report in place holds. Where some images changed, all that is of the others is taken from
the report in place. A run is not complete when an image was rejected, now or when the
index was built, when a pair could not be verified, when too few canaries are found, or when an
approximate search finds too few of the best matches.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.groups import Groups, groups_of
from deepssim_scan.calibration.rule import CalibratedRule, ReferenceRule, Rule
from deepssim_scan.errors import ScanError, StoreMismatch
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.ingest.rejection import MAY_PASS
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.gallery import Gallery, files_or_none
from deepssim_scan.jobs.identity import (
    embedded,
    index_encoder,
    list_for_store,
    require_encoder,
)
from deepssim_scan.jobs.query.earlier import EarlierReport, earlier_report, store_of
from deepssim_scan.jobs.query.run import QueryRun
from deepssim_scan.matching.decision import REFERENCE, Bounds
from deepssim_scan.progress import Progress
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.storage.files import link, sha256
from deepssim_scan.storage.layout import (
    EVIDENCE,
    JUDGED_FILES,
    REPORT_FILES,
    STORE,
    SUMMARY,
    SYNTHETIC,
)
from deepssim_scan.storage.publish import Job, Stage, publishing, read_job, refuse_foreign
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.embed_listing import Embedder
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
    with run.opened() as run, Store.open(index / STORE) as training:
        embedder = Embedder(loaded, config.ingest, config.embed, run)
        require_encoder(index / STORE, training.manifest.encoder, loaded.fingerprint)
        training.verify()
        groups = groups_of(training)
        rule = chosen_rule(index, training, groups, config, run.progress)
        listing = list_for_store(synthetic, config.ingest, run)
        search = TrainingIndex.open(index, training, run.device_here)
        gallery = Gallery(training, search, groups, _files(training, config, run))
        job = _job(embedded(listing, embedder, SYNTHETIC), gallery, index, rule, config)
        fresh, progress = {"restart": config.restart, "anew": config.rebuild}, run.progress
        with publishing(report, REPORT_FILES, job, **fresh, progress=progress) as folder:
            if not config.rebuild:
                _reuse(report.resolve(), folder, job)
            if not _is_finished(folder):
                with _earlier(report, job, config) as earlier:
                    QueryRun(folder, gallery, embedder, rule, config, earlier).work(listing)
            summary = read_json(folder / SUMMARY)
            _, counts = read_counts(folder)
    return QueryResult(report, summary, counts.strongest)


def chosen_rule(
    index: Path, training: Store, groups: Groups, config: QueryConfig, progress: Progress
) -> Rule:
    """Return the rule that a query judges by.

    Warns when the index was calibrated with other numbers of candidates or views. Raises
    InputMissing when it is not calibrated, StoreMismatch when it was calibrated with another
    encoder or store, or with people told apart in another way, InputError when the rate asked for
    is not supported.
    """
    verdict, evidence = config.verdict, config.evidence
    if verdict.rule == "reference" or not evidence.verify:
        similar = REFERENCE.similar if verdict.similar is None else verdict.similar
        duplicate = REFERENCE.duplicate if verdict.duplicate is None else verdict.duplicate
        return ReferenceRule(Bounds(similar, duplicate))
    calibration = Calibration.read(index)
    origin = calibration.subjects
    of_others = origin in ("hold-out", "bundled")
    for what, found, now in (
        ("encoder", calibration.encoder, training.manifest.encoder),
        ("store", calibration.store, training.digest),
        ("subjects", origin, origin if of_others else groups.origin),
    ):
        if found != now:
            raise StoreMismatch(
                f"{index}: was calibrated with {what} {found[:12]}, and has {now[:12]}. "
                f"Run `deepssim-scan calibrate --index {index}`."
            )
    for what, number, wanted_number in (
        ("candidates", evidence.candidates, calibration.candidates),
        ("tta_views", evidence.tta_views, calibration.tta_views),
    ):
        if number != wanted_number:
            progress.warn(
                f"{index}: was calibrated with {what} {wanted_number}, and this run has {number}: "
                "its rates do not hold exactly. Calibrate it with as many."
            )
    return CalibratedRule(
        calibration, calibration.false_alarm(verdict.false_alarm), evidence.candidates
    )


def _files(training: Store, config: QueryConfig, run: RunContext) -> Lookup | None:
    evidence = config.evidence
    return files_or_none(training, evidence.training, run) if evidence.verify else None


def _job(first: Stage, gallery: Gallery, index: Path, rule: Rule, config: QueryConfig) -> Job:
    evidence, used = config.evidence, gallery.search.proposer
    searched = Stage(
        "searched",
        {
            "candidates": evidence.candidates,
            "tta_views": evidence.tta_views,
            "verify": evidence.verify,
        },
        {
            "training": gallery.store.digest,
            "search": [used.kind, used.effort],
            "depth": max(evidence.candidates, config.verdict.top_k),
            "enough": rule.enough,
        },
        (EVIDENCE,),
    )
    judged = Stage(
        "judged",
        {},
        {
            "rule": config.verdict.rule,
            "bounds": asdict(rule.bounds),
            "top_k": config.verdict.top_k,
            "canaries": asdict(config.canaries),
            "min_recall": evidence.min_recall,
            "thumbnails": config.page.thumbnails,
            "pseudonyms": hashlib.sha256(config.page.pseudonyms).hexdigest(),
        },
        (*JUDGED_FILES, SUMMARY),
    )
    return Job("query", (first, searched, judged), {"index": str(index.absolute())})


def _is_finished(folder: Path) -> bool:
    """Tell whether an interrupted run had done all; pairs without evidence are tried again."""
    if not (folder / SUMMARY).is_file():
        return False
    pairs = read_json(folder / SUMMARY)["verification"] or {}
    return not pairs.get("not_registered")


def _earlier(report: Path, job: Job, config: QueryConfig) -> AbstractContextManager[EarlierReport]:
    """Give what is taken from the report in place: nothing, where all is read again."""
    if config.rebuild:
        return nullcontext(EarlierReport())
    return earlier_report(report, job, config.ingest)


def _reuse(published: Path, folder: Path, job: Job) -> None:
    """Take over from the report in place what this job would make again.

    Nothing is taken that is damaged, or that lacks an image which may be readable by now.
    """
    same = {stage.name for stage in job.same_as(read_job(published) or {})}
    if "embedded" not in same or (folder / SYNTHETIC).exists() or (folder / EVIDENCE).exists():
        return
    try:
        with store_of(published) as store:
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
