"""Random changes of images: what each shows, and what it leaves alone."""

import numpy as np
import pytest
import scipy.fft
import torch
from pictures import of_every_family
from torch.nn import functional

from deepssim_scan.imaging.changes import augment as module
from deepssim_scan.imaging.changes.augment import (
    DEGRADATIONS,
    PERTURBATIONS,
    augment,
    other_subject,
    perturb,
    simulate_copy,
    smooth_field,
)
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.imaging.registration.comparison import compare
from deepssim_scan.imaging.ssim import image_range, ssim
from deepssim_scan.imaging.warp import read_at, restandardise

SIDE = 48


def copied(images, generator):
    return simulate_copy(images, generator)[0]


CHANGES = {change.__name__: change for change in (augment, copied, perturb, other_subject)}
PROBABILITIES = ("FLIP_PROBABILITY", "ROTATION_PROBABILITY", "GAMMA_PROBABILITY")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    """Eight standardised images of each procedural family."""
    return of_every_family(8, SIDE)


@pytest.fixture
def probabilities(monkeypatch):
    def choose(**chosen):
        for name in PROBABILITIES:
            monkeypatch.setattr(module, name, chosen.get(name.split("_")[0].lower(), 0.0))

    return choose


# What holds for every change.


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_gives_standardised_images_and_leaves_its_input(change, images):
    before = images.clone()
    changed = change(images, generator())
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    torch.testing.assert_close(changed.mean((1, 2)), torch.zeros(len(images)), rtol=0, atol=1e-5)
    spread = changed.std((1, 2), correction=0)
    torch.testing.assert_close(spread, torch.ones(len(images)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_depends_on_its_generator_alone(change, images):
    first = change(images, generator(3))
    torch.manual_seed(99)
    assert torch.equal(first, change(images, generator(3)))
    assert not torch.equal(first, change(images, generator(4)))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_image_is_changed_in_its_own_way(change, images):
    changed = change(images[:1].expand(8, -1, -1), generator())
    assert len(changed.unique(dim=0)) > 3


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_images_need_not_be_square_nor_whole_blocks(change):
    found = change(torch.randn(6, 40, 29), generator())
    assert found.shape == (6, 40, 29)
    assert found.isfinite().all()


@pytest.mark.parametrize("change", PERTURBATIONS)
def test_a_perturbation_changes_the_image_and_leaves_its_input(change, images):
    before = images.clone()
    changed = change(images, generator())
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert (changed != images).flatten(1).any(1).all()


def test_perturbing_uses_every_perturbation(images, monkeypatch):
    def constant(value):
        ramp = torch.linspace(-1, 1, SIDE) ** value
        return lambda batch, generator: ramp.expand_as(batch)

    kinds = tuple(constant(value) for value in range(1, 8, 2))
    monkeypatch.setattr(module, "PERTURBATIONS", kinds)
    changed = perturb(images, generator())
    assert len(changed.unique(dim=0)) == len(kinds)


def test_a_constant_image_stays_finite():
    assert augment(torch.zeros(4, 16, 16), generator()).isfinite().all()


# The reference's augmentation.


def test_nothing_drawn_changes_nothing(images, probabilities):
    probabilities()
    torch.testing.assert_close(augment(images, generator()), images, rtol=0, atol=1e-4)


def test_flips_give_the_four_flips(images, probabilities):
    probabilities(flip=0.5)
    flips = torch.stack([images, images.flip(1), images.flip(2), images.flip(1, 2)])
    distance = (augment(images, generator()) - flips).abs().amax((2, 3))
    nearest = distance.min(0)
    assert nearest.values.max() < 1e-4
    assert set(nearest.indices.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["flip", "rotation", "gamma"])
def test_a_third_of_the_images_is_changed_in_each_way(name, probabilities):
    probabilities(**{name: getattr(module, f"{name.upper()}_PROBABILITY")})
    images = restandardise(torch.randn(2000, 8, 8))
    changed = (augment(images, generator()) - images).abs().amax((1, 2)) > 1e-3
    share = {"flip": 1 - 0.67**2, "rotation": 0.33, "gamma": 0.33}[name]
    assert abs(changed.float().mean() - share) < 0.05


def test_rotations_stay_within_ten_degrees(probabilities):
    probabilities(rotation=1.0)
    dot = torch.zeros(300, 65, 65)
    dot[:, 31:34, 55:58] = 1  # at 24 pixels from the centre, on its right
    rotated = augment(restandardise(dot), generator()).clamp_min(0)
    rows = torch.arange(65.0)
    height = (rotated.sum(2) * rows).sum(1) / rotated.sum((1, 2)) - 32
    angle = torch.asin((height / 24).clamp(-1, 1))
    assert 0.14 < angle.max() < 0.18
    assert -0.18 < angle.min() < -0.14


def test_gammas_span_the_references_range(probabilities):
    probabilities(gamma=1.0)
    ramp = torch.linspace(0, 1, 64).expand(500, 8, 64)
    changed = augment(restandardise(ramp), generator())
    low, high = changed.amin((1, 2)), changed.amax((1, 2))
    middle = (changed[:, 0, 32] - low) / (high - low)
    exponent = middle.log() / np.log(32 / 63)
    assert 0.49 < exponent.min() < 0.53
    assert 1.47 < exponent.max() < 1.51


# Changes of content.


def test_the_cosine_basis_equals_scipys_and_is_orthonormal():
    basis = module._cosine_basis(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64))
    expected = scipy.fft.dct(np.eye(8), axis=0, norm="ortho")
    torch.testing.assert_close(basis, torch.tensor(expected))


def test_blocks_are_quantised_as_jpeg_does():
    images = restandardise(torch.randn(4, 19, 26))
    found = module.compress(images, generator(5))
    coarseness = (-4.5 + 2.5 * torch.rand(4, generator=generator(5))).exp().numpy()
    assert torch.equal(found[:, 16:], images[:, 16:])
    assert torch.equal(found[:, :, 24:], images[:, :, 24:])
    for before, after, coarse in zip(images.numpy(), found.numpy(), coarseness, strict=True):
        steps = coarse * (1 + np.add.outer(np.arange(8), np.arange(8)))
        for row in range(0, 16, 8):
            for column in range(0, 24, 8):
                tile = np.s_[row : row + 8, column : column + 8]
                kept = scipy.fft.dctn(after[tile], norm="ortho") / steps
                asked = scipy.fft.dctn(before[tile], norm="ortho") / steps
                np.testing.assert_allclose(kept, kept.round(), rtol=0, atol=1e-3)
                assert np.abs(kept - asked).max() < 0.501


@pytest.mark.parametrize("size", [(12, 20), (12, 13, 14)])
def test_a_smooth_field_is_smooth_and_of_about_unit_variance(size):
    fields = smooth_field(200, 2, 4, size, generator())
    assert fields.shape == (200, 2, *size)
    assert 0.25 < fields.var() < 1.5
    for dim in range(2, 2 + len(size)):
        assert fields.diff(dim=dim).square().mean() < 0.6 * fields.var()


def test_perturbing_spans_the_range_of_ssim_and_another_subject_is_farther_off(images):
    scores, others = [], []
    for seed in range(16):
        for found, change in ((scores, perturb), (others, other_subject)):
            changed = change(images, generator(seed))
            found.append(ssim(images, changed, image_range(images)))
    scores, others = torch.cat(scores), torch.cat(others)
    assert (scores > 0.9).float().mean() > 0.05
    assert (scores < 0.6).float().mean() > 0.05
    assert ((scores > 0.6) & (scores < 0.9)).float().mean() > 0.1
    assert others.mean() < scores.mean() - 0.1
    assert others.max() < 0.95


def test_a_simulated_copy_is_closer_to_its_source_than_another_subject(images):
    """Once they are registered."""
    wide = functional.interpolate(images[:, None], (128, 128), mode="bicubic")[:, 0]
    wide = restandardise(wide)
    copies = compare(simulate_copy(wide, generator(1))[0], wide).measures
    others = compare(other_subject(wide, generator(2)), wide).measures
    for name, copy, other in zip(NAMES, copies.T, others.T, strict=True):
        assert copy.median() > other.median(), name
    assert copies[:, 0].median() > others[:, 0].median() + 0.1


def test_simulated_copies_are_transformed_in_every_way(images, monkeypatch):
    """Of many, half are not rotated, half not scaled, 40 % are shifted, half get dark borders."""
    rotated, grown, shifted, outside = [], [], [], []
    real = module.move_content

    def spy(images, linear, displacement, dark):
        rotated.extend(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).tolist())
        grown.extend(torch.linalg.det(linear).sqrt().log().tolist())
        shifted.extend(displacement.mean((2, 3)).abs().amax(1).tolist())
        outside.extend(dark.tolist())
        return real(images, linear, displacement, dark)

    monkeypatch.setattr(module, "move_content", spy)
    for seed in range(8):
        simulate_copy(images, generator(seed))
    rotated, grown, shifted, outside = map(np.array, (rotated, grown, shifted, outside))
    for values, most in ((rotated, 0.26), (grown, 0.15)):
        assert 0.35 < (np.abs(values) < 1e-6).mean() < 0.65
        assert 0.9 * most < np.abs(values).max() < most + 1e-6
        assert -0.9 * most > values.min()
    assert 0.25 < (shifted > 0.03).mean() < 0.6
    assert 0.2 < shifted.max() < 0.27
    assert 0.35 < outside.mean() < 0.65


