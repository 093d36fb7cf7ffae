"""Canonicalise images before they are embedded: one contrast, one rotation, one position.

A copy may be brighter, rotated or shifted. What is undone first need not be learnt: the rest of
the network sees the copy as it sees its source.

- Images may be averaged over squares of 2 pixels first: all that follows is cheaper.
- `normalise_gamma` undoes any gamma, by a rule that has nothing to learn.
- `PoseEstimator` estimates how far an image is rotated, shifted and scaled. It learns from
  images that were, by known amounts. `Canonicaliser` undoes what it estimates (spatial
  transformers, Jaderberg et al. 2015, arXiv:1506.02025; learnt canonicalisation, Kaba et al. 2023,
  arXiv:2211.06489).

A pose is (..., 3), an angle in radians and a shift to the right and down in half sides, or (..., 4)
with the logarithm of a scale. It says where `warp.read_at` reads an image to canonicalise it. That
of a flipped image is that of the image with the signs of `equivariant.POSE_SIGNS`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepssim_scan.encoder import equivariant
from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.imaging.warp import normalise_local_contrast, read_at, restandardise

CHANNELS = 2  # that `Canonicaliser` makes of one
_WINDOW, _FLOOR = 17, 0.05  # of local contrast normalisation, in the second channel
_MEAN_GREY, _RANK_POWER = 0.6, 8
_GLARE = 0.05  # of the range: greys so near the brightest have less weight
_TRIED = 32  # exponents
_AVERAGED = 4  # pixels a side of the squares of which the exponent is computed
_DARKEST = 1e-4  # of the range
_HALF = 2  # poses are estimated at half the resolution
_POSE_WINDOW, _POSE_FLOOR = 9, 0.03
_POSE_DEPTH, _POSE_EXPANSION, _POSE_HIDDEN = 2, 2, 128
_POSE_UNIT = 0.2  # radians, half sides, and logarithms: about as far as training moves images
_POSE_LIMIT = 0.4  # of the same


class Canonicaliser(nn.Module):
    """Canonicalise images, and say which poses were estimated.

        images (B, H, W) standardised -> channels (B, 2, H / pooling, W / pooling),
        poses (B, 3 or 4)

    The parameters are estimated of the gamma-normalised image. The channels are that image read at
    them, and the same after local contrast normalisation.
    """

    def __init__(self, shape: Architecture, side: int) -> None:
        super().__init__()
        self.pooling, self.exponents = shape.pooling, shape.exponents
        self.pose = PoseEstimator(shape.pose, side, shape.pooling, scale=shape.scale)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels and the poses."""
        with torch.autocast(images.device.type, enabled=False):
            return self.of_normalised(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Average over squares, and undo gamma: (B, H, W) -> (B, H / pooling, W / pooling)."""
        pooled = functional.avg_pool2d(images, self.pooling)
        return normalise_gamma(pooled, self.exponents, _AVERAGED // self.pooling)

    def of_normalised(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for images whose gamma is normalised."""
        with torch.autocast(normalised.device.type, enabled=False):
            pose: Tensor = self.pose(normalised)
            # Detached: the loss of scores does not train the estimator.
            canonicalised = _canonicalised(normalised, pose.detach())
            window = _WINDOW // self.pooling | 1
            contrast = normalise_local_contrast(canonicalised, window, _FLOOR)
            return torch.stack([canonicalised, contrast], 1), pose


def _canonicalised(images: Tensor, pose: Tensor) -> Tensor:
    """Read images at their poses; where these are NaN, so is the whole image."""
    scale = pose[:, 3].exp() if pose.shape[1] > 3 else None
    return read_at(images, pose[:, 0], pose[:, 1:3], scale) + 0 * pose.sum(1)[:, None, None]


class PoseEstimator(nn.Module):
    """Estimate how far images are rotated and shifted.

    gamma-normalised images (B, side / pooling, side / pooling) -> poses (B, 3), or (B, 4) with a
    scale
    """

    def __init__(
        self, widths: tuple[int, ...], side: int, pooling: int = 1, *, scale: bool = False
    ) -> None:
        super().__init__()
        self.pooling = _HALF // pooling
        grid = side // _HALF // (2 << len(widths))
        depths = (_POSE_DEPTH,) * len(widths)
        self.trunk = equivariant.Trunk(1, widths, depths, _POSE_EXPANSION)
        self.head = equivariant.PoseHead(widths[-1], grid, _POSE_HIDDEN, 3 + scale)

    def forward(self, images: Tensor) -> Tensor:
        """Return the poses."""
        small = functional.avg_pool2d(images, self.pooling)
        contrast = normalise_local_contrast(small, _POSE_WINDOW, _POSE_FLOOR)
        pose: Tensor = _POSE_UNIT * self.head(self.trunk(contrast[:, None]))
        return pose.clamp(-_POSE_LIMIT, _POSE_LIMIT)


def normalise_gamma(
    images: Tensor, exponents: tuple[float, float], averaged: int = _AVERAGED
) -> Tensor:
    """Raise images to the exponent that brings their weighted mean grey to 0.6: (B, H, W) -> same.

    An image, and the same image after any gamma, are about the same after it. Greys run from 0 at
    the darkest to 1 at the brightest. Each has the eighth power of its rank as its weight, so that
    a dark background and its noise count next to nothing; greys within 5 % of the brightest have
    less, and the brightest none, so that saturated parts do not count. The mean is of averages of
    squares `averaged` pixels a side. The exponent stays within `exponents`, the least and the
    greatest. The result is standardised.
    """
    coarse = functional.avg_pool2d(images, averaged)
    low = coarse.amin((1, 2), keepdim=True)
    span = (coarse.amax((1, 2), keepdim=True) - low).clamp_min(1e-6)
    exponent = gamma_exponents(((coarse - low) / span).flatten(1), exponents)[:, None, None]
    return restandardise(((images - low) / span).clamp(_DARKEST, 1) ** exponent)


def gamma_exponents(greys: Tensor, exponents: tuple[float, float]) -> Tensor:
    """Return the exponents that `normalise_gamma` takes: (B, N) in [0, 1] -> (B,).

    The weighted mean falls as the exponent grows. Where it crosses the wanted one is interpolated
    between the exponents that are tried.
    """
    ordered = greys.sort(1).values
    positions = torch.arange(greys.shape[1], device=greys.device)
    rank = ((positions + 0.5) / len(positions)).to(greys)
    weights = rank**_RANK_POWER * ((1 - ordered) / _GLARE).clamp_max(1)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-30)
    least, greatest = map(math.log, exponents)
    tried = torch.linspace(least, greatest, _TRIED, device=greys.device)
    logarithms = ordered.clamp_min(_DARKEST).log()
    raised = (logarithms[:, None] * tried.exp()[:, None]).exp_()
    surplus = (raised * weights[:, None]).sum(2) - _MEAN_GREY  # (B, tried)
    after = (surplus > 0).sum(1, keepdim=True).clamp(1, _TRIED - 1)
    above, below = surplus.gather(1, after - 1), surplus.gather(1, after)
    share = (above.clamp_min(0) / (above - below).clamp_min(1e-12)).clamp_max(1)
    exponent: Tensor = (tried[after - 1] + share * (tried[1] - tried[0])).exp()
    return exponent[:, 0]
