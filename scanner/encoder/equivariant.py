"""A network that is invariant to flips: ConvNeXt blocks (arXiv:2201.03545) equivariant to them.

    images (B, C, H, W) -> features (B, H', W', width): 4 orientations of width / 4 channels each
    -> embeddings (B, D), the same for an image and its three flips

The flips of an image on one axis or both are a group of four orientations, numbered 0 to 3: bit 0
mirrors columns, bit 1 rows, and g ^ h is h after g. Every layer keeps four orientations of each
feature (Cohen and Welling 2016, arXiv:1602.07576): when the input is flipped, the features are
flipped and change places. So one pass gives what four passes over the four flips would; the head
reads the features as each of the four and averages. A layer costs what an ordinary one of the same
width does, with a quarter of the weights.

Sides must be multiples of 4 times 2 per further stage, so that strides fall alike from both ends.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepssim_scan.encoder.architecture import ORIENTATIONS

POSE_SIGNS = torch.tensor([[1, 1, 1, 1], [-1, -1, 1, 1], [-1, 1, -1, 1], [1, -1, -1, 1]])
"""Signs of an angle, a shift to the right, one down, and a scale in each orientation: (4, 4)."""

_STEM = 8  # pixels across which a feature of the stem looks, 4 apart
_NARROW = 32  # channels that a head keeps of each position of the grid
_REACH = 7  # side of the depthwise kernels, as in ConvNeXt
_EPS = 1e-6


class _Layer(nn.Module):
    """A layer whose weights are written out for four orientations from a quarter of them.

    They are written out at every call, or once for a block of `written_out`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] | None = None

    def write_out(self) -> list[Tensor]:
        """Write the weights out."""
        raise NotImplementedError

    def in_full(self) -> list[Tensor]:
        """Return the weights as they are used."""
        return self.write_out() if self.held is None else self.held


@contextmanager
def written_out(network: nn.Module) -> Iterator[None]:
    """Write the weights of a network out once for all that the block computes with them.

    Inside the block the weights must stay as they are, and where they are. A block within another
    one of the same network does nothing.
    """
    layers = [each for each in network.modules() if isinstance(each, _Layer) and each.held is None]
    for layer in layers:
        layer.held = layer.write_out()
    try:
        yield
    finally:
        for layer in layers:
            layer.held = None


class Trunk(nn.Sequential):
    """Stages of blocks, each stage at half the resolution of the one before, the first at 1/4."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], depths: tuple[int, ...], expansion: int
    ) -> None:
        stages: list[nn.Module] = [_Stem(channels, widths[0]), _Norm(widths[0])]
        stages += [_Block(widths[0], expansion) for _ in range(depths[0])]
        for (width, wider), depth in zip(pairwise(widths), depths[1:], strict=True):
            stages += [_Norm(width), _Halve(width, wider)]
            stages += [_Block(wider, expansion) for _ in range(depth)]
        super().__init__(*stages, _Norm(widths[-1]))


class LayoutHead(nn.Module):
    """Project the whole grid of features, in each orientation, and average: nothing is pooled."""

    def __init__(self, width: int, grid: int, dimension: int) -> None:
        super().__init__()
        narrow, hidden = min(width, _NARROW), 3 * dimension
        self.narrow = _Pointwise(width, narrow)
        self.hidden = nn.Linear(narrow * grid**2, hidden)
        self.out = nn.Linear(hidden, dimension)
        nn.init.trunc_normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.trunc_normal_(self.out.weight, std=hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, dimension) for features (B, H, W, width)."""
        hidden = functional.relu_(self.hidden(_by_orientation(self.narrow(features))))
        return self.out(hidden.mean(1))  # type: ignore[no-any-return]


