"""`deepssim-scan query`: find synthetic images that copy a training image."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text

import deepssim_scan
from deepssim_scan.cli import console, options
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
from deepssim_scan.storage.layout import REPORT
from deepssim_scan.store.config import EmbedConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.query import QueryResult
    from deepssim_scan.reporting.match import Match

EXAMPLE = "deepssim-scan query --synthetic generated/ --fail-on-flagged"
EVIDENCE, VERDICT, CANARIES = EvidenceConfig(), VerdictConfig(), CanaryConfig()
STYLES = {
    "duplicate": "bold red",
    "similar": "yellow",
    "different": "green",
    "undecidable": "magenta",
}


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
        evidence = EvidenceConfig(candidates, tta_views, not no_verify, training)
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
    console.show_json(result.summary) if json else _show(result)
    options.leave(complete=result.complete, flagged=fail_on_flagged and result.flagged > 0)


def _show(result: "QueryResult") -> None:
    """Print the counts, the strongest matches, and whether the run was complete."""
    summary, counts = result.summary, result.summary["counts"]
    console.output.print(_verdicts(summary), _strongest(result.strongest))
    rejected, blank = counts["rejected"], counts["blank"]
    console.show_ledger(counts["listed"], counts["judged"], rejected, blank)
    left_out = rejected, blank, summary["excluded"], summary["ignored"]
    console.show_left_out(result.folder, *left_out)
    _show_subjects(summary["subjects"], counts)
    _show_calibration(summary)
    _show_canaries(summary)
    _show_verification(summary["verification"])
    _show_views(summary["views"])
    if summary["top_k"] < summary["top_k_asked"]:
        most = summary["top_k"]
        console.note(f"Only {most} matches an image: there are no more training images.")
    console.say(f"Report: {result.folder / REPORT}")
    if not result.complete:
        _show_incomplete(summary)


def _verdicts(summary: Mapping[str, Any]) -> Table:
    """Return how many images have each verdict, and by which rule."""
    counts, calibration = summary["counts"], summary["calibration"]
    table = Table(title="Verdicts of the synthetic images")
    for name in ("verdict", "images", "share"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("best match", overflow="fold")
    bounds = summary["bounds"]
    rules = {each: f"score > {bounds[each]:g}" for each in ("duplicate", "similar")}
    if calibration is not None:
        rate = calibration["false_alarm"]
        rules = {"duplicate": f"p-value < {rate:.2g}", "similar": f"p-value < {10 * rate:.2g}"}
    rules |= {"undecidable": "next to nothing on the image"} if counts["undecidable"] else {}
    for verdict in ("duplicate", "similar", "different", "undecidable"):
        if verdict != "undecidable" or counts[verdict]:
            share = f"{counts[verdict] / counts['judged']:.1%}"
            styled = Text(verdict, style=STYLES[verdict])
            table.add_row(styled, f"{counts[verdict]:,}", share, rules.get(verdict, ""))
    table.add_section()
    for state in ("judged", "rejected", "blank"):
        table.add_row(state, f"{counts[state]:,}", "", "")
    return table


def _strongest(matches: "Sequence[Match]") -> Table:
    table = Table(title="Strongest matches")
    for name in ("synthetic", "training"):
        table.add_column(name, overflow="fold")
    for name in ("score", "SSIM", "p-value"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for match in matches:
        verdict = Text(match.verdict, style=STYLES[match.verdict])
        names = Text(match.synthetic), Text(match.training)
        ssim = "-" if match.ssim is None else f"{match.ssim:.4f}"
        p_value = "-" if match.p_value is None else f"{match.p_value:.2g}"
        table.add_row(*names, f"{match.score:.4f}", ssim, p_value, verdict)
    return table


def _show_subjects(subjects: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Print the share of the images that copy, and of the subjects who are copied."""
    images = f"{counts['duplicate']:,} of {counts['judged']:,} images"
    if subjects["training"]:
        flagged, training = subjects["flagged"], subjects["training"]
        console.say(f"Copies: {images} copy {flagged:,} of {training:,} subjects.")
    else:
        of = f"{subjects['flagged']:,} of {counts['training_indexed']:,} training images"
        console.say(f"Copies: {images} copy {of}. No subjects are told apart.")


def _show_calibration(summary: Mapping[str, Any]) -> None:
    """Print how often the verdicts are wrong."""
    found = summary["calibration"]
    if found is None:
        if summary["rule"] == "reference":
            console.note("Judged by fixed scores: how often they are wrong is not known.")
        return
    people = found["non_members"]
    if people["from"] == "bundled":
        console.warn(
            "Judged by the bundled calibration, of pseudo-subjects: how often these verdicts are "
            "wrong is not known. The training set is too small to be calibrated."
        )
        return
    console.say(
        f"False alarms: {found['false_alarm']:.2g} of images of other people, at most "
        f"{found['false_alarm_upper_95']:.2g} (95 %; {people['images']:,} images of "
        f"{people['subjects']:,} {'runs of files' if people['from'] == 'runs' else 'subjects'}). "
        f"Expected in this run: {found['expected_false_alarms']:.1f}."
    )
    if summary["counts"]["duplicate"]:
        console.say(
            f"Of the flagged images, {found['false_discovery']:.1%} are expected to be false "
            f"alarms, at most {found['false_discovery_upper_95']:.0%} (95 %)."
        )


def _show_canaries(summary: Mapping[str, Any]) -> None:
    """Print how many planted copies were found, and what that says of those not found."""
    canaries = summary["canaries"]
    if canaries is None:
        return
    console.say(
        f"Canaries: {canaries['found']:,} of {canaries['planted']:,} planted copies were found. "
        f"At most {summary['most_copies_95']:.2%} of the images are copies (95 %)."
    )
    if not canaries["passed"]:
        console.warn(
            f"CANARIES MISSED: {canaries['least']:.0%} had to be found. Copies may have been "
            "missed: check the index with `deepssim-scan check`, and calibrate it again."
        )


def _show_views(views: Mapping[str, int]) -> None:
    """Print when most of the flagged images are turned or inverted."""
    total = sum(views.values())
    for name, count in views.items():
        if name != "as it is" and total and count > total / 2:
            console.note(f"Of {total:,} flagged images {count:,} match under: {name}.")


def _show_verification(pairs: Mapping[str, int] | None) -> None:
    """Print how many pairs were registered, or that none was to be."""
    if pairs is None:
        console.warn("Not verified, as --no-verify asks for: judged by the score alone.")
        return
    console.say(f"Pairs looked at: {pairs['registered']:,}")
    if missing := pairs["not_registered"]:
        console.warn(
            f"Pairs not verified: {missing:,}. An image of each is gone or has changed, so they "
            "are judged by the score alone. Say where the training images are with --training."
        )


def _show_incomplete(summary: Mapping[str, Any]) -> None:
    """Print what was not looked at."""
    counts, canaries = summary["counts"], summary["canaries"]
    missing = (summary["verification"] or {}).get("not_registered", 0)
    synthetic, training = counts["rejected"], counts["training_rejected"]
    console.warn(
        f"INCOMPLETE, so this is no clean result. Not looked at: synthetic images {synthetic:,}, "
        f"training images {training:,}, pairs {missing:,}."
        + ("" if canaries is None or canaries["passed"] else " Canaries were missed.")
    )
