"""The DeepSSIM encoder: standardised images in, unit-norm embeddings out.

Two networks:

- `flips`, ours: images are brought to one contrast and one pose (`canonical`), then a small trunk
  that cannot see flips, and a head that keeps the grid of features when it projects it, since
  what tells a patient from a neighbour is where things are (`flips`);
- `convnext`, the reference's (arXiv:2509.16582): ConvNeXt (arXiv:2201.03545) with torchvision's
  parameter names, so that torchvision's weights and the reference's load as they are, then a
  global average, BatchNorm, Linear, GELU, Dropout, Linear.
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

_COLOURS = 3  # channels of the reference's input


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of an encoder; with its weights, all that is needed to run it.

    `expansion` is how much wider a block is inside than outside, `pose` are the widths of the
    network that reads poses, which only `flips` has.
    """

    trunk: Literal["flips", "convnext"] = "flips"
    depths: tuple[int, ...] = (1, 3, 3)
    widths: tuple[int, ...] = (48, 96, 192)
    pose: tuple[int, ...] = (32, 64, 64)
    expansion: int = 2
    dimension: int = 256
    standardisation: Standardisation = field(default_factory=Standardisation)

    def __post_init__(self) -> None:
        if self.trunk not in ("flips", "convnext"):
            raise ValueError(f"unknown trunk {self.trunk!r}")
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(f"one width a stage: {self.depths} depths, {self.widths} widths")
        if min(*self.depths, *self.widths, self.expansion, self.dimension) < 1:
            raise ValueError(f"depths, widths, expansion and dimension must be >= 1: {self}")
        if self.trunk == "flips":
            self._check_flips()
        else:
            self._check_convnext()

    def _check_flips(self) -> None:
        step = 4 * flips.ORIENTATIONS
        for what, widths in (("the trunk", self.widths), ("the pose", self.pose)):
            if not widths or any(width < 1 or width % step for width in widths):
                raise ValueError(f"widths of {what} are multiples of {step}, found {widths}")
        size = self.standardisation.size
        if size is None:
            raise ValueError("the flips trunk needs a fixed input size, found none")
        least = max(self.least_side, 4 << len(self.pose))  # a pose is read at half the size
        if size % least:
            raise InputError(
                f"found size {size}, where {len(self.depths)} stages of the trunk and "
                f"{len(self.pose)} of the pose need a multiple of {least}"
            )

    def _check_convnext(self) -> None:
        size, least = self.standardisation.size, self.least_side
        if self.pose:
            raise ValueError(f"the convnext trunk reads no poses, found widths {self.pose}")
        if size is not None and size < least:
            raise InputError(f"{len(self.depths)} stages need a size >= {least}, found {size}")

    @property
    def least_side(self) -> int:
        """The fewest pixels a side that leave one place of the last stage's grid."""
        return 2 << len(self.depths)


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
        self.architecture = shape = architecture
        size = shape.standardisation.size
        self.canonical: canonical.Canonical | None = None
        self.feature_extractor: nn.Module
        self.fc: nn.Module
        if shape.trunk == "flips" and size is not None:
            self.canonical = canonical.Canonical(shape.pose, size)
            self.feature_extractor = flips.Trunk(
                canonical.CHANNELS, shape.widths, shape.depths, shape.expansion
            )
            grid = size // (2 << len(shape.depths))
            self.fc = flips.LayoutHead(shape.widths[-1], grid, shape.dimension)
        else:
            self.feature_extractor = _convnext(shape)
            self.fc = _head(shape)
            self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images standardised as the architecture says: (B, 1, H, W) -> (B, D) unit norm."""
        return self.placed(images)[0]

    def placed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images, and say which poses (2, B, 3) were found, where there are any."""
        channels, poses = images.expand(-1, _COLOURS, -1, -1), None
        if self.canonical is not None:
            channels, poses = self.canonical(images[:, 0])
        return functional.normalize(self.fc(self.feature_extractor(channels))), poses


def embed(encoder: Encoder, images: Tensor, batch: int = 64) -> Tensor:
    """Embed standardised images in evaluation mode, on the encoder's device.

        images (N, H, W) float32 -> (N, D) float32 on the same device

    A row is not finite or not of unit norm where the network gave nothing that can be scored.
    """
    encoder.eval()
    if not len(images):
        return images.new_empty(0, encoder.architecture.dimension)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat([encoder(part[:, None]) for part in images.split(batch)])


def device_of(encoder: Encoder) -> torch.device:
    """Return where an encoder's weights are."""
    return next(encoder.parameters()).device


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
    stem = nn.Conv2d(_COLOURS, widths[0], 4, stride=4)
    stages = [nn.Sequential(stem, _ChannelNorm(widths[0])), _stage(architecture, 0)]
    for number, (width, wider) in enumerate(pairwise(widths), 1):
        down = nn.Conv2d(width, wider, kernel_size=2, stride=2)
        stages += [nn.Sequential(_ChannelNorm(width), down), _stage(architecture, number)]
    return nn.Sequential(*stages)


def _stage(architecture: Architecture, number: int) -> nn.Sequential:
    width, depth = architecture.widths[number], architecture.depths[number]
    return nn.Sequential(*(_Block(width, architecture.expansion) for _ in range(depth)))


def _head(architecture: Architecture) -> nn.Sequential:
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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 if isinstance(module, nn.Conv2d) else 0.03)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


SMALL = Architecture()
REFERENCE = Architecture(
    trunk="convnext",
    depths=(3, 3, 27, 3),
    widths=(128, 256, 512, 1024),
    pose=(),
    expansion=4,
    standardisation=Standardisation(size=None),
)
ARCHITECTURES = {"small": SMALL, "base": REFERENCE}
