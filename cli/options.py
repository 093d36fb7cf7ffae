"""Options that several commands share, and the values that the options become."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deepssim_scan.cli import console
from deepssim_scan.cli.progress import reporting
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError
from deepssim_scan.execution import Scheduler
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.read_options import read_key
from deepssim_scan.ingest.config.selection import Selection

FLAGGED, INCOMPLETE = 3, 4
"""Exit codes, beside 0 for done, 1 for a run that failed and 2 for wrong usage."""

GIB = 1 << 30
LIMITS = Limits()
DEFAULT_INDEX = Path("deepssim-index")

input_option = partial(typer.Option, rich_help_panel="Input")
output_option = partial(typer.Option, rich_help_panel="Output")
verdict_option = partial(typer.Option, rich_help_panel="Verdict")
machine_option = partial(typer.Option, rich_help_panel="Machine")


class DeviceName(StrEnum):
    """Where the networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Index = Annotated[Path, input_option("--index", metavar="DIR", help="Folder of the index.")]
TrainingNow = Annotated[
    Path | None,
    input_option(
        "--training",
        metavar="DIR",
        help="Where the training images are now, to verify candidates with.",
        show_default="where they were indexed",
    ),
]
Candidates = Annotated[
    int,
    verdict_option(
        "--candidates",
        metavar="N",
        min=1,
        help="Training images that are looked at per image, the most similar ones; the best three "
        "are registered.",
    ),
]
TtaViews = Annotated[
    int,
    verdict_option(
        "--tta-views",
        metavar="N",
        min=1,
        max=len(TTA_VIEWS),
        help="Views of each image that are embedded: itself, turned by a quarter, "
        "inverted, both. Fewer are faster and find fewer copies.",
    ),
]
Include = Annotated[
    list[str] | None,
    input_option(
        "--include",
        metavar="GLOB",
        help="Read only files whose path matches, e.g. '*/training.png'; ** crosses folders. "
        "Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    input_option(
        "--exclude",
        metavar="GLOB",
        help="Leave out files whose path matches; they are counted, and do not make the result "
        "incomplete. Repeatable.",
    ),
]
Manifest = Annotated[
    Path | None,
    input_option(
        "--manifest",
        metavar="CSV",
        help="Read only the files that this CSV lists: a column path, relative to the folder, and "
        "optionally a column subject. Findings are counted by every other column.",
    ),
]
SubjectRegex = Annotated[
    str | None,
    input_option(
        "--subject-regex",
        metavar="REGEX",
        help="Regular expression that finds the subject in a path, as its group or all that it "
        "matches, e.g. '(sub-[0-9]+)/'.",
        show_default="the DICOM patient ID, or the folder",
    ),
]
SubjectKey = Annotated[
    Path | None,
    input_option(
        "--subject-key",
        metavar="FILE",
        help="File with a secret. Subjects are stored as hashes under it, and DICOM patient IDs "
        "are read only with it.",
    ),
]
Slices = Annotated[
    str | None,
    input_option(
        "--slices",
        metavar="START:STOP",
        help="Slices of each volume to read: 40:120, or fractions of its length, 0.2:0.8.",
        show_default="all",
    ),
]
Axis = Annotated[
    int | None,
    input_option(
        "--axis",
        metavar="N",
        min=0,
        max=2,
        help="Axis across which volumes are sliced.",
        show_default="2 for NIfTI, 0 for arrays",
    ),
]
Window = Annotated[
    str | None,
    input_option(
        "--window",
        metavar="CENTRE,WIDTH",
        help="Intensity window for DICOM and NIfTI. 'file': the one that a DICOM file names.",
        show_default="full range",
    ),
]
Device = Annotated[
    DeviceName,
    machine_option("--device", help="Device for the networks; auto takes a GPU if there is one."),
]
Workers = Annotated[
    int | None,
    machine_option(
        "--workers",
        metavar="N",
        min=1,
        help="Processes that decode and compute, on a thread each; one a core by default.",
    ),
]
SchedulerPlace = Annotated[
    str | None,
    machine_option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on a Dask cluster: tls://HOST:PORT, tcp://HOST:PORT or a scheduler file. "
        "--workers is then how many blocks are worked on at once, at most.",
        show_default="this machine",
    ),
]
Insecure = Annotated[
    bool,
    machine_option(
        "--insecure", help="Let images travel to a cluster unencrypted, beyond this machine."
    ),
]
Restart = Annotated[
    bool,
    machine_option("--restart", help="Discard what an interrupted run left, and start again."),
]
Rebuild = Annotated[
    bool,
    machine_option(
        "--rebuild",
        help="Read every image again. Otherwise what did not change, by size and time of its file, "
        "is taken from what is there.",
    ),
]
MaxPixels = Annotated[
    int,
    machine_option(
        "--max-pixels", metavar="N", min=1, help="Reject images that have more pixels than this."
    ),
]
MaxSeconds = Annotated[
    float,
    machine_option(
        "--max-seconds",
        metavar="SECONDS",
        min=0.1,
        max=1_000_000,
        help="Reject a file that computes for longer than this to decode, or waits for four times.",
    ),
]
MaxMemory = Annotated[
    float,
    machine_option(
        "--max-memory",
        metavar="GIB",
        min=0.25,
        max=1024,
        help="Reject a file that takes more memory than this to decode.",
    ),
]
Json = Annotated[bool, output_option("--json", help="Print the result as JSON.")]


@contextmanager
def usage() -> Iterator[None]:
    """Turn what is wrong with the options into an error of usage, exit code 2."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def selection(
    include: Sequence[str] | None, manifest: Path | None, exclude: Sequence[str] | None
) -> Selection:
    """Return which files the options name."""
    return Selection(tuple(include or ()), manifest, tuple(exclude or ()))


def key(path: Path | None) -> bytes:
    """Read the secret under which names are hashed, if there is to be one."""
    return b"" if path is None else read_key(path)


@contextmanager
def running(
    workers: int | None,
    max_seconds: float,
    max_memory: float,
    device: str | None = None,
    scheduler: str | None = None,
    insecure: bool = False,
) -> Iterator[RunContext]:
    """Give what a job runs with; its progress is shown while the block runs.

    With a device, workers start at once, while the job is still being imported. `max_memory` is in
    GiB. A GPU that is asked for and missing is an error of usage, as is a `scheduler` that may not
    be used.
    """
    cluster = None if scheduler is None else Scheduler(scheduler, insecure)
    limits = Limits(max_seconds, int(max_memory * GIB))
    with reporting(console.messages) as progress:
        run = RunContext(str(device or DeviceName.AUTO), workers, limits, progress, cluster)
        with usage():
            if cluster is not None:
                cluster.check(cluster.address, "scheduler")
            if device == DeviceName.CUDA:
                run.device_here  # noqa: B018 - raises where there is none
        with run.opened() if device else nullcontext(run) as opened:
            yield opened


def leave(*, complete: bool, flagged: bool = False) -> None:
    """End with the exit code of a run; a run that is not complete is never only flagged."""
    if not complete:
        raise typer.Exit(INCOMPLETE)
    if flagged:
        raise typer.Exit(FLAGGED)
