"""The ledger of a large audit: every bad file named, no good one lost, every planted copy found.

The training images are slices of pseudo-subjects, as in the demo. The synthetic ones are procedural
images, copies of training images among them, and the corpus of bad and odd inputs that the tests
have (tests/corpus.py), as often as --bad asks for. The real command line indexes the first and
queries the second, and what it leaves is compared, name by name, with what was planted.

Copies are changed in the ways that the bundled encoder flags best: not at all, in gamma, blurred,
as JPEG. One is found when its own source is the best match; how many are flagged is told as well.

Exits with 1 when a bad file is missing or has another reason, a good one has no match, a copy is
not found, or an exit code is not the documented one.

    python benchmarks/bench_ledger.py --images 20000 --bad 200 --copies 100
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, Spread, console, parser, write, write_images
from PIL import Image

from deepssim_scan.evaluation.planted import COPIES
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.reporting.matches import best_matches
from deepssim_scan.storage.files import shown
from deepssim_scan.training.pseudo_subjects import mni152, slices

sys.path.append(str(ROOT / "tests"))
from corpus import EMBEDDED, MAX_MEMORY, MAX_SECONDS, Case, corpus, expected, moved, plant

PROGRAM = Path(sys.executable).parent / "deepssim-scan"
DONE, INCOMPLETE = 0, 4  # exit codes
KINDS = ("identity", "gamma 0.5 to 1.5", "blur", "JPEG quality 60")
FIRST_SUBJECT = 2_000_000_000  # far from the seeds of the encoder's training, and of the demo's
AXIAL, LOWEST, HIGHEST, POSITIONS = 2, 0.2, 0.72, 26  # as in the demo
LIMITS = ("--max-seconds", f"{MAX_SECONDS}", "--max-memory", f"{MAX_MEMORY / (1 << 30)}")

Images = dict[str, Image.Image]


@dataclass(frozen=True, slots=True)
class Planted:
    """What the synthetic folder holds, by the names of the reports.

    `good` images; `bad` ones, each with its reason; and of copies the training image.
    """

    good: frozenset[str]
    bad: Counter[tuple[str, str]]
    sources: dict[str, str]


def main() -> None:
    """Plant, run both commands, compare, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        planted = make(work, options)
        built = run(work, "build-index", "--training", "training")
        queried = run(work, "query", "--synthetic", "synthetic", *LIMITS)
        counts = compare(work / "deepssim-report", planted)
    counts["wrong exit codes"] = (built[0] != DONE) + (queried[0] != INCOMPLETE)
    for what, count in counts.items():
        console.print(f"{what}: {count:,}")
    images = len(planted.good) + planted.bad.total()
    measured = {"build-index": Spread.of([built[1]], "s"), "query": Spread.of([queried[1]], "s")}
    measured["rate of query"] = Spread.of([images / queried[1]], "images/s")
    ratios = {
        "bad ones named with their reason": 1 - counts["bad, not named"] / counts["bad"],
        "good ones judged": 1 - counts["good, not judged"] / counts["good"],
        "copies with their own source first": 1 - counts["copies, not found"] / counts["copies"],
        "copies flagged": counts["copies, flagged"] / counts["copies"],
    }
    for what, ratio in ratios.items():
        console.print(f"{what}: {ratio:.1%}")
    write("ledger", options, measured, ratios, counts=counts)
    raise SystemExit(any(counts[what] for what in MUST_BE_NONE))


MUST_BE_NONE = (
    *("bad, not named", "named, not bad", "good, not judged", "judged, not good"),
    *("copies, not found", "wrong exit codes"),
)


def make(work: Path, options: argparse.Namespace) -> Planted:
    """Write the folders `training` and `synthetic`."""
    training = people(options.subjects, options.seed)
    for name, image in training.items():
        save(image, work / "training" / name)
    synthetic = work / "synthetic"
    images = write_images(synthetic / "images", options.images, options.side, options.seed)
    sources = copy(training, synthetic, options)
    cases = odd_ones(options)
    plant(synthetic, cases)
    ends = [(shown(report_name(*place)), end) for *place, end in expected(cases)]
    good = [name for name, end in ends if end == EMBEDDED]
    good += [path.relative_to(synthetic).as_posix() for path in images]
    bad = Counter((name, end) for name, end in ends if end != EMBEDDED)
    return Planted(frozenset(good) | frozenset(sources), bad, sources)


