"""The reference's network (arXiv:2509.16582): ConvNeXt (arXiv:2201.03545) and its head.

Parameter names are torchvision's, so that its weights and the reference's load as they are.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from deepssim_scan.encoder.architecture import Architecture

CHANNELS = 3  # of the reference's input


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class _Block(nn.Module):
    """A ConvNeXt block; `block` holds the layers of torchvision's, in the same order."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width),
            _Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
            _Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.block(x)  # type: ignore[no-any-return]


def trunk(architecture: Architecture) -> nn.Sequential:
    widths = architecture.widths
    stem = nn.Conv2d(CHANNELS, widths[0], 4, stride=4)
    stages = [nn.Sequential(stem, _ChannelNorm(widths[0])), _stage(architecture, 0)]
    for number, (width, wider) in enumerate(pairwise(widths), 1):
        down = nn.Conv2d(width, wider, kernel_size=2, stride=2)
        stages += [nn.Sequential(_ChannelNorm(width), down), _stage(architecture, number)]
    return nn.Sequential(*stages)


def _stage(architecture: Architecture, number: int) -> nn.Sequential:
    width, depth = architecture.widths[number], architecture.depths[number]
    return nn.Sequential(*(_Block(width, architecture.expansion) for _ in range(depth)))


def head(architecture: Architecture) -> nn.Sequential:
    """The reference's head, layer by layer, so that its weights find their names."""
    width, hidden = architecture.widths[-1], architecture.widths[-1] // 2
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.BatchNorm1d(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(0.33),
        nn.Linear(hidden, architecture.dimension),
    )


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 if isinstance(module, nn.Conv2d) else 0.03)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
