"""The commands of `deepssim-scan`.

Exit codes: 0 done; 1 the run failed; 2 usage; 3 images were flagged, only with
--fail-on-flagged; 4 incomplete, some input was rejected. 4 goes before 3.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deepssim_scan import __version__, checkpoint, scan, training
from deepssim_scan import demo as demonstration
from deepssim_scan.check import RepairConfig, check, repair
from deepssim_scan.checkpoint import BUNDLED
from deepssim_scan.cli import console
from deepssim_scan.cli.progress import reporting
from deepssim_scan.decode import MAX_PIXELS, Reading
from deepssim_scan.describe import describe
from deepssim_scan.embed import WORKERS, EmbedConfig
from deepssim_scan.encoder import ARCHITECTURES, Architecture, pick_device
from deepssim_scan.errors import InputError, ScanError
from deepssim_scan.listing import Selection
from deepssim_scan.scan import QueryConfig
from deepssim_scan.verdicts import VERIFIED
from deepssim_scan.views import VIEWS
from deepssim_scan.workers import Limits

FLAGGED, INCOMPLETE = 3, 4
GIB = 1 << 30
SHORTEST_KEY = 16
LIMITS = Limits()


class DeviceName(StrEnum):
    """Where a network runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


app = typer.Typer(
    name="deepssim-scan",
    help="Find synthetic medical images that copy a patient of the training set.",
    epilog="Exit codes: 0 done; 1 failed; 2 usage; 3 flagged images (with --fail-on-flagged); "
    "4 incomplete: some input was rejected.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Encoder = Annotated[
    Path, typer.Option("--encoder", help="Checkpoint to embed with.", show_default="bundled")
]
Index = Annotated[Path, typer.Option("--index", help="Folder of the index.")]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Only files that match, e.g. '*/training.png'. Repeatable."),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="Only the files that a CSV names: path[,subject], paths relative to the folder.",
    ),
]
Axis = Annotated[
    int | None,
    typer.Option(
        "--axis",
        min=0,
        max=2,
        help="Axis that volumes are cut across.",
        show_default="2 for NIfTI, 0 for arrays",
    ),
]
Slices = Annotated[
    str | None,
    typer.Option(
        "--slices", help="Slices of a volume, 40:120, or shares of it, 0.2:0.8.", show_default="all"
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="CENTRE,WIDTH for DICOM and NIfTI, or 'file' for a DICOM file's own.",
        show_default="full range",
    ),
]
SubjectKey = Annotated[
    Path | None,
    typer.Option("--subject-key", help="File with a secret: keep subjects, hashed under it."),
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="What runs the network; auto: a GPU if there is one.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that decode images.")]
MaxPixels = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Images of more pixels are rejected.")
]
MaxSeconds = Annotated[
    float,
    typer.Option(
        "--max-seconds", min=0.1, max=1e6, help="Files that take longer, twice, are rejected."
    ),
]
MaxMemory = Annotated[
    float,
    typer.Option(
        "--max-memory",
        min=0.25,
        max=1024,
        help="GiB that a process may take to decode; a file that needs more is rejected.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(
    epilog="Example: deepssim-scan build-index --training scans/ --include '*/training.png'"
)
def build_index(
    training: Annotated[Path, typer.Option("--training", help="Folder of training images.")],
    index: Index = Path("deepssim-index"),
    encoder: Encoder = BUNDLED,
    include: Include = None,
    manifest: Manifest = None,
    axis: Axis = None,
    slices: Slices = None,
    window: Window = None,
    subject_key: SubjectKey = None,
    device: Device = DeviceName.AUTO,
    workers: Workers = WORKERS,
    max_pixels: MaxPixels = MAX_PIXELS,
    max_seconds: MaxSeconds = LIMITS.max_seconds,
    max_memory: MaxMemory = LIMITS.max_memory / GIB,
    json: Json = False,
) -> None:
    """Embed the training images and index them."""
    with _usage():
        config = EmbedConfig(
            Selection(tuple(include or ()), manifest),
            Reading(axis, slices, window, max_pixels, _key(subject_key)),
            Limits(max_seconds, int(max_memory * GIB)),
            pick_device(device),
            workers=workers,
        )
    with reporting(console.messages) as report:
        result = scan.build_index(training, index, encoder, config, report)
    if json:
        console.show_json(asdict(result) | {"folder": str(index), "complete": result.complete})
    else:
        console.show_index(result)
    _leave(complete=result.complete)


@app.command(epilog="Example: deepssim-scan query --synthetic generated/ --fail-on-flagged")
def query(
    synthetic: Annotated[Path, typer.Option("--synthetic", help="Folder of synthetic images.")],
    index: Index = Path("deepssim-index"),
    report: Annotated[
        Path, typer.Option("--report", help="Folder that the report is written to.")
    ] = Path("deepssim-report"),
    include: Include = None,
    manifest: Manifest = None,
    axis: Axis = None,
    slices: Slices = None,
    window: Window = None,
    subject_key: SubjectKey = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Matches kept per image.")] = 5,
    views: Annotated[
        int,
        typer.Option(
            min=1, max=len(VIEWS), help="How often each image is looked at, moved a little."
        ),
    ] = len(VIEWS),
    similar: Annotated[
        float | None,
        typer.Option(help="Score above which a match is similar.", show_default="the encoder's"),
    ] = None,
    duplicate: Annotated[
        float | None,
        typer.Option(
            help="Score above which it is a duplicate, if its SSIM agrees.",
            show_default="the encoder's",
        ),
    ] = None,
    ssim: Annotated[
        float | None,
        typer.Option(
            help="SSIM after registration that such a duplicate must pass too.",
            show_default="the encoder's",
        ),
    ] = None,
    certain: Annotated[
        float | None,
        typer.Option(
            help="SSIM above which a match is a duplicate, whatever its score.",
            show_default="the encoder's",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(help=f"Register each image's best {VERIFIED} matches, and all above similar."),
    ] = True,
    training: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the training images, to verify with.", show_default="as indexed"
        ),
    ] = None,
    fail_on_flagged: Annotated[
        bool, typer.Option("--fail-on-flagged", help="Exit with 3 when an image is flagged.")
    ] = False,
    device: Device = DeviceName.AUTO,
    workers: Workers = WORKERS,
    max_pixels: MaxPixels = MAX_PIXELS,
    max_seconds: MaxSeconds = LIMITS.max_seconds,
    max_memory: MaxMemory = LIMITS.max_memory / GIB,
    json: Json = False,
) -> None:
    """Find synthetic images that copy a training image."""
    with _usage():
        embed = EmbedConfig(
            Selection(tuple(include or ()), manifest),
            Reading(axis, slices, window, max_pixels, _key(subject_key)),
            Limits(max_seconds, int(max_memory * GIB)),
            pick_device(device),
            workers=workers,
        )
        thresholds = similar, duplicate, ssim, certain
        config = QueryConfig(top_k, views, *thresholds, verify, training, embed)
    with reporting(console.messages) as progress:
        result = scan.query(synthetic, index, report, config, progress)
    if json:
        console.show_json(result.summary)
    else:
        console.show_query(result)
    _leave(complete=result.complete, flagged=fail_on_flagged and result.flagged > 0)


