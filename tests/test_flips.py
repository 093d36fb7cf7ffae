"""The flip-blind network against four passes of an ordinary one, written out with plain layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepssim_scan import flips
from deepssim_scan.augment import restandardise
from deepssim_scan.encoder import Architecture, Encoder
from deepssim_scan.errors import InputError
from deepssim_scan.standardise import Standardisation

FLIPS = ([], [3], [2], [2, 3])
SHAPE = Architecture(
    depths=(1, 2),
    widths=(16, 32),
    trunk="flips",
    expansion=2,
    pose=(16, 16),
    dimension=8,
    standardisation=Standardisation(size=32),
)


@pytest.fixture
def encoder():
    """An encoder whose every weight is random, so that no part of it can be left out."""
    torch.manual_seed(0)
    made = Encoder(SHAPE).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.1))
    return made


@torch.no_grad()
def test_an_image_and_its_flips_have_one_embedding(encoder):
    images = restandardise(torch.randn(3, 32, 32, dtype=torch.float64))[:, None]
    found = encoder(images)
    for axes in FLIPS[1:]:
        torch.testing.assert_close(encoder(images.flip(axes)), found, rtol=0, atol=1e-12)
    # It is not blind to all else: another symmetry of the square, and other images.
    assert (encoder(images.transpose(2, 3)) - found).abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("orientation", range(4))
def test_features_of_a_flipped_image_are_flipped_and_change_places(encoder, orientation):
    images = torch.randn(2, 2, 32, 32, dtype=torch.float64)
    features = encoder.feature_extractor(images).unflatten(3, (4, -1))
    flipped = encoder.feature_extractor(images.flip(FLIPS[orientation])).unflatten(3, (4, -1))
    for place in range(4):
        wanted = features[:, :, :, place].flip([axis - 1 for axis in FLIPS[orientation]])
        found = flipped[:, :, :, place ^ orientation]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_first_layer_is_four_ordinary_convolutions_of_one_kernel():
    torch.manual_seed(0)
    layer, images = flips._Stem(2, 12), torch.randn(2, 2, 32, 32)
    nn.init.normal_(layer.bias)
    found = layer(images)
    for place, axes in enumerate(FLIPS):
        kernel = layer.weight.flip(axes)
        wanted = functional.conv2d(images, kernel, layer.bias, stride=4, padding=2)
        torch.testing.assert_close(
            found[..., 3 * place : 3 * place + 3], wanted.permute(0, 2, 3, 1)
        )


def test_every_weight_is_used_and_learns(encoder):
    embeddings, pose = encoder.float().placed(torch.randn(4, 1, 32, 32))
    (embeddings[:, 0].sum() + pose.sum()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in encoder.parameters())


def test_shapes_that_cannot_be_flip_blind_are_refused():
    for change in ({"widths": (16, 24)}, {"head": "pool"}, {"expansion": 0}):
        with pytest.raises(ValueError, match=next(iter(change)).removesuffix("s")):
            Architecture(**({"trunk": "flips", "depths": (1, 1), "widths": (16, 32)} | change))
    with pytest.raises(ValueError, match="pose"):
        Architecture(trunk="flips", widths=(16, 32, 64), pose=(24,))
    with pytest.raises(InputError, match="multiple of 32"):
        Architecture(
            depths=(1, 1), widths=(16, 32), trunk="flips", standardisation=Standardisation(size=36)
        )
    with pytest.raises(ValueError, match="unknown trunk"):
        Architecture(trunk="mirrors")
