"""Planted copies: each kind against numpy's or scipy's of the same image."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from pictures import of_every_family
from scipy.optimize import minimize_scalar
from skimage.exposure import adjust_gamma

from deepssim_scan.imaging.changes.copies import COPIES, plant
from deepssim_scan.imaging.content import padding_of
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.imaging.warp import restandardise

SIDE = 48
READ_ELSEWHERE = ["rotation within 15°", "scale within 15 %", "shift within 12 %", "smooth warp"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(images, name, seed=0):
    kinds = torch.full((len(images),), KINDS.index(name))
    return plant(images, kinds, generator(seed))


@pytest.fixture(scope="module")
def images():
    """Standardised images of each procedural family, but those with bars like padding."""
    images = of_every_family(8, SIDE)
    return images[~padding_of(images).flatten(1).any(1)]


# What holds for every kind.


@pytest.mark.parametrize("name", KINDS)
def test_copies_are_standardised_and_leave_their_source(name, images):
    before = images.clone()
    copies = torch.stack(planted(images, name))
    assert torch.equal(images, before)
    assert copies.shape == images.shape
    spread, mean = torch.std_mean(copies, (1, 2), correction=0)
    torch.testing.assert_close(mean, torch.zeros(len(images)), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.ones(len(images)), rtol=0, atol=1e-4)
    if name != "identity":
        assert ((copies - images).abs().amax((1, 2)) > 1e-3).float().mean() > 0.7


@pytest.mark.parametrize("name", KINDS[1:])
def test_copies_depend_on_the_generator_alone(name, images):
    first = torch.stack(planted(images, name, 3))
    torch.manual_seed(99)
    assert torch.equal(first, torch.stack(planted(images, name, 3)))
    if name != "inverted greys":
        assert not torch.equal(first, torch.stack(planted(images, name, 4)))


def test_each_image_is_changed_in_the_way_of_its_kind(images):
    """In any order of the kinds, and each in its place."""
    kinds = torch.arange(len(images))[torch.randperm(len(images))] % len(KINDS)
    copies = plant(images, kinds, generator())
    named = {name: [n for n, kind in enumerate(kinds) if KINDS[kind] == name] for name in KINDS}
    for n in named["identity"]:
        torch.testing.assert_close(copies[n], images[n], rtol=0, atol=1e-5)
    for n in named["inverted greys"]:
        torch.testing.assert_close(copies[n], -images[n], rtol=0, atol=1e-5)
    for n in named["quarter turn"]:
        assert min((copies[n] - torch.rot90(images[n], k)).abs().max() for k in (1, 3)) < 1e-4
    for n in named["noise"] + named["blur"] + named["gamma 0.5 to 1.5"]:
        assert np.corrcoef(copies[n].ravel(), images[n].ravel())[0, 1] > 0.8
    assert all(named[name] for name in ("identity", "inverted greys", "quarter turn", "noise"))


# One kind after the other.


def nearest(copies, choices):
    """Tell which of the choices each copy is, and how far from it."""
    far = [[np.abs(copy - x).max() for x in each] for copy, each in beside(copies, choices)]
    return np.argmin(far, 1), np.min(far, 1)


def beside(copies, others):
    """Give each copy with what belongs to it."""
    return zip((copy.numpy() for copy in copies), others, strict=True)


def test_identity_changes_nothing(images):
    torch.testing.assert_close(torch.stack(planted(images, "identity")), images, rtol=0, atol=1e-5)


def test_a_flip_is_one_of_three(images):
    flips = [(np.flip(x, 0), np.flip(x, 1), np.flip(x)) for x in images.numpy()]
    which, far = nearest(planted(images, "flip"), flips)
    assert far.max() < 1e-4
    assert set(which) == {0, 1, 2}


def test_greys_are_inverted(images):
    torch.testing.assert_close(
        torch.stack(planted(images, "inverted greys")), -images, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (40, 28)])
def test_a_quarter_turn_is_either_way_and_exchanges_the_sides(shape):
    images = restandardise(torch.randn(16, *shape))
    copies = planted(images, "quarter turn")
    assert {tuple(copy.shape) for copy in copies} == {shape[::-1]}
    which, far = nearest(copies, [(np.rot90(x, 1), np.rot90(x, 3)) for x in images.numpy()])
    assert far.max() < 1e-4
    assert set(which) == {0, 1}


def test_a_quarter_turn_among_others_keeps_the_shape_of_the_others():
    images = restandardise(torch.randn(3, 40, 28))
    kinds = torch.tensor([KINDS.index(name) for name in ("identity", "quarter turn", "blur")])
    assert [tuple(x.shape) for x in plant(images, kinds, generator())] == [
        (40, 28),
        (28, 40),
        (40, 28),
    ]


def where_read(name, count, seed):
    """Return where each pixel of a copy is read: (count, 2, SIDE, SIDE), x and y in half sides.

    Found out by changing two images whose greys are their own coordinates, a little tilted, since
    rows or columns of one grey would be taken for padding.
    """
    centres = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    x, y = centres.expand(count, SIDE, SIDE), centres[:, None].expand(count, SIDE, SIDE)
    tilt = 1e-4
    across, down = (COPIES[name](each, generator(seed)) for each in (x + tilt * y, y + tilt * x))
    where = torch.stack([across - tilt * down, down - tilt * across], 1) / (1 - tilt**2)
    return where.numpy()


@pytest.mark.parametrize("name", READ_ELSEWHERE)
def test_what_is_read_elsewhere_is_what_scipy_reads_there(name, images):
    where = where_read(name, len(images), 5)
    copies = COPIES[name](images, generator(5)).numpy()
    for image, copy, (x, y) in zip(images.numpy(), copies, where, strict=True):
        rows, columns = ((each + 1) * SIDE / 2 - 0.5 for each in (y, x))
        wanted = scipy.ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest")
        within = (np.abs(x) < 1 - 1.5 / SIDE) & (np.abs(y) < 1 - 1.5 / SIDE)
        assert within.mean() > 0.6
        np.testing.assert_allclose(copy[within], wanted[within], rtol=0, atol=1e-3)


def moves(name, count=400):
    """Fit what the middle of each copy is read at: matrices (count, 2, 2) and shifts (count, 2)."""
    middle = slice(12, 36)
    where = where_read(name, count, 2)[:, :, middle, middle].reshape(count, 2, -1)
    here = where_read("identity", 1, 0)[0, :, middle, middle].reshape(2, -1)
    every = np.vstack([here, np.ones(here.shape[1])]).T
    fitted = np.stack([np.linalg.lstsq(every, each.T, rcond=None)[0].T for each in where])
    np.testing.assert_allclose(fitted @ every.T, where, atol=1e-4)
    return fitted[:, :, :2], fitted[:, :, 2]


def spans(values, least, most):
    """Tell whether values are spread evenly over a range, and stay within."""
    within = values.min() >= least - 1e-4 and values.max() <= most + 1e-4
    counts = np.histogram(values, 4, (least, most))[0]
    return within and counts.min() > 0.6 * len(values) / 4


def test_rotations_are_within_15_degrees_about_the_centre():
    linear, shift = moves("rotation within 15°")
    angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    identity = np.broadcast_to(np.eye(2), linear.shape)
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), identity, atol=1e-3)
    assert (np.linalg.det(linear) > 0).all()
    assert np.abs(shift).max() < 1e-3
    assert spans(angle, -15, 15)


def test_scales_are_within_15_per_cent_about_the_centre():
    linear, shift = moves("scale within 15 %")
    scale = linear[:, 0, 0]
    np.testing.assert_allclose(linear, scale[:, None, None] * np.eye(2), atol=1e-3)
    assert np.abs(shift).max() < 1e-3
    assert spans(np.log(scale), -0.15, 0.15)


def test_shifts_are_within_12_per_cent_of_each_side():
    linear, shift = moves("shift within 12 %")
    np.testing.assert_allclose(linear, np.broadcast_to(np.eye(2), linear.shape), atol=1e-3)
    assert spans(shift[:, 0] / 2, -0.12, 0.12)
    assert spans(shift[:, 1] / 2, -0.12, 0.12)


@pytest.mark.parametrize("name", READ_ELSEWHERE[:3])
def test_what_comes_in_continues_the_border_or_is_dark(name):
    """Of images bright at their border, with one dark pixel in the middle."""
    images = 1 + 0.01 * torch.rand(300, SIDE, SIDE)
    images[:, 24, 24] = 0
    edge = COPIES[name](images, generator())[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert ((edge == 0) | (edge > 0.99)).all()
    dark = (edge == 0).any(1).float().mean()
    assert 0.15 < dark < 0.6


def test_a_smooth_warp_is_within_a_pixel_and_a_half_of_128():
    """Root mean square; neighbouring pixels go along with each other."""
    count = 200
    where = where_read("smooth warp", count, 1) - where_read("identity", count, 0)
    inner = where[:, :, 6:-6, 6:-6] * 64  # pixels of 128
    rms = np.sqrt((inner**2).mean((1, 2, 3)))
    assert rms.max() < 2.2
    assert 0.3 < np.median(rms) < 1.2
    assert rms.min() < 0.2
    step = np.abs(np.diff(inner, axis=3)).mean() / np.abs(inner).mean()
    assert step < 0.25


def best_fit(copy, change, low, high):
    """Return the parameter at which a change gives the copy, and how far off that is."""

    def off(value):
        changed = change(value)
        return np.abs((changed - changed.mean()) / changed.std() - copy).max()

    tried = np.linspace(low, high, 25)
    start = tried[np.argmin([off(value) for value in tried])]
    width = (high - low) / 24
    found = minimize_scalar(off, bounds=(start - width, start + width), method="bounded")
    return found.x, found.fun


def test_gammas_are_those_of_scikit_image(images):
    found = []
    for copy, image in beside(planted(images, "gamma 0.5 to 1.5"), images.double().numpy()):
        grey = (image - image.min()) / np.ptp(image)
        exponent, off = best_fit(copy, lambda x, grey=grey: adjust_gamma(grey, x), 0.45, 1.55)
        found.append(exponent)
        assert off < 0.02
    assert 0.49 < min(found) < 0.7
    assert 1.3 < max(found) < 1.51


def test_blurs_are_those_of_scipy(images):
    """But for the border, beyond which scipy continues the image and we do not."""
    found = []
    inner = np.s_[8:-8, 8:-8]
    for copy, image in beside(COPIES["blur"](images, generator()), images.double().numpy()):

        def off(sigma, copy=copy, image=image):
            return np.abs(scipy.ndimage.gaussian_filter(image, sigma) - copy)[inner].max()

        fit = minimize_scalar(off, bounds=(0.3, 1.7), method="bounded")
        assert fit.fun < 0.01
        found.append(fit.x)
    assert 0.39 < min(found) < 0.6
    assert 1.3 < max(found) < 1.51


def test_noise_is_white_and_of_0_02_to_0_37_standard_deviations():
    images = torch.zeros(200, SIDE, SIDE)
    noise = COPIES["noise"](images, generator()).numpy()
    spread = noise.std((1, 2))
    assert spans(np.log(spread), -4.05, -0.95)
    along = (noise[:, :, 1:] * noise[:, :, :-1]).mean((1, 2)) / spread**2
    assert np.abs(along).max() < 0.1


def test_a_lower_resolution_loses_the_finest_detail_alone():
    fine = restandardise(torch.randn(4, SIDE, SIDE))
    coarse = torch.from_numpy(scipy.ndimage.gaussian_filter(fine.numpy(), (0, 4, 4)))
    for images, least, most in ((fine, 0, 0.75), (restandardise(coarse), 0.95, 1)):
        for seed in range(5):
            copies = torch.stack(planted(images, "lower resolution", seed))
            kept = (copies * images).mean((1, 2))
            assert (kept >= least).all()
            assert (kept <= most + 1e-4).all()


def test_several_at_once_are_sometimes_inverted(images):
    """A quarter of them; some are moved and some degraded."""
    signs = []
    for seed in range(6):
        for copy, image in zip(planted(images, "several at once", seed), images, strict=True):
            flips = [image, image.flip(0), image.flip(1), image.flip(0, 1)]
            along = [float((copy * each).mean()) for each in flips]
            signs.append(max(along, key=abs) < 0)
    assert 0.1 < np.mean(signs) < 0.5
