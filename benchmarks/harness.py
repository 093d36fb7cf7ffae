"""What the benchmarks share: timing, images, facts about the machine, one JSON a result."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.training.procedural import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ("scanner", "index", "cli", "benchmarks", "pyproject.toml")  # what `dirty` is about
LIBRARIES = ("torch", "numpy", "faiss-cpu", "faiss-gpu", "zarr", "pillow", "scikit-image")
DISTINCT = 500  # procedural images drawn anew; further ones are changed copies of them

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing: their median, least and greatest."""

    unit: str
    median: float
    min: float
    max: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> "Spread":
        """Summarise measurements."""
        return cls(unit, statistics.median(values), min(values), max(values), len(values))


def parser(
    doc: str | None, sizes: Mapping[str, int], *, seeded: bool = True
) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's text, with a whole-number option per size."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in sizes.items():
        made.add_argument(
            f"--{name.replace('_', '-')}", type=_positive, default=default, help=f"({default:,})"
        )
    if seeded:
        made.add_argument("--seed", type=int, default=0, help="(0)")
    return made


def add_people(made: argparse.ArgumentParser, people: Iterable[str]) -> None:
    """Add the options for a set of people: --images or --person, and --name."""
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--images", type=Path, help="folder of real people's images")
    which.add_argument("--person", choices=people, help="someone whose deformations are people")
    made.add_argument("--name", required=True, help="what the set is called in the result")


def add_encoder(made: argparse.ArgumentParser) -> None:
    """Add the option --encoder."""
    made.add_argument(
        "--encoder", type=Path, default=BUNDLED, help="a checkpoint (the one that is bundled)"
    )


def seconds(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Time each side `repeats` times, in turns, after one warm-up: the same, or `warm_up`."""
    for work in (sides if warm_up is None else warm_up).values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - started)
    return taken


def rates(taken: Mapping[str, list[float]], count: int, what: str) -> dict[str, Spread]:
    """Turn seconds for `count` things into things a second."""
    return {
        name: Spread.of([count / each for each in values], f"{what}/s")
        for name, values in taken.items()
    }


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson (1927, doi:10.2307/2276774)."""
    z = 1.96
    middle = (hits + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * (hits * (count - hits) / count + z**2 / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def procedural(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Draw procedural images, the families in turn: (count, side, side) grey levels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [draw(generator, -(-count // len(FAMILIES)), side) for draw in FAMILIES.values()]
    images = torch.stack(drawn, 1).flatten(0, 1)[:count]
    return (images * 255).round().to(torch.uint8).numpy()


def standardised(images: NDArray[np.uint8], rule: Standardisation = RULE) -> torch.Tensor:
    """Standardise grey levels, as queries register them: (N, H, W) -> (N, H', W')."""
    return torch.from_numpy(
        np.stack([standardise(each.astype(np.float32), rule) for each in images])
    )


def write_images(folder: Path, count: int, side: int, seed: int) -> list[Path]:
    """Write grey 8-bit PNG files, no two alike: procedural images, then changed copies of them.

    A changed copy is shifted around the edges by a random distance, with noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = procedural(min(count, DISTINCT), side, seed)
    paths = []
    for number in range(count):
        image = drawn[number % len(drawn)]
        if number >= len(drawn):
            image = _changed(image, np.random.default_rng([seed, DISTINCT, number]))
        paths.append(folder / f"{number:06d}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def show(title: str, measured: Mapping[str, Spread], ratios: Mapping[str, float]) -> None:
    """Print the measurements as a table and, last of all, the ratios."""
    table = Table(title=title)
    table.add_column("measured")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for name, spread in measured.items():
        numbers = (f"{value:,.4g}" for value in (spread.median, spread.min, spread.max))
        table.add_row(name, *numbers, spread.unit)
    console.print(table)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.3g}")


def write(
    name: str,
    options: argparse.Namespace,
    measured: Mapping[str, Spread],
    ratios: Mapping[str, float],
    **more: Any,
) -> None:
    """Write a benchmark's result to `results/<name>.json`."""
    commit, dirty = _commit()
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "machine": machine(),
        "parameters": {key: _plain(value) for key, value in vars(options).items()},
        "measured": {key: asdict(spread) for key, spread in measured.items()},
        "ratios": dict(ratios),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what a timing depends on, and nothing that names the machine."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def descendants(process: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    try:
        return [each.pid for each in psutil.Process(process).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def read_of_process(process: int, what: str) -> str:
    """Return what the system tells of a process in /proc; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/{what}").read_text(encoding="utf-8")
    except OSError:
        return ""


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit, and whether what is measured differs from it; None without git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head, bool(_git("status", "--porcelain", "--", *MEASURED, ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    git = shutil.which("git") or "git"
    done = subprocess.run([git, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    """Return an option's value for JSON; of a file its name, since folders name machines."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.name if isinstance(value, Path) else value


def _changed(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    shift = rng.integers(0, len(image), 2)
    noise = rng.normal(0, 4, image.shape)
    return np.clip(np.roll(image, shift, (0, 1)) + noise, 0, 255).round().astype(np.uint8)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, found {number}")
    return number
