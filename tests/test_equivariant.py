"""The flip-invariant network against ordinary layers with its weights written out."""

import pytest
import torch
from torch.nn import functional

from deepssim_scan.encoder import equivariant
from deepssim_scan.encoder.architecture import SMALL, Architecture
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.ingest.standardise import Standardisation

FLIPS = ([], [3], [2], [2, 3])
# Signs of a flipped image's angle, shift right and shift down.
SIGNS = [[1, -1, -1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]
SHAPE = Architecture(
    depths=(1, 2),
    widths=(16, 32),
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
    # It is invariant to nothing else: another symmetry of the square, and other images.
    assert (encoder(images.transpose(2, 3)) - found).abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("orientation", range(4))
def test_features_of_a_flipped_image_are_flipped_and_change_places(encoder, orientation):
    images = torch.randn(2, 2, 32, 32, dtype=torch.float64)
    features = encoder.feature_extractor(images).unflatten(3, (4, -1))
    flipped = encoder.feature_extractor(images.flip(FLIPS[orientation])).unflatten(3, (4, -1))
    for index in range(4):
        wanted = features[:, :, :, index].flip([axis - 1 for axis in FLIPS[orientation]])
        found = flipped[:, :, :, index ^ orientation]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# The whole network again, of ordinary layers: every weight is written out for four orientations,
# (p, q) telling what orientation p of a layer's output takes of orientation q of its input.


def turned(weight, orientation):
    """A weight in an orientation: bit 0 mirrors the columns of kernels, bit 1 the rows."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if orientation & bit]
    return weight.flip(axes) if weight.ndim == 4 else weight


def lifted(weight):
    """The weight of an ordinary layer, of a first layer's or a depthwise one's."""
    return torch.cat([turned(weight, p) for p in range(4)])


def written_out(weight):
    """The weight of an ordinary layer, of one between features of four orientations."""
    parts = weight.chunk(4, 1)
    rows = [torch.cat([turned(parts[p ^ q], p) for q in range(4)], 1) for p in range(4)]
    return torch.cat(rows)


def four(values):
    return torch.cat([values] * 4)


def pointwise(x, layer):
    return functional.conv2d(x, written_out(layer.weight)[:, :, None, None])


def normed(x, layer):
    x = x.permute(0, 2, 3, 1)
    x = functional.layer_norm(x, x.shape[3:], four(layer.gain), four(layer.bias), 1e-6)
    return x.permute(0, 3, 1, 2)


def layered(x, layer):
    """What an ordinary layer makes of features (B, width, H, W)."""
    if isinstance(layer, equivariant._Stem):
        return functional.conv2d(x, lifted(layer.weight), four(layer.bias), stride=4, padding=2)
    if isinstance(layer, equivariant._Norm):
        return normed(x, layer)
    if isinstance(layer, equivariant._Halve):
        return functional.conv2d(x, written_out(layer.weight), four(layer.bias), stride=2)
    seen = functional.conv2d(
        x, lifted(layer.weight), four(layer.bias), padding=3, groups=x.shape[1]
    )
    wide = pointwise(normed(seen, layer.norm), layer.wide).relu()
    return x + pointwise(wide, layer.narrow) * four(layer.scale)[:, None, None]


def as_seen(x, head, orientation):
    """The hidden features of a head for the flipped image: (B, hidden)."""
    kept = pointwise(x, head.narrow)
    parts = kept.flip([axis for bit, axis in ((1, 3), (2, 2)) if orientation & bit]).chunk(4, 1)
    kept = torch.cat([parts[p ^ orientation] for p in range(4)], 1)
    return head.hidden(kept.permute(0, 2, 3, 1).flatten(1)).relu()


@torch.no_grad()
def test_the_network_equals_ordinary_layers_of_four_times_the_weights(encoder):
    x = images = torch.randn(3, 2, 32, 32, dtype=torch.float64)
    for layer in encoder.feature_extractor:
        x = layered(x, layer)
    features = encoder.feature_extractor(images)
    torch.testing.assert_close(features.permute(0, 3, 1, 2), x, rtol=0, atol=1e-10)
    head = encoder.fc
    seen = [head.out(as_seen(x, head, g)) for g in range(4)]
    torch.testing.assert_close(head(features), sum(seen) / 4, rtol=0, atol=1e-10)


CHANGES = {
    "in place": lambda weight: weight.mul_(1.5),
    "in place of its data": lambda weight: weight.data.mul_(1.5),
    "its data replaced": lambda weight: setattr(weight, "data", 1.5 * weight.data),
    "copied into": lambda weight: weight.copy_(1.5 * weight),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_embeddings_are_those_of_the_weights_as_they_are_now(change, encoder):
    """Against a new encoder that is given the same weights."""
    images = torch.randn(3, 32, 32, dtype=torch.float64)
    before = embed(encoder, images)
    for weight in encoder.parameters():
        change(weight)
    after = embed(encoder, images)
    assert not torch.allclose(after, before)
    fresh = Encoder(SHAPE).double()
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(embed(fresh, images), after, rtol=0, atol=1e-12)
    torch.testing.assert_close(embed_tta(encoder, images, 1)[:, 0], after, rtol=0, atol=1e-12)


@torch.no_grad()
def test_weights_are_written_out_for_a_block_and_no_longer(encoder):
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    before = encoder(images)
    with (
        pytest.raises(KeyError),
        equivariant.written_out(encoder),
        equivariant.written_out(encoder),
    ):
        torch.testing.assert_close(encoder(images), before, rtol=0, atol=0)
        raise KeyError
    for weight in encoder.parameters():
        weight.data.mul_(1.5)
    assert not torch.allclose(encoder(images), before)
    with equivariant.written_out(encoder):
        with equivariant.written_out(encoder):
            pass
        assert all(layer.held for layer in encoder.modules() if hasattr(layer, "held"))


@torch.no_grad()
def test_the_pose_estimator_equals_ordinary_layers_too(encoder):
    estimator = encoder.canonical.pose
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    features = estimator.trunk(x)
    for layer in estimator.trunk:
        x = layered(x, layer)
    torch.testing.assert_close(features.permute(0, 3, 1, 2), x, rtol=0, atol=1e-10)
    angle, right, down = torch.stack(
        [estimator.head.out(as_seen(x, estimator.head, g)) for g in range(4)]
    ).unbind(2)
    one, columns, rows = (torch.tensor(signs)[:, None] for signs in SIGNS)
    wanted = torch.stack([(angle * one).mean(0), (right * columns).mean(0), (down * rows).mean(0)])
    torch.testing.assert_close(estimator.head(features), wanted.T, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_image_and_its_flips_have_one_embedding_as_shipped():
    torch.manual_seed(0)
    network = Encoder(SMALL).eval()
    images = restandardise(torch.rand(3, 128, 128) ** 2)
    found = embed(network, images)
    for axes in ([1], [2], [1, 2]):
        torch.testing.assert_close(embed(network, images.flip(axes)), found, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_head_tells_positions_apart_that_an_average_would_not():
    head = equivariant.LayoutHead(16, 4, 32)
    features = torch.zeros(2, 4, 4, 16)
    features[0, 0, 1] = features[1, 1, 1] = torch.randn(16)
    torch.testing.assert_close(features[0].mean((0, 1)), features[1].mean((0, 1)))
    corner, middle = functional.normalize(head(features))
    assert corner @ middle < 0.9


def test_every_weight_is_used_and_learns(encoder):
    embeddings, pose = encoder.float().with_pose(torch.randn(4, 1, 32, 32))
    (embeddings[:, 0].sum() + pose.sum()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in encoder.parameters())
