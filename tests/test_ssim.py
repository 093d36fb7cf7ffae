"""Our SSIM against scikit-image's, on every kind of image that rounding could hurt."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nilearn.datasets import load_mni152_template
from skimage.metrics import structural_similarity

from deepssim_scan.imaging.ssim import image_range, ssim, ssim_matrix

RNG = np.random.default_rng(7)


def _reference(first, second, data_range):
    """scikit-image's SSIM of each pair, in float64."""
    pairs = zip(first.astype(np.float64), second.astype(np.float64), data_range, strict=True)
    return np.array([structural_similarity(x, y, data_range=r) for x, y, r in pairs])


def _random():
    return RNG.standard_normal((5, 40, 56)), RNG.standard_normal((5, 40, 56))


def _real():
    volume = load_mni152_template(resolution=2).get_fdata()
    slices = np.stack([volume[:, :, z] for z in range(30, 60, 5)])
    slices = (slices - slices.mean((1, 2), keepdims=True)) / slices.std((1, 2), keepdims=True)
    return slices, slices[::-1].copy()


def _constant_patch():
    first, second = _random()
    first[:, 5:30, 5:40] = first.max()
    second[:, 12:38, 10:50] = second.min()
    return first, second


def _sixteen_bit():
    first = RNG.integers(64_000, 65_536, (5, 40, 56)).astype(float)
    return first, np.clip(first + RNG.integers(-300, 300, first.shape), 0, 65_535)


KINDS = {
    "random": _random,
    "real": _real,
    "constant patch": _constant_patch,
    "16-bit": _sixteen_bit,
}


@pytest.fixture(params=KINDS)
def images(request):
    first, second = KINDS[request.param]()
    return torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)


def test_pairs_equal_skimage(images):
    first, second = images
    ranges = image_range(first)
    expected = _reference(first.numpy(), second.numpy(), ranges.tolist())
    assert np.abs(ssim(first, second, ranges).numpy() - expected).max() < 1e-5


def test_all_pairs_equal_skimage(images):
    first, second = images[0], images[1][:3]
    ranges = image_range(first)
    matrix = ssim_matrix(first, second, ranges).numpy()
    for column, image in enumerate(second.numpy()):
        expected = _reference(first.numpy(), np.stack([image] * len(first)), ranges.tolist())
        assert np.abs(matrix[:, column] - expected).max() < 1e-5


@given(
    hnp.arrays(np.float32, (2, 9, 8), elements=st.floats(-50, 50, width=32)),
    st.floats(0.5, 200, width=32),
)
def test_any_small_images_equal_skimage(pair, data_range):
    first, second = torch.tensor(pair[:1]), torch.tensor(pair[1:])
    expected = _reference(pair[:1], pair[1:], [data_range])
    assert abs(ssim(first, second, data_range).item() - expected[0]) < 1e-5
    assert abs(ssim_matrix(first, second, data_range).item() - expected[0]) < 1e-5


def test_a_batch_that_spans_chunks_equals_its_pairs_one_by_one():
    first, second = torch.randn(70, 96, 96), torch.randn(70, 96, 96)
    together = ssim(first, second, 6.0)
    alone = torch.cat([ssim(a[None], b[None], 6.0) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)


def test_a_stride_estimates_the_mean_over_all_windows():
    first, second = map(torch.tensor, _real())
    exact = ssim_matrix(first, second, image_range(first))
    estimate = ssim_matrix(first, second, image_range(first), stride=2)
    assert 0 < (exact - estimate).abs().max() < 0.02


def test_an_image_is_fully_similar_to_itself():
    image = torch.randn(3, 20, 20)
    torch.testing.assert_close(ssim(image, image, 5.0), torch.ones(3))


@pytest.mark.parametrize(
    ("first", "second", "data_range", "words"),
    [
        ((2, 9, 9), (2, 9, 8), 1.0, "2x9x9 and 2x9x8"),
        ((2, 6, 9), (2, 6, 9), 1.0, "sides >= 7, found 2x6x9"),
        ((2, 9, 9), (2, 9, 9), 0.0, "data_range must be > 0, found 0"),
        ((2, 9, 9), (2, 9, 9), float("nan"), "data_range must be > 0, found nan"),
    ],
)
def test_wrong_input_is_refused(first, second, data_range, words):
    for function in (ssim, ssim_matrix):
        with pytest.raises(ValueError, match=words):
            function(torch.zeros(first), torch.zeros(second), data_range)


def test_windows_that_are_not_all_inside_do_not_count():
    first, second = (torch.tensor(images, dtype=torch.float32) for images in _random())
    inside = torch.ones_like(first, dtype=torch.bool)
    inside[:, :9] = inside[:, :, -5:] = False
    found = ssim(first, second, image_range(first), inside)
    wanted = ssim(first[:, 9:, :-5], second[:, 9:, :-5], image_range(first))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    nothing = ssim(first, second, image_range(first), torch.zeros_like(inside))
    assert torch.isnan(nothing).all()
