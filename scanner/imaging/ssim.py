"""Structural similarity (SSIM), batched: of pairs, and of every image with every other.

The definition is that of `skimage.metrics.structural_similarity` with its defaults, which is
the target that the reference trains on (arXiv:2509.16582; Wang et al. 2004,
doi:10.1109/TIP.2003.819861): a uniform 7x7 window at every position that lies inside the
image, sample covariance, K1 = 0.01, K2 = 0.03, mean over the positions.

Covariances are sums of products of deviations from each window's own mean. In float32 the shorter
E[xy] - E[x]E[y] is off by more than 1e-5 on a constant patch at the end of the range, which
`tests/test_ssim.py` does not allow.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

WINDOW = 7
K1, K2 = 0.01, 0.03
_AREA = WINDOW * WINDOW
_PAIR_PIXELS = 1 << 19  # pixels of pairs worked on at once: what stays in a processor's cache
_MATRIX_FLOATS = 1 << 24  # floats of one block of windows in `ssim_matrix`: 64 MB


def image_range(images: Tensor) -> Tensor:
    """Return max - min of each image, the reference's `data_range`: (B, H, W) -> (B,)."""
    return images.amax((-2, -1)) - images.amin((-2, -1))


def ssim(
    first: Tensor,
    second: Tensor,
    data_range: Tensor | float,
    inside: Tensor | None = None,
) -> Tensor:
    """Return the SSIM of pairs of images.

        first, second (B, H, W) float, data_range scalar or (B,) -> (B,) in [-1, 1]

    With `inside` (B, H, W) bool, the mean is over the windows of which all pixels are inside; NaN
    where there is none.

    `data_range` is the distance from the least to the greatest possible value; the reference
    takes `image_range(first)`. Equal to skimage within 1e-5 in float32.

    Raises ValueError when shapes differ, a side is under 7, or a range is not positive.
    """
    if first.shape != second.shape:
        raise ValueError(f"a pair has one shape, found {_shape(first)} and {_shape(second)}")
    ranges = _checked_range(first, data_range)
    step = max(1, _PAIR_PIXELS // first[0].numel()) if len(first) else 1
    chunks = zip(first.split(step), second.split(step), ranges.split(step), strict=True)
    if inside is None:
        return torch.cat([_pair_map(*chunk).mean((1, 2)) for chunk in chunks])
    whole = [_whole_windows(chunk) for chunk in inside.split(step)]
    sums = [(_pair_map(*c) * w).sum((1, 2)) for c, w in zip(chunks, whole, strict=True)]
    return torch.cat(sums) / torch.cat([each.sum((1, 2)) for each in whole])


def ssim_matrix(
    first: Tensor, second: Tensor, data_range: Tensor | float, *, stride: int = 1
) -> Tensor:
    """Return the SSIM of every image of `first` with every image of `second`.

        first (A, H, W), second (B, H, W) float, data_range scalar or (A,) -> (A, B)

    One matrix product a window, which for many images a side is faster than `ssim` on the same
    pairs. `data_range` belongs to the images of `first`. A `stride` above 1 takes every
    stride-th window on each axis: an estimate, good enough for a training target.

    Raises ValueError as `ssim` does.
    """
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"images have one size, found {_shape(first)} and {_shape(second)}")
    c1, c2 = _constants(_checked_range(first, data_range)[:, None])
    total, count = first.new_zeros(len(first), len(second)), 0
    for x, y in _window_blocks(first, second, stride):
        mean_x, mean_y = x.mean(-1), y.mean(-1)
        x, y = x - mean_x[..., None], y - mean_y[..., None]
        covariance = x @ y.transpose(1, 2)
        variances = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
        means = mean_x[:, :, None], mean_y[:, None]
        total += _similarity(*means, covariance, variances, c1, c2).sum(0)
        count += len(x)
    return total / count


def _window_blocks(first: Tensor, second: Tensor, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the windows of some rows: (P, A, 49) and (P, B, 49)."""
    x, y = (
        images.unfold(1, WINDOW, stride).unfold(2, WINDOW, stride) for images in (first, second)
    )
    a, b, columns = len(x), len(y), x.shape[2]
    rows = max(1, _MATRIX_FLOATS // (columns * (a * b + _AREA * (a + b))))
    for start in range(0, x.shape[1], rows):
        blocks = (w[:, start : start + rows].flatten(1, 2).flatten(2) for w in (x, y))
        yield tuple(block.transpose(0, 1) for block in blocks)  # type: ignore[misc]


def _pair_map(x: Tensor, y: Tensor, data_range: Tensor) -> Tensor:
    """Return the similarity of each window: (B, H, W) twice, (B,) -> (B, H - 6, W - 6).

    Deviations are added up along the rows, then the rows' means along the columns, which is
    the sum of squares between and within groups: 14 steps a window instead of 49.
    """
    row_x, row_y = (_window_sum(image, -1) / WINDOW for image in (x, y))
    within = _deviation_products(x, y, row_x, row_y, -1)
    mean_x, mean_y = (_window_sum(row, -2) / WINDOW for row in (row_x, row_y))
    between = _deviation_products(row_x, row_y, mean_x, mean_y, -2)
    covariance, variances = (
        _window_sum(inner, -2) + WINDOW * outer
        for inner, outer in zip(within, between, strict=True)
    )
    c1, c2 = _constants(data_range[:, None, None])
    return _similarity(mean_x, mean_y, covariance, variances, c1, c2)


def _whole_windows(inside: Tensor) -> Tensor:
    """Return 1 for each window all of whose pixels are inside, else 0: (B, H - 6, W - 6)."""
    return (_window_sum(_window_sum(inside.float(), -1), -2) == _AREA).float()


def _deviation_products(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Return the sums over each window of dx * dy and of dx^2 + dy^2, along one axis."""
    cross, squares = torch.zeros_like(mean_x), torch.zeros_like(mean_x)
    for offset in range(WINDOW):
        dx, dy = (
            image.narrow(dim, offset, mean.shape[dim]) - mean
            for image, mean in ((x, mean_x), (y, mean_y))
        )
        cross.addcmul_(dx, dy)
        squares.addcmul_(dx, dx).addcmul_(dy, dy)
    return cross, squares


def _window_sum(images: Tensor, dim: int) -> Tensor:
    """Sum each run of 7 along one axis, which shortens it by 6."""
    length = images.shape[dim] - WINDOW + 1
    total = images.narrow(dim, 0, length).clone()
    for offset in range(1, WINDOW):
        total += images.narrow(dim, offset, length)
    return total


def _similarity(
    mean_x: Tensor, mean_y: Tensor, covariance: Tensor, variances: Tensor, c1: Tensor, c2: Tensor
) -> Tensor:
    """Return the SSIM of windows; `covariance` and `variances` are sums over a window."""
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    freedom = _AREA - 1
    return luminance * (2 / freedom * covariance + c2) / (variances / freedom + c2)


def _constants(data_range: Tensor) -> tuple[Tensor, Tensor]:
    return (K1 * data_range).square(), (K2 * data_range).square()


def _checked_range(images: Tensor, data_range: Tensor | float) -> Tensor:
    """Return the range of each image as (B,), after checking it and the images' shape."""
    if images.ndim != 3 or min(images.shape[1:]) < WINDOW:
        raise ValueError(f"images must be (B, H, W) with sides >= {WINDOW}, found {_shape(images)}")
    ranges = torch.as_tensor(data_range, dtype=images.dtype, device=images.device)
    if not bool((ranges > 0).all()):
        raise ValueError(f"data_range must be > 0, found {ranges.min().item():g}")
    return ranges.expand(len(images))


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape))
