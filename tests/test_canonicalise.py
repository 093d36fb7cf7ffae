"""Gamma, rotation and shift: undone where they were put on, and flipped where the image is."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from pictures import TINY, of_every_family
from torch.nn import functional

from deepssim_scan.encoder.canonicalise import (
    Canonicaliser,
    PoseEstimator,
    gamma_exponents,
    normalise_gamma,
)
from deepssim_scan.encoder.equivariant import POSE_SIGNS
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.imaging.changes import augment as changes
from deepssim_scan.imaging.changes.augment import simulate_copy
from deepssim_scan.imaging.warp import gamma, normalise_local_contrast, read_at, restandardise
from deepssim_scan.ingest.standardise import Standardisation
from deepssim_scan.training.objective import pose_error

SIDE = 64
FAR = 0.4, 16.0  # exponents, as those of the encoder that ships
FLIPS = ([], [2], [1], [1, 2])


@pytest.fixture(scope="module")
def images():
    """Eight images of every procedural family: (32, 64, 64)."""
    return of_every_family(8, SIDE)


@pytest.fixture(scope="module")
def glaring(images):
    """The same, half as bright again: a part of each is saturated."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return (1.5 * (images - low) / (high - low)).clamp_max(1)


def normalised(images):
    """The images, their gamma undone as far as the encoder that ships undoes it."""
    return normalise_gamma(images, FAR)


@pytest.mark.parametrize("exponents", [(0.9, 8.0), FAR])
def test_the_exponent_is_the_one_that_a_fine_search_finds(exponents, images, glaring):
    coarse = functional.avg_pool2d(torch.cat([images, glaring]), 4).flatten(1)
    low, high = coarse.amin(1, keepdim=True), coarse.amax(1, keepdim=True)
    greys = ((coarse - low) / (high - low)).double().numpy()
    least, greatest = exponents
    tried = np.geomspace(least, greatest, 4000)[:, None]
    inside = []
    every = gamma_exponents(torch.tensor(greys), exponents).tolist()
    for grey, found in zip(greys, every, strict=True):
        rank = (scipy.stats.rankdata(grey, "ordinal") - 0.5) / len(grey)
        weight = rank**8 * np.interp(grey, [0.95, 1], [1, 0])
        average = (np.maximum(grey, 1e-4) ** tried * weight).sum(1) / weight.sum()
        wanted = tried[np.abs(average - 0.6).argmin(), 0]
        inside.append(least < wanted < greatest)
        assert abs(found - wanted) < 0.01 * wanted
    assert sum(inside[:32]) > 16
    assert sum(inside[32:]) > 8


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.5])
def test_an_image_is_normalised_to_the_same_whatever_its_gamma_and_unit(exponent, images):
    before = normalised(images)
    changed = gamma(images, torch.full((len(images),), exponent))
    after = normalised(3 * changed - 7)
    same = (before * after).mean((1, 2))
    plain = (images * restandardise(changed)).mean((1, 2))
    assert same.quantile(0.5) > 0.99
    assert same.min() > 0.85
    assert (1 - same).mean() < (1 - plain).mean() / 2


@pytest.mark.parametrize("exponent", [0.5, 1.5])
def test_the_gamma_of_dark_images_is_undone_too(exponent, images):
    """Slices of brains are as dark; exponents of 0.9 and above left most as they were."""
    dark = restandardise(gamma(images, torch.full((len(images),), 2.5)))
    changed = restandardise(gamma(dark, torch.full((len(images),), exponent)))
    far, near = (
        (normalise_gamma(dark, reach) * normalise_gamma(changed, reach)).mean((1, 2))
        for reach in (FAR, (0.9, 8.0))
    )
    assert far.quantile(0.1) > 0.98
    assert (1 - far).mean() < (1 - near).mean() / 2


def test_saturated_parts_do_not_take_the_contrast_of_the_rest(glaring):
    """The greys of what is not white still differ, as they do in the image."""
    white = glaring >= 0.995
    assert (white.float().mean((1, 2)) > 0.1).sum() > 8
    seen = normalised(glaring)
    for image, each, bright in zip(glaring, seen, white, strict=True):
        among = (image > 0.3) & ~bright
        if bright.float().mean() > 0.1 and among.sum() > 100:
            assert each[among].std() > 0.1


def test_normalised_images_are_standardised_and_constant_ones_stay_finite(images):
    spread, mean = torch.std_mean(normalised(images), (1, 2), correction=0)
    torch.testing.assert_close(mean, torch.zeros(len(images)), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.ones(len(images)), rtol=0, atol=1e-3)
    assert normalised(torch.zeros(2, SIDE, SIDE)).isfinite().all()


def test_images_whose_averages_say_little_are_normalised_too():
    """A chessboard of pixels is constant in squares of four; a speck stands out of its square."""
    index = torch.arange(SIDE)
    chessboard = ((index[:, None] + index) % 2).float()
    faint = chessboard + 1e-5 * index
    speck = 0.1 * torch.rand(SIDE, SIDE)
    speck[20, 20] = 50
    found = normalised(restandardise(torch.stack([chessboard, faint, speck])))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0].abs(), torch.ones(SIDE, SIDE), rtol=0, atol=0.01)
    assert found[2, 40:].std() > 0.05


