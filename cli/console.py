"""What the commands print: results on standard output, everything else on standard error."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepssim_scan.storage.layout import BLANK, REJECTED

output = Console(highlight=False, emoji=False)  # ":x:" in a path is no emoji
messages = Console(stderr=True, highlight=False, emoji=False)


def show_json(value: Mapping[str, Any]) -> None:
    """Print a value for machines."""
    output.out(json.dumps(value, indent=2, sort_keys=True))


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line; those of a group after its name."""
    table = Table(title=Text(title), show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flat(facts):
        table.add_row(Text(name), Text(str(value)))
    output.print(table)


def table_of(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table with columns of texts, then of numbers.

    What is too wide for the terminal, or for the 80 columns of a mail, is folded and never cut.
    """
    table = Table(title=Text(title))
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def say(text: str, style: str | None = None) -> None:
    """Print a line of a result."""
    output.print(text, style=style, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print what a person may want to know of a run."""
    messages.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print what a person must know of a run."""
    messages.print(text, style="bold yellow", markup=False, soft_wrap=True)


def show_ledger(listed: int, embedded: int, rejected: int, blank: int) -> None:
    """Print the ends that the listed images had."""
    ends = f"{embedded:,} embedded + {rejected:,} rejected + {blank:,} blank"
    say(f"Images: {listed:,} listed = {ends}")


def show_left_out(folder: Path, rejected: int, blank: int, excluded: int, ignored: int) -> None:
    """Print how many images and files were left out, and where they are listed."""
    if rejected:
        warn(f"Rejected images: {rejected:,}; {folder / REJECTED} says why.")
    if blank:
        note(f"Blank images, with nothing on them: {blank:,}; {folder / BLANK} lists them.")
    if excluded:
        note(f"Excluded files (--exclude): {excluded:,}.")
    if ignored:
        note(f"Ignored files, which are not images or were not asked for: {ignored:,}.")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every value with its whole name, groups of groups too."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
