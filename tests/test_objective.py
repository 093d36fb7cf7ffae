"""What training minimises, against arithmetic written out here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deepssim_scan.imaging.changes.augment import TransformParameters
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.objective import loss_of_scores, pose_error

CONFIG = TrainingConfig()
SIGNS = [[1, 1, 1, 1], [-1, -1, 1, 1], [-1, 1, -1, 1], [1, -1, -1, 1]]  # of a flip


def _some_embeddings(drawn=4):
    """The embeddings of a batch made of `drawn` images."""
    return nn.functional.normalize(torch.randn(4 * drawn, 5))


def test_scores_that_equal_the_ssim_have_no_loss():
    embeddings = _some_embeddings()
    target = embeddings @ embeddings.T
    config = replace(CONFIG, contrastive_weight=0.0)
    assert loss_of_scores(embeddings, target, config) == 0
    wrong = target.clone()
    wrong[2, 5] = wrong[5, 2] = 0.5 - target[2, 5]
    assert loss_of_scores(embeddings, wrong, config) > 1e-4
    own = target - 0.5 * torch.eye(16)  # an image with itself says nothing
    assert loss_of_scores(embeddings, own, config) == 0


def test_the_contrast_is_the_cross_entropy_of_finding_the_first_copy():
    embeddings = _some_embeddings()
    target = 2 * torch.rand(16, 16) - 1
    config = replace(CONFIG, temperature=0.7)
    with_it, without = (
        loss_of_scores(embeddings, target, replace(config, contrastive_weight=weight))
        for weight in (0.3, 0.0)
    )
    scores, terms = (embeddings @ embeddings.T).double().numpy(), []
    for image in range(4):
        row = scores[12 + image, :12] / config.temperature
        among = [index for index in range(12) if index != image + 4]  # its perturbed version
        terms.append(np.log(np.exp(row[among]).sum()) - row[image])
    assert with_it - without == pytest.approx(0.3 * np.mean(terms), rel=1e-4)


def test_pose_parameters_that_undo_the_transform_have_no_error():
    truth = TransformParameters(torch.tensor([0, 1, 2, 3] * 2), torch.randn(8, 4) * 0.1)
    assert pose_error(truth.pose, truth, 4) == 0


def test_two_copies_of_an_image_are_to_be_brought_to_the_same_position():
    """That it is not the source's counts 5 % of what their distance from each other counts."""
    truth = TransformParameters(torch.tensor([0, 1, 2, 3] * 2), torch.randn(8, 4) * 0.1)
    off = torch.tensor([0.1, 0.2, -0.3, 0.05])
    flipped = off * torch.tensor(SIGNS)[truth.flip]
    together = pose_error(truth.pose + flipped, truth, 4)
    opposite = flipped * torch.tensor([[1]] * 4 + [[-1]] * 4)
    apart = pose_error(truth.pose + opposite, truth, 4)
    square = float(off.square().mean())
    assert float(together) == pytest.approx(0.05 * square, rel=1e-4)
    assert float(apart) == pytest.approx((2**2 / 2 + 0.05) * square, rel=1e-4)
