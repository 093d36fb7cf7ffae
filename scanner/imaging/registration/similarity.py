"""How similar registered pairs are: several measures, each after several blurs.

    registered pairs (P, H, W) -> Similarity: measures (P, 6), share of the pixels compared (P,)

No single measure carries over. Noise lowers the SSIM of a sharp pair, and so does what is left of a
warp; both are overcome by a blur. A blur makes other people more alike. The measures are:

- SSIM (`ssim`). Its data range is 4.65 standard deviations, as many as lie between the 1st and the
  99th percentile of a normal distribution, so that one bright marker does not raise it;
- NCC, the normalised correlation;
- LCN, the normalised correlation after local contrast normalisation.

Each is computed where both images show something, and neither blurs nor local means reach beyond.
A black background is the same in all images: with it, two unrelated bright spots would have an SSIM
of 0.94.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.names import BLURS
from deepssim_scan.imaging.registration import Registered
from deepssim_scan.imaging.ssim import ssim
from deepssim_scan.imaging.warp import blur, normalise_local_contrast, standardise_within

_PIXEL = 2  # pixels of 128 that are one of a registered image
_WINDOW, _FLOOR = 17, 0.05  # of local contrast normalisation
_RANGE = 4.65  # of standardised images


@dataclass(frozen=True, slots=True)
class Similarity:
    """What was measured of P pairs.

    measures (P, 6) of `NAMES`, -1 where nothing is left to compare; foreground (P,), the share of
    the pixels that were compared.
    """

    measures: Tensor
    foreground: Tensor


def similarity(pairs: Registered) -> Similarity:
    """Compare registered pairs where both images show something."""
    part = pairs.inside.float()
    weight = part.repeat(2, 1, 1)
    images = standardise_within(torch.cat([pairs.training, pairs.synthetic]), weight)
    columns = []
    for sigma in BLURS:
        columns += _measures(images, weight, sigma)
    share = part.mean((1, 2))
    measures = torch.stack(columns, 1).nan_to_num(-1.0)
    return Similarity(torch.where(share[:, None] > 0, measures, -1.0), share)


def _measures(images: Tensor, weight: Tensor, sigma: float) -> list[Tensor]:
    """Return SSIM, NCC and LCN (P,) of pairs after a blur: images and weight (2 P, H, W)."""
    width = images.new_tensor([sigma / _PIXEL])
    blurred = blur(images, width) / blur(weight, width).clamp_min(1e-3)
    both = standardise_within(blurred, weight)
    contrast = normalise_local_contrast(both, _WINDOW, _FLOOR, weight)
    count = len(images) // 2
    training, synthetic, part = both[:count], both[count:], weight[:count] > 0
    return [
        ssim(training, synthetic, _RANGE, part),
        _correlation(training, synthetic),
        _correlation(contrast[:count], contrast[count:]),
    ]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of pairs (P, H, W), whose mean is about 0: (P,)."""
    return functional.cosine_similarity(first.flatten(1), second.flatten(1))
