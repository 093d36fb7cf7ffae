"""Contrast and pose: undone where they were put on, and mirrored where the image is."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from pictures import drawn
from torch.nn import functional

from deepssim_scan import augment as changes
from deepssim_scan.augment import Placement, disguise, gamma, restandardise, rotation
from deepssim_scan.canonical import Canonical, Pose, _settling, evened, settled, upright
from deepssim_scan.flips import POSE_SIGNS
from deepssim_scan.procedural import FAMILIES

SIDE = 64
FLIPS = ([], [3], [2], [2, 3])


@pytest.fixture(scope="module")
def images():
    """Eight images of every procedural family: (32, 1, 64, 64)."""
    made = [drawn(n, SIDE, family) for family in FAMILIES.values() for n in range(8)]
    return restandardise(torch.tensor(np.stack(made)).float())[:, None]


def test_greys_settle_at_the_exponent_that_a_fine_search_finds(images):
    coarse = functional.avg_pool2d(images, 4).flatten(1)
    low, high = coarse.amin(1, keepdim=True), coarse.amax(1, keepdim=True)
    greys = ((coarse - low) / (high - low)).double().clamp_min(1e-4).numpy()
    tried = np.geomspace(0.9, 10, 2000)[:, None]
    inside = 0
    for grey, found in zip(greys, _settling(torch.tensor(greys)).tolist(), strict=True):
        rank = (scipy.stats.rankdata(grey, "ordinal") - 0.5) / len(grey)
        average = (grey**tried * rank**8).sum(1) / (rank**8).sum()
        wanted = tried[np.abs(average - 0.6).argmin(), 0]
        inside += 0.9 < wanted < 10
        assert abs(found - wanted) < 0.01 * wanted
    assert inside > 16


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.5])
def test_an_image_settles_to_the_same_whatever_its_gamma_and_unit(exponent, images):
    before = settled(images)
    changed = gamma(images[:, 0], torch.full((len(images),), exponent))[:, None]
    after = settled(3 * changed - 7)
    same = (before * after).mean((1, 2, 3))
    plain = (images * restandardise(changed[:, 0])[:, None]).mean((1, 2, 3))
    assert same.quantile(0.5) > 0.99
    assert same.min() > 0.85
    assert (1 - same).mean() < (1 - plain).mean() / 2


def test_settled_images_are_standardised_and_constant_ones_stay_finite(images):
    spread, mean = torch.std_mean(settled(images), (1, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(len(images)), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.ones(len(images)), rtol=0, atol=1e-3)
    assert settled(torch.zeros(2, 1, SIDE, SIDE)).isfinite().all()


def test_an_upright_image_is_scipys_at_the_pose(images):
    pose = torch.tensor([[0.15, 0.1, -0.05]]).expand(len(images), 3)
    found = upright(images, pose)[:, 0]
    turn = rotation(pose[:1, 0])[0].flip(0, 1).numpy()  # scipy's axes are row, column
    middle = np.array([(SIDE - 1) / 2] * 2)
    offset = middle - turn @ middle + np.array([-0.05, 0.1]) * SIDE / 2
    for image, moved in zip(images[:, 0].numpy(), found, strict=True):
        wanted = scipy.ndimage.affine_transform(image, turn, offset, order=1, mode="nearest")
        inner = slice(10, -10)
        torch.testing.assert_close(
            moved[inner, inner], torch.tensor(wanted)[inner, inner], rtol=0, atol=2e-3
        )


def test_the_placement_of_a_disguise_undoes_it(images, monkeypatch):
    """Of what a disguise did, the pose undoes the turn and shift, in the mirrored image."""
    monkeypatch.setattr(changes, "DEGRADATIONS", (lambda batch, generator: batch,))
    source = functional.avg_pool2d(images, 5, 1, 2)[:, 0]
    views, placement = disguise(source, torch.Generator().manual_seed(3))
    back = upright(settled(views[:, None]), placement.pose)[:, 0]
    mirrored = torch.stack(
        [
            image.flip([axis - 2 for axis in FLIPS[number]])
            for image, number in zip(source, placement.mirrored.tolist(), strict=True)
        ]
    )
    wanted = settled(mirrored[:, None])[:, 0]
    inner = slice(8, -8)

    def correlation(first, second):
        first, second = (restandardise(x[:, inner, inner]) for x in (first, second))
        return (first * second).mean((1, 2))

    assert correlation(back, wanted).median() > 0.97
    moved = placement.pose.abs().amax(1) > 0.05
    assert moved.sum() > 8
    undone = correlation(back, wanted) > correlation(settled(views[:, None])[:, 0], wanted)
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


@torch.no_grad()
def test_channels_are_the_upright_image_settled_and_evened(images):
    network = Canonical((16,), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    channels, pose = network(images)
    assert channels.shape == (32, 2, SIDE, SIDE)
    torch.testing.assert_close(pose, network.pose(settled(images)))
    torch.testing.assert_close(channels[:, :1], upright(settled(images), pose))
    torch.testing.assert_close(channels[:, 1:], evened(channels[:, :1]))


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
        drawn_images = images[:8, 0].repeat(4, 1, 1)
        views, placement = disguise(drawn_images, torch.Generator().manual_seed(step))
        error = _pose_error(network(settled(views[:, None])), placement, 16)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])