def test_the_transform_parameters_of_a_copy_undo_it(images, monkeypatch):
    """Read at its poses, a copy is its flipped source."""
    monkeypatch.setattr(changes, "DEGRADATIONS", (lambda batch, generator: batch,))
    source = functional.avg_pool2d(images, 5, 1, 2)
    copies, truth = simulate_copy(source, torch.Generator().manual_seed(3))
    angle, shift, growth = truth.pose.split((1, 2, 1), 1)
    back = read_at(normalised(copies), angle[:, 0], shift, growth[:, 0].exp())
    flipped = torch.stack(
        [
            image.flip([axis - 1 for axis in FLIPS[number]])
            for image, number in zip(source, truth.flip.tolist(), strict=True)
        ]
    )
    wanted = normalised(flipped)
    inner = slice(8, -8)

    def correlation(first, second):
        first, second = (restandardise(x[:, inner, inner]) for x in (first, second))
        return (first * second).mean((1, 2))

    assert correlation(back, wanted).median() > 0.97
    moved = truth.pose.abs().amax(1) > 0.05
    assert moved.sum() > 8
    undone = correlation(back, wanted) > correlation(normalised(copies), wanted)
    assert undone[moved].float().mean() > 0.9
    assert set(truth.flip.tolist()) == {0, 1, 2, 3}


@torch.no_grad()
@pytest.mark.parametrize("orientation", range(4))
def test_a_flipped_image_has_the_flipped_pose_parameters(orientation, images):
    network = PoseEstimator((16, 32), SIDE, scale=True)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    pose = network(images)
    assert pose.std(0).min() > 1e-3
    flipped = network(images.flip(FLIPS[orientation]))
    torch.testing.assert_close(flipped, pose * POSE_SIGNS[orientation], rtol=1e-3, atol=1e-4)


def test_pose_parameters_are_limited(images):
    network = PoseEstimator((16,), SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=3)
    pose = network(images)
    assert pose.abs().amax() == 0.4
    assert pose.isfinite().all()


@torch.no_grad()
def test_where_pose_parameters_are_nan_so_is_the_image(images):
    """A constant image in its place would be embedded, and match every other."""
    network = Canonicaliser(TINY, SIDE)
    network.pose.head.out.weight.fill_(torch.nan)
    channels, _ = network(images)
    assert channels.isnan().all()


def test_scores_do_not_train_the_estimator_nor_pose_parameters_the_trunk(images):
    encoder = Encoder(replace(TINY, standardisation=Standardisation(size=SIDE)))
    embeddings, pose = encoder.with_pose(images[:4, None])
    embeddings[:, 0].sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in encoder.canonical.parameters())
    encoder.zero_grad(set_to_none=True)
    pose.sum().backward()
    assert all(weight.grad is None for weight in encoder.feature_extractor.parameters())
    assert any(weight.grad.abs().sum() > 0 for weight in encoder.canonical.parameters())


@torch.no_grad()
def test_images_are_canonicalised_in_full_precision(images):
    network = Canonicaliser(TINY, SIDE)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, network(images), exact))


def scales(pose):
    """The scales that an estimator found, or none where it looks for none."""
    return [pose[:, 3].exp()] if pose.shape[1] == 4 else []


def pooled(images, side):
    """Averages over squares of `side` pixels."""
    return images.unflatten(1, (-1, side)).mean(2).unflatten(2, (-1, side)).mean(3)


@torch.no_grad()
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("pooling", "window"), [(1, 17), (2, 9)])
def test_channels_are_the_image_brought_to_one_pose_and_local_contrast_normalised(
    pooling, window, images, scale
):
    shape = replace(TINY, scale=scale, exponents=FAR, pooling=pooling)
    network = Canonicaliser(shape, SIDE)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    channels, pose = network(images)
    assert channels.shape == (len(images), 2, SIDE // pooling, SIDE // pooling)
    small = normalise_gamma(pooled(images, pooling), FAR, 4 // pooling)
    torch.testing.assert_close(pose, network.pose(small))
    wanted = read_at(small, pose[:, 0], pose[:, 1:3], *scales(pose))
    torch.testing.assert_close(channels[:, 0], wanted)
    contrast = normalise_local_contrast(channels[:, 0], window, 0.05)
    torch.testing.assert_close(channels[:, 1], contrast)


@torch.no_grad()
def test_poses_of_images_averaged_before_are_those_of_images_averaged_there(images):
    whole = PoseEstimator((16, 32), SIDE)
    before = PoseEstimator((16, 32), SIDE, 2)
    before.load_state_dict(whole.state_dict())
    torch.testing.assert_close(before(pooled(images, 2)), whole(images))


def test_pose_parameters_are_learnt_from_simulated_copies(images):
    network = PoseEstimator((16,), SIDE, scale=True)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    errors = []
    for step in range(80):
        drawn_images = images[:8].repeat(4, 1, 1)
        copies, truth = simulate_copy(drawn_images, torch.Generator().manual_seed(step))
        error = pose_error(network(normalised(copies)), truth, 16)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])
