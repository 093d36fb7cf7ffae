"""Registration against changes planted by Pillow and scipy, which share no code with it."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from deepssim_scan.imaging.registration import FLIPS, register
from deepssim_scan.ingest.standardise import Standardisation, standardise
from deepssim_scan.training.pseudo_subjects import mni152, slices

RULE = Standardisation()
TRANSPOSES = {1: [Image.Transpose.FLIP_LEFT_RIGHT], 2: [Image.Transpose.FLIP_TOP_BOTTOM]}
TRANSPOSES |= {0: [], 3: TRANSPOSES[1] + TRANSPOSES[2]}


@pytest.fixture(scope="module")
def heads():
    """Twelve slices of pseudo-subjects, as 8-bit images."""
    volume = mni152()
    cut = [
        slices(volume, axis, [0.4, 0.6], 128, torch.Generator().manual_seed(seed))
        for seed, axis in enumerate([0, 1, 2, 0, 1, 2])
    ]
    return [Image.fromarray((each * 255).byte().numpy()) for each in torch.cat(cut)]


def standard(images):
    return torch.from_numpy(
        np.stack([standardise(np.asarray(image, np.float32), RULE) for image in images])
    )


def planted(image, flip, degrees, shift, gamma):
    """Flip, turn counter-clockwise, shift right and down, change gamma: by Pillow and numpy."""
    for transpose in TRANSPOSES[flip]:
        image = image.transpose(transpose)
    image = image.rotate(degrees, Image.Resampling.BICUBIC, translate=shift)
    return Image.fromarray(np.round(255 * (np.asarray(image) / 255) ** gamma).astype(np.uint8))


@pytest.mark.parametrize("flip", range(4))
@pytest.mark.parametrize(
    ("degrees", "shift", "gamma"),
    [(0, (0, 0), 1), (7.3, (0, 0), 1), (-12, (4, -3), 0.7), (0.8, (-9, 6), 1.4), (14, (0, 12), 1)],
)
def test_what_was_planted_is_found(heads, flip, degrees, shift, gamma):
    copies = [planted(image, flip, degrees, shift, gamma) for image in heads]
    found = register(standard(copies), standard(heads))
    assert found.flip.tolist() == [flip] * len(heads), FLIPS[flip]
    assert (found.degrees - degrees).abs().max() < 0.2
    assert (found.shift - torch.tensor(shift)).abs().max() < 0.3
    assert (found.gamma.log() - np.log(gamma)).abs().max() < 0.12
    assert found.ssim.min() > 0.9


def blurred(image):
    return scipy.ndimage.gaussian_filter(image.numpy().astype(np.float64), 1)


def test_the_ssim_of_an_untouched_pair_is_scikit_images(heads):
    first, second = (
        standard(heads),
        standard([image.point(lambda g: min(255, g + g % 7)) for image in heads]),
    )
    found = register(second, first)
    for one, other, score, gamma in zip(first, second, found.ssim, found.gamma, strict=True):
        one, other = (scipy.stats.zscore(blurred(image), axis=None) for image in (one, other))
        wanted = structural_similarity(one, other, data_range=np.ptp(one))
        assert abs(float(score) - wanted) < 0.02
        assert abs(float(gamma) - 1) < 0.1


def test_what_left_the_image_does_not_count():
    """A texture that fills the frame loses a fifth of itself; what is left is the same."""
    rng = np.random.default_rng(0)
    large = scipy.ndimage.gaussian_filter(rng.normal(size=(160, 160)), 2)
    large = ((large - large.min()) / (large.max() - large.min()) * 255).astype(np.uint8)
    source, moved = (
        standard([Image.fromarray(large[a : a + 128, b : b + 128])]) for a, b in ((8, 8), (20, 0))
    )
    found = register(moved, source)
    assert (found.shift - torch.tensor([8.0, -12.0])).abs().max() < 0.2
    assert found.ssim[0] > 0.95


def test_noise_does_not_give_a_neighbour_a_higher_ssim_than_the_source():
    """Laid half a pixel off, a noisy image is read between its pixels, which blurs it."""
    volume = mni152()
    person = torch.Generator().manual_seed(5)
    images = slices(volume, 2, [0.40, 0.41, 0.42], 128, person)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.06, (128, 128))
    copy = np.clip(images[1].numpy() + noise, 0, 1)
    sides = [
        torch.from_numpy(standardise(each.astype(np.float32), RULE)) for each in images.numpy()
    ]
    noisy = torch.from_numpy(standardise(copy.astype(np.float32), RULE))
    off = torch.roll(noisy, 1, 1) * 0.5 + noisy * 0.5  # what half a pixel would make of it
    below, own, above = register(noisy.expand(3, -1, -1), torch.stack(sides)).ssim.tolist()
    smoother = float(register(off[None], torch.stack(sides[1:2])).ssim)
    assert own > max(below, above) + 0.02
    assert own > 0.85
    assert abs(smoother - own) < 0.05


def test_other_subjects_have_a_low_ssim(heads):
    images = standard(heads)
    assert register(images.roll(1, 0), images).ssim.max() < 0.8


def test_a_pair_fares_the_same_alone_and_among_others(heads):
    copies = standard([planted(image, 1, 5, (2, 1), 1) for image in heads])
    images = standard(heads)
    together = register(torch.cat([copies] * 3), torch.cat([images] * 3))
    for index in (0, 17, 35):
        alone = register(copies[index % 12, None], images[index % 12, None])
        assert float(alone.degrees) == pytest.approx(float(together.degrees[index]), abs=1e-2)
        assert float(alone.ssim) == pytest.approx(float(together.ssim[index]), abs=1e-3)


def test_flat_and_noisy_pairs_give_finite_answers():
    noise = torch.randn(3, 128, 128)
    flat = torch.zeros(3, 128, 128)
    flat[:, 60:, 3] = 1
    for pair in ((noise, flat), (flat, noise), (noise, noise.flip(0))):
        found = register(*pair)
        assert all(torch.isfinite(getattr(found, name)).all() for name in found.__slots__)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        register(torch.zeros(2, 128, 128), torch.zeros(3, 128, 128))
    with pytest.raises(ValueError, match="multiples of 4"):
        register(torch.zeros(2, 126, 128), torch.zeros(2, 126, 128))
