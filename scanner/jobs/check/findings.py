"""What a check takes down: problems, and counts of what was looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deepssim_scan.errors import ScanError, described


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written: where, what, and the rows (first, last) if known."""

    where: str
    what: str
    rows: tuple[int, int] | None = None


@dataclass(slots=True)
class Findings:
    """What a check has found so far."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: Path, what: str, rows: tuple[int, int] | None = None) -> None:
        """Take down a problem."""
        self.problems.append(Problem(str(where), what, rows))

    @contextmanager
    def collecting(self, where: Path) -> Iterator[None]:
        """Take down what the block fails with, and go on."""
        try:
            yield
        except (ScanError, OSError) as error:
            self.add(where, described(error).removeprefix(f"{where}: "))
