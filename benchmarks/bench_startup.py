"""Start-up: `deepssim-scan --help` beside that of a Typer program of two empty commands.

Both are run by the same interpreter, in turns, as processes of their own; what is timed is the
whole process, from its start to its end. Options of other commands are shown beside, with the
time that they take.

    python benchmarks/bench_startup.py --repeats 15
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Spread, parser, seconds, show, write

EMPTY = '''
import typer

app = typer.Typer()


@app.command()
def first() -> None:
    """Do nothing."""


@app.command()
def second() -> None:
    """Do nothing either."""


app()
'''
OURS, TYPER = "deepssim-scan --help", "two empty Typer commands --help"
OTHERS = {
    "deepssim-scan --version": ["--version"],
    "deepssim-scan query --help": ["query", "--help"],
    "deepssim-scan query (a usage error)": ["query"],
}
PROGRAM = Path(sys.executable).parent / "deepssim-scan"


def main() -> None:
    """Measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY, encoding="utf-8")
        sides = {OURS: _running(PROGRAM, "--help"), TYPER: _running(empty, "--help")}
        sides |= {name: _running(PROGRAM, *arguments) for name, arguments in OTHERS.items()}
        taken = seconds(sides, options.repeats)
    measured = {name: Spread.of(values, "s") for name, values in taken.items()}
    ratios = {f"{OURS} / {TYPER}": measured[OURS].median / measured[TYPER].median}
    show("From the start of the process to its end", measured, ratios)
    write("startup", options, measured, ratios)


def _running(script: Path, *arguments: str) -> Callable[[], object]:
    """Return what runs a script of Python, and fails where it prints nothing."""
    command = [sys.executable, str(script), *arguments]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode not in (0, 2) or not done.stdout + done.stderr:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")

    return run


def _options() -> argparse.Namespace:
    return parser(__doc__, {"repeats": 15}, seeded=False).parse_args()


if __name__ == "__main__":
    main()
