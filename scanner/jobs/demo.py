"""The demo: copies of real brain slices, planted among non-members, and how many are found.

    training images + non-members -> copies planted -> build_index -> query -> a tally per kind

The training images are slices of pseudo-subjects made of the MNI152 template; the non-members are
pseudo-subjects that are not among them. `planted_benchmark` does the same with any other images.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.planted import (
    COPIES,
    COPIES_PER_KIND,
    SYNTHETIC,
    TRAINING,
    TRUTH,
    Images,
    Tally,
    plant,
    tally,
)
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.progress import Progress
from deepssim_scan.storage.layout import INDEX_FILES, REPORT_FILES
from deepssim_scan.storage.publish import Job, Stage, publishing
from deepssim_scan.training.pseudo_subjects import mni152, slices

SIDE = 128  # pixels
SUBJECTS, POSITIONS = 40, 26
NEW_SUBJECTS = 20
INDEX, REPORT = "index", "report"
FILES = (
    *(TRUTH, f"{TRAINING}/*/*.png", f"{SYNTHETIC}/*/*.png"),
    *(f"{INDEX}/{name}" for name in INDEX_FILES),
    *(f"{REPORT}/{name}" for name in REPORT_FILES),
)
LEAST_FOUND, LEAST_FLAGGED, MOST_FLAGGED = 0.95, 0.90, 0.02
"""Shares: of the copies, with their source first and flagged; of the non-members, flagged."""
_AXIAL, _LOWEST, _HIGHEST = 2, 0.2, 0.72  # the axis cut across, and the fractions of it shown
_FIRST_SEED = 1_000_000_000  # far from the seeds of any image that the bundled encoder saw


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
        return Tally("all copies" if copies else "all non-members", copies, *sums)

    @property
    def works(self) -> bool:
        """Whether copies are found and flagged, and non-members not, as an installation must."""
        copies, others = self.total(copies=True), self.total(copies=False)
        enough = copies.found >= LEAST_FOUND * copies.images
        flagged = copies.flagged >= LEAST_FLAGGED * copies.images
        return enough and flagged and others.flagged <= MOST_FLAGGED * others.images

    def as_json(self) -> dict[str, Any]:
        """Return the result for machines."""
        rows = [*self.rows, self.total(copies=True), self.total(copies=False)]
        return {
            "folder": str(self.folder),
            "training_images": self.training_images,
            "works": self.works,
            "kinds": [asdict(row) for row in rows],
        }


def demo(out: Path, encoder: Path = BUNDLED, run: RunContext | None = None) -> DemoResult:
    """Make the demo's images, plant the copies, index, query and count.

    Raises DependencyMissing without nilearn, which carries the MNI152 template.
    """
    run = run or RunContext()
    volume = mni152()
    members = range(_FIRST_SEED, _FIRST_SEED + SUBJECTS)
    others = range(_FIRST_SEED + SUBJECTS, _FIRST_SEED + SUBJECTS + NEW_SUBJECTS)
    positions = np.linspace(_LOWEST, _HIGHEST, POSITIONS)
    between = (positions[1:] + positions[:-1]) / 2
    training = _people(volume, members, positions, "training images made", run.progress)
    same = _people(volume, others, positions[1::4], "same slices made", run.progress)
    other = _people(volume, others, between[::4], "other slices made", run.progress)
    kinds = {"non-member, same slice": same, "non-member, other slice": other}
    return planted_benchmark(out, training, kinds, encoder=encoder, run=run)


def planted_benchmark(
    out: Path,
    training: Images,
    others: Mapping[str, Images],
    *,
    encoder: Path = BUNDLED,
    copies_per_kind: int = COPIES_PER_KIND,
    run: RunContext | None = None,
) -> DemoResult:
    """Plant copies of `training` among non-members (by kind), run both commands, and count."""
    if len(training) < copies_per_kind or not all(others.values()):
        raise InputError(
            "a planted benchmark needs non-members of every kind named, and at least "
            f"{copies_per_kind} training images, found {len(training)}"
        )
    names = repr((sorted(training), sorted(others), copies_per_kind))
    job = Job("demo", (Stage("images", {}, {"names": sha256(names.encode()).hexdigest()}),))
    with publishing(out, FILES, job) as folder:
        truth = plant(folder, training, others, copies_per_kind)
    with (run or RunContext()).opened() as run:
        build_index(out / TRAINING, out / INDEX, IndexConfig(encoder), run)
        query(out / SYNTHETIC, out / INDEX, out / REPORT, run=run)
    rows = tally(out / REPORT, truth, [*COPIES, *others])
    return DemoResult(out, len(training), rows)


def _people(
    volume: torch.Tensor, seeds: range, positions: np.ndarray, stage: str, progress: Progress
) -> Images:
    """Cut the slices of some pseudo-subjects: subject-0001/axial-0.460 and so on."""
    images = {}
    for done, seed in enumerate(seeds, 1):
        person = torch.Generator().manual_seed(seed)
        cut = slices(volume, _AXIAL, positions.tolist(), SIDE, person)
        for position, image in zip(positions, cut, strict=True):
            name = f"subject-{seed - _FIRST_SEED:04d}/axial-{position:.3f}"
            images[name] = to_image(image)
        progress(stage, done, len(seeds))
    return images


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Turn pixels (H, W) in [0, 1] into an 8-bit grey image."""
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
