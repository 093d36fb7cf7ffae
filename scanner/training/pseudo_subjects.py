"""Pseudo-subjects: people that do not exist, made from one volume of real anatomy.

Each is a smooth random deformation of the volume with its own contrast, shading and noise; half of
them have a shell around it. Scans of two people differ about so after alignment.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.errors import DependencyMissing
from deepssim_scan.imaging.changes.augment import smooth_field
from deepssim_scan.imaging.warp import rotation

FILLED = {"sagittal": (0.18, 0.82), "coronal": (0.16, 0.84), "axial": (0.18, 0.74)}
"""Each axis with the fractions of it between which a head fills a slice."""

_OVERSAMPLING = 2  # points along a pixel's side that are averaged into it
_LATTICE = 32  # points a side at which a deformation is stored


def load_volume(path: Path) -> Tensor:
    """Read a NIfTI volume, its axes turned to right, anterior, superior: (X, Y, Z) in [0, 1]."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, dtype=np.float32)
    return _unit(torch.from_numpy(np.ascontiguousarray(values)))


def mni152() -> Tensor:
    """Return the MNI152 T1 template at 1 mm that nilearn carries: (197, 233, 189) in [0, 1].

    It is the average of 152 people (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033) and
    shows none of them. Raises DependencyMissing without nilearn.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise DependencyMissing(
            "nilearn, which carries the MNI152 template, is not installed. "
            "Install the extra: pip install 'deepssim-scan[cpu,demo]'"
        ) from error
    template = load_mni152_template(resolution=1)
    return _unit(torch.from_numpy(template.get_fdata(dtype=np.float32)))


def slices(
    volume: Tensor,
    axis: int,
    positions: Sequence[float],
    side: int,
    subject: Generator | None,
    *,
    shell: bool = True,
) -> Tensor:
    """Cut a volume, deformed into a pseudo-subject, across one axis.

        volume (X, Y, Z), positions (P,) as fractions of the axis -> (P, side, side) in [0, 1]

    Slices are square and as wide as the volume's longest axis, rows from superior (or anterior)
    to the opposite. The same state of the generator `subject` gives the same person on any axis
    and at any position; None gives the volume as it is. Half of the people get a `shell` in place
    of the scalp and skull that a template lacks.
    """
    grid = _plane_grid(volume, axis, positions, side * _OVERSAMPLING)
    if subject is not None:
        grid = grid + _deformation(subject, grid)
    sampled = functional.grid_sample(volume[None, None], grid[None], align_corners=False)[0]
    images = functional.avg_pool2d(sampled, _OVERSAMPLING)[0]
    return images if subject is None else _appearance(images, subject, shell=shell)


def projections(
    volume: Tensor,
    angles: Sequence[float],
    side: int,
    subject: Generator | None,
    *,
    shell: bool = True,
) -> Tensor:
    """Project a volume, deformed into a pseudo-subject, along parallel rays, as radiographs do.

        volume (X, Y, Z), angles (P,) in degrees around the third axis -> (P, side, side) in [0, 1]

    A pixel is the mean along its ray, scaled to the image's own range. Images are as wide as the
    volume's longest axis, their rows from superior to inferior. The same state of the
    generator `subject` gives the same person at any angle; None gives the volume as it is.
    """
    across = (torch.arange(side) + 0.5) * 2 / side - 1
    x, y, z = torch.meshgrid(across, across, across, indexing="ij")
    stretch = [max(volume.shape) / length for length in volume.shape]
    grid = torch.stack([z * stretch[2], y * stretch[1], x * stretch[0]], -1)
    if subject is not None:
        grid = grid + _deformation(subject, grid)
    body = functional.grid_sample(volume[None, None], grid[None], align_corners=False)[0, 0]
    turned = rotation(torch.deg2rad(torch.tensor(angles)))
    planes = body.permute(2, 0, 1)[None]  # (1, Z, X, Y)
    # A ray for each column; coordinates are y, x, as grid_sample wants them.
    rays = torch.stack(torch.meshgrid(across, across, indexing="ij"), -1).flip(-1)
    taken = [
        functional.grid_sample(planes, (rays @ turn)[None], align_corners=False)[0].mean(-1)
        for turn in turned
    ]
    images = _each_unit(torch.stack(taken).flip(1))
    return images if subject is None else _appearance(images, subject, shell=shell)


def _plane_grid(volume: Tensor, axis: int, positions: Sequence[float], side: int) -> Tensor:
    """Return where each pixel lies in the volume: (P, side, side, 3), coordinates z, y, x."""
    longest = max(volume.shape)
    across = (torch.arange(side) + 0.5) * 2 / side - 1
    column_axis, row_axis = (other for other in range(3) if other != axis)
    grid = torch.empty(len(positions), side, side, 3)
    grid[..., 2 - column_axis] = across * longest / volume.shape[column_axis]
    grid[..., 2 - row_axis] = -across[:, None] * longest / volume.shape[row_axis]
    grid[..., 2 - axis] = (torch.tensor(positions) * 2 - 1)[:, None, None]
    return grid


def _deformation(subject: Generator, grid: Tensor) -> Tensor:
    """Draw a subject's displacement at `grid`: stretch and shift, wide waves, narrow waves."""
    stretch = 0.05 * torch.randn(3, generator=subject)
    shift = 0.02 * torch.randn(3, generator=subject)
    wide = 0.045 * smooth_field(1, 3, 5, (_LATTICE,) * 3, subject)
    waves = wide + 0.025 * smooth_field(1, 3, 10, (_LATTICE,) * 3, subject)
    lattice = functional.avg_pool3d(waves, 5, 1, 2, count_include_pad=False)
    sampled = functional.grid_sample(
        lattice, grid[None], padding_mode="border", align_corners=False
    )
    return stretch * grid + shift + sampled[0].permute(1, 2, 3, 0)


def _appearance(images: Tensor, subject: Generator, *, shell: bool) -> Tensor:
    """Give a subject's scan its contrast, shading, shell and noise."""
    exponent, brightness, thickness, gap, shelled = torch.rand(5, generator=subject).tolist()
    shading = 1 + 0.12 * smooth_field(1, 1, 3, tuple(images.shape[1:]), subject)[0]
    noise = 0.01 * torch.randn(images.shape, generator=subject)
    images = images.clamp_min(0) ** (0.7 + 0.7 * exponent)
    if shell and shelled < 0.5:
        body = (images > 0.15).float()[:, None]
        inner = _grown(body, 1 + int(3 * gap))
        outer = _grown(body, 3 + int(3 * gap + 4 * thickness))
        images = images + ((outer - inner) * (0.3 + 0.7 * brightness))[:, 0]
    return _unit((images * shading + noise).clamp_min(0))


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """Grow a mask (P, 1, H, W) by some pixels on every side, with rounded corners."""
    for _ in range(pixels):
        mask = functional.max_pool2d(mask, 3, 1, 1)
        mask = (functional.avg_pool2d(mask, 3, 1, 1) > 0.34).float()
    return mask


def _each_unit(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-6)


def _unit(volume: Tensor) -> Tensor:
    return (volume - volume.min()) / (volume.max() - volume.min())
