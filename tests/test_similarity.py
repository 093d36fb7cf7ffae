"""Measures of registered pairs against scikit-image's, scipy's and numpy's on the same pixels."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from pictures import of_every_family, registered
from skimage.metrics import structural_similarity

from deepssim_scan.imaging.names import BLURS, NAMES
from deepssim_scan.imaging.registration.comparison import compare
from deepssim_scan.imaging.registration.similarity import similarity
from deepssim_scan.imaging.warp import restandardise

SIDE = 64


# The same, one pair at a time, by others.


def over_part(smooth, image, part):
    """Smooth an image by scipy, not counting anything beyond a part, nor beyond the border."""
    share = smooth(part.astype(float))
    return np.divide(smooth(image * part), share, out=np.zeros_like(image), where=share > 1e-3)


def blurred(image, sigma, part):
    def smooth(x):
        return scipy.ndimage.gaussian_filter(x, sigma / 2, mode="constant", truncate=9)

    # Ours divides by what of the Gaussian lies inside the border.
    return over_part(smooth, image, part)


def normalised(image, part):
    def smooth(x):
        return scipy.ndimage.uniform_filter(x, 17, mode="constant")

    deviation = image - over_part(smooth, image, part)
    variance = over_part(smooth, deviation**2, part)
    return part * deviation / np.sqrt(variance + 0.05)


def standard(image, part):
    return part * (image - image[part].mean()) / image[part].std()


def wanted(synthetic, training, part):
    found = {}
    for sigma in BLURS:
        one, other = (
            standard(blurred(standard(each, part), sigma, part), part)
            for each in (training, synthetic)
        )
        _, ssim = structural_similarity(one, other, data_range=4.65, full=True)
        whole = scipy.ndimage.minimum_filter(part, 7, mode="constant", cval=0)
        found[f"ssim_{sigma:g}"] = ssim[whole].mean()
        found[f"ncc_{sigma:g}"] = np.corrcoef(one[part], other[part])[0, 1]
        pair = [normalised(each, part).ravel() for each in (one, other)]
        lengths = [np.linalg.norm(each) for each in pair]
        found[f"lcn_{sigma:g}"] = pair[0] @ pair[1] / (lengths[0] * lengths[1])
    return [found[name] for name in NAMES], part.mean()


@pytest.fixture(scope="module")
def images():
    """Eight standardised images of each procedural family."""
    return of_every_family(8, SIDE)


@pytest.mark.parametrize("others", [1, 8])
def test_measures_are_those_of_scikit_image_scipy_and_numpy(others, images):
    """Of discs on black, a little mixed; a rim and a corner of some left the frame."""
    far = np.hypot(*np.indices((SIDE, SIDE)) - SIDE / 2)
    within = torch.from_numpy(far < np.linspace(9, 50, len(images))[:, None, None])
    images = restandardise(torch.where(within, images + 3, 0))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    synthetic = restandardise(images + 0.02 * noise + 0.3 * images.roll(others, 0))
    inside = torch.ones(images.shape, dtype=torch.bool)
    inside[:, :5] = False
    inside[::2, 40:, 40:] = False
    found = similarity(registered(synthetic, images, inside))
    sides = (each.double().numpy() for each in (synthetic, images))
    for n, pair in enumerate(zip(*sides, inside.numpy(), strict=True)):
        expected, share = wanted(*pair)
        np.testing.assert_allclose(found.measures[n], expected, rtol=0, atol=2e-3)
        assert float(found.foreground[n]) == pytest.approx(share, abs=1e-3)
    assert len(found.foreground.unique()) > 1


def test_a_pair_of_the_same_image_is_alike_by_every_measure(images):
    found = similarity(registered(images, images))
    torch.testing.assert_close(found.measures, torch.ones(len(images), 6), rtol=0, atol=1e-4)


def test_measures_do_not_depend_on_the_unit_of_the_greys(images):
    synthetic = images + 0.5 * images.roll(8, 0)
    plain = similarity(registered(synthetic, images))
    scaled = similarity(registered(3 * synthetic - 7, 0.2 * images + 40))
    torch.testing.assert_close(scaled.measures, plain.measures, rtol=0, atol=2e-3)
    torch.testing.assert_close(scaled.foreground, plain.foreground, rtol=0, atol=1e-3)


# What is compared.


def spot(number):
    """A bright spot of a random texture in the middle of black: (128, 128)."""
    rng = np.random.default_rng(number)
    far = np.hypot(*np.indices((128, 128)) - 63.5)
    texture = scipy.ndimage.gaussian_filter(rng.normal(size=(128, 128)), 2)
    return np.clip(1 + 3 * texture / texture.std(), 0, None) * (far < 18)


def test_unrelated_spots_on_black_are_not_alike():
    """Although the SSIM of the whole images is high, for the black that they share."""
    spots = restandardise(torch.from_numpy(np.stack([spot(n) for n in range(6)])).float())
    whole = [
        structural_similarity(a, b, data_range=np.ptp(a))
        for a, b in zip(spots.numpy(), spots.roll(1, 0).numpy(), strict=True)
    ]
    assert min(whole) > 0.8
    found = compare(spots.roll(1, 0), spots)
    assert found.foreground.max() < 0.1
    by_name = dict(zip(NAMES, found.measures.T, strict=True))
    assert by_name["ssim_1"].median() < 0.5
    assert by_name["lcn_1"].median() < 0.6
    assert by_name["ssim_1"].max() < 0.8
    same = dict(zip(NAMES, compare(spots, spots).measures.T, strict=True))
    assert min(same["ncc_1"].min(), same["lcn_1"].min()) > 0.99


def test_one_bright_marker_in_all_images_does_not_make_them_alike():
    """As the letter of a side is; with the range of all greys, the SSIM rises."""
    rng = np.random.default_rng(0)
    texture = scipy.ndimage.gaussian_filter(rng.normal(size=(8, SIDE, SIDE)), (0, 3, 3))
    images = restandardise(torch.from_numpy(texture).float())
    marked = images.clone()
    marked[:, 3:6, 3:6] = 100
    ours, whole = [], []
    for each in (images, marked):
        found = similarity(registered(each.roll(1, 0), each)).measures
        ours.append(found[:, NAMES.index("ssim_1")].mean())
        pairs = zip(each.roll(1, 0).numpy(), each.numpy(), strict=True)
        whole.append(np.mean([structural_similarity(a, b, data_range=np.ptp(b)) for a, b in pairs]))
    assert whole[1] > whole[0] + 0.3
    assert abs(ours[1] - ours[0]) < 0.05


def test_an_image_that_fills_its_frame_is_compared_whole():
    rng = np.random.default_rng(0)
    texture = scipy.ndimage.gaussian_filter(rng.normal(size=(4, 128, 128)), (0, 4, 4))
    textures = restandardise(torch.from_numpy(texture).float())
    assert (compare(textures, textures).foreground == 1).all()


def test_with_nothing_to_compare_measures_are_minus_one():
    there = torch.randn(1, SIDE, SIDE)
    nowhere = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    found = similarity(registered(there, there, nowhere))
    assert (found.measures == -1).all()
    assert found.foreground == 0


def test_a_part_too_narrow_for_a_window_has_no_ssim_alone(images):
    narrow = torch.zeros(images.shape, dtype=torch.bool)
    narrow[:, 30:34, 20:44] = True
    found = dict(zip(NAMES, similarity(registered(images, images, narrow)).measures.T, strict=True))
    somewhere = similarity(registered(images, images, narrow)).foreground > 0.01
    assert somewhere.any()
    assert (found["ssim_3"] == -1).all()
    assert (found["ncc_3"][somewhere] > 0.99).all()


def test_sides_of_another_number_are_refused_and_no_pair_is_lost(images):
    many = images.repeat(5, 1, 1)
    with pytest.raises(ValueError, match="one shape"):
        compare(many, many[:64])