class PoseHead(nn.Module):
    """Estimate an angle, a shift and a scale from the grid of features; a flip flips them.

    `count` is 3 without the scale, 4 with it.
    """

    def __init__(self, width: int, grid: int, hidden: int, count: int) -> None:
        super().__init__()
        narrow = min(width, _NARROW)
        self.narrow = _Pointwise(width, narrow)
        self.hidden = nn.Linear(narrow * grid**2, hidden)
        # A bias would not change its sign with a flip.
        self.out = nn.Linear(hidden, count, bias=False)
        nn.init.trunc_normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.trunc_normal_(self.out.weight, std=0.3 * hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, count) for features (B, H, W, width): angle, shift right and down, scale."""
        found = self.out(functional.relu_(self.hidden(_by_orientation(self.narrow(features)))))
        signs = POSE_SIGNS[:, : found.shape[2]].to(found)
        return (found * signs).mean(1)  # type: ignore[no-any-return]


def _by_orientation(features: Tensor) -> Tensor:
    """Lay out features as each orientation sees them: (B, H, W, width) -> (B, 4, H * W * width)."""
    parts = features.chunk(ORIENTATIONS, 3)
    every = [_mirror(_after(parts, g, 3), g, 1, 2) for g in range(ORIENTATIONS)]
    return torch.stack(every, 1).flatten(2)


class _Stem(_Layer):
    """Lift an image to four orientations: (B, C, H, W) -> (B, H / 4, W / 4, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = _weight(width // ORIENTATIONS, channels, _STEM, _STEM)
        self.bias = _bias(width)

    def write_out(self) -> list[Tensor]:
        return [_mirrored(self.weight), _repeated(self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_full()
        padding = (_STEM - 4) // 2
        x = x.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, bias, 4, padding).permute(0, 2, 3, 1)


class _Block(_Layer):
    """A ConvNeXt block on (B, H, W, width), with ReLU, which is the fastest activation."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.weight = _weight(width // ORIENTATIONS, 1, _REACH, _REACH)
        self.bias = _bias(width)
        self.norm = _Norm(width)
        self.wide = _Pointwise(width, expansion * width)
        self.narrow = _Pointwise(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width // ORIENTATIONS,), 0.1))

    def write_out(self) -> list[Tensor]:
        return [_mirrored(self.weight), _repeated(self.bias), _repeated(self.scale)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, scale = self.in_full()
        planes = x.permute(0, 3, 1, 2)
        found = functional.conv2d(planes, weight, bias, padding=_REACH // 2, groups=x.shape[3])
        wide = functional.relu_(self.wide(self.norm(found.permute(0, 2, 3, 1))))
        return torch.addcmul(x, self.narrow(wide), scale)


class _Halve(_Layer):
    """Halve the resolution: (B, H, W, width) -> (B, H / 2, W / 2, wider)."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.weight = _weight(wider // ORIENTATIONS, width, 2, 2)
        self.bias = _bias(wider)

    def write_out(self) -> list[Tensor]:
        parts = self.weight.chunk(ORIENTATIONS, 1)
        every = [_mirror(_after(parts, g, 1), g, 2, 3) for g in range(ORIENTATIONS)]
        return [torch.cat(every), _repeated(self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_full()
        return functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, 2).permute(0, 2, 3, 1)


class _Pointwise(_Layer):
    """A linear layer over the channels of (B, H, W, width), with no bias: a norm before it has one.

    As a convolution it is faster than as a product of matrices on many CPUs.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = _weight(out // ORIENTATIONS, width)

    def write_out(self) -> list[Tensor]:
        parts = self.weight.chunk(ORIENTATIONS, 1)
        return [torch.cat([_after(parts, g, 1) for g in range(ORIENTATIONS)])]

    def forward(self, x: Tensor) -> Tensor:
        (weight,) = self.in_full()
        return functional.conv2d(x.permute(0, 3, 1, 2), weight[..., None, None]).permute(0, 2, 3, 1)


class _Norm(_Layer):
    """Layer norm over the channels of (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width // ORIENTATIONS)), _bias(width)

    def write_out(self) -> list[Tensor]:
        return [_repeated(self.gain), _repeated(self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = self.in_full()
        return functional.layer_norm(x, x.shape[-1:], gain, bias, _EPS)


def _weight(out: int, *fan_in: int) -> nn.Parameter:
    """Draw a layer's weight (out, *fan_in), so that its outputs vary about as its inputs do."""
    weight = torch.empty(out, *fan_in)
    return nn.Parameter(nn.init.trunc_normal_(weight, std=weight[0].numel() ** -0.5))


def _bias(width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(width // ORIENTATIONS))


def _repeated(values: Tensor) -> Tensor:
    """Return the values (n,) of one orientation for each: (4n,)."""
    return values.expand(ORIENTATIONS, -1).flatten()


def _after(parts: Sequence[Tensor], orientation: int, dim: int) -> Tensor:
    """Join the parts of four orientations along `dim`, in the order that `orientation` sees."""
    return torch.cat([parts[orientation ^ each] for each in range(ORIENTATIONS)], dim)


def _mirrored(weight: Tensor) -> Tensor:
    """Return kernels (n, C, h, w) in the four orientations: (4n, C, h, w)."""
    return torch.cat([_mirror(weight, g, 2, 3) for g in range(ORIENTATIONS)])


def _mirror(x: Tensor, orientation: int, rows: int, columns: int) -> Tensor:
    """Mirror the axes `rows` and `columns` of a tensor as the orientation says."""
    axes = [axis for bit, axis in ((1, columns), (2, rows)) if orientation & bit]
    return x.flip(axes) if axes else x
