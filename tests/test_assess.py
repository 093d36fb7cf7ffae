"""What an encoder is worth, on encoders of which it is known what they see."""

import numpy as np
import pytest
import torch
from oracles import brute_force_mae, drawn_pairs, unit_rows
from torch import nn

from deepssim_scan.calibration.assess import assess, score_mae
from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.imaging.changes.augment import other_subject, simulate_copy


class _Blind(nn.Module):
    """Gives every image one embedding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def normalised(self, images):
        return images

    def of_normalised(self, images):
        return nn.functional.normalize(images.new_ones(len(images), 3)), None


class _Pixels(_Blind):
    """Gives an image its own pixels: near for what is near, whatever augmentation does to it."""

    def of_normalised(self, images):
        return nn.functional.normalize(images.flatten(1)), None


def test_the_mae_is_that_of_a_brute_force_over_all_pairs(dataset, tiny, make_encoder):
    """With scikit-image's SSIM; skipping windows costs less than 0.01."""
    encoder, batches = make_encoder(tiny), list(drawn_pairs(dataset.validation, 3))
    for network, embedding in (
        (encoder, lambda images: embed(encoder, images)),
        (_Blind(), lambda images: np.ones((len(images), 3))),
        (_Pixels(), lambda images: images),
    ):
        wanted = brute_force_mae(embedding, batches)
        assert score_mae(network, dataset.validation, 3) == pytest.approx(wanted, abs=0.01)


def test_the_seed_chooses_the_pairs(dataset):
    first, again, other = (score_mae(_Pixels(), dataset.validation, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_an_encoder_that_sees_nothing_finds_nothing(dataset):
    found = assess(_Blind(), dataset.validation, 0)
    assert found.recall_at_1 == pytest.approx(1 / 36)  # the first is as good a match as any
    assert found.tpr_at_1_fpr == 0


def test_an_assessment_counts_copies_above_the_non_members(dataset):
    """Counted again one image at a time, of the same draws."""
    found = assess(_Pixels(), dataset.validation, 0)
    generator = torch.Generator().manual_seed(0)
    members = dataset.validation.some(512, generator)
    gallery = unit_rows(members)
    best = {}
    for name, images in (
        ("copies", simulate_copy(members, generator)[0]),
        ("others", other_subject(members, generator)),
    ):
        views = embed_tta(_Pixels(), images).double().numpy()
        best[name] = [np.max([view @ gallery.T for view in each], axis=0) for each in views]
    hits = [scores.argmax() == source for source, scores in enumerate(best["copies"])]
    bound = np.quantile([scores.max() for scores in best["others"]], 0.99)
    above = [scores.max() > bound for scores in best["copies"]]
    assert found.recall_at_1 == pytest.approx(np.mean(hits))
    assert found.tpr_at_1_fpr == pytest.approx(np.mean(above))
    assert 0.3 < np.mean(hits) < 1
