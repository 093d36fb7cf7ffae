"""The DeepSSIM encoder: standardised images in, unit-norm embeddings out.

Two networks:

- `flips`, ours: images are canonicalised (`canonicalise`), then go through a small trunk that is
  invariant to flips, and a head that projects the whole grid of features, since what tells two
  people apart is where things are (`equivariant`).
- `convnext`, the reference's (arXiv:2509.16582): ConvNeXt (arXiv:2201.03545) with torchvision's
  parameter names, so that torchvision's weights and the reference's load as they are, then a
  global average, BatchNorm, Linear, GELU, Dropout, Linear (`convnext`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepssim_scan.encoder import canonicalise, convnext, equivariant
from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.imaging.devices import batches

_BATCH, _CUDA_BATCH = 16, 64  # images that are embedded at once; more are no faster


class Encoder(nn.Module):
    """Embeds standardised images so that the inner product of two embeddings estimates SSIM."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = shape = architecture
        size = shape.standardisation.size
        self.canonical: canonicalise.Canonicaliser | None = None
        self.feature_extractor: nn.Module
        self.fc: nn.Module
        if shape.trunk == "flips" and size is not None:
            self.canonical = canonicalise.Canonicaliser(shape, size)
            self.feature_extractor = equivariant.Trunk(
                canonicalise.CHANNELS, shape.widths, shape.depths, shape.expansion
            )
            grid = size // shape.least_side
            self.fc = equivariant.LayoutHead(shape.widths[-1], grid, shape.dimension)
        else:
            self.feature_extractor = convnext.trunk(shape)
            self.fc = convnext.head(shape)
            self.apply(convnext.initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images standardised as the architecture says: (B, 1, H, W) -> (B, D) unit norm."""
        return self.with_pose(images)[0]

    def with_pose(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images, and return their poses (B, 3 or 4), None without a canonicaliser."""
        return self.of_normalised(self.normalised(images[:, 0]))

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise what an orientation does not change: (B, H, W) -> (B, H, W)."""
        return images if self.canonical is None else self.canonical.normalised(images)

    def of_normalised(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed normalised images (B, H, W), and return their poses as well."""
        if self.canonical is None:
            channels, pose = images[:, None].expand(-1, convnext.CHANNELS, -1, -1), None
        else:
            channels, pose = self.canonical.of_normalised(images)
        return functional.normalize(self.fc(self.feature_extractor(channels))), pose


def embed(encoder: Encoder, images: Tensor) -> Tensor:
    """Embed standardised images in evaluation mode, on the encoder's device.

        images (N, H, W) float32 -> (N, D) float32 on the same device

    A row that is not finite, or not of unit norm, cannot be scored: the network failed on it.
    """
    return embed_turned(encoder, images, (0,))[:, 0]


def embed_turned(encoder: Encoder, images: Tensor, turns: Sequence[int]) -> Tensor:
    """Embed images as `embed` does, after each number of quarter turns: (N, len(turns), D)."""
    encoder.eval()
    if not len(images):
        return images.new_empty(0, len(turns), encoder.architecture.dimension)
    size = _BATCH if images.device.type == "cpu" else _CUDA_BATCH
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), exact, equivariant.written_out(encoder):
        parts = [_turned(encoder, batch, turns) for batch in batches(images, size)]
        return torch.cat(parts)[: len(images)]


def _turned(encoder: Encoder, images: Tensor, turns: Sequence[int]) -> Tensor:
    normalised = encoder.normalised(images)
    every = (torch.rot90(normalised, turn, (1, 2)) for turn in turns)
    return torch.stack([encoder.of_normalised(each)[0] for each in every], 1)


def device_of(encoder: Encoder) -> torch.device:
    """Return where an encoder's weights are."""
    return next(encoder.parameters()).device
