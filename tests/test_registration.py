"""Registration against changes planted by Pillow and scipy, which share no code with it."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from deepssim_scan.imaging.names import FLIPS, NAMES
from deepssim_scan.imaging.registration import register, undone
from deepssim_scan.imaging.registration.coarse import search
from deepssim_scan.imaging.registration.comparison import Comparison, compare
from deepssim_scan.imaging.registration.sides import sides
from deepssim_scan.ingest.standardise import Standardisation, standardise
from deepssim_scan.training.pseudo_subjects import mni152, slices

RULE = Standardisation()
TRANSPOSES = {1: [Image.Transpose.FLIP_LEFT_RIGHT], 2: [Image.Transpose.FLIP_TOP_BOTTOM]}
TRANSPOSES |= {0: [], 3: TRANSPOSES[1] + TRANSPOSES[2]}
SSIM = NAMES.index("ssim_1")


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


def registered(copies, training):
    """Register pairs, each by itself."""
    every = np.arange(len(copies))
    pairs = torch.from_numpy(np.stack([every, every], 1))
    theirs = sides(training)
    ours = sides(copies, theirs.framed)
    coarse = search(ours, theirs, pairs, every)
    return register(ours, theirs, coarse.flip, coarse.pose)


def planted(image, flip=0, degrees=0.0, scale=1.0, shift=(0.0, 0.0), gamma=1.0):
    """Flip, scale, rotate counter-clockwise about the centre, shift, change gamma: by Pillow."""
    for transpose in TRANSPOSES[flip]:
        image = image.transpose(transpose)
    middle = [side / 2 for side in image.size]
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    back = np.array([[cos, -sin], [sin, cos]])  # from where a pixel comes: x right, y down
    offset = middle - back @ (np.array(middle) + shift)
    rows = np.column_stack([back, offset]).ravel().tolist()
    image = image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    return Image.fromarray(np.round(255 * (np.asarray(image) / 255) ** gamma).astype(np.uint8))


@pytest.mark.parametrize("flip", range(4))
@pytest.mark.parametrize(
    ("degrees", "scale", "shift", "gamma"),
    [
        (0, 1, (0, 0), 1),
        (7.3, 1, (0, 0), 1),
        (0, 0.87, (0, 0), 1),
        (0, 1.15, (0, 0), 1),
        (-12, 1, (4, -3), 0.7),
        (0.8, 0.95, (-9, 6), 1.4),
        (14, 1.1, (0, 12), 1),
        (-5, 0.9, (11, -7), 0.8),
    ],
)
def test_what_pillow_planted_is_found(heads, flip, degrees, scale, shift, gamma):
    copies = [planted(image, flip, degrees, scale, shift, gamma) for image in heads]
    found = compare(standard(copies), standard(heads))
    assert found.flip.tolist() == [flip] * len(heads), FLIPS[flip]
    assert (found.degrees - degrees).abs().max() < 0.4
    assert (found.scale / scale - 1).abs().max() < 0.01
    assert (found.shift - torch.tensor(shift)).abs().max() < 0.5
    assert (found.gamma.log() - np.log(gamma)).abs().max() < 0.25
    assert found.measures[:, SSIM].min() > 0.85


@pytest.mark.parametrize(
    ("degrees", "shift"), [(0, (0, 8)), (0, (-9, 0)), (6, (0, 0)), (-4, (6, -6))]
)
def test_what_was_planted_in_an_oblong_image_is_found(heads, degrees, shift):
    """Black comes in at its own border, beside the padding that standardising adds."""
    images = [image.crop((34, 14, 94, 114)) for image in heads]
    copies = [planted(image, degrees=degrees, shift=shift) for image in images]
    found = compare(standard(copies), standard(images))
    assert (found.degrees - degrees).abs().max() < 1
    assert (found.shift - 1.28 * torch.tensor(shift)).abs().max() < 1.5
    assert found.measures[:, SSIM].median() > 0.95


def test_pairs_of_one_batch_have_each_their_own_transform(heads):
    rng = np.random.default_rng(0)
    options = [
        {
            "flip": int(rng.integers(4)),
            "degrees": rng.uniform(-14, 14),
            "scale": math.exp(rng.uniform(-0.13, 0.13)),
            "shift": tuple(rng.uniform(-13, 13, 2)),
        }
        for _ in range(4 * len(heads))
    ]
    copies = [planted(heads[n % 12], **each) for n, each in enumerate(options)]
    found = registered(standard(copies), standard(heads * 4))
    assert found.flip.tolist() == [each["flip"] for each in options]
    for name, within in (("degrees", 0.5), ("scale", 0.015), ("shift", 0.6)):
        wanted = torch.tensor([each[name] for each in options])
        assert (getattr(found, name) - wanted).abs().max() < within


def test_the_aligned_pair_is_what_scipy_makes_of_the_found_transform(heads):
    """The synthetic image read where the transform says that the training image's pixels went."""
    options = {"flip": 1, "degrees": 9, "scale": 1.1, "shift": (5, -8), "gamma": 0.7}
    copies = standard([planted(image, **options) for image in heads])
    training = standard(heads)
    found = registered(copies, training)
    y, x = np.indices((64, 64)) + 0.5 - 32
    for n, copy in enumerate(copies.numpy()):
        small = copy.reshape(64, 2, 64, 2).mean((1, 3))
        angle, scale = math.radians(found.degrees[n].item()), found.scale[n].item()
        right, down = (found.shift[n] / 2).tolist()
        flipped = -x  # the flip is of columns
        to_x = scale * (math.cos(angle) * flipped + math.sin(angle) * y) + right
        to_y = scale * (math.cos(angle) * y - math.sin(angle) * flipped) + down
        where = [to_y + 31.5, to_x + 31.5]
        wanted = scipy.ndimage.map_coordinates(small, where, order=1, mode="nearest")
        inside = (np.abs(to_x) <= 32) & (np.abs(to_y) <= 32)
        assert np.abs(found.synthetic[n].numpy() - wanted)[1:-1, 1:-1].max() < 1e-2
        assert (found.inside[n].numpy() & ~inside).mean() < 0.01
        assert 0.5 < inside.mean() < 0.95
        small = training[n].numpy().reshape(64, 2, 64, 2).mean((1, 3))
        span, low = np.ptp(small), small.min()
        under_gamma = ((small - low) / span) ** found.gamma[n].item() * span + low
        np.testing.assert_allclose(found.training[n], under_gamma, atol=1e-3)
        assert np.corrcoef(wanted[inside], under_gamma[inside])[0, 1] > 0.98


