"""`deepssim-scan query`: find synthetic images that copy a training image."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import deepssim_scan
from deepssim_scan.cli import console, options
from deepssim_scan.cli.found import show
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.matching.config import (
    REFERENCE_SCORES,
    CanaryConfig,
    EvidenceConfig,
    PageConfig,
    VerdictConfig,
)
from deepssim_scan.store.config import EmbedConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.query import QueryResult

EXAMPLE = "deepssim-scan query --synthetic generated/ --fail-on-flagged"
EVIDENCE, VERDICT, CANARIES = EvidenceConfig(), VerdictConfig(), CanaryConfig()


class RuleName(StrEnum):
    """How pairs are judged."""

    CALIBRATED = "calibrated"
    REFERENCE = "reference"


Synthetic = Annotated[
    Path, options.input_option("--synthetic", metavar="DIR", help="Folder of the synthetic images.")
]
Report = Annotated[
    Path, options.output_option("--report", metavar="DIR", help="Folder to write the report to.")
]
TopK = Annotated[
    int,
    options.output_option(
        "--top-k", metavar="N", min=1, help="Matches that the report lists per image."
    ),
]
Thumbnails = Annotated[
    bool,
    options.output_option(
        "--thumbnails", help="Show pictures of the findings in report.html: they are of patients."
    ),
]
Pseudonyms = Annotated[
    Path | None,
    options.output_option(
        "--pseudonyms",
        metavar="FILE",
        help="File with a secret. In report.html names are replaced by hashes under it.",
    ),
]
FailOnFlagged = Annotated[
    bool,
    options.output_option(
        "--fail-on-flagged", help="Exit with code 3 when an image is flagged as a duplicate."
    ),
]
NoVerify = Annotated[
    bool,
    options.verdict_option(
        "--no-verify",
        help="Judge by the score alone: candidates are not registered with the image.",
    ),
]
Rule = Annotated[
    RuleName,
    options.verdict_option(
        "--rule",
        help="Judge by the index's calibration, or as the paper does: by fixed scores.",
    ),
]
FalseAlarm = Annotated[
    float | None,
    options.verdict_option(
        "--false-alarm",
        metavar="RATE",
        help="Share of images of other people that may be flagged as duplicates.",
        show_default="0.001, or the least that the calibration supports",
    ),
]
Similar = Annotated[
    float | None,
    options.verdict_option(
        "--similar",
        metavar="SCORE",
        help="With --rule reference: similar above this score (cosine similarity, -1 to 1).",
        show_default=f"{REFERENCE_SCORES[0]:g}",
    ),
]
Duplicate = Annotated[
    float | None,
    options.verdict_option(
        "--duplicate",
        metavar="SCORE",
        help="With --rule reference: a duplicate above this score.",
        show_default=f"{REFERENCE_SCORES[1]:g}",
    ),
]
CanaryCount = Annotated[
    int,
    options.verdict_option(
        "--canaries",
        metavar="N",
        min=0,
        help="Copies of training images that are planted, to see that they are found.",
    ),
]
LeastRecall = Annotated[
    float | None,
    options.verdict_option(
        "--min-canary-recall",
        metavar="SHARE",
        min=0,
        max=1,
        help="The run is not complete when fewer canaries are found.",
        show_default="what the calibration found, but for chance",
    ),
]
LeastFound = Annotated[
    float,
    options.verdict_option(
        "--min-recall",
        metavar="SHARE",
        min=0,
        max=1,
        help="The run is not complete when an approximate index finds fewer of the best matches, "
        "of a sample that is searched exactly as well.",
    ),
]


def query(
    synthetic: Synthetic,
    index: options.Index = options.DEFAULT_INDEX,
    training: options.TrainingNow = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    manifest: options.Manifest = None,
    subject_regex: options.SubjectRegex = None,
    subject_key: options.SubjectKey = None,
    slices: options.Slices = None,
    axis: options.Axis = None,
    window: options.Window = None,
    report: Report = Path("deepssim-report"),
    top_k: TopK = VERDICT.top_k,
    thumbnails: Thumbnails = False,
    pseudonyms: Pseudonyms = None,
    fail_on_flagged: FailOnFlagged = False,
    json: options.Json = False,
    candidates: options.Candidates = EVIDENCE.candidates,
    tta_views: options.TtaViews = EVIDENCE.tta_views,
    rule: Rule = RuleName.CALIBRATED,
    false_alarm: FalseAlarm = None,
    similar: Similar = None,
    duplicate: Duplicate = None,
    canaries: CanaryCount = CANARIES.count,
    min_canary_recall: LeastRecall = CANARIES.least,
    min_recall: LeastFound = EVIDENCE.min_recall,
    no_verify: NoVerify = False,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = None,
    scheduler: options.SchedulerPlace = None,
    insecure: options.Insecure = False,
    rebuild: options.Rebuild = False,
    restart: options.Restart = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Find synthetic images that copy a training image."""
    with options.usage():
        read = ReadOptions(axis, slices, window, max_pixels, options.key(subject_key))
        ingest = IngestConfig(options.selection(include, manifest, exclude), read, subject_regex)
        evidence = EvidenceConfig(candidates, tta_views, not no_verify, training, min_recall)
        verdict = VerdictConfig(top_k, rule.value, false_alarm, similar, duplicate)
        planted = CanaryConfig(canaries, min_canary_recall)
        page = PageConfig(thumbnails, options.key(pseudonyms))
        config = QueryConfig(
            ingest, EmbedConfig(), evidence, verdict, planted, page, rebuild, restart
        )
    with options.running(workers, max_seconds, max_memory, device, scheduler, insecure) as run:
        result = deepssim_scan.query(synthetic, index, report, config, run)
    _end(result, json, fail_on_flagged)


def _end(result: "QueryResult", json: bool, fail_on_flagged: bool) -> None:
    """Print the result, and end with its exit code."""
    console.show_json(result.summary) if json else show(result)
    options.leave(complete=result.complete, flagged=fail_on_flagged and result.flagged > 0)
