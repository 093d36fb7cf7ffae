"""The DeepSSIM encoder: standardised images in, unit-norm embeddings out.

Two trunks: ConvNeXt (arXiv:2201.03545) with torchvision's parameter names, so that
torchvision's weights and the reference's (arXiv:2509.16582) load as they are, and the one of
`flips`, which cannot see flips. Two heads:

- `pool`, the reference's: global average, BatchNorm, Linear, GELU, Dropout, Linear;
- `layout`, for small networks: the grid of features is kept when it is projected, since what
  tells a patient from a neighbour is where things are, and averaging throws that away.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepssim_scan import canonical, flips
from deepssim_scan.errors import InputError
from deepssim_scan.standardise import Standardisation

_INPUT_CHANNELS = {"local": 2, "repeat": 3}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of an encoder; with its weights, all that is needed to run it."""

    depths: tuple[int, ...] = (2, 3, 2)
    widths: tuple[int, ...] = (48, 96, 192)
    channels: Literal["local", "repeat"] = "local"
    head: Literal["layout", "pool"] = "layout"
    trunk: Literal["convnext", "flips"] = "convnext"
    expansion: int = 4
    pose: tuple[int, ...] = (32, 64, 64)
    dimension: int = 256
    standardisation: Standardisation = field(default_factory=Standardisation)

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(f"one width a stage: {self.depths} depths, {self.widths} widths")
        if min(*self.depths, *self.widths, self.expansion, self.dimension) < 1:
            raise ValueError(f"depths, widths, expansion and dimension must be >= 1: {self}")
        if self.channels not in _INPUT_CHANNELS or self.head not in _HEADS:
            raise ValueError(f"unknown channels {self.channels!r} or head {self.head!r}")
        if self.trunk not in ("convnext", "flips"):
            raise ValueError(f"unknown trunk {self.trunk!r}")
        if self.trunk == "flips":
            self._check_flips()
        if self.head == "layout" and self.standardisation.size is None:
            raise ValueError("the layout head needs a fixed input size, found none")
        if self.head == "layout" and self.grid < 1:
            raise InputError(
                f"{len(self.depths)} stages need images of 2^{len(self.depths) + 1} pixels a side "
                f"or more, found size {self.standardisation.size}"
            )

    def _check_flips(self) -> None:
        if self.head != "layout":
            raise ValueError(f"the flips trunk has a layout head, found {self.head!r}")
        if any(width % (4 * flips.ORIENTATIONS) for width in self.widths):
            raise ValueError(f"widths of the flips trunk are multiples of 16, found {self.widths}")
        if not self.pose or any(w < 1 or w % (4 * flips.ORIENTATIONS) for w in self.pose):
            raise ValueError(f"widths of the pose's trunk are multiples of 16, found {self.pose}")
        step = max(2 << len(self.depths), 4 << len(self.pose))  # a pose is read at half the size
        if (self.standardisation.size or 0) % step:
            raise InputError(
                f"{len(self.depths)} stages of the flips trunk and {len(self.pose)} of the pose's "
                f"need a size that is a multiple of {step}, found {self.standardisation.size}"
            )

    @property
    def grid(self) -> int:
        """Side of the last stage's grid of features, for an input of the standard size."""
        return (self.standardisation.size or 0) // (2 << len(self.depths))


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
    """A ConvNeXt block; `block` holds what torchvision's holds, at the same places."""

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


class Encoder(nn.Module):
    """Turn standardised images into embeddings whose inner product estimates SSIM."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.canonical: canonical.Canonical | None = None
        if architecture.trunk == "flips":
            size = architecture.standardisation.size or 0
            self.canonical = canonical.Canonical(architecture.pose, size)
            self.feature_extractor: nn.Module = flips.Trunk(
                canonical.CHANNELS,
                architecture.widths,
                architecture.depths,
                architecture.expansion,
            )
            width, dimension = architecture.widths[-1], architecture.dimension
            self.fc: nn.Module = flips.LayoutHead(width, architecture.grid, dimension)
        else:
            self.feature_extractor = _convnext(architecture)
            self.fc = _HEADS[architecture.head](architecture)
            self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images standardised as the architecture says: (B, 1, H, W) -> (B, D) unit norm."""
        return self.placed(images)[0]

    def placed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images, and say which poses (B, 3) were undone, where the architecture has any."""
        pose = None
        if self.canonical is not None:
            channels, pose = self.canonical(images)
        elif self.architecture.channels == "local":
            channels = torch.cat([images, canonical.evened(images, 17, 0.01)], dim=1)
        else:
            channels = images.expand(-1, _INPUT_CHANNELS["repeat"], -1, -1)
        return functional.normalize(self.fc(self.feature_extractor(channels))), pose


def embed(encoder: Encoder, images: Tensor, batch: int = 64) -> Tensor:
    """Embed standardised images in evaluation mode, on the encoder's device.

        images (N, H, W) float32 -> (N, D) float32 on the same device

    A row is not finite or not of unit norm where the network gave nothing that can be scored.
    """
    encoder.eval()
    with torch.inference_mode():
        return torch.cat([encoder(part[:, None]) for part in images.split(batch)])


def device_of(encoder: Encoder) -> str:
    """Return "cpu" or "cuda", where an encoder's weights are."""
    return next(encoder.parameters()).device.type


def pick_device(name: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises InputError for another name, or when CUDA is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, found {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device cuda was asked for, and torch finds none. Use --device cpu.")
    return "cuda" if name != "cpu" and available else "cpu"


def _convnext(architecture: Architecture) -> nn.Sequential:
    widths = architecture.widths
    stem = nn.Conv2d(_INPUT_CHANNELS[architecture.channels], widths[0], 4, stride=4)
    stages = [nn.Sequential(stem, _ChannelNorm(widths[0])), _stage(architecture, 0)]
    for number, (width, wider) in enumerate(pairwise(widths), 1):
        down = nn.Conv2d(width, wider, kernel_size=2, stride=2)
        stages += [nn.Sequential(_ChannelNorm(width), down), _stage(architecture, number)]
    return nn.Sequential(*stages)


def _stage(architecture: Architecture, number: int) -> nn.Sequential:
    width, depth = architecture.widths[number], architecture.depths[number]
    return nn.Sequential(*(_Block(width, architecture.expansion) for _ in range(depth)))


def _pool_head(architecture: Architecture) -> nn.Sequential:
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


def _layout_head(architecture: Architecture) -> nn.Sequential:
    width, narrow = architecture.widths[-1], max(1, architecture.widths[-1] // 4)
    hidden = architecture.dimension * 3 // 2
    return nn.Sequential(
        _ChannelNorm(width),
        nn.Conv2d(width, narrow, kernel_size=1),
        nn.Flatten(),
        nn.Linear(narrow * architecture.grid**2, hidden),
        nn.GELU(),
        nn.Linear(hidden, architecture.dimension),
    )


_HEADS = {"layout": _layout_head, "pool": _pool_head}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 if isinstance(module, nn.Conv2d) else 0.03)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


SMALL = Architecture()
REFERENCE = Architecture(
    depths=(3, 3, 27, 3),
    widths=(128, 256, 512, 1024),
    channels="repeat",
    head="pool",
    standardisation=Standardisation(size=None),
)
ARCHITECTURES = {"small": SMALL, "base": REFERENCE}
