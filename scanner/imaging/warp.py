"""Deterministic transforms of image batches, on any device.

Images are (B, H, W), in and out. `augment` draws the parameters at random; the encoder's
canonicaliser and `registration` estimate them to undo a transform. Coordinates run from -1 to 1
over each axis, x to the right and y down.
"""

import torch
from torch import Tensor
from torch.nn import functional


def restandardise(images: Tensor) -> Tensor:
    """Bring each image back to mean 0 and standard deviation 1."""
    centred = images - images.mean((1, 2), keepdim=True)
    spread = centred.square().mean((1, 2), keepdim=True).sqrt()
    return centred / spread.clamp_min(1e-6)


def standardise_within(images: Tensor, weight: Tensor) -> Tensor:
    """Bring each image to mean 0 and standard deviation 1 where its weight is 1, and to 0 beyond.

    (B, H, W) twice -> (B, H, W)
    """
    total = weight.sum((1, 2), keepdim=True).clamp_min(1)
    centred = weight * (images - (weight * images).sum((1, 2), keepdim=True) / total)
    spread = (centred.square().sum((1, 2), keepdim=True) / total).sqrt()
    return centred / spread.clamp_min(1e-6)


def gamma(images: Tensor, exponent: Tensor) -> Tensor:
    """Raise each image, scaled to [0, 1] and back, to its exponent (B,)."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((images - low) / span).clamp(0, 1) ** exponent[:, None, None] * span + low


def rotation(angle: Tensor) -> Tensor:
    """Return the matrices (B, 2, 2) that rotate by `angle` (B,) radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def resample(
    images: Tensor,
    linear: Tensor,
    displacement: Tensor | None = None,
    dark: Tensor | None = None,
) -> Tensor:
    """Read each image at `linear` (B, 2, 2) of its coordinates plus `displacement`.

    Coordinates run from -1 to 1 over each axis, `displacement` (B, 2, H, W) is in them; beyond
    the border the border's value continues, as in the reference, or, in the images for which
    `dark` (B,) is true, the least value of all.
    """
    theta = torch.cat([linear, linear.new_zeros(len(linear), 2, 1)], -1)
    size = (len(images), 1, *images.shape[1:])
    grid = functional.affine_grid(theta, list(size), align_corners=False)
    if displacement is not None:
        grid = grid + displacement.permute(0, 2, 3, 1)
    read = read_grid(images[:, None], grid)[:, 0]
    if dark is None:
        return read
    outside = (grid.abs() > 1).any(-1) & dark[:, None, None]
    return torch.where(outside, images.amin((1, 2))[:, None, None], read)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own `sigma` (B,) in pixels, or all by one (1,)."""
    for dim in (1, 2):
        positions = torch.arange(images.shape[dim], device=images.device)
        distance = (positions[:, None] - positions)[None] / sigma[:, None, None]
        weights = torch.softmax(-0.5 * distance.square(), -1)
        images = weights @ images if dim == 1 else images @ weights.transpose(1, 2)
    return images


def normalise_local_contrast(
    images: Tensor, window: int, floor: float, weight: Tensor | None = None
) -> Tensor:
    """Subtract each pixel's local mean and divide by its local standard deviation.

    Local is within a square `window` pixels wide, as far as it lies inside; `floor` is added to
    the variance. Dark and bright tissue have about the same contrast after it. Pixels of `weight`
    0 (B, H, W) do not count, and are 0 afterwards.
    """
    if weight is None:
        mean = _local_mean(images, window)
        variance = _local_mean((images - mean).square(), window)
        return (images - mean) / (variance + floor).sqrt()
    share = _local_mean(weight, window).clamp_min(1e-3)
    mean = _local_mean(weight * images, window) / share
    variance = _local_mean(weight * (images - mean).square(), window) / share
    return weight * (images - mean) / (variance + floor).sqrt()


def _local_mean(images: Tensor, window: int) -> Tensor:
    """Average over the part of a square window that lies inside.

    Two matrix products, several times faster on a CPU than `avg_pool2d` with so wide a window.
    """
    rows, columns = (_averaging(length, window, images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _averaging(length: int, window: int, like: Tensor) -> Tensor:
    """Return the matrix (length, length) whose rows average a window clipped at the ends."""
    positions = torch.arange(length, device=like.device)
    near = (positions[:, None] - positions).abs() <= window // 2
    return near.to(like.dtype) / near.sum(1, keepdim=True)


def read_at(images: Tensor, angle: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
    """Read images at Ax + s for every pixel x; beyond the border its value continues.

    A rotates by angle (B,) radians and multiplies by scale (B,), where there is one; shift (B, 2)
    is to the right and down, in half sides.
    """
    return read_grid(images[:, None], sampling_grid(angle, shift, images.shape, scale))[:, 0]


def read_grid(images: Tensor, grid: Tensor) -> Tensor:
    """Read images (B, C, H, W) at a grid (B, h, w, 2); beyond the border its value continues."""
    return functional.grid_sample(images, grid, "bilinear", "border", align_corners=False)


def sampling_grid(
    angle: Tensor, shift: Tensor, shape: torch.Size, scale: Tensor | None = None
) -> Tensor:
    """Return where `read_at` reads images of a shape: (B, H, W, 2).

    The sums are written in place: reading images is most of what a registration costs.
    """
    y, x = (pixel_centres(length, angle) for length in shape[1:])
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    if scale is not None:
        cos, sin = scale[:, None] * cos, scale[:, None] * sin
    grid = x.new_empty(len(angle), *shape[1:], 2)
    torch.add((cos * x)[:, None], (shift[:, :1] - sin * y)[..., None], out=grid[..., 0])
    torch.add((sin * x)[:, None], (shift[:, 1:] + cos * y)[..., None], out=grid[..., 1])
    return grid


def pixel_centres(length: int, like: Tensor) -> Tensor:
    """Return the centres of `length` pixels between -1 and 1."""
    return (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * 2 / length - 1
