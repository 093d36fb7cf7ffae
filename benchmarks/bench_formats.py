"""Whether copies are found when the two sides are saved in different ways.

- Volumes (NIfTI, --images) are the training set; slices of them are saved as NPY, as nibabel gives
  them, with the axes the other way round.
- Slices of a head CT (Cranium, `held_out.PEOPLE`) under 40 deformations are the training set, in
  their full range as NPY; the same slices in a window (40, 400) are saved as PNG. The two are not
  the same greys, so copies may be missed; the run has to warn of it before the verdicts.

`build-index` and `query` run with their defaults.

    python benchmarks/bench_formats.py --images DIR
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import torch
from bench_verdicts import save_grey
from harness import console, parser, write
from held_out import FIRST_SEED, PEOPLE
from numpy.typing import NDArray

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.query import query
from deepssim_scan.storage.layout import MATCHES
from deepssim_scan.training.pseudo_subjects import slices

PEOPLE_OF_CT, SLICES = 40, 12  # of each person or volume
WINDOW = 40.0, 400.0  # centre and width, Hounsfield units


def main() -> None:
    """Index, query, compare, print and write both."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        volumes = copies_of_volumes(options.images, Path(name) / "volumes")
        found = {"NIfTI, queried as NPY": judged(Path(name) / "volumes", volumes)}
        truth = windowed_ct(Path(name) / "ct")
        found["CT in full range, queried as a window"] = judged(Path(name) / "ct", truth)
    console.print(found)
    write("formats", options, {}, {}, found=found)


def copies_of_volumes(images: Path, work: Path) -> dict[str, str]:
    """Write volumes and slices of them; return the name of the source of each slice."""
    truth = {}
    for folder in ("training", "synthetic"):
        (work / folder).mkdir(parents=True)
    for path in sorted(images.glob("*.nii.gz")):
        (work / "training" / path.name).write_bytes(path.read_bytes())
        volume = np.asarray(nibabel.load(path).dataobj)
        for place in np.linspace(0.3, 0.7, SLICES):
            slice_ = int(place * volume.shape[2])
            name = f"{path.name.partition('.')[0]}-{slice_}.npy"
            np.save(work / "synthetic" / name, volume[:, :, slice_])
            truth[name] = f"{path.name}#axis=2,slice={slice_}"
    return truth


def windowed_ct(work: Path) -> dict[str, str]:
    """Write CT slices in full range, and windowed; return the name of the source of each."""
    volume, truth = PEOPLE["cranium"]().volume, {}
    low, high = WINDOW[0] - WINDOW[1] / 2, WINDOW[0] + WINDOW[1] / 2
    for number in range(PEOPLE_OF_CT):
        subject = torch.Generator().manual_seed(FIRST_SEED + number)
        every = slices(volume, 2, np.linspace(0.3, 0.7, SLICES).tolist(), 128, subject, shell=False)
        for slice_, grey in enumerate(every.numpy()):
            units: NDArray[np.float32] = 3000 * grey - 1000  # 0 to 1 is 0 to 3 times water's
            name = f"{number:02d}/{slice_:02d}"
            path = work / "training" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, units.astype(np.int16))
            seen = np.clip((units - low) / (high - low), 0, 1)
            copy = f"{number:02d}-{slice_:02d}.png"
            save_grey((255 * seen).astype(np.uint8), work / "synthetic" / copy)
            truth[copy] = f"{name}.npy"
    return truth


def judged(work: Path, truth: dict[str, str]) -> dict[str, Any]:
    """Index and query; return the shares flagged and with the source first, and the warnings."""
    warned = _Warnings()
    run = RunContext("cpu", 2, progress=warned)
    build_index(work / "training", work / "index", run=run)
    query(work / "synthetic", work / "index", work / "report", run=run)
    table = pq.read_table(work / "report" / MATCHES).to_pylist()
    best = [row for row in table if row["rank"] == 1]
    first = [row["training"] == truth[row["synthetic"]] for row in best]
    return {
        "copies": len(best),
        "flagged": float(np.mean([row["verdict"] == "duplicate" for row in best])),
        "source_first": float(np.mean(first)),
        "warnings": warned.texts,
    }


class _Warnings:
    """Keeps what a job warns of, and shows no progress."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Keep a warning, without the folder that it names."""
        self.texts.append(text.rpartition("/")[2])


def _options() -> argparse.Namespace:
    made = parser(__doc__, {}, seeded=False)
    made.add_argument("--images", type=Path, required=True, help="folder of NIfTI volumes")
    return made.parse_args()


if __name__ == "__main__":
    main()