@app.command(epilog="Example: deepssim-scan train --images scans/ --out encoder.safetensors")
def train(
    images: Annotated[Path, typer.Option("--images", help="Folder of images to train on.")],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint to write.")],
    include: Include = None,
    manifest: Manifest = None,
    axis: Axis = None,
    slices: Slices = None,
    window: Window = None,
    init: Annotated[
        str,
        typer.Option(help="Encoder to start from: bundled, a file, or none (random weights)."),
    ] = "bundled",
    architecture: Annotated[
        str | None,
        typer.Option(
            help=f"With --init none: one of {', '.join(ARCHITECTURES)}.", show_default="small"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps of training; before them, random weights of `small` are taught poses in "
            "half as many. 0 keeps the weights, and only fits the thresholds to the folder.",
            show_default=f"{training.ADAPTING.steps}; {training.SCRATCH.steps} with --init none",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=4, help="Images drawn a step; each gives four views.")
    ] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Peak learning rate.",
            show_default=f"{training.ADAPTING.learning_rate:g}; "
            f"{training.SCRATCH.learning_rate:g} with --init none",
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=64, help="Files kept in memory, drawn at random.")
    ] = 50_000,
    seed: Annotated[int, typer.Option(min=0, max=1 << 32, help="Seed of every random draw.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from where a killed run stopped.")
    ] = False,
    device: Device = DeviceName.AUTO,
    workers: Workers = WORKERS,
    max_pixels: MaxPixels = MAX_PIXELS,
    max_seconds: MaxSeconds = LIMITS.max_seconds,
    max_memory: MaxMemory = LIMITS.max_memory / GIB,
    json: Json = False,
) -> None:
    """Adapt an encoder to a folder of images, without labels, or train one from nothing."""
    with _usage():
        initial = _initial(init, architecture)
        config = training.SCRATCH if init == "none" else training.ADAPTING
        steps = config.steps if steps is None else steps
        config = replace(
            config,
            steps=steps,
            pose_steps=config.pose_steps * steps // config.steps,
            learning_rate=config.learning_rate if learning_rate is None else learning_rate,
            batch=batch,
            max_images=max_images,
            seed=seed,
        )
        selection = Selection(tuple(include or ()), manifest)
        reading = Reading(axis, slices, window, max_pixels)
        limits, on = Limits(max_seconds, int(max_memory * GIB)), pick_device(device)
    with reporting(console.messages) as progress:
        trained = training.train_on_folder(
            images,
            out,
            config,
            initial,
            selection,
            reading,
            workers=workers,
            limits=limits,
            device=on,
            resume=resume,
            report=progress,
            report_step=progress.training,
        )
    facts = describe(out) | {"rejected": trained.rejected}
    if json:
        assessments = {"before": trained.before, "after": trained.after}
        found = {name: each and asdict(each) for name, each in assessments.items()}
        console.show_json(facts | {"held_out": found | {"images": trained.held_out}})
    else:
        console.show_facts(str(out), facts)
        console.show_trained(trained)
    _leave(complete=trained.rejected == 0)


