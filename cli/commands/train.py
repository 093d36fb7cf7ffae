"""`deepssim-scan train`: adapt an encoder to a folder of images, or train one."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deepssim_scan.cli import console, options
from deepssim_scan.encoder.architecture import ARCHITECTURES
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions
from deepssim_scan.jobs.config import TrainConfig
from deepssim_scan.training.config import ADAPTING, SCRATCH, TrainingConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.train import Trained

EXAMPLE = "deepssim-scan train --images scans/ --out encoder.safetensors"
NONE = "none"

_training_option = partial(typer.Option, rich_help_panel="Training")

Images = Annotated[
    Path,
    options.input_option("--images", metavar="DIR", help="Folder of the images to train on."),
]
Out = Annotated[
    Path, options.output_option("--out", metavar="FILE", help="Checkpoint file to write.")
]
Init = Annotated[
    str,
    _training_option(
        "--init",
        metavar="FILE",
        help=f"Checkpoint to start from: a file, 'bundled', or '{NONE}' for random weights.",
    ),
]
ArchitectureName = Annotated[
    str | None,
    _training_option(
        "--architecture",
        metavar="NAME",
        help=f"With --init {NONE}: one of {', '.join(ARCHITECTURES)}.",
        show_default=TrainConfig().architecture,
    ),
]
Steps = Annotated[
    int | None,
    _training_option(
        "--steps",
        metavar="N",
        min=1,
        help="Training steps.",
        show_default=f"{ADAPTING.steps}; {SCRATCH.steps} with --init {NONE}",
    ),
]
Batch = Annotated[
    int,
    _training_option("--batch", metavar="N", min=4, help="Images drawn per step, a multiple of 4."),
]
LearningRate = Annotated[
    float | None,
    _training_option(
        "--learning-rate",
        metavar="RATE",
        min=0,
        help="Peak learning rate.",
        show_default=f"{ADAPTING.learning_rate:g}; {SCRATCH.learning_rate:g} with --init {NONE}",
    ),
]
MaxImages = Annotated[
    int,
    _training_option(
        "--max-images",
        metavar="N",
        min=64,
        help="Images kept in memory, of as many files at most, drawn at random.",
    ),
]
Seed = Annotated[
    int,
    _training_option("--seed", metavar="N", min=0, max=1 << 32, help="Seed of all random draws."),
]
Resume = Annotated[
    bool, options.machine_option("--resume", help="Continue from where a killed run stopped.")
]


def train(
    images: Images,
    out: Out,
    include: options.Include = None,
    exclude: options.Exclude = None,
    manifest: options.Manifest = None,
    subject_regex: options.SubjectRegex = None,
    subject_key: options.SubjectKey = None,
    slices: options.Slices = None,
    axis: options.Axis = None,
    window: options.Window = None,
    json: options.Json = False,
    init: Init = "bundled",
    architecture: ArchitectureName = None,
    steps: Steps = None,
    batch: Batch = ADAPTING.batch,
    learning_rate: LearningRate = None,
    max_images: MaxImages = ADAPTING.max_images,
    seed: Seed = ADAPTING.seed,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = None,
    resume: Resume = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Adapt an encoder to a folder of images, without labels, or train one from nothing."""
    with options.usage():
        read = ReadOptions(axis, slices, window, max_pixels, options.key(subject_key))
        chosen = options.selection(include, manifest, exclude)
        ingest = IngestConfig(chosen, read, subject_regex)
        training = _training(SCRATCH if init == NONE else ADAPTING, steps, learning_rate)
        training = replace(training, batch=batch, max_images=max_images, seed=seed)
        config = TrainConfig(*_initial(init, architecture), training, ingest, resume)
    with options.running(workers, max_seconds, max_memory, device) as run:
        from deepssim_scan.jobs.train import train as job

        trained = job(images, out, config, run)
    _show(out, trained, json=json)
    options.leave(complete=trained.rejected == 0)


def _initial(init: str, architecture: str | None) -> tuple[Path | None, str]:
    """Return the checkpoint that training starts from, if any, and the architecture if not."""
    if init == NONE:
        return None, architecture or TrainConfig().architecture
    if architecture is not None:
        raise InputError(
            f"--architecture goes with --init {NONE}: the checkpoint that training starts from "
            "has an architecture of its own"
        )
    return BUNDLED if init == "bundled" else Path(init), TrainConfig().architecture


def _training(
    default: TrainingConfig, steps: int | None, learning_rate: float | None
) -> TrainingConfig:
    """Return how to train; the steps that teach poses are in proportion to the others."""
    steps = default.steps if steps is None else steps
    rate = default.learning_rate if learning_rate is None else learning_rate
    poses = default.pose_steps * steps // default.steps
    return replace(default, steps=steps, pose_steps=poses, learning_rate=rate)


def _show(out: Path, trained: "Trained", *, json: bool) -> None:
    """Print what the checkpoint holds, and what the encoder reaches on the images held out."""
    from deepssim_scan.reporting.describe import describe

    facts = describe(out) | {"rejected": trained.rejected}
    if json:
        assessments = {"before": trained.before, "after": trained.after}
        found = {name: each and asdict(each) for name, each in assessments.items()}
        console.show_json(facts | {"held_out": found | {"images": trained.held_out}})
        return
    console.show_facts(str(out), facts)
    console.output.print(_gains(trained))
    _show_warnings(trained)


def _gains(trained: "Trained") -> Table:
    table = Table(title=f"On the {trained.held_out:,} images held out")
    table.add_column("")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    rows = {
        "mean absolute error of the score against SSIM": ("mae", ".4f"),
        "copies whose source ranks first (recall@1)": ("recall_at_1", ".1%"),
        "copies above 99 % of other subjects (TPR at 1 % FPR)": ("tpr_at_1_fpr", ".1%"),
    }
    for label, (name, form) in rows.items():
        both = trained.before, trained.after
        table.add_row(label, *(format(getattr(each, name), form) if each else "-" for each in both))
    return table


def _show_warnings(trained: "Trained") -> None:
    before, after = trained.before, trained.after
    if before is None:
        return
    shares = ("recall_at_1", "tpr_at_1_fpr")
    fewer = any(getattr(after, name) < getattr(before, name) for name in shares)
    if fewer or after.mae > before.mae:
        console.warn("Not better in every row: more images, or more --steps, may help.")
