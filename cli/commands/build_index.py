"""`deepssim-scan build-index`: embed the training images and index them."""

from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import deepssim_scan
from deepssim_scan.cli import console, options
from deepssim_scan.cli.commands import calibrate
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.index.config import FLAT, SearchConfig
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions
from deepssim_scan.jobs.config import IndexConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.build_index import IndexResult


class AdaptName(StrEnum):
    """When the encoder is adapted to the training set."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


SEARCH = SearchConfig()
EXAMPLE = "deepssim-scan build-index --training scans/ --include '*/training.png'"

Training = Annotated[
    Path, options.input_option("--training", metavar="DIR", help="Folder of the training images.")
]
Encoder = Annotated[
    Path,
    options.input_option(
        "--encoder",
        metavar="FILE",
        help="Checkpoint of the encoder; queries of the index use it too.",
        show_default="the bundled one",
    ),
]
Index = Annotated[
    Path, options.output_option("--index", metavar="DIR", help="Folder to write the index to.")
]
NoCalibrate = Annotated[
    bool,
    options.verdict_option(
        "--no-calibrate",
        help="Do not calibrate the index; `calibrate` does so later.",
    ),
]
Adapt = Annotated[
    AdaptName,
    options.verdict_option(
        "--adapt",
        help="Train the encoder on the training set, for some minutes: auto does so where copies "
        "of its images are not found as they should be.",
    ),
]


IndexType = Annotated[
    str,
    options.machine_option(
        "--index-type",
        metavar="TYPE",
        help="auto, flat (exact), hnsw, ivf or ivfpq (approximate), or a factory string of FAISS. "
        "auto is flat up to 500,000 images; above, memory decides.",
    ),
]
RecallOption = Annotated[
    float,
    options.machine_option(
        "--recall",
        metavar="SHARE",
        min=0.5,
        max=0.99999,
        help="Share of the best matches that an approximate index is tuned to find.",
    ),
]


def build_index(
    training: Training,
    include: options.Include = None,
    exclude: options.Exclude = None,
    manifest: options.Manifest = None,
    subject_regex: options.SubjectRegex = None,
    subject_key: options.SubjectKey = None,
    slices: options.Slices = None,
    axis: options.Axis = None,
    window: options.Window = None,
    encoder: Encoder = BUNDLED,
    index: Index = options.DEFAULT_INDEX,
    adapt: Adapt = AdaptName.AUTO,
    index_type: IndexType = SEARCH.kind,
    recall: RecallOption = SEARCH.recall,
    no_calibrate: NoCalibrate = False,
    json: options.Json = False,
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
    """Embed the training images and index them."""
    with options.usage():
        read = ReadOptions(axis, slices, window, max_pixels, options.key(subject_key))
        chosen = options.selection(include, manifest, exclude)
        ingest = IngestConfig(chosen, read, subject_regex)
        config = IndexConfig(
            encoder,
            ingest,
            calibrate=not no_calibrate,
            adapt=adapt.value,
            search=SearchConfig(index_type, recall),
            rebuild=rebuild,
            restart=restart,
        )
    with options.running(workers, max_seconds, max_memory, device, scheduler, insecure) as run:
        result = deepssim_scan.build_index(training, index, config, run)
    console.show_json(_plain(result)) if json else _show(result)
    options.leave(complete=result.complete)


def _plain(result: "IndexResult") -> dict[str, Any]:
    """Return what JSON says of a result."""
    found = result.calibration
    return (
        {each.name: getattr(result, each.name) for each in fields(result)}
        | {"folder": str(result.folder), "complete": result.complete}
        | {"calibration": found and found.summary(found.false_alarm(None))}
        | {"before": result.before and result.before.summary(result.before.false_alarm(None))}
        | {"adapted": result.adapted, "search": result.search and asdict(result.search)}
    )


def _show(result: "IndexResult") -> None:
    """Print what an index holds, and what is not in it."""
    console.say(
        f"{result.indexed:,} training images indexed in {result.folder} "
        f"({result.seconds:.1f} s, encoder {result.encoder[:12]})"
    )
    if result.changes is not None:
        kept, new, gone = result.changes.kept, result.changes.new, result.changes.gone
        console.say(
            f"Updated: {kept:,} images as in the index that was there; "
            f"{new:,} files new or changed, {gone:,} gone"
        )
    if result.search is not None and result.search.factory != FLAT:
        found = result.search
        console.say(
            f"Search: approximate ({found.factory}, effort {found.effort:,}). In a test it found "
            f"{found.recall:.2%} of the best matches. Each large run measures it."
        )
    console.show_ledger(result.listed, result.indexed, result.rejected, result.blank)
    left_out = result.rejected, result.blank, result.excluded, result.ignored
    console.show_left_out(result.folder, *left_out)
    if result.adapted and result.before is not None:
        console.say("The encoder was adapted to the training set. Before:")
        calibrate.show(result.before)
        console.say("After:")
    if result.calibration is not None:
        calibrate.show(result.calibration)
    if not result.complete:
        console.warn(
            "INCOMPLETE: a copy of a rejected training image cannot be found. Repair the rejected "
            "files, or leave them out with --exclude, and run the command again."
        )