def test_the_parameters_of_a_simulated_copy_undo_it(images, monkeypatch):
    """Reading the copy at them gives the flipped source, where nothing else was done to it."""
    still = torch.zeros(len(images), 2, SIDE, SIDE)
    monkeypatch.setattr(module, "DEGRADATIONS", (lambda batch, generator: batch,))
    monkeypatch.setattr(module, "random_gamma", lambda batch, *_: batch)
    monkeypatch.setattr(module, "smooth_field", lambda *_: still)
    images = restandardise(functional.avg_pool2d(images, 9, 1, 4))
    copies, parameters = simulate_copy(images, generator(4))
    angle, shift, growth = parameters.pose.split((1, 2, 1), 1)
    back = read_at(copies, angle[:, 0], shift, growth[:, 0].exp())
    inner = slice(14, 34), slice(14, 34)
    for flip in range(4):
        flipped = images.flip([axis for bit, axis in ((2, 1), (1, 2)) if flip & bit])
        assert (parameters.flip == flip).any()
        for index in (parameters.flip == flip).nonzero()[:, 0].tolist():
            pair = (each[index][inner].numpy().ravel() for each in (back, flipped))
            assert np.corrcoef(*pair)[0, 1] > 0.98


def test_degrading_leaves_more_of_an_image_than_perturbing(images):
    def median(changes):
        changed = [restandardise(change(images, generator(3))) for change in changes]
        return torch.cat([ssim(images, each, image_range(images)) for each in changed]).median()

    assert median(DEGRADATIONS) > median(PERTURBATIONS)
