"""Contrast and pose: undone where they were put on, and mirrored where the image is."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from pictures import TINY, of_every_family
from torch.nn import functional

from deepssim_scan import augment as changes
from deepssim_scan.augment import Placement, disguise
from deepssim_scan.canonical import Canonical, Pose, _settling, settled
from deepssim_scan.encoder import Encoder
from deepssim_scan.flips import POSE_SIGNS
from deepssim_scan.standardise import Standardisation
from deepssim_scan.transform import blur, evened, gamma, read_at, restandardise

SIDE = 64
FLIPS = ([], [2], [1], [1, 2])


@pytest.fixture(scope="module")
def images():
    """Eight images of every procedural family: (32, 64, 64)."""
    return of_every_family(8, SIDE)


@pytest.fixture(scope="module")
def glaring(images):
    """The same, half as bright again: a part of each is white all over."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return (1.5 * (images - low) / (high - low)).clamp_max(1)


def test_greys_settle_at_the_exponent_that_a_fine_search_finds(images, glaring):
    coarse = functional.avg_pool2d(torch.cat([images, glaring]), 4).flatten(1)
    low, high = coarse.amin(1, keepdim=True), coarse.amax(1, keepdim=True)
    greys = ((coarse - low) / (high - low)).double().numpy()
    tried = np.geomspace(0.9, 8, 2000)[:, None]
    inside = []
    for grey, found in zip(greys, _settling(torch.tensor(greys)).tolist(), strict=True):
        rank = (scipy.stats.rankdata(grey, "ordinal") - 0.5) / len(grey)
        weight = rank**8 * np.interp(grey, [0.95, 1], [1, 0])
        average = (np.maximum(grey, 1e-4) ** tried * weight).sum(1) / weight.sum()
        wanted = tried[np.abs(average - 0.6).argmin(), 0]
        inside.append(0.9 < wanted < 8)
        assert abs(found - wanted) < 0.01 * wanted
    assert sum(inside[:32]) > 16
    assert sum(inside[32:]) > 8


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.5])
def test_an_image_settles_to_the_same_whatever_its_gamma_and_unit(exponent, images):
    before = settled(images)
    changed = gamma(images, torch.full((len(images),), exponent))
    after = settled(3 * changed - 7)
    same = (before * after).mean((1, 2))
    plain = (images * restandardise(changed)).mean((1, 2))
    assert same.quantile(0.5) > 0.99
    assert same.min() > 0.85
    assert (1 - same).mean() < (1 - plain).mean() / 2


def test_parts_that_are_white_all_over_leave_the_rest_to_be_seen(glaring):
    """The greys of what is not white still differ, as they do in the image."""
    white = glaring >= 0.995
    assert (white.float().mean((1, 2)) > 0.1).sum() > 8
    seen = settled(glaring)
    for image, each, bright in zip(glaring, seen, white, strict=True):
        among = (image > 0.3) & ~bright
        if bright.float().mean() > 0.1 and among.sum() > 100:
            assert each[among].std() > 0.1


def test_settled_images_are_standardised_and_constant_ones_stay_finite(images):
    spread, mean = torch.std_mean(settled(images), (1, 2), correction=0)
    torch.testing.assert_close(mean, torch.zeros(len(images)), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.ones(len(images)), rtol=0, atol=1e-3)
    assert settled(torch.zeros(2, SIDE, SIDE)).isfinite().all()


def test_what_no_average_of_squares_shows_settles_all_the_same():
    """A chessboard of pixels is constant in squares of four; a speck stands out of its square."""
    places = torch.arange(SIDE)
    chessboard = ((places[:, None] + places) % 2).float()
    faint = chessboard + 1e-5 * places
    speck = 0.1 * torch.rand(SIDE, SIDE)
    speck[20, 20] = 50
    found = settled(restandardise(torch.stack([chessboard, faint, speck])))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0].abs(), torch.ones(SIDE, SIDE), rtol=0, atol=0.01)
    assert found[2, 40:].std() > 0.05


def test_the_placement_of_a_disguise_undoes_it(images, monkeypatch):
    """Of what a disguise did, the pose undoes the turn and shift, in the mirrored image."""
    monkeypatch.setattr(changes, "DEGRADATIONS", (lambda batch, generator: batch,))
    source = functional.avg_pool2d(images, 5, 1, 2)
    views, placement = disguise(source, torch.Generator().manual_seed(3))
    back = read_at(settled(views), placement.pose[:, 0], placement.pose[:, 1:])
    mirrored = torch.stack(
        [
            image.flip([axis - 1 for axis in FLIPS[number]])
            for image, number in zip(source, placement.mirrored.tolist(), strict=True)
        ]
    )
    wanted = settled(mirrored)
    inner = slice(8, -8)

    def correlation(first, second):
        first, second = (restandardise(x[:, inner, inner]) for x in (first, second))
        return (first * second).mean((1, 2))

    assert correlation(back, wanted).median() > 0.97
    moved = placement.pose.abs().amax(1) > 0.05
    assert moved.sum() > 8
    undone = correlation(back, wanted) > correlation(settled(views), wanted)
    assert undone[moved].float().mean() > 0.9
    assert set(placement.mirrored.tolist()) == {0, 1, 2, 3}


