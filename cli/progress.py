"""What a long command shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_EVERY = 10.0  # seconds between the lines of a log


class Reporter:
    """Show how far each stage is, with its rate, what it says of itself, and the time left."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.progress = console, progress
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.first: dict[str, int] = {}
        self.printed: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units of `stage` are done; `note` says more."""
        now = time.monotonic()
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, rate="", note="")
            self.started[stage] = self.printed[stage] = now
            self.first[stage] = done  # what an interrupted run had done
        elapsed, new = now - self.started[stage], done - self.first[stage]
        rate = _rate(new / elapsed) if elapsed > 0.5 else ""
        self.progress.update(self.tasks[stage], completed=done, total=total, rate=rate, note=note)
        due = done == total or now - self.printed[stage] >= _LINE_EVERY
        if due and not self.console.is_terminal:
            self.printed[stage] = now
            left = _clock(elapsed / max(new, 1) * (total - done)) if new or done == total else "?"
            parts = (f"{stage} {done:,}/{total:,}", rate, f"{left} left", note)
            self.console.print("  ".join(part for part in parts if part), highlight=False)

    def warn(self, text: str) -> None:
        """Show a sentence that the person who runs the job should read."""
        self.console.print(text, style="bold yellow", markup=False, soft_wrap=True)


@contextmanager
def reporting(console: Console) -> Iterator[Reporter]:
    """Show progress on `console` while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Reporter(console, progress)


def _rate(per_second: float) -> str:
    if per_second >= 1:
        return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"
    return f"{1 / per_second:.1f} s each" if per_second > 0 else ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
