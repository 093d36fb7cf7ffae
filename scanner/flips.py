"""A network that cannot see flips: ConvNeXt blocks that are equivariant to them.

    images (B, C, H, W) -> features (B, H', W', width): 4 orientations of width / 4 channels each
    -> embeddings (B, D), the same for an image and its three flips

Mirroring an image on one axis or both is a group of four elements, numbered 0 to 3: bit 0 mirrors
columns, bit 1 rows, and g ^ h is h after g. Every layer keeps four orientations of each feature
(Cohen and Welling 2016, arXiv:1602.07576): mirror the input, and the features are mirrored
and change places. So one pass gives what four passes over the four flips of an image would; the
head reads the features as each of the four and averages. It costs what an ordinary layer
of the same width does, with a quarter of the weights.

Sides must be multiples of 4 times 2 per further stage, so that strides fall alike from both ends.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

ORIENTATIONS = 4
_AFTER = torch.tensor([[g ^ h for h in range(ORIENTATIONS)] for g in range(ORIENTATIONS)])
# What becomes of an angle, a shift to the right and one down when an image is mirrored.
POSE_SIGNS = torch.tensor([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
_STEM = 8  # pixels across which a feature of the stem looks, 4 apart
_NARROW = 32  # features kept of each place of the grid that a head reads
_REACH = 7  # side of the depthwise kernels, as in ConvNeXt
_EPS = 1e-6


class _Layer(nn.Module):
    """A layer whose weights are written out for four orientations from a quarter of them.

    They are written out once, and again when a weight has changed or is to learn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: tuple[list[tuple[int, int]], list[Tensor]] = [], []

    def write_out(self) -> list[Tensor]:
        """Write the weights out."""
        raise NotImplementedError

    def written_out(self) -> list[Tensor]:
        """Return the weights as they are used."""
        if torch.is_grad_enabled():
            return self.write_out()
        state = [(each.data_ptr(), each._version) for each in self.parameters(recurse=False)]
        if state != self._known[0]:
            self._known = state, self.write_out()
        return self._known[1]


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
    """Project the grid of features as it is, as seen from each orientation, and average."""

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
        hidden = functional.relu_(self.hidden(_seen(self.narrow(features))))
        return self.out(hidden.mean(1))  # type: ignore[no-any-return]


class PoseHead(nn.Module):
    """Read a turn and a shift off the grid of features, which are mirrored where the image is."""

    def __init__(self, width: int, grid: int, hidden: int) -> None:
        super().__init__()
        narrow = min(width, _NARROW)
        self.narrow = _Pointwise(width, narrow)
        self.hidden = nn.Linear(narrow * grid**2, hidden)
        self.out = nn.Linear(hidden, 3, bias=False)  # what is mirrored with the image has none
        nn.init.trunc_normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.trunc_normal_(self.out.weight, std=0.3 * hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 3) for features (B, H, W, width): angle, shift right, shift down."""
        seen = self.out(functional.relu_(self.hidden(_seen(self.narrow(features)))))
        return (seen * POSE_SIGNS.to(seen)).mean(1)  # type: ignore[no-any-return]


def _seen(features: Tensor) -> Tensor:
    """Lay out features as each orientation sees them: (B, H, W, width) -> (B, 4, H * W * width)."""
    parts = features.unflatten(3, (ORIENTATIONS, -1))
    seen = [_mirror(parts[:, :, :, _AFTER[g]], g, 1, 2) for g in range(ORIENTATIONS)]
    return torch.stack(seen, 1).flatten(2)


class _Stem(_Layer):
    """Lift an image to four orientations: (B, C, H, W) -> (B, H / 4, W / 4, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = _weight(width // ORIENTATIONS, channels, _STEM, _STEM)
        self.bias = _bias(width)

    def write_out(self) -> list[Tensor]:
        return [_mirrored(self.weight), self.bias.repeat(ORIENTATIONS)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.written_out()
        padding = (_STEM - 4) // 2
        x = x.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, bias, 4, padding).permute(0, 2, 3, 1)


class _Block(_Layer):
    """A ConvNeXt block (arXiv:2201.03545) on (B, H, W, width), with ReLU, which costs least."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.weight = _weight(width // ORIENTATIONS, 1, _REACH, _REACH)
        self.bias = _bias(width)
        self.norm = _Norm(width)
        self.wide = _Pointwise(width, expansion * width)
        self.narrow = _Pointwise(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width // ORIENTATIONS,), 0.1))

    def write_out(self) -> list[Tensor]:
        return [_mirrored(self.weight), *(x.repeat(ORIENTATIONS) for x in (self.bias, self.scale))]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, scale = self.written_out()
        planes = x.permute(0, 3, 1, 2)
        seen = functional.conv2d(planes, weight, bias, padding=_REACH // 2, groups=x.shape[3])
        wide = functional.relu_(self.wide(self.norm(seen.permute(0, 2, 3, 1))))
        return torch.addcmul(x, self.narrow(wide), scale)


class _Halve(_Layer):
    """Halve the resolution: (B, H, W, width) -> (B, H / 2, W / 2, wider)."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.weight = _weight(wider // ORIENTATIONS, width, 2, 2)
        self.bias = _bias(wider)

    def write_out(self) -> list[Tensor]:
        weight = self.weight.unflatten(1, (ORIENTATIONS, -1))
        every = [_mirror(weight[:, _AFTER[g]], g, 3, 4) for g in range(ORIENTATIONS)]
        return [torch.cat(every).flatten(1, 2), self.bias.repeat(ORIENTATIONS)]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.written_out()
        return functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, 2).permute(0, 2, 3, 1)


class _Pointwise(_Layer):
    """A linear layer over the channels of (..., width), with no bias: a norm before it has one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = _weight(out // ORIENTATIONS, width)

    def write_out(self) -> list[Tensor]:
        weight = self.weight.unflatten(1, (ORIENTATIONS, -1))
        return [torch.cat([weight[:, order] for order in _AFTER]).flatten(1)]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, *self.written_out())


class _Norm(_Layer):
    """Layer norm over the channels of (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width // ORIENTATIONS)), _bias(width)

    def write_out(self) -> list[Tensor]:
        return [part.repeat(ORIENTATIONS) for part in (self.gain, self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = self.written_out()
        return functional.layer_norm(x, x.shape[-1:], gain, bias, _EPS)


def _weight(out: int, *fan_in: int) -> nn.Parameter:
    """Draw a layer's weight (out, *fan_in), so that its outputs vary about as its inputs do."""
    weight = torch.empty(out, *fan_in)
    return nn.Parameter(nn.init.trunc_normal_(weight, std=weight[0].numel() ** -0.5))


def _bias(width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(width // ORIENTATIONS))


def _mirrored(weight: Tensor) -> Tensor:
    """Return kernels (n, C, h, w) in the four orientations: (4n, C, h, w)."""
    return torch.cat([_mirror(weight, g, 2, 3) for g in range(ORIENTATIONS)])


def _mirror(x: Tensor, orientation: int, rows: int, columns: int) -> Tensor:
    """Mirror the axes `rows` and `columns` of a tensor as the orientation says."""
    axes = [axis for bit, axis in ((1, columns), (2, rows)) if orientation & bit]
    return x.flip(axes) if axes else x
