"""What training minimises, on images drawn anew at every step.

    ImageSet, generator -> images -> simulated copies of them -> a loss

Two losses: of scores, which is their squared error against SSIM and a contrast, and of the pose
parameters that the canonicaliser estimates.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.encoder.canonicalise import Canonicaliser
from deepssim_scan.encoder.equivariant import POSE_SIGNS
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.imaging.changes.augment import TransformParameters, simulate_copy
from deepssim_scan.imaging.image_set import ImageSource, pairs, range_weights
from deepssim_scan.training.config import TrainingConfig

_ABSOLUTE = 0.05  # weight of the error against the truth, beside that between two copies


def pose_loss(
    canonicaliser: Canonicaliser, images: ImageSource, config: TrainingConfig, generator: Generator
) -> Tensor:
    """Return the loss of poses alone, which takes less than half the time that both losses take."""
    sources, target = pairs(images.draw(config.batch, generator), generator)
    copies, truth = simulate_copy(sources, generator)
    found = canonicaliser.pose(canonicaliser.normalised(copies))
    return config.pose_weight * pose_error(found, truth, target)


def score_loss(
    encoder: Encoder, images: ImageSource, config: TrainingConfig, generator: Generator
) -> Tensor:
    """Return the loss of scores, and that of poses where the encoder estimates them."""
    sources, target = pairs(images.draw(config.batch, generator), generator)
    copies, truth = simulate_copy(sources, generator)
    device = generator.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        embeddings, pose = encoder.with_pose(copies[:, None])
    loss = loss_of_scores(embeddings.float(), target, config)
    if pose is None:
        return loss
    return loss + config.pose_weight * pose_error(pose, truth, target)


def loss_of_scores(embeddings: Tensor, target: Tensor, config: TrainingConfig) -> Tensor:
    """Return the squared error of the cosines against SSIM, plus the contrast, weighted.

        embeddings (4n, D) of the copies of `pairs`' sources, target (4n, 4n) their SSIM -> scalar

    The contrast is the cross-entropy of telling the first copy of an image from all others, given
    the second. Negatives are the copies of all other sources but the image's perturbed version,
    which is neither.
    """
    scores = embeddings @ embeddings.T
    drawn = len(embeddings) // 4
    weights = range_weights(target).fill_diagonal_(0)
    regression = ((scores - target).square() * weights).sum() / weights.sum()
    logits = scores[-drawn:, : 3 * drawn] / config.temperature
    own = torch.arange(drawn, device=scores.device)
    neither = torch.zeros_like(logits, dtype=torch.bool)
    neither[own, own + drawn] = True
    contrast = functional.cross_entropy(logits.masked_fill(neither, -math.inf), own)
    return regression + config.contrastive_weight * contrast


def pose_error(found: Tensor, truth: TransformParameters, target: Tensor) -> Tensor:
    """Return the mean squared error of poses that undo a transform.

        poses found (4n, 3 or 4) and true of copies of `pairs`' sources, target (4n, 4n) their SSIM
        -> scalar

    What counts is that two copies of an image are brought to the same position, wherever that is;
    and as much, that copies of any two images are, by as far as these are alike. Otherwise two
    people who lie alike would be moved apart, and their score would not be their SSIM. That it is
    the position of the source counts 5 %.
    """
    known = found.shape[1]
    off = (found - truth.pose[:, :known]) * POSE_SIGNS[:, :known].to(found)[truth.flip]
    drawn = len(off) // 4
    of_one = (off[:drawn] - off[-drawn:]).square().mean() / 2
    alike = target.clamp_min(0)
    of_two = (alike * (off[:, None] - off).square().mean(2)).sum() / alike.sum()
    return of_one + of_two + _ABSOLUTE * off.square().mean()
