"""Test-time views: what each shows, and which copies have the scores of their source."""

import numpy as np
import pytest
import torch

from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.tta import best_scores, embed_tta, seen
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.standardise import standardise

TURNS = range(4)


class _Pixels(torch.nn.Module):
    """Embeds an image as its own pixels."""

    def normalised(self, images):
        return images

    def of_normalised(self, images):
        return images.flatten(1), None


@pytest.mark.parametrize("view", range(len(TTA_VIEWS)))
def test_a_view_is_a_quarter_turn_of_the_greys_or_of_their_negative(view):
    """Oblong images, too."""
    turns, inverted = TTA_VIEWS[view]
    images = torch.randn(3, 12, 20)
    wanted = [np.rot90(-each if inverted else each, turns) for each in images.numpy()]
    assert (seen(images, view).numpy() == wanted).all()


@pytest.mark.parametrize("view", [v for v, (_, inverted) in enumerate(TTA_VIEWS) if inverted])
@pytest.mark.parametrize("shape", [(64, 40), (31, 64)])
def test_the_negative_of_an_oblong_copy_is_padded_as_its_source_is(shape, view):
    pixels = np.random.default_rng(view).gamma(2, size=shape).astype(np.float32)
    source, copy = (standardise(each, Standardisation(64)) for each in (pixels, 9 - pixels))
    found = seen(torch.from_numpy(copy)[None], view)[0]
    np.testing.assert_allclose(found, np.rot90(source, TTA_VIEWS[view][0]), atol=1e-5)


def test_the_first_view_is_the_image_as_it_is_and_all_differ():
    images = torch.randn(2, 16, 16)
    views = embed_tta(_Pixels(), images)
    assert TTA_VIEWS[0] == (0, False)
    assert torch.equal(views[:, 0], images.flatten(1))
    assert len(views.unique(dim=1)[0]) == len(TTA_VIEWS)
    for view in range(len(TTA_VIEWS)):
        assert torch.equal(views[:, view], seen(images, view).flatten(1))


def test_fewer_views_are_the_first_of_all():
    images = torch.randn(5, 16, 16)
    every = embed_tta(_Pixels(), images)
    for count in range(1, len(TTA_VIEWS) + 1):
        assert torch.equal(embed_tta(_Pixels(), images, count), every[:, :count])


def test_the_best_score_is_that_of_the_best_view():
    views, gallery = torch.randn(6, 4, 8), torch.randn(9, 8)
    wanted = np.einsum("nvd,md->nmv", views, gallery).max(2)
    np.testing.assert_allclose(best_scores(views, gallery), wanted, atol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("flip", [False, True])
def test_a_flipped_turned_or_inverted_copy_scores_one_with_its_source(
    flip, turns, inverted, tiny, make_encoder
):
    """The encoder is invariant to flips, and the views are the rest of the square and its negative.

    The scores with the other images are those of the source, too.
    """
    encoder = make_encoder(tiny).eval()
    images = torch.randn(5, tiny.standardisation.size, tiny.standardisation.size)
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    gallery = embed(encoder, images)
    plain = best_scores(embed_tta(encoder, images), gallery)
    copies = torch.rot90(images.flip(2) if flip else images, turns, (1, 2))
    found = best_scores(embed_tta(encoder, -copies if inverted else copies), gallery)
    assert (found.diagonal() > 1 - 1e-5).all()
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", [lambda x: torch.rot90(x, 1, (1, 2)), torch.neg])
def test_the_encoder_alone_takes_a_turned_or_inverted_copy_for_another_image(
    change, tiny, make_encoder
):
    """Else the views above would prove nothing."""
    encoder = make_encoder(tiny).eval()
    images = torch.nn.functional.avg_pool2d(torch.randn(5, 32, 32), 5, 1, 2)
    scores = (embed(encoder, change(images)) * embed(encoder, images)).sum(1)
    assert scores.max() < 1 - 1e-4
