"""`deepssim-scan check`: verify all that a file or folder of ours holds, and repair it."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from deepssim_scan.cli import console, options
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.jobs.config import RepairConfig

if TYPE_CHECKING:
    from deepssim_scan.jobs.check import Checked

EXAMPLE = "deepssim-scan check deepssim-index --repair"

Ours = Annotated[
    Path, typer.Argument(metavar="PATH", help="A store, an index, a report or a checkpoint.")
]
Repair = Annotated[
    bool,
    options.input_option(
        "--repair", help="Embed damaged rows again from their images, and rebuild a damaged index."
    ),
]
Images = Annotated[
    Path | None,
    options.input_option(
        "--images",
        metavar="DIR",
        help="With --repair: where the images are now.",
        show_default="where they were",
    ),
]
Encoder = Annotated[
    Path | None,
    options.input_option(
        "--encoder",
        metavar="FILE",
        help="With --repair: the checkpoint that was used.",
        show_default="the index's, or the bundled one",
    ),
]

Without = Annotated[
    str | None,
    options.input_option(
        "--without",
        metavar="SUBJECT",
        help="Verify also that no file of the index names this subject, and that its encoder was "
        "not adapted to images that are gone.",
    ),
]


def check(
    path: Ours,
    repair: Repair = False,
    without: Without = None,
    subject_key: options.SubjectKey = None,
    images: Images = None,
    encoder: Encoder = None,
    json: options.Json = False,
    workers: options.Workers = None,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Verify every byte of a store, an index, a report or a checkpoint. Exit code 1 for damage."""
    if not repair and (images or encoder):
        raise typer.BadParameter("--images and --encoder go with --repair")
    if subject_key and without is None:
        raise typer.BadParameter("--subject-key goes with --without")
    names = () if without is None else _names(without, subject_key)
    with options.running(workers, max_seconds, max_memory) as run:
        from deepssim_scan.jobs import check as checking
        from deepssim_scan.jobs import repair as repairing

        if repair:
            checked = repairing.repair(path, RepairConfig(images, encoder), run)
        if names or not repair:
            checked = checking.check(path, run.progress, names)
    show(checked, json)


def show(checked: "Checked", json: bool) -> None:
    """Print what was verified, as JSON if asked for; end with exit code 1 for damage."""
    if json:
        console.show_json(asdict(checked) | {"path": str(checked.path), "intact": checked.intact})
    else:
        _show(checked)
    if not checked.intact:
        raise typer.Exit(1)


def _names(subject: str, key: Path | None) -> tuple[str, ...]:
    """Return how a subject is called: by name and, with a key, by the hash of the name."""
    if key is None:
        return (subject,)
    with options.usage():
        read = ReadOptions(subject_key=options.key(key))
    return subject, read.hashed(os.fsencode(subject))


def _show(checked: "Checked") -> None:
    """Print what was verified, and every problem found."""
    counts = ", ".join(f"{count:,} {name}" for name, count in checked.counts.items())
    if checked.intact:
        text = f"{checked.path}: {checked.kind} is intact" + (f" ({counts})" if counts else "")
        console.say(text, style="green")
        return
    table = Table(title=Text(f"{checked.path}: {checked.kind} is damaged"))
    table.add_column("where", overflow="fold")
    table.add_column("rows", no_wrap=True)
    table.add_column("what", overflow="fold")
    for problem in checked.problems:
        rows = "{:,} to {:,}".format(*problem.rows) if problem.rows else ""
        table.add_row(Text(problem.where), rows, Text(problem.what))
    console.output.print(table)