def _initial(init: str, architecture: str | None) -> checkpoint.Checkpoint | Architecture:
    """Return what `train` starts from."""
    if init != "none":
        if architecture is not None:
            raise InputError(
                f"--architecture {architecture} goes with --init none: the encoder that training "
                "starts from has its own."
            )
        return checkpoint.load(BUNDLED if init == "bundled" else Path(init))
    if (name := architecture or "small") not in ARCHITECTURES:
        raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, found {name!r}")
    return ARCHITECTURES[name]


@app.command(
    epilog="Example: deepssim-scan convert best_model_jit.pt --out deepssim.safetensors "
    "--trust-torchscript"
)
def convert(
    torchscript: Annotated[Path, typer.Argument(help="The reference's best_model_jit.pt.")],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint to write.")],
    trust_torchscript: Annotated[
        bool, typer.Option("--trust-torchscript", help="Run the file, which is a program.")
    ] = False,
    json: Json = False,
) -> None:
    """Turn the reference's official TorchScript weights into a checkpoint."""
    if not trust_torchscript:
        raise typer.BadParameter(
            f"{torchscript}: a TorchScript file is a program, and converting it runs it. "
            "Give --trust-torchscript when you know where it comes from."
        )
    checkpoint.convert(torchscript, out)
    facts = describe(out)
    console.show_json(facts) if json else console.show_facts(str(out), facts)


@app.command(name="check", epilog="Example: deepssim-scan check deepssim-index --repair")
def check_(
    path: Annotated[Path, typer.Argument(help="A store, an index, a report or a checkpoint.")],
    mend: Annotated[
        bool, typer.Option("--repair", help="Embed damaged rows again, where the images are.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images.", show_default="where they were"),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="The encoder that was used.", show_default="the index's, or bundled"),
    ] = None,
    workers: Workers = WORKERS,
    max_seconds: MaxSeconds = LIMITS.max_seconds,
    max_memory: MaxMemory = LIMITS.max_memory / GIB,
    json: Json = False,
) -> None:
    """Read and verify all of a store, an index, a report or a checkpoint. Exit code 0 or 1."""
    if not mend and (images or encoder):
        raise typer.BadParameter("--images and --encoder are for --repair")
    limits = Limits(max_seconds, int(max_memory * GIB))
    with reporting(console.messages) as report:
        if mend:
            checked = repair(path, RepairConfig(images, encoder, workers, limits), report)
        else:
            checked = check(path, report)
    if json:
        console.show_json(asdict(checked) | {"path": str(path), "intact": checked.intact})
    else:
        console.show_checked(checked)
    if not checked.intact:
        raise typer.Exit(1)


@app.command(epilog="Example: deepssim-scan info deepssim-index")
def info(
    path: Annotated[Path, typer.Argument(help="A store, an index, a report or a checkpoint.")],
    json: Json = False,
) -> None:
    """Describe a store, an index, a report or a checkpoint."""
    facts = describe(path)
    console.show_json(facts) if json else console.show_facts(str(path), facts)


@app.command(epilog="Example: deepssim-scan demo --out deepssim-demo")
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder that everything is written to.")
    ] = Path("deepssim-demo"),
    encoder: Encoder = BUNDLED,
    device: Device = DeviceName.AUTO,
    workers: Workers = WORKERS,
    json: Json = False,
) -> None:
    """Plant copies of real brain slices among strangers, and find them."""
    with _usage():
        config = EmbedConfig(device=pick_device(device), workers=workers)
    with reporting(console.messages) as report:
        result = demonstration.run(out, encoder, config, report)
    if json:
        console.show_json(result.as_json())
    else:
        console.show_demo(result)


def _version(wanted: bool) -> None:
    if wanted:
        console.output.print(f"deepssim-scan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def _usage() -> Iterator[None]:
    """Turn what is wrong with the options into an error of usage, exit code 2."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _key(path: Path | None) -> bytes:
    """Read the secret that subjects are hashed under."""
    if path is None:
        return b""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. It is to hold the secret for subjects.")
    key = path.read_bytes()
    if len(key) < SHORTEST_KEY:
        raise InputError(
            f"{path}: a subject key of {len(key)} bytes, and {SHORTEST_KEY} are needed. Make one "
            f"with: head -c 32 /dev/urandom > {path}"
        )
    return key


def _leave(*, complete: bool, flagged: bool = False) -> None:
    if not complete:
        raise typer.Exit(INCOMPLETE)
    if flagged:
        raise typer.Exit(FLAGGED)


def run() -> None:
    """Run the command line; an error that the user can act on is one line and exit code 1."""
    try:
        app()
    except (ScanError, OSError) as error:
        console.messages.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
