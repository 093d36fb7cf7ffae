"""`deepssim-scan demo`: plant copies of real brain slices, and find them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deepssim_scan.cli import console, options
from deepssim_scan.encoder.bundled import BUNDLED

if TYPE_CHECKING:
    from deepssim_scan.evaluation.planted import Tally
    from deepssim_scan.jobs.demo import DemoResult

EXAMPLE = "deepssim-scan demo --out deepssim-demo"

Encoder = Annotated[
    Path,
    options.input_option(
        "--encoder",
        metavar="FILE",
        help="Checkpoint of the encoder.",
        show_default="the bundled one",
    ),
]
Out = Annotated[
    Path,
    options.output_option(
        "--out", metavar="DIR", help="Folder to write images, index and report to."
    ),
]


def demo(
    encoder: Encoder = BUNDLED,
    out: Out = Path("deepssim-demo"),
    json: options.Json = False,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = None,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Plant copies of real brain slices among other subjects' slices, and find them.

    Where fewer are found than must be, or more non-members flagged, the exit code is 1: this
    installation, or the encoder that was given, is not to be relied on.
    """
    with options.running(workers, max_seconds, max_memory, device) as run:
        from deepssim_scan.jobs import demo as jobs

        result = jobs.demo(out, encoder, run)
    console.show_json(result.as_json()) if json else _show(result)
    if not result.works:
        console.warn(
            f"{jobs.LEAST_FOUND:.0%} of the copies must have their source first, "
            f"{jobs.LEAST_FLAGGED:.0%} must be flagged, and at most {jobs.MOST_FLAGGED:.0%} of the "
            "non-members. Do not rely on this installation, nor on the encoder if one was given."
        )
        raise typer.Exit(1)


def _show(result: "DemoResult") -> None:
    """Print, for each kind of synthetic image, how many were found and flagged."""
    table = Table(title="Planted copies and non-members")
    table.add_column("synthetic images")
    for name in ("images", "flagged", "own source first"):
        table.add_column(name, justify="right")
    for copies in (True, False):
        for row in (row for row in result.rows if row.copies == copies):
            table.add_row(*_cells(row))
        table.add_section()
        table.add_row(*_cells(result.total(copies=copies)), style="bold", end_section=True)
    console.output.print(table)
    console.say(f"{result.training_images:,} training images; everything is in {result.folder}")


def _cells(row: "Tally") -> list[str]:
    flagged, found = (f"{n} ({n / row.images:.1%})" for n in (row.flagged, row.found))
    return [row.kind, f"{row.images:,}", flagged, found if row.copies else "-"]
