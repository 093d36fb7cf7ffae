"""The SSIM of images as they are, which DeepSSIM estimates for images that are aligned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.metrics.metric import BATCH, Pairs, Scores
from deepssim_scan.imaging.ssim import image_range, ssim
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import REFERENCE


def refuse_file(name: str, file: Path | None) -> None:
    """Raise InputError where a file is given to a metric that has no use for one."""
    if file is not None:
        raise InputError(f"{name} takes no file, found {file}")


class RawSSIM:
    """SSIM (Wang et al. 2004), with the thresholds of the labels."""

    bounds = REFERENCE
    standardisation = Standardisation()

    def __init__(self, file: Path | None) -> None:
        refuse_file("ssim", file)

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        found = []
        for first in range(0, len(pairs), BATCH):
            left, right = stacked(training, synthetic, pairs[first : first + BATCH])
            found.append(ssim(left, right, image_range(left)).numpy())
        return np.concatenate(found).astype(np.float64)


def stacked(
    training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of pairs: (P, H, W) twice."""
    sides = (training, pairs[:, 0]), (synthetic, pairs[:, 1])
    left, right = (
        torch.from_numpy(np.stack([images[n] for n in numbers.tolist()]))
        for images, numbers in sides
    )
    return left, right
