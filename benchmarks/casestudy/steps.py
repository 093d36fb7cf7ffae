"""Steps that the case study and its seeds share: from images of people to a calibrated index.

    images -> training, others, holdout; samples -> labelled pairs, as they are and augmented

Each is kept in a folder of work.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generator import SIZES, Pictures, read, write_images
from harness import parser
from images import PSEUDO, augmented, write_pseudo, write_split
from label import write_labels
from PIL import Image

SUBJECTS, OTHERS = 40, 250  # pseudo-people of the training set; others, and of the hold-out
MOST = 10  # images of another real person
HOW = "aligned", "augmented"


def options_of(doc: str, sizes: dict[str, int]) -> argparse.ArgumentParser:
    """Return a parser of what every study is asked: whose images, and how large a generator."""
    made = parser(doc, {"count": 200, "subjects": 40, "each": 4} | sizes)
    made.add_argument(
        "--images", type=Path, help="folder of real people, a folder or file a person"
    )
    made.add_argument("--modalities", nargs="+", choices=PSEUDO, default=PSEUDO)
    made.add_argument("--size", choices=SIZES, default="small")
    made.add_argument("--work", type=Path, default=Path("casestudy"))
    return made


def named(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the names of the sets that are studied, and what results tell of whose they are."""
    if options.images:
        return [options.images.name], {"people": "real"}
    return options.modalities, {"people": "pseudo-people"}


def once(mark: Path, work: Callable[[], Any]) -> None:
    """Do some work, unless the file that marks its end is there."""
    if not mark.exists():
        work()
        mark.touch()


def people_of(name: str, work: Path, options: argparse.Namespace) -> Pictures:
    """Write the images of the training set, of others, and of a hold-out; return the first."""
    side = SIZES[options.size].side
    once(work / "images.done", lambda: _write_people(name, work, side, options))
    return read(work / "training", side)


def _write_people(name: str, work: Path, side: int, options: argparse.Namespace) -> None:
    if options.images is None:
        write_pseudo(name, range(SUBJECTS), side, work / "training")
        write_pseudo(name, range(1000, 1000 + OTHERS), side, work / "others")
        write_pseudo(name, range(2000, 2000 + OTHERS), side, work / "holdout")
        return
    people = len(list(options.images.iterdir()))
    count = min(options.subjects, people // 2)
    middle = (count + people) // 2
    write_split(options.images, range(count), side, work / "training", options.each)
    write_split(options.images, range(count, middle), side, work / "others", MOST)
    write_split(options.images, range(middle, people), side, work / "holdout", MOST)


def label_samples(out: Path, training: Pictures) -> None:
    """Label the samples of a generator, in its folder."""
    samples = read(out / "samples", training.pixels.shape[2])
    names = [f"{out.name}/{name}" for name in samples.names]
    path = out / "labelled.csv"
    write_labels(samples.pixels[:, 0], names, training.pixels[:, 0], training.names, path)


def gather(work: Path, generators: Sequence[str], seed: int) -> None:
    """Put the samples of all generators into one folder, as they are and augmented."""
    lines = [(work / each / "labelled.csv").read_text("utf-8").splitlines() for each in generators]
    text = "\n".join([lines[0][0], *(row for part in lines for row in part[1:])])
    (work / "labelled.csv").write_text(text + "\n", "utf-8")
    for each in generators:
        files = sorted((work / each / "samples").iterdir())
        shutil.copytree(work / each / "samples", work / HOW[0] / each, dirs_exist_ok=True)
        pixels = np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])
        random = torch.Generator().manual_seed(seed)
        write_images(augmented(torch.from_numpy(pixels), random), work / HOW[1] / each, "")


def train_encoder(work: Path, out: Path, steps: int, seed: int) -> None:
    """Train the bundled encoder on the training images, unless that is done."""
    asked = ["--images", work / "training", "--out", out, "--steps", steps, "--seed", seed]
    if not out.exists():
        going = ["--resume"] if out.with_name(f"{out.name}.state").exists() else []
        command("train", *asked, *going)


def index_of(work: Path, *encoder: Any) -> Path:
    """Index the training images, and calibrate the index by the hold-out."""
    index = work / "index"
    sides = ["--training", work / "training", "--index", index]
    build = ["build-index", *sides, *encoder, "--adapt", "never", "--no-calibrate"]
    once(work / "built.done", lambda: command(*build))
    holdout = ["--holdout", work / "holdout"]
    once(work / "index.done", lambda: command("calibrate", *sides, *holdout))
    return index


def command(*asked: Any) -> None:
    """Run a command of deepssim-scan, as a user does."""
    program = Path(sys.executable).with_name("deepssim-scan")
    done = subprocess.run([str(each) for each in (program, *asked)], check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(f"{' '.join(map(str, asked))}: exit code {done.returncode}")
