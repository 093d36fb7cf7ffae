"""Copies planted among non-members: made, written, and counted in a report.

training images, non-members by kind -> plant -> folders + truth.csv
report, truth -> tally -> a Tally per kind
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from deepssim_scan.reporting.matches import best_matches

TRUTH = "truth.csv"
TRAINING, SYNTHETIC = "training", "synthetic"
COPIES_PER_KIND = 40
_SEED = 1_000_000_000

Truth = dict[str, tuple[str, str]]
"""Each synthetic image's kind, and its source among the training images, "" for a non-member."""

Images = Mapping[str, Image.Image]
"""Images by their path without a suffix, relative to the folder that they are written to."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How one kind of synthetic image fared; `found` has its own source as the best match."""

    kind: str
    copies: bool
    images: int
    found: int
    flagged: int


def _rotate(image: Image.Image, rng: Generator) -> Image.Image:
    return image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)


def _gamma(image: Image.Image, rng: Generator) -> Image.Image:
    exponent = rng.uniform(0.5, 1.5)
    return image.point([round(255 * (grey / 255) ** exponent) for grey in range(256)])


def _jpeg(image: Image.Image, rng: Generator) -> Image.Image:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=60)
    return Image.open(encoded)


COPIES: dict[str, Callable[[Image.Image, Generator], Image.Image]] = {
    "identity": lambda image, _: image,
    "horizontal flip": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "vertical flip": lambda image, _: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotation within 10 degrees": _rotate,
    "gamma 0.5 to 1.5": _gamma,
    "blur": lambda image, _: image.filter(ImageFilter.GaussianBlur(1)),
    "JPEG quality 60": _jpeg,
}


def plant(
    folder: Path, training: Images, others: Mapping[str, Images], copies_per_kind: int
) -> Truth:
    """Write training images, copies of them in every way of `COPIES`, and non-members by kind."""
    rng = np.random.default_rng(_SEED)
    _write(folder / TRAINING, training)
    truth: Truth = {}
    for kind, change in COPIES.items():
        for source in rng.choice(list(training), copies_per_kind, replace=False):
            name = f"{kind}/{source.replace('/', '_')}"
            _write(folder / SYNTHETIC, {name: change(training[source], rng)})
            truth[name] = (kind, source)
    for kind, images in others.items():
        named = {f"{kind}/{name.replace('/', '_')}": image for name, image in images.items()}
        _write(folder / SYNTHETIC, named)
        truth |= dict.fromkeys(named, (kind, ""))
    _write_truth(folder / TRUTH, truth)
    return truth


def _write(folder: Path, images: Images) -> None:
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _write_truth(path: Path, truth: Truth) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["synthetic", "kind", "source"])
        for name, (kind, source) in truth.items():
            writer.writerow([f"{name}.png", kind, f"{source}.png" if source else ""])


def tally(report: Path, truth: Truth, kinds: Sequence[str]) -> tuple[Tally, ...]:
    """Count, for each kind, how many were flagged, and how many have their source first.

    An image that could not be judged, as of one grey, is neither.
    """
    best = {match.synthetic: match for match in best_matches(report)}
    rows = []
    for kind in kinds:
        pairs = [
            (best.get(f"{name}.png"), f"{source}.png")
            for name, (its_kind, source) in truth.items()
            if its_kind == kind
        ]
        judged = [(match, source) for match, source in pairs if match is not None]
        found = sum(match.training == source for match, source in judged)
        flagged = sum(match.verdict == "duplicate" for match, _ in judged)
        rows.append(Tally(kind, kind in COPIES, len(pairs), found, flagged))
    return tuple(rows)
