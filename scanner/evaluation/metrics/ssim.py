"""The SSIM of images as they are, which DeepSSIM estimates for images that are aligned."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
        return pair_by_pair(
            lambda left, right: ssim(left, right, image_range(left)), training, synthetic, pairs
        )


def pair_by_pair(
    of: Callable[[Tensor, Tensor], Tensor],
    training: Sequence[Pixels],
    synthetic: Sequence[Pixels],
    pairs: Pairs,
) -> Scores:
    """Return what a function gives of the images of pairs: (P, H, W) twice -> (P,)."""
    found = []
    for first in range(0, len(pairs), BATCH):
        part = pairs[first : first + BATCH]
        sides = (training, part[:, 0]), (synthetic, part[:, 1])
        left, right = (
            torch.from_numpy(np.stack([images[n] for n in numbers.tolist()]))
            for images, numbers in sides
        )
        found.append(of(left, right).numpy())
    scores: Scores = np.concatenate(found).astype(np.float64)
    return scores
