"""Whether copied volumes are found, and are one finding each.

Training volumes are slices of deformations of a person whom no encoder was trained on. Of the
synthetic ones, `--copies` are copies of a training volume: moved, flipped, with another contrast;
every second one has its slices in random order. The others show other deformations.

    python benchmarks/bench_volumes.py
"""

import argparse
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
from harness import console, parser, write
from held_out import person
from numpy.typing import NDArray
from scipy.ndimage import shift

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.reporting.volumes import COPY, read_volumes
from deepssim_scan.training.pseudo_subjects import slices

SIDE, HEIGHT = 96, (0.3, 0.75)
Volume = NDArray[np.float32]


def main() -> None:
    """Write volumes, index, query, print and write."""
    options = _options()
    body, rng = person("colin27").volume, np.random.default_rng(options.seed)
    run = RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        members = [_volume(body, number, options.slices) for number in range(options.training)]
        for number, volume in enumerate(members):
            _save(volume, work / "training" / f"t{number:03d}.nii.gz")
        truth = {}
        for number in range(options.volumes):
            path = work / "synthetic" / f"s{number:03d}.nii.gz"
            if number < options.copies:
                truth[path.name] = f"t{number:03d}.nii.gz"
                _save(_copy(members[number], number, rng), path)
            else:
                _save(_volume(body, 10_000 + number, options.slices), path)
        build_index(work / "training", work / "index", run=run)
        config = QueryConfig(canaries=CanaryConfig(0))
        summary = query(work / "synthetic", work / "index", work / "report", config, run).summary
        found = {each.synthetic: each for each in read_volumes(work / "report")}
        _, counts = read_counts(work / "report")
    copies = {name: each for name, each in found.items() if each.verdict == COPY}
    told = {
        "flagged_images": summary["counts"]["duplicate"],
        "findings": len(counts.findings),
        "volumes": summary["volumes"],
        "copies_found": sum(copies[n].training == t for n, t in truth.items() if n in copies),
        "others_called_copies": len(copies.keys() - truth.keys()),
        "ncc": [copies[name].ncc for name in sorted(copies.keys() & truth.keys())],
        "order": [copies[name].order for name in sorted(copies.keys() & truth.keys())],
    }
    console.print(told)
    write("volumes", options, {}, {}, **told)


def _volume(body: torch.Tensor, number: int, count: int) -> Volume:
    """Cut axial slices of a deformation: (SIDE, SIDE, count)."""
    someone = torch.Generator().manual_seed(4_000_000_000 + number)
    places = np.linspace(*HEIGHT, count).tolist()
    images = slices(body, 2, places, SIDE, someone, shell=False)
    return images.permute(1, 2, 0).numpy().astype(np.float32)


def _copy(volume: Volume, number: int, rng: np.random.Generator) -> Volume:
    """Move, flip and change the contrast of a volume; shuffle the slices of every second one."""
    moved = shift(volume, (*rng.uniform(-5, 5, 2), 0), order=1).clip(0, 1)
    moved = moved[:: rng.choice([-1, 1])] ** rng.uniform(0.7, 1.4)
    return moved[..., rng.permutation(moved.shape[2])] if number % 2 else moved


def _save(volume: Volume, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def _options() -> argparse.Namespace:
    sizes = {"training": 100, "volumes": 200, "copies": 20, "slices": 30, "workers": 2}
    return parser(__doc__, sizes).parse_args()


if __name__ == "__main__":
    main()
