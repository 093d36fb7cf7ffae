"""Fuzz the readers, guided by coverage, for as long as is asked for.

    python tests/fuzz/run.py --seconds 60 [--targets png dicom]

Each target (`targets`) runs in a process of its own, `--jobs` of them beside each other. What is
reached is kept in runs/fuzz, so that the next run goes on from there. How many inputs were tried is
counted in benchmarks/results/fuzz.json. A finding is written to runs/fuzz/TARGET-findings, and the
exit status is 1. Needs atheris: `make fuzz`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COUNTS = ROOT / "benchmarks" / "results" / "fuzz.json"
MEGABYTES, SLOWEST = 3000, 20  # that a process may take, and seconds of one input
LONGEST = 1 << 16  # bytes of an input
_COUNTING = threading.Lock()


def main() -> None:
    """Run every target, count, and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--targets", nargs="*", help="all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fuzz(options.one, options.work, options.seconds)
        return
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from targets import TARGETS

    names = options.targets or list(TARGETS)
    with ThreadPoolExecutor(options.jobs) as pool:
        tried = dict(zip(names, pool.map(partial(_process, options), names), strict=True))
    found = [name for name, (_, code) in tried.items() if code]
    for name, (count, _) in tried.items():
        print(f"{name}: {count:,} inputs{', a finding' if name in found else ''}")
    raise SystemExit(1 if found else 0)


def _process(options: argparse.Namespace, name: str) -> tuple[int, int]:
    """Fuzz a target in a process of its own; return how many inputs it tried, and its status."""
    command = [sys.executable, __file__, "--one", name, "--seconds", str(options.seconds)]
    log = options.work / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(
            [*command, "--work", str(options.work)], stderr=file, stdout=file, env=environment
        ).returncode
    told = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log.read_text("utf-8", "replace"))
    tried = int(told[-1]) if told else 0
    with _COUNTING:
        _count(name, tried)
    return tried, code


def _count(name: str, tried: int) -> None:
    """Add to the counts of all runs."""
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    counts[name] = counts.get(name, 0) + tried
    COUNTS.write_text(json.dumps(dict(sorted(counts.items())), indent=1) + "\n")


def fuzz(name: str, work: Path, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent)]
    with atheris.instrument_imports(include=["deepssim_scan", "pydicom", "nibabel", "PIL"]):
        from targets import TARGETS, seeds_of
    reached, findings = work / name, work / f"{name}-findings"
    for folder in (reached, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds_of(name, HERE / "seeds")):
        TARGETS[name].check(seed)  # what is imported late is imported by now
        (reached / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEGABYTES}"]
    more = [f"-max_len={LONGEST}", "-print_final_stats=1", f"-artifact_prefix={findings}/"]
    atheris.Setup([name, *limits, *more, str(reached)], TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
