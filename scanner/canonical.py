"""Bring images to one contrast and one pose before they are embedded.

A copy may be brighter, turned or shifted. What is undone first need not be learnt: the rest of
the network sees the copy as it sees the original.

- `settled` undoes any gamma, by a rule that has nothing to learn;
- `Pose` says how far an image is turned and shifted, learnt from images that were, and `Canonical`
  puts that back (spatial transformers, Jaderberg et al. 2015, arXiv:1506.02025; learnt
  canonicalisation, Kaba et al. 2023, arXiv:2211.06489). A mirrored image gets a mirrored pose.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepssim_scan import flips
from deepssim_scan.augment import restandardise, rotation

CHANNELS = 2  # that `Canonical` makes of one
_WINDOW, _FLOOR = 17, 0.05  # of the channel in which brightness is evened out
_MIDDLING, _RANK_POWER = 0.6, 8
_EXPONENTS, _TRIED = (0.9, 10.0), 32  # least and greatest, and how many are tried
_AVERAGED = 4  # pixels a side of the squares from which the exponent is found
_DARKEST = 1e-4  # of the range
_HALF = 2  # poses are read at half the resolution
_POSE_WINDOW, _POSE_FLOOR = 9, 0.03
_POSE_DEPTH, _POSE_EXPANSION, _POSE_HIDDEN = 2, 2, 128
_POSE_UNIT = 0.2  # of a radian, and of half a side: about as far as images are moved


class Canonical(nn.Module):
    """Make the channels that the encoder sees of an image, and say which pose was undone.

        images (B, 1, H, W) standardised -> channels (B, 2, H, W), poses (B, 3)

    Channels are the settled image put upright, and the same with its brightness evened out.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        super().__init__()
        self.pose = Pose(widths, side)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels and the poses."""
        with torch.autocast(images.device.type, enabled=False):
            still = settled(images)
            pose = self.pose(still)
            seen = upright(still, pose.detach())  # no score teaches a pose
            return torch.cat([seen, evened(seen)], 1), pose


class Pose(nn.Module):
    """Tell how far images are turned and shifted.

        settled images (B, 1, side, side) -> poses (B, 3)

    A pose is an angle in radians and a shift in half sides, to the right and down: what
    `upright` takes.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        super().__init__()
        grid = side // _HALF // (2 << len(widths))
        self.trunk = flips.Trunk(1, widths, (_POSE_DEPTH,) * len(widths), _POSE_EXPANSION)
        self.head = flips.PoseHead(widths[-1], grid, _POSE_HIDDEN)

    def forward(self, images: Tensor) -> Tensor:
        """Return the poses."""
        coarse = functional.avg_pool2d(images, _HALF)
        features = self.trunk(evened(coarse, _POSE_WINDOW, _POSE_FLOOR))
        return _POSE_UNIT * self.head(features)  # type: ignore[no-any-return]


def upright(images: Tensor, pose: Tensor) -> Tensor:
    """Read images where their poses say that they lie: (B, C, H, W), (B, 3) -> (B, C, H, W)."""
    down, right = (
        (torch.arange(side, device=images.device) + 0.5) * 2 / side - 1 for side in images.shape[2:]
    )
    turn, shift = rotation(pose[:, 0])[..., None, None], pose[:, 1:, None, None]
    grid = turn[:, :, 0] * right + turn[:, :, 1] * down[:, None] + shift
    grid = grid.permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, "bilinear", "border", align_corners=False)


def settled(images: Tensor) -> Tensor:
    """Bring images to the exponent at which their bright parts are middling: (B, 1, H, W) -> same.

    An image and what gamma made of it are about the same after it. Greys y, from 0 at the darkest
    to 1, average 0.6 then, weighted by the eighth power of their rank, which leaves a background
    and faint noise next to no say. They are read off averages of 4 x 4 pixels. The result is
    standardised.
    """
    coarse = functional.avg_pool2d(images, _AVERAGED)
    low = coarse.amin((1, 2, 3), keepdim=True)
    span = (coarse.amax((1, 2, 3), keepdim=True) - low).clamp_min(1e-6)
    exponent = _settling(((coarse - low) / span).flatten(1))[:, None, None, None]
    raised = ((images - low) / span).clamp_min(_DARKEST) ** exponent
    return restandardise(raised[:, 0])[:, None]


def _settling(greys: Tensor) -> Tensor:
    """Return the exponents that bring greys to the average wanted: (B, N) in [0, 1] -> (B,).

    The average falls as the exponent grows; between those tried, it is interpolated.
    """
    places = torch.arange(greys.shape[1], device=greys.device)
    weights = ((places + 0.5) / len(places)) ** _RANK_POWER
    logarithms = greys.sort(1).values.clamp_min(_DARKEST).log()
    least, greatest = map(math.log, _EXPONENTS)
    tried = torch.linspace(least, greatest, _TRIED, device=greys.device)
    raised = (logarithms[:, None] * tried.exp()[:, None]).exp()
    surplus = raised @ (weights / weights.sum()).to(greys) - _MIDDLING  # (B, tried)
    after = (surplus > 0).sum(1, keepdim=True).clamp(1, _TRIED - 1)
    above, below = surplus.gather(1, after - 1), surplus.gather(1, after)
    share = (above.clamp_min(0) / (above - below).clamp_min(1e-12)).clamp_max(1)
    exponent: Tensor = (tried[after - 1] + share * (tried[1] - tried[0])).exp()
    return exponent[:, 0]


def evened(images: Tensor, window: int = _WINDOW, floor: float = _FLOOR) -> Tensor:
    """Subtract each pixel's local mean and divide by its local spread: (B, 1, H, W) -> same.

    Local is within a square `window` pixels wide; `floor` is added to the variance. What is left
    of contrast is about the same for dark and bright tissue.
    """
    mean = _local_mean(images, window)
    variance = _local_mean((images - mean).square(), window)
    return (images - mean) / (variance + floor).sqrt()


def _local_mean(images: Tensor, window: int) -> Tensor:
    """Average over the part of a square window that lies inside: (B, 1, H, W) -> same.

    Two matrix products, several times faster on a CPU than `avg_pool2d` with so wide a window.
    """
    rows, columns = (_averaging(length, window, images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _averaging(length: int, window: int, like: Tensor) -> Tensor:
    """The matrix (length, length) whose rows average a window clipped at the ends."""
    places = torch.arange(length, device=like.device)
    near = (places[:, None] - places).abs() <= window // 2
    return near.to(like.dtype) / near.sum(1, keepdim=True)
