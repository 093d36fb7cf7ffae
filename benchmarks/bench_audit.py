"""A night after which one image in a hundred changed, beside queries of the changed images alone.

Two synthetic sets of procedural images are audited, as a user starts it. Then one image in a
hundred of each is replaced by another one, and they are audited again. Beside it the changed images
of both sets are queried in folders of their own.

    python benchmarks/bench_audit.py
"""

import argparse
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Spread, console, parser, show, write, write_images

FIRST, NIGHT, NOTHING, CHANGED = "first night", "night", "night without a change", "queries"
_COMMAND = Path(sysconfig.get_path("scripts"), "deepssim-scan")
_CONFIG = """\
[training]
images = "training"
index = "index"
adapt = "never"
[[synthetic]]
name = "first"
images = "first"
[[synthetic]]
name = "second"
images = "second"
[policy]
fail_if = ["complete == false"]
[history]
path = "audits"
"""


def main() -> None:
    """Measure, print and write."""
    sizes = {"training": 2_000, "synthetic": 10_000, "side": 128}
    options = parser(__doc__, sizes).parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        taken = measured(work, options)
    spreads = {name: Spread.of([seconds], "s") for name, seconds in taken.items()}
    ratio = taken[NIGHT] / (taken[CHANGED] + 60)
    ratios = {
        f"{NIGHT} / ({CHANGED} of the changed images + 60 s)": ratio,
        f"{NIGHT} / {FIRST}": taken[NIGHT] / taken[FIRST],
    }
    show(f"Two sets of {options.synthetic:,} images", spreads, ratios)
    write("audit", options, spreads, ratios)


def measured(work: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of the nights, and of queries of what changed."""
    counts = {"training": options.training, "first": options.synthetic, "second": options.synthetic}
    for number, (name, count) in enumerate(counts.items()):
        write_images(work / name, count, options.side, options.seed + number)
    (work / "audit.toml").write_text(_CONFIG)
    taken = {FIRST: _run(work, "audit")}
    for number, name in enumerate(("first", "second")):
        _change(work, name, counts[name] // 100, options, options.seed + 10 + number)
    taken[NIGHT] = _run(work, "audit")
    taken[NOTHING] = _run(work, "audit")
    taken[CHANGED] = sum(
        _run(work, "query", "--synthetic", f"changed/{name}", "--index", "index")
        for name in ("first", "second")
    )
    return taken


def _change(work: Path, name: str, count: int, options: argparse.Namespace, seed: int) -> None:
    """Replace some images of a folder, and keep the new ones in a folder beside it, too."""
    folder, new = work / name, work / "changed" / name
    paths = write_images(new, count, options.side, seed)
    there = np.random.default_rng(seed).choice(sorted(folder.iterdir()), count, replace=False)
    for path, old in zip(paths, there.tolist(), strict=True):
        shutil.copy(path, old)


def _run(work: Path, *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([_COMMAND, *arguments], cwd=work, check=True, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - started
    console.print(f"{' '.join(arguments)}: {seconds:.1f} s")
    return seconds


if __name__ == "__main__":
    main()
