"""Bodies that never were: what is drawn, and that new colours and a skull keep what is inside."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepssim_scan.phantoms import encased, phantom, recoloured

SIDE = 40


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bodies():
    return [phantom(rng(seed), SIDE) for seed in range(40)]


@pytest.fixture(scope="module")
def brain():
    """A ball of smooth random greys, with room around it."""
    shape = (2 * SIDE,) * 3
    values = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)
    far = np.linalg.norm(np.indices(shape) - (2 * SIDE - 1) / 2, axis=0)
    greys = 0.3 + 0.7 * (values - values.min()) / np.ptp(values)
    return torch.from_numpy(np.where(far < 16, greys, 0).astype(np.float32))


def test_a_body_lies_in_the_unit_range_and_fills_the_middle(bodies):
    for body in bodies:
        assert body.shape == (SIDE,) * 3
        assert body.dtype == torch.float32
        assert body.min() == 0
        assert body.max() <= 1
        assert body[15:25, 15:25, 15:25].std() > 0.001
        assert (body[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()


def test_a_seed_gives_its_body_and_no_other(bodies):
    for seed in range(5):
        assert torch.equal(phantom(rng(seed), SIDE), bodies[seed])
    assert len({body.sum().item() for body in bodies}) == len(bodies)


def test_three_of_four_bodies_are_about_the_same_on_both_sides(bodies):
    alike = [
        np.corrcoef((body - body.mean()).ravel(), body.flip(0).ravel())[0, 1] > 0.97
        for body in bodies
    ]
    assert 0.5 < np.mean(alike) < 0.95


def test_some_bodies_reach_out_at_the_top_and_few_at_the_sides(bodies):
    reach = [[(body.select(axis, 0) > 0).any().item() for axis in range(3)] for body in bodies]
    sides, front, top = np.mean(reach, 0)
    assert max(sides, front) < 0.1
    assert 0.2 < top < 0.9


def test_new_colours_change_greys_by_a_curve_and_keep_the_background(brain):
    for seed in range(10):
        coloured = recoloured(brain, rng(seed))
        assert (coloured[brain == 0] == 0).all()
        assert coloured.min() >= 0
        assert coloured.max() <= 1
        order = brain.flatten().argsort()
        greys, mapped = brain.flatten()[order], coloured.flatten()[order]
        same = greys[1:] - greys[:-1] < 1e-6
        assert ((mapped[1:] - mapped[:-1]).abs()[same] < 1e-4).all()  # one grey, one colour


def test_new_colours_are_of_the_seed(brain):
    assert torch.equal(recoloured(brain, rng(1)), recoloured(brain, rng(1)))
    assert not torch.equal(recoloured(brain, rng(1)), recoloured(brain, rng(2)))


def test_a_skull_lies_around_the_brain_and_leaves_it_as_it_is(brain):
    inside = scipy.ndimage.binary_erosion(brain.numpy() > 0, iterations=5)
    for seed in range(10):
        whole = encased(brain, rng(seed)).numpy()
        assert whole.shape == brain.shape
        assert whole.max() == pytest.approx(1)
        ratio = whole[inside] / brain.numpy()[inside]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        added = (whole > 0.01) & (brain.numpy() == 0)
        assert 0.02 < added.mean() < 0.4
        holes = scipy.ndimage.binary_fill_holes(added) & ~added
        assert holes[inside].all()  # there is no way in
