"""`deepssim-scan info`: describe a file or folder of ours."""

from pathlib import Path
from typing import Annotated

import typer

from deepssim_scan.cli import console, options

EXAMPLE = "deepssim-scan info deepssim-index"

Ours = Annotated[
    Path, typer.Argument(metavar="PATH", help="A store, an index, a report or a checkpoint.")
]


def info(path: Ours, json: options.Json = False) -> None:
    """Describe a store, an index, a report or a checkpoint."""
    from deepssim_scan.reporting.describe import describe

    facts = describe(path)
    console.show_json(facts) if json else console.show_facts(str(path), facts)
