"""The demo: copies of real brain slices, planted among strangers, and how many are found.

    training images + strangers -> copies planted -> build_index -> query -> a tally per kind

The training images are slices of pseudo-subjects made of the MNI152 template; the strangers are
pseudo-subjects that are not among them. `audit` plays the same with any other images.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter

from deepssim_scan.checkpoint import BUNDLED
from deepssim_scan.embed import EmbedConfig, Report, silent
from deepssim_scan.errors import InputError
from deepssim_scan.publish import publishing
from deepssim_scan.report import best_matches
from deepssim_scan.scan import QueryConfig, build_index, query
from deepssim_scan.subjects import mni152, slices

SIDE = 128  # pixels
SUBJECTS, POSITIONS = 40, 26
NEW_SUBJECTS = 20
COPIES_PER_KIND = 40
TRUTH = "truth.csv"
FILES = ("training", "synthetic", "index", "report", TRUTH)
_AXIAL, _LOWEST, _HIGHEST = 2, 0.2, 0.72  # the axis cut across, and the fractions of it shown
_FIRST_SEED = 1_000_000_000  # far from the seeds of any image that the bundled encoder saw

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


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The tallies of every kind, copies first, and where everything lies."""

    folder: Path
    training_images: int
    rows: tuple[Tally, ...]

    def total(self, *, copies: bool) -> Tally:
        """Add up the kinds that are copies, or those that are not."""
        rows = [row for row in self.rows if row.copies == copies]
        sums = (sum(getattr(row, name) for row in rows) for name in ("images", "found", "flagged"))
        return Tally("all copies" if copies else "all strangers", copies, *sums)

    def as_json(self) -> dict[str, Any]:
        """Return the result for machines."""
        rows = [*self.rows, self.total(copies=True), self.total(copies=False)]
        return {
            "folder": str(self.folder),
            "training_images": self.training_images,
            "kinds": [asdict(row) for row in rows],
        }


def run(
    out: Path,
    encoder: Path = BUNDLED,
    config: EmbedConfig | None = None,
    report: Report = silent,
) -> DemoResult:
    """Make the demo's images, plant the copies, index, query and count.

    Raises DependencyMissing without nilearn, which carries the MNI152 template.
    """
    volume = mni152()
    trained = range(_FIRST_SEED, _FIRST_SEED + SUBJECTS)
    strangers = range(_FIRST_SEED + SUBJECTS, _FIRST_SEED + SUBJECTS + NEW_SUBJECTS)
    positions = np.linspace(_LOWEST, _HIGHEST, POSITIONS)
    between = (positions[1:] + positions[:-1]) / 2
    training = _people(volume, trained, positions, "training images made", report)
    same = _people(volume, strangers, positions[1::4], "same slices made", report)
    other = _people(volume, strangers, between[::4], "other slices made", report)
    kinds = {"stranger, same slice": same, "stranger, other slice": other}
    return audit(out, training, kinds, encoder=encoder, config=config, report=report)


def audit(
    out: Path,
    training: Images,
    strangers: Mapping[str, Images],
    *,
    encoder: Path = BUNDLED,
    copies_per_kind: int = COPIES_PER_KIND,
    config: EmbedConfig | None = None,
    report: Report = silent,
) -> DemoResult:
    """Plant copies of `training` among `strangers` (by kind), run both commands, and count."""
    rng = np.random.default_rng(_FIRST_SEED)
    if len(training) < copies_per_kind or not all(strangers.values()):
        raise InputError(
            f"an audit needs strangers of every kind named, and at least {copies_per_kind} "
            f"training images, found {len(training)}"
        )
    names = repr((sorted(training), sorted(strangers), copies_per_kind))
    job = {"command": "demo", "images": hashlib.sha256(names.encode()).hexdigest()}
    with publishing(out, FILES, job) as folder:
        _write(folder / "training", training)
        truth = {}
        for kind, change in COPIES.items():
            for source in rng.choice(list(training), copies_per_kind, replace=False):
                name = f"{kind}/{source.replace('/', '_')}"
                _write(folder / "synthetic", {name: change(training[source], rng)})
                truth[name] = (kind, source)
        for kind, images in strangers.items():
            named = {f"{kind}/{name.replace('/', '_')}": image for name, image in images.items()}
            _write(folder / "synthetic", named)
            truth |= dict.fromkeys(named, (kind, ""))
        _write_truth(folder / TRUTH, truth)
    index, found = out / "index", out / "report"
    config = config or EmbedConfig()
    build_index(out / "training", index, encoder, config, report)
    query(out / "synthetic", index, found, QueryConfig(embed=config), report)
    rows = _tally(found, truth, [*COPIES, *strangers])
    return DemoResult(out, len(training), rows)


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


def _people(
    volume: torch.Tensor, seeds: range, positions: np.ndarray, stage: str, report: Report
) -> Images:
    """Cut the slices of some pseudo-subjects: subject-0001/axial-0.460 and so on."""
    images = {}
    for done, seed in enumerate(seeds, 1):
        person = torch.Generator().manual_seed(seed)
        cut = slices(volume, _AXIAL, positions.tolist(), SIDE, person)
        for position, image in zip(positions, cut, strict=True):
            name = f"subject-{seed - _FIRST_SEED:04d}/axial-{position:.3f}"
            images[name] = to_image(image)
        report(stage, done, len(seeds))
    return images


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Turn pixels (H, W) in [0, 1] into an 8-bit grey image."""
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def _write(folder: Path, images: Images) -> None:
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _write_truth(path: Path, truth: Mapping[str, tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["synthetic", "kind", "source"])
        for name, (kind, source) in truth.items():
            writer.writerow([f"{name}.png", kind, f"{source}.png" if source else ""])


def _tally(
    report_folder: Path, truth: Mapping[str, tuple[str, str]], kinds: list[str]
) -> tuple[Tally, ...]:
    best = {match.synthetic: match for match in best_matches(report_folder)}
    rows = []
    for kind in kinds:
        pairs = [
            (best[f"{name}.png"], f"{source}.png")
            for name, (its_kind, source) in truth.items()
            if its_kind == kind
        ]
        found = sum(match.training == source for match, source in pairs)
        flagged = sum(match.verdict == "duplicate" for match, _ in pairs)
        rows.append(Tally(kind, kind in COPIES, len(pairs), found, flagged))
    return tuple(rows)