@pytest.mark.parametrize("flip", range(4))
def test_what_pillow_planted_is_undone(heads, flip):
    """Where nothing left the image, it is the training image again."""
    options = {"degrees": 8.0, "scale": 0.93, "shift": (5.0, -4.0)}
    copies = standard([planted(image, flip, **options) for image in heads])
    many = [
        torch.tensor([each] * len(heads)) for each in (flip, options["degrees"], options["scale"])
    ]
    moved = undone(copies, *many, torch.tensor([options["shift"]] * len(heads)))
    middle = slice(None), slice(16, 112), slice(16, 112)
    for one, other in zip(moved[middle], standard(heads)[middle], strict=True):
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.98


def test_what_left_the_image_does_not_count():
    """A texture that fills the frame loses a fifth of itself; what is left is the same."""
    rng = np.random.default_rng(0)
    large = scipy.ndimage.gaussian_filter(rng.normal(size=(160, 160)), 2)
    large = ((large - large.min()) / (large.max() - large.min()) * 255).astype(np.uint8)
    source, moved = (
        standard([Image.fromarray(large[a : a + 128, b : b + 128])]) for a, b in ((8, 8), (20, 0))
    )
    found = compare(moved, source)
    assert (found.shift - torch.tensor([8.0, -12.0])).abs().max() < 0.2
    for name, measure in zip(NAMES, found.measures[0], strict=True):
        assert measure > (0.85 if name.startswith("ssim") else 0.98), name
    assert float(found.foreground) == pytest.approx((1 - 8 / 128) * (1 - 12 / 128), abs=0.02)


def test_noise_does_not_give_a_neighbour_a_higher_similarity_than_the_source():
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
    below, own, above = compare(noisy.expand(3, -1, -1), torch.stack(sides)).measures
    assert (own > torch.maximum(below, above)).all()
    assert own[SSIM] > 0.85


def test_other_subjects_have_a_low_ssim(heads):
    images = standard(heads)
    assert compare(images.roll(1, 0), images).measures[:, SSIM].max() < 0.8


def test_a_pair_fares_the_same_alone_and_among_others(heads):
    copies = standard([planted(image, 1, 5, 1.05, (2, 1)) for image in heads])
    images = standard(heads)
    together = compare(torch.cat([copies] * 3), torch.cat([images] * 3))
    for index in (0, 17, 35):
        alone = compare(copies[index % 12, None], images[index % 12, None])
        for name in Comparison.__slots__:
            found, wanted = getattr(alone, name)[0], getattr(together, name)[index]
            torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3)


def test_flat_and_noisy_pairs_give_finite_answers():
    noise = torch.randn(3, 128, 128)
    flat = torch.zeros(3, 128, 128)
    flat[:, 60:, 3] = 1
    nothing = torch.zeros(3, 128, 128)
    pairs = (noise, flat), (flat, noise), (noise, noise.flip(0)), (nothing, noise), (nothing,) * 2
    for pair in pairs:
        found = compare(*pair)
        assert all(torch.isfinite(getattr(found, name)).all() for name in found.__slots__)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        compare(torch.zeros(2, 128, 128), torch.zeros(3, 128, 128))
    with pytest.raises(ValueError, match="multiples of 4"):
        compare(torch.zeros(2, 126, 128), torch.zeros(2, 126, 128))
