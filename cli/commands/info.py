"""`deepssim-scan info`: describe a file or folder of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress_bar import ProgressBar
from rich.table import Table

from deepssim_scan.cli import console, options

EXAMPLE = "deepssim-scan info deepssim-index"

Ours = Annotated[
    Path, typer.Argument(metavar="PATH", help="A store, an index, a report or a checkpoint.")
]
_BAR = 30  # characters


def info(path: Ours, json: options.Json = False) -> None:
    """Describe a store, an index, a report or a checkpoint."""
    from deepssim_scan.reporting.describe import describe

    facts = describe(path)
    if json:
        console.show_json(facts)
        return
    curve = facts.pop("curve", [])
    console.show_facts(str(path), facts)
    if curve:
        console.output.print(_drawn(curve))


def _drawn(curve: Sequence[Mapping[str, Any]]) -> Table:
    """Draw what an approximate index found of the best matches, by effort, and at what cost."""
    table = Table(title="What the search finds of the best matches", title_justify="left")
    table.add_column("effort", justify="right")
    table.add_column("found")
    table.add_column("of the best matches", justify="right")
    table.add_column("rows compared for each", justify="right")
    for point in curve:
        share = point["found"] / point["queries"]
        bar = ProgressBar(1, share, width=_BAR)
        table.add_row(f"{point['effort']:,}", bar, f"{share:.2%}", f"{point['compared']:,.0f}")
    table.caption = "The last line is of queries by which the effort was not chosen."
    return table
