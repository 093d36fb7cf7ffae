"""A smaller encoder that begins near a larger one, so that training has less to do.

    a larger encoder, images -> an encoder of another architecture

The smaller one averages images over squares first, and has no stage at a quarter of the
resolution. Its poses and its head are those of the larger one, and its blocks are blocks of it. The
stem is the linear map that comes nearest to what the larger one has before its second stage.
"""

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.encoder.equivariant import Trunk
from deepssim_scan.encoder.network import Encoder

SAME = {2: 5, 3: 6, 4: 8, 5: 9, 6: 10, 7: 11, 8: 13}
"""Layers of the smaller trunk, (2, 2) blocks deep, and those of the larger, (1, 3, 3) deep."""

SECOND = 5  # the layer of the larger trunk with which its second stage begins
STRIDE, PADDING = 4, 2  # pixels, of a stem
RIDGE = 1e-3


@torch.no_grad()
def smaller(larger: Encoder, shape: Architecture, images: Tensor) -> Encoder:
    """Make an encoder of `shape`, near another one on images (N, H, W), standardised."""
    made = Encoder(shape).eval()
    weights, known = made.state_dict(), larger.state_dict()
    for name in weights:
        if not name.startswith("feature_extractor."):
            weights[name] = known[name]
    for own, other in SAME.items():
        prefix = f"feature_extractor.{other}."
        for name in known:
            if name.startswith(prefix):
                weights[name.replace(prefix, f"feature_extractor.{own}.")] = known[name]
    made.load_state_dict(weights)
    _fit_stem(made, larger, images)
    return made


def _fit_stem(made: Encoder, larger: Encoder, images: Tensor) -> None:
    """Fit the stem, and the norm after it, to what the larger encoder has at that place."""
    seen, wanted = [], []
    stem, norm = made.feature_extractor[0], made.feature_extractor[1]
    size, first = stem.weight.shape[2], len(stem.weight)
    for batch in images.split(16):
        features = _before(larger.feature_extractor, larger.canonical(batch)[0])
        wanted.append(features[..., :first].reshape(-1, first))
        patches = functional.unfold(made.canonical(batch)[0], size, padding=PADDING, stride=STRIDE)
        seen.append(patches.transpose(1, 2).flatten(0, 1))
    inputs, outputs = torch.cat(seen).double(), torch.cat(wanted).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    product = inputs.T @ inputs / len(inputs)
    weights = torch.linalg.solve(
        product + RIDGE * torch.eye(len(product)), inputs.T @ outputs / len(inputs)
    )
    stem.weight.copy_(weights[:-1].T.reshape(stem.weight.shape))
    stem.bias.copy_(weights[-1])
    norm.gain.copy_(outputs.std(0))
    norm.bias.copy_(outputs.mean(0))


def _before(trunk: Trunk, channels: Tensor) -> Tensor:
    for layer in list(trunk)[:SECOND]:
        channels = layer(channels)
    return channels
