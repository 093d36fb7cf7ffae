"""`deepssim-scan query`: find synthetic images that copy a training image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text

from deepssim_scan.cli import console, options
from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.config.limits import WORKERS
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.query import QueryResult
    from deepssim_scan.reporting.matches import Match

EXAMPLE = "deepssim-scan query --synthetic generated/ --fail-on-flagged"
EVIDENCE, VERDICT = EvidenceConfig(), VerdictConfig()
STYLES = {"duplicate": "bold red", "similar": "yellow", "different": "green"}

Synthetic = Annotated[
    Path, options.input_option("--synthetic", metavar="DIR", help="Folder of the synthetic images.")
]
Index = Annotated[
    Path, options.input_option("--index", metavar="DIR", help="Folder of the index to search.")
]
Training = Annotated[
    Path | None,
    options.input_option(
        "--training",
        metavar="DIR",
        help="Where the training images are now, to verify candidates with.",
        show_default="where they were indexed",
    ),
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
FailOnFlagged = Annotated[
    bool,
    options.output_option(
        "--fail-on-flagged", help="Exit with code 3 when an image is flagged as a duplicate."
    ),
]
Candidates = Annotated[
    int,
    options.verdict_option(
        "--candidates",
        metavar="N",
        min=1,
        help="Training images that are verified per synthetic image, the most similar ones.",
    ),
]
TtaViews = Annotated[
    int,
    options.verdict_option(
        "--tta-views",
        metavar="N",
        min=1,
        max=len(TTA_VIEWS),
        help="Views of each synthetic image that are embedded: itself, shifted, rotated. Fewer "
        "are faster and find fewer copies.",
    ),
]
NoVerify = Annotated[
    bool,
    options.verdict_option(
        "--no-verify",
        help="Judge by the score alone: candidates are not registered with the image.",
    ),
]
Similar = Annotated[
    float | None,
    options.verdict_option(
        "--similar",
        metavar="SCORE",
        help="A match is similar above this score (cosine similarity, -1 to 1).",
        show_default="the encoder's",
    ),
]
Duplicate = Annotated[
    float | None,
    options.verdict_option(
        "--duplicate",
        metavar="SCORE",
        help="A match is a duplicate above this score, if its SSIM is above --ssim too.",
        show_default="the encoder's",
    ),
]
Ssim = Annotated[
    float | None,
    options.verdict_option(
        "--ssim",
        metavar="SSIM",
        help="A match above --duplicate is confirmed above this SSIM of the registered pair.",
        show_default="the encoder's",
    ),
]
HighSsim = Annotated[
    float | None,
    options.verdict_option(
        "--high-ssim",
        metavar="SSIM",
        help="A match is a duplicate above this SSIM, whatever its score.",
        show_default="the encoder's",
    ),
]


def query(
    synthetic: Synthetic,
    index: Index = options.DEFAULT_INDEX,
    training: Training = None,
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
    fail_on_flagged: FailOnFlagged = False,
    json: options.Json = False,
    candidates: Candidates = EVIDENCE.candidates,
    tta_views: TtaViews = EVIDENCE.tta_views,
    similar: Similar = None,
    duplicate: Duplicate = None,
    ssim: Ssim = None,
    high_ssim: HighSsim = None,
    no_verify: NoVerify = False,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = WORKERS,
    restart: options.Restart = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Find synthetic images that copy a training image."""
    with options.usage():
        read = ReadOptions(axis, slices, window, max_pixels, options.subject_key(subject_key))
        chosen = options.selection(include, manifest, exclude)
        config = QueryConfig(
            IngestConfig(chosen, read, subject_regex),
            evidence=EvidenceConfig(candidates, tta_views, not no_verify, training),
            verdict=VerdictConfig(top_k, similar, duplicate, ssim, high_ssim),
            restart=restart,
        )
    with options.running(workers, max_seconds, max_memory, device) as run:
        from deepssim_scan.jobs.query import query as job

        result = job(synthetic, index, report, config, run)
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
    _show_subjects(summary["subjects"])
    _show_verification(summary["verification"])
    if summary["top_k"] < summary["top_k_asked"]:
        console.note(
            f"Only {summary['top_k']} matches an image: there are no more training images."
        )
    console.say(f"Report: {result.folder}")
    if not result.complete:
        _show_incomplete(counts, summary["verification"])


def _verdicts(summary: Mapping[str, Any]) -> Table:
    """Return how many images have each verdict, and by which rule."""
    counts, thresholds = summary["counts"], Thresholds(**summary["thresholds"])
    table = Table(title="Verdicts of the synthetic images")
    for name in ("verdict", "images", "share"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("best match", overflow="fold")
    flagged = f"score > {thresholds.duplicate:g}"
    if summary["verification"] is not None:
        both = f"{flagged} and SSIM > {thresholds.ssim:g}"
        flagged = f"SSIM > {thresholds.high_ssim:g}, or {both}"
    rules = {"duplicate": flagged, "similar": f"score > {thresholds.similar:g}", "different": ""}
    for verdict, rule in rules.items():
        share = f"{counts[verdict] / counts['judged']:.1%}"
        styled = Text(verdict, style=STYLES[verdict])
        table.add_row(styled, f"{counts[verdict]:,}", share, rule)
    table.add_section()
    for state in ("judged", "rejected", "blank"):
        table.add_row(state, f"{counts[state]:,}", "", "")
    return table


def _strongest(matches: "Sequence[Match]") -> Table:
    table = Table(title="Strongest matches")
    for name in ("synthetic", "training"):
        table.add_column(name, overflow="fold")
    for name in ("score", "SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for match in matches:
        verdict = Text(match.verdict, style=STYLES[match.verdict])
        names = Text(match.synthetic), Text(match.training)
        ssim = "-" if match.ssim is None else f"{match.ssim:.4f}"
        table.add_row(*names, f"{match.score:.4f}", ssim, verdict)
    return table


def _show_subjects(subjects: Mapping[str, int]) -> None:
    """Print how many people's images the flagged images copy, where anybody is told apart."""
    if subjects["training"]:
        flagged, training = subjects["flagged"], subjects["training"]
        console.say(f"Subjects of whom an image is copied: {flagged:,} of {training:,}")


def _show_verification(pairs: Mapping[str, int] | None) -> None:
    """Print how many pairs were registered, or that none was to be."""
    if pairs is None:
        console.warn("Not verified, as --no-verify asks for: judged by the score alone.")
        return
    console.say(
        f"Pairs registered: {pairs['registered']:,}, confirmed: {pairs['ssim_confirmed']:,}"
    )
    if missing := pairs["not_registered"]:
        console.warn(
            f"Pairs not verified: {missing:,}. An image of each is gone or has changed, so they "
            "are judged by the score alone. Say where the training images are with --training."
        )


def _show_incomplete(counts: Mapping[str, int], pairs: Mapping[str, int] | None) -> None:
    """Print what was not looked at."""
    missing = (pairs or {}).get("not_registered", 0)
    synthetic, training = counts["rejected"], counts["training_rejected"]
    console.warn(
        f"INCOMPLETE, so this is no clean result. Not looked at: synthetic images {synthetic:,}, "
        f"training images {training:,}, pairs {missing:,}."
    )
