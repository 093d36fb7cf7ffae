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
from deepssim_scan.transform import evened, read_at, restandardise, rotation

CHANNELS = 2  # that `Canonical` makes of one
_WINDOW, _FLOOR = 17, 0.05  # of the channel in which brightness is evened out
_MIDDLING, _RANK_POWER = 0.6, 8
_GLARE = 0.05  # of the range: greys so near the brightest count less
_EXPONENTS, _TRIED = (0.9, 8.0), 32  # least and greatest, and how many are tried
_AVERAGED = 4  # pixels a side of the squares from which the exponent is found
_DARKEST = 1e-4  # of the range
_HALF = 2  # poses are read at half the resolution
_POSE_WINDOW, _POSE_FLOOR = 9, 0.03
_POSE_DEPTH, _POSE_EXPANSION, _POSE_HIDDEN = 2, 2, 128
_POSE_UNIT = 0.2  # of a radian, and of half a side: about as far as images are moved
_POSE_REACH = 0.4  # radians, and half sides: no image is turned or moved farther than that


class Canonical(nn.Module):
    """Make the channels that the encoder sees of an image, and say which poses were found.

        images (B, H, W) standardised -> channels (B, 2, H, W), poses (2, B, 3)

    The pose is found twice: of the settled image, and again of what that one makes upright, which
    is nearer to upright already. Channels are the settled image put upright by the second, and
    the same with its brightness evened out.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        super().__init__()
        self.pose = Pose(widths, side)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels and the poses."""
        with torch.autocast(images.device.type, enabled=False):
            still = settled(images)
            poses = self.poses(still)
            upright = _upright(still, poses[-1].detach())  # no score teaches a pose
            return torch.stack([upright, evened(upright, _WINDOW, _FLOOR)], 1), poses

    def poses(self, still: Tensor) -> Tensor:
        """Return the poses of settled images as first found, and as found again: (2, B, 3)."""
        first = self.pose(still)
        known = first.detach()
        return torch.stack([first, _composed(known, self.pose(_upright(still, known)))])


def _upright(images: Tensor, pose: Tensor) -> Tensor:
    """Read images at their poses; where a pose is not a number, nor is the image read."""
    return read_at(images, pose[:, 0], pose[:, 1:]) + 0 * pose.sum(1)[:, None, None]


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """Return the pose that undoes `first`, and then `second`, which is of what the first made."""
    shift = first[:, 1:] + (rotation(first[:, 0]) @ second[:, 1:, None])[..., 0]
    angle = first[:, :1] + second[:, :1]
    return torch.cat([angle, shift], 1).clamp(-_POSE_REACH, _POSE_REACH)


class Pose(nn.Module):
    """Tell how far images are turned and shifted.

        settled images (B, side, side) -> poses (B, 3)

    A pose is an angle in radians and a shift in half sides, to the right and down: where
    `transform.read_at` finds the image upright.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        super().__init__()
        grid = side // _HALF // (2 << len(widths))
        self.trunk = flips.Trunk(1, widths, (_POSE_DEPTH,) * len(widths), _POSE_EXPANSION)
        self.head = flips.PoseHead(widths[-1], grid, _POSE_HIDDEN)

    def forward(self, images: Tensor) -> Tensor:
        """Return the poses."""
        seen = evened(functional.avg_pool2d(images, _HALF), _POSE_WINDOW, _POSE_FLOOR)
        pose: Tensor = _POSE_UNIT * self.head(self.trunk(seen[:, None]))
        return pose.clamp(-_POSE_REACH, _POSE_REACH)


def settled(images: Tensor) -> Tensor:
    """Bring images to the exponent at which their bright parts are middling: (B, H, W) -> same.

    An image and what gamma made of it are about the same after it. Greys, from 0 at the darkest
    to 1, average 0.6 then, each weighted by the eighth power of its rank, which leaves a dark
    background and faint noise next to no say, and by how far it is from the brightest, so that
    parts that are white all over have none. Greys are read off averages of 4 x 4 pixels; the
    result is standardised.
    """
    coarse = functional.avg_pool2d(images, _AVERAGED)
    low = coarse.amin((1, 2), keepdim=True)
    span = (coarse.amax((1, 2), keepdim=True) - low).clamp_min(1e-6)
    exponent = _settling(((coarse - low) / span).flatten(1))[:, None, None]
    return restandardise(((images - low) / span).clamp(_DARKEST, 1) ** exponent)


def _settling(greys: Tensor) -> Tensor:
    """Return the exponents that bring greys to the average wanted: (B, N) in [0, 1] -> (B,).

    The average falls as the exponent grows; between those tried, it is interpolated.
    """
    ordered = greys.sort(1).values
    places = torch.arange(greys.shape[1], device=greys.device)
    rank = ((places + 0.5) / len(places)).to(greys)
    weights = rank**_RANK_POWER * ((1 - ordered) / _GLARE).clamp_max(1)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-30)
    least, greatest = map(math.log, _EXPONENTS)
    tried = torch.linspace(least, greatest, _TRIED, device=greys.device)
    logarithms = ordered.clamp_min(_DARKEST).log()
    raised = (logarithms[:, None] * tried.exp()[:, None]).exp()
    surplus = (raised @ weights[..., None])[..., 0] - _MIDDLING  # (B, tried)
    after = (surplus > 0).sum(1, keepdim=True).clamp(1, _TRIED - 1)
    above, below = surplus.gather(1, after - 1), surplus.gather(1, after)
    share = (above.clamp_min(0) / (above - below).clamp_min(1e-12)).clamp_max(1)
    exponent: Tensor = (tried[after - 1] + share * (tried[1] - tried[0])).exp()
    return exponent[:, 0]
