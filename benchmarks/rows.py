"""Embeddings of real images and of pseudo-people, which benchmarks of the search take as rows.

    Fashion-MNIST, folders of people's images, slices and radiographs of deformed people
    -> OUT/rows-00000.npy (n, D) float32 and so on; OUT/copies-00000.npz of some, changed

No row is a changed copy of another. A run that was stopped goes on.

    python benchmarks/rows.py --out rows --blocks 200 --images DIR... --idx FILE...
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from bench_update import read_idx
from bench_verdicts import read_people
from harness import RULE, console, parser, standardised
from held_out import COPIES, PEOPLE, Grey, Person, View, changed, person
from numpy.typing import NDArray

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.inference import embed
from deepssim_scan.progress import SILENT
from deepssim_scan.store.array import Vectors

BLOCK = 5000  # rows of a file
VIEWS = 50  # images of a pseudo-person
EVERY = 100  # rows, of which one has its image changed and embedded again


def main() -> None:
    """Embed what is not there yet."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    real = _real(options)
    for number in range(options.first, options.blocks):
        path = options.out / f"rows-{number:05d}.npy"
        if path.exists():
            continue
        start = number * BLOCK
        images = real[start : start + BLOCK] or _pseudo(number)
        rng = np.random.default_rng([options.seed, number])
        of = np.arange(number % EVERY, len(images), EVERY)
        kinds = rng.choice([*COPIES], len(of))
        copies = [changed(images[row], kind, rng) for row, kind in zip(of, kinds, strict=True)]
        copied = path.with_name(f"copies-{number:05d}.npz")
        np.savez(copied, of=of, kinds=kinds, rows=_embedded(copies))
        part = path.with_suffix(".partial")
        with part.open("wb") as file:
            np.save(file, _embedded(images))
        part.replace(path)
        console.print(f"{path}: {len(images):,} rows")


def read(folder: Path, blocks: slice) -> Vectors:
    """Read the rows of some blocks: (n, D)."""
    return np.concatenate([np.load(path) for path in sorted(folder.glob("rows-*.npy"))[blocks]])


def read_copies(folder: Path, blocks: slice) -> tuple[Vectors, NDArray[np.int64]]:
    """Read changed copies (m, D) of rows of some blocks, and their numbers among them (m,)."""
    rows, of, start = [], [], 0
    for path in sorted(folder.glob("rows-*.npy"))[blocks]:
        copied = path.with_name(path.name.replace("rows", "copies")).with_suffix(".npz")
        with np.load(copied) as made:
            rows.append(made["rows"])
            of.append(made["of"] + start)
        start += len(np.load(path, mmap_mode="r"))
    return np.concatenate(rows), np.concatenate(of)


def _embedded(images: Sequence[Grey]) -> Vectors:
    loaded = checkpoint.load()
    pixels = [each.numpy() for image in images for each in standardised(image[None], RULE)]
    return embed(loaded, "cpu", pixels, (0,), SILENT)[:, 0]


def _real(options: argparse.Namespace) -> list[Grey]:
    """Read all images of files and folders, in a random order."""
    images = [image for file in options.idx for image in read_idx(file)]
    for folder in options.images:
        images += [grey for one in read_people(folder).values() for _, grey in one]
    order = np.random.default_rng(options.seed).permutation(len(images))
    return [images[at] for at in order]


def _pseudo(number: int) -> list[Grey]:
    """Draw a block of images of pseudo-people, each from views of their own."""
    rng, names = np.random.default_rng([1, number]), [*PEOPLE]
    drawn: list[Grey] = []
    for subject in range(number * BLOCK // VIEWS, (number + 1) * BLOCK // VIEWS):
        someone = _person(names[subject % len(names)])
        drawn += [*_elsewhere(someone, rng).images(subject)]
    return drawn


def _elsewhere(someone: Person, rng: np.random.Generator) -> Person:
    """Return a person who is seen from other places."""
    views = []
    for axis in sorted({view.axis for view in someone.views}):
        places = [view.position for view in someone.views if view.axis == axis]
        low, high = min(places), max(places)
        views += [View(axis, place) for place in rng.uniform(low, high, len(places)).tolist()]
    return replace(someone, views=tuple(views))


_person = cache(person)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"blocks": 200})
    made.add_argument("--first", type=int, default=0, help="block, so that two can work (0)")
    made.add_argument("--out", type=Path, required=True, help="folder of the rows")
    made.add_argument("--images", type=Path, nargs="*", default=[], help="folders of people")
    made.add_argument("--idx", type=Path, nargs="*", default=[], help="files of images")
    return made.parse_args()


if __name__ == "__main__":
    main()