@torch.no_grad()
@pytest.mark.parametrize("orientation", range(4))
def test_a_mirrored_image_has_the_mirrored_pose(orientation, images):
    network = Pose((16, 32), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    pose = network(images)
    assert pose.std(0).min() > 1e-3
    mirrored = network(images.flip(FLIPS[orientation]))
    torch.testing.assert_close(mirrored, pose * POSE_SIGNS[orientation], rtol=1e-3, atol=1e-4)


def test_no_pose_is_farther_off_than_images_are_moved(images):
    network = Pose((16,), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=3)
    pose = network(images)
    assert pose.abs().amax() == 0.4
    assert pose.isfinite().all()


@torch.no_grad()
def test_where_a_pose_is_not_a_number_nor_is_the_image(images):
    """A plain image read in its place would be embedded, and be like every other."""
    network = Canonical((16,), SIDE)
    network.pose.head.out.weight.fill_(torch.nan)
    channels, _ = network(images)
    assert channels.isnan().all()


def test_a_pose_found_again_is_that_of_the_image_read_twice(images):
    """Read at the first pose and then at the second, an image is what it is read at both."""
    network = Canonical((16,), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    smooth = restandardise(blur(images, torch.tensor([3.0])))
    with torch.no_grad():
        first, both = network.poses(smooth)
        once = read_at(smooth, first[:, 0], first[:, 1:])
        second = network.pose(once)
    assert second.abs().amax(1).median() > 0.01
    inside = first.abs().amax(1) + second.abs().amax(1) < 0.3
    assert inside.sum() > 8
    twice = read_at(once, second[:, 0], second[:, 1:])[inside, 20:-20, 20:-20]
    found = read_at(smooth, both[:, 0], both[:, 1:])[inside, 20:-20, 20:-20]
    torch.testing.assert_close(found, twice, rtol=0, atol=0.1)
    unturned = read_at(smooth, second[:, 0], second[:, 1:])[inside, 20:-20, 20:-20]
    assert (found - twice).abs().mean() < 0.1 * (unturned - twice).abs().mean()


def test_no_score_teaches_a_pose_and_no_pose_a_score(images):
    encoder = Encoder(replace(TINY, standardisation=Standardisation(size=SIDE)))
    embeddings, pose = encoder.placed(images[:4, None])
    embeddings[:, 0].sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in encoder.canonical.parameters())
    encoder.zero_grad(set_to_none=True)
    pose.sum().backward()
    assert all(weight.grad is None for weight in encoder.feature_extractor.parameters())
    assert any(weight.grad.abs().sum() > 0 for weight in encoder.canonical.parameters())


@torch.no_grad()
def test_contrast_and_pose_are_undone_in_full_precision(images):
    network = Canonical((16,), SIDE)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, network(images), exact))


@torch.no_grad()
def test_channels_are_the_upright_image_settled_and_evened(images):
    network = Canonical((16,), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    channels, (first, pose) = network(images)
    assert channels.shape == (32, 2, SIDE, SIDE)
    torch.testing.assert_close(first, network.pose(settled(images)))
    upright = read_at(settled(images), pose[:, 0], pose[:, 1:])
    torch.testing.assert_close(channels[:, 0], upright)
    torch.testing.assert_close(channels[:, 1], evened(channels[:, 0], 17, 0.05))


def test_a_pose_is_learnt_from_placements_alone(images):
    """The error that training takes is nought at the poses that undo, and learns them."""
    from deepssim_scan.training import _pose_error

    placement = Placement(torch.tensor([0, 1, 2, 3] * 2), torch.randn(8, 3) * 0.1)
    assert _pose_error(placement.pose, placement, 4) == 0
    common = torch.tensor([[0.1, 0.2, -0.3]]) * POSE_SIGNS[placement.mirrored]
    elsewhere = _pose_error(placement.pose + common, placement, 4)
    opposite = common * torch.tensor([[1]] * 4 + [[-1]] * 4)
    apart = _pose_error(placement.pose + opposite, placement, 4)
    assert 0 < elsewhere < apart / 5
    network = Pose((16,), SIDE)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    errors = []
    for step in range(80):
        drawn_images = images[:8].repeat(4, 1, 1)
        views, placement = disguise(drawn_images, torch.Generator().manual_seed(step))
        error = _pose_error(network(settled(views))[None], placement, 16)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])
