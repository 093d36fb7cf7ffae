"""Where an image is read so that it lies on another one: flips and poses, and their refinement.

synthetic, training (P, h, w) features, Pose -> a better Pose, and the correlation (P,) at it
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.warp import pixel_centres, read_at, rotation

_MAX_STEP = 0.1  # radians, logarithms of scale, and shares of half the side, of one step
_FARTHEST, _STEEPEST = 0.5, 0.4  # half sides and radians that no step exceeds: enough of the two
# images must overlap for their similarity to mean something
_LARGEST = 0.25  # logarithm of the scale that no step exceeds


@dataclass(frozen=True, slots=True)
class Pose:
    """Where images are read: Ax + s, where A rotates by angle (P,) radians and grows by scale (P,).

    shift (P, 2) is to the right and down, in half sides.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor

    def at(self, index: Tensor) -> "Pose":
        """Return the poses with an index."""
        return Pose(self.angle[index], self.scale[index], self.shift[index])

    def put(self, index: Tensor, poses: "Pose") -> None:
        """Put poses at an index in their place."""
        for name in ("angle", "scale", "shift"):
            getattr(self, name)[index] = getattr(poses, name)


def flipped(images: Tensor, flip: Tensor) -> Tensor:
    """Flip each image (P, ..., H, W) as its flip (P,) says."""
    one = (-1, *[1] * (images.ndim - 1))
    columns, rows = ((flip & bit > 0).view(one) for bit in (1, 2))
    images = torch.where(columns, images.flip(-1), images)
    return torch.where(rows, images.flip(-2), images)


def refine(synthetic: Tensor, training: Tensor, pose: Pose, steps: int) -> tuple[Pose, Tensor]:
    """Improve poses (P,) by Gauss-Newton steps, and return them with the correlation (P,).

    The derivatives of the training image are used in place of the synthetic one's, so that they
    and the normal matrix are computed once.
    """
    solve, wanted = _gauss_newton(training), training.flatten(1)
    for _ in range(steps):
        read = read_at(synthetic, pose.angle, pose.shift, pose.scale).flatten(1)
        gain = (read * wanted).sum(1) / read.square().sum(1).clamp_min(1e-6)
        step = (solve @ (gain[:, None] * read - wanted)[..., None])[..., 0]
        pose = _moved(pose, step.clamp(-_MAX_STEP, _MAX_STEP))
    read = read_at(synthetic, pose.angle, pose.shift, pose.scale).flatten(1)
    return pose, functional.cosine_similarity(read, wanted)


def _gauss_newton(training: Tensor) -> Tensor:
    """Return what turns a difference into a step: (P, 4, H W), for angle, scale and shift."""
    height, width = training.shape[1:]
    down, right = torch.gradient(training, dim=(1, 2))
    right, down = right * (width / 2), down * (height / 2)
    y, x = pixel_centres(height, training)[:, None], pixel_centres(width, training)
    slopes = [down * x - right * y, right * x + down * y, right, down]
    stacked = torch.stack(slopes, 1).flatten(2)
    ridge = 1e-3 * torch.eye(len(slopes), device=training.device)
    solve: Tensor = torch.linalg.inv(stacked @ stacked.mT + ridge) @ stacked
    return solve


def _moved(pose: Pose, step: Tensor) -> Pose:
    """Compose poses with the inverse of a step (P, 4)."""
    shrink = (-step[:, 1]).exp()
    back = -shrink[:, None, None] * (rotation(-step[:, 0]) @ step[:, 2:, None])
    linear = rotation(pose.angle) * pose.scale[:, None, None]
    limit = math.exp(_LARGEST)
    return Pose(
        (pose.angle - step[:, 0]).clamp(-_STEEPEST, _STEEPEST),
        (pose.scale * shrink).clamp(1 / limit, limit),
        (pose.shift + (linear @ back)[..., 0]).clamp(-_FARTHEST, _FARTHEST),
    )
