"""`deepssim-scan calibrate`: say how often the verdicts of an index are wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import deepssim_scan
from deepssim_scan.cli import console, options
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions
from deepssim_scan.jobs.config import CalibrateConfig
from deepssim_scan.reporting.html.words import rate_at_most

if TYPE_CHECKING:
    from deepssim_scan.calibration.calibration import Calibration

EXAMPLE = "deepssim-scan calibrate --holdout other-patients/"
DEFAULTS = CalibrateConfig()

Holdout = Annotated[
    Path | None,
    options.input_option(
        "--holdout",
        metavar="DIR",
        help="Images of people who are not in the training set.",
        show_default="training images, each without its own subject",
    ),
]


def calibrate(
    index: options.Index = options.DEFAULT_INDEX,
    training: options.TrainingNow = None,
    holdout: Holdout = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    manifest: options.Manifest = None,
    subject_regex: options.SubjectRegex = None,
    slices: options.Slices = None,
    axis: options.Axis = None,
    window: options.Window = None,
    candidates: options.Candidates = DEFAULTS.candidates,
    tta_views: options.TtaViews = DEFAULTS.tta_views,
    json: options.Json = False,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = None,
    scheduler: options.SchedulerPlace = None,
    insecure: options.Insecure = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Calibrate an index: find out how often its verdicts are wrong."""
    with options.usage():
        read = ReadOptions(axis, slices, window, max_pixels)
        chosen = options.selection(include, manifest, exclude)
        config = CalibrateConfig(
            training, holdout, IngestConfig(chosen, read, subject_regex), candidates, tta_views
        )
    with options.running(workers, max_seconds, max_memory, device, scheduler, insecure) as run:
        result = deepssim_scan.calibrate(index, config, run)
    found = result.calibration
    if json:
        console.show_json(found.summary(found.false_alarm(None)) | {"seconds": result.seconds})
    else:
        console.say(f"{index}: calibrated in {result.seconds:.1f} s")
        show(found)


def show(found: "Calibration") -> None:
    """Print what a calibration says, at the default false-alarm rate."""
    said = found.summary(found.false_alarm(None))
    people = said["non_members"]
    origin = {
        "known": "training images, each without its own subject",
        "guessed": "training images, each without its own subject (guessed from folders)",
        "runs": "training images without their neighbouring files: no subjects are known",
        "hold-out": "hold-out images",
        "bundled": "pseudo-subjects, since the training set is too small",
    }[people["from"]]
    console.say(f"Non-members: {people['images']:,} of {people['subjects']:,} groups, {origin}")
    console.say(
        f"False-alarm rate: {said['false_alarm']:.2g} "
        f"(at most {rate_at_most(said['false_alarm_upper_95'])} at 95 %; "
        f"the least that is supported is {said['smallest_false_alarm']:.2g})"
    )
    kinds = said["sensitivity_by_kind"]
    worst = min(kinds, key=lambda kind: kinds[kind])
    console.say(
        f"Planted copies found: {said['sensitivity']:.1%} of {said['planted']:,}; the fewest of "
        f"{worst!r}, {kinds[worst]:.0%}"
    )
    if again := said["same_patient"]:
        console.say(
            f"Another image of the same patient: {again['flagged'] / again['images']:.1%} of "
            f"{again['images']:,} are taken for copies. No copy does not mean: not this patient."
        )
    if said["training_duplicates"]:
        console.warn(
            f"{said['training_duplicates']:,} pairs of training images of different subjects are "
            "copies of each other or nearly the same, for instance "
            + " and ".join(repr(name) for name in found.duplicates[0])
            + ". Generators memorize such images. If they are variants of an image, such as turned "
            "ones, fewer copies are found: leave them out, or make them one subject's "
            "(--subject-regex, --manifest)."
        )