def people(subjects: int, seed: int) -> Images:
    """Cut the slices of pseudo-subjects: subject-0001/axial-0.460.png and so on."""
    volume, positions = mni152(), np.linspace(LOWEST, HIGHEST, POSITIONS).tolist()
    images = {}
    for number in range(subjects):
        person = torch.Generator().manual_seed(FIRST_SUBJECT + seed * 10_000 + number)
        cut = slices(volume, AXIAL, positions, 128, person)
        for position, image in zip(positions, cut, strict=True):
            images[f"subject-{number:04d}/axial-{position:.3f}.png"] = to_image(image)
    return images


def copy(training: Images, synthetic: Path, options: argparse.Namespace) -> dict[str, str]:
    """Plant changed copies of training images; return the source of each."""
    rng = np.random.default_rng(options.seed)
    chosen = rng.choice(list(training), options.copies, replace=False).tolist()
    sources = {}
    for number, source in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        name = f"copies/{kind}/{source.replace('/', '_')}"
        save(COPIES[kind](training[source], rng), synthetic / name)
        sources[name] = source
    return sources


def odd_ones(options: argparse.Namespace) -> list[Case]:
    """Return the whole corpus, of as many seeds as give the bad ones asked for."""
    cases: list[Case] = []
    seed = options.seed
    while sum(case.rejections for case in cases) < options.bad:
        cases += moved(corpus(seed), f"odd-{seed}")
        seed += 1
    return cases


def run(work: Path, *arguments: str) -> tuple[int, float]:
    """Run a command in the folder `work`; return its exit code, and the seconds that it took."""
    started = time.perf_counter()
    done = subprocess.run([PROGRAM, *arguments], cwd=work, check=False)
    return done.returncode, time.perf_counter() - started


def compare(report: Path, planted: Planted) -> dict[str, int]:
    """Count what was planted, and what the report lacks or has beyond it."""
    named: Counter[tuple[str, str]] = Counter()
    for table in ("rejected.csv", "blank.csv"):
        with (report / table).open(newline="", encoding="utf-8") as file:
            named.update((row["path"], row.get("reason", "blank")) for row in csv.DictReader(file))
    matches = best_matches(report)
    best = {match.synthetic: match for match in matches}
    copies = {name: best[name] for name in planted.sources if name in best}
    found = [name for name, match in copies.items() if match.training == planted.sources[name]]
    missing, more = planted.bad - named, named - planted.bad
    for name, reason in sorted([*missing, *more]):
        console.print(f"not as planted: {name}: {reason}", markup=False)
    return {
        "bad": planted.bad.total(),
        "bad, not named": missing.total(),
        "named, not bad": more.total(),
        "reasons": len({reason for _, reason in planted.bad}),
        "good": len(planted.good),
        "good, not judged": len(planted.good - best.keys()),
        "judged, not good": len(matches) - len(planted.good & best.keys()),
        "copies": len(planted.sources),
        "copies, not found": len(planted.sources) - len(found),
        "copies, flagged": sum(match.verdict == "duplicate" for match in copies.values()),
        "others, flagged": sum(
            match.verdict == "duplicate" for match in matches if match.synthetic not in copies
        ),
    }


def report_name(path: str, member: str, frame: str) -> str:
    """Return what reports call a frame."""
    inside = ",".join(["member=" + member] * bool(member) + [frame] * bool(frame))
    return f"{path}#{inside}" if inside else path


def save(image: Image.Image, path: Path) -> None:
    """Write an image, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _options() -> argparse.Namespace:
    sizes = {"images": 20_000, "bad": 200, "copies": 100, "subjects": 40, "side": 128}
    return parser(__doc__, sizes).parse_args()


if __name__ == "__main__":
    main()
