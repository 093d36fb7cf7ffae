"""Test-time views: how they are moved, and that flips do not change the best score."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.tta import best_scores, embed_tta
from deepssim_scan.encoder.views import TTA_VIEWS

SIDE = 64


class _Pixels(torch.nn.Module):
    """Embeds an image as its own pixels."""

    def forward(self, images):
        return images.flatten(1)


@pytest.fixture
def blobs():
    """Smooth images with room around."""
    noise = np.random.default_rng(0).normal(size=(5, SIDE, SIDE))
    far = np.hypot(*np.indices((SIDE, SIDE)) - (SIDE - 1) / 2)
    smooth = ndimage.gaussian_filter(noise, (0, 4, 4)) * (far < SIDE / 3)
    return torch.from_numpy(smooth / smooth.std()).float()


def test_the_first_view_is_the_image_and_the_others_are_moved_as_they_say(blobs):
    views = embed_tta(_Pixels(), blobs).unflatten(2, (SIDE, SIDE)).numpy()
    assert views.shape == (5, len(TTA_VIEWS), SIDE, SIDE)
    assert (views[:, 0] == blobs.numpy()).all()
    for index, (degrees, down) in enumerate(TTA_VIEWS):
        rotated = ndimage.rotate(blobs, degrees, (2, 1), reshape=False, order=1)
        wanted = ndimage.shift(rotated, (0, -down * SIDE, 0), order=1, mode="nearest")
        assert np.abs(views[:, index] - wanted).max() < 0.15
        assert not index or np.abs(wanted - blobs.numpy()).max() > 0.5


def test_fewer_views_are_the_first_of_all(blobs):
    every = embed_tta(_Pixels(), blobs)
    for count in range(1, len(TTA_VIEWS) + 1):
        assert torch.equal(embed_tta(_Pixels(), blobs, count), every[:, :count])


def test_an_image_and_its_flips_have_the_same_scores(blobs, tiny, make_encoder):
    encoder = make_encoder(tiny).eval()
    small = torch.nn.functional.interpolate(
        blobs[:, None], (tiny.standardisation.size,) * 2, mode="bilinear"
    )[:, 0]
    gallery = embed(encoder, small)
    scores = best_scores(embed_tta(encoder, small), gallery)
    assert (scores.diagonal() > 1 - 1e-5).all()
    assert (scores >= embed(encoder, small) @ gallery.T - 1e-6).all()
    for dims in ((1,), (2,), (1, 2)):
        flipped = best_scores(embed_tta(encoder, small.flip(dims)), gallery)
        torch.testing.assert_close(flipped, scores, atol=1e-4, rtol=0)
