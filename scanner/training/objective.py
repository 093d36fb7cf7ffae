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
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.imaging.changes.augment import TransformParameters, simulate_copy
from deepssim_scan.imaging.image_set import ImageSource, pairs, range_weights
from deepssim_scan.training.config import TrainingConfig

_ABSOLUTE = 0.05  # weight of the error against the truth, beside that between two copies


def pose_loss(
    canonicaliser: Canonicaliser, images: ImageSource, config: TrainingConfig, generator: Generator
) -> Tensor:
    """Return the loss of poses alone, on two copies of each of 2 * `batch` images.

    It takes a quarter of the time that both losses take.
    """
    drawn = images.some(2 * config.batch, generator)
    copies, truth = simulate_copy(torch.cat([drawn, drawn]), generator)
    found = canonicaliser.pose(canonicaliser.normalised(copies))
    return config.pose_weight * pose_error(found, truth, len(drawn))


def score_loss(
    encoder: Encoder,
    images: ImageSource,
    config: TrainingConfig,
    generator: Generator,
    teacher: Encoder | None = None,
) -> Tensor:
    """Return the loss of scores, and that of poses where the encoder estimates them.

    A teacher adds how far copies are embedded from where it embeds their sources (Hinton et al.
    2015, arXiv:1503.02531): one minus the cosine, on average.
    """
    drawn = images.draw(config.batch, generator)
    sources, target = pairs(drawn, generator)
    copies, truth = simulate_copy(sources, generator)
    device = generator.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        embeddings, pose = encoder.with_pose(copies[:, None])
    loss = loss_of_scores(embeddings.float(), target, config)
    if teacher is not None:
        wanted = embed(teacher, sources).clone()  # of inference mode, which autograd refuses
        loss = loss + (1 - (embeddings.float() * wanted).sum(1)).mean()
    if pose is None:
        return loss
    return loss + config.pose_weight * pose_error(pose, truth, len(drawn))


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


def pose_error(found: Tensor, truth: TransformParameters, drawn: int) -> Tensor:
    """Return the mean squared error of poses (B, 3 or 4) that undo a transform.

    The first `drawn` and the last `drawn` of the B images are two copies of the same images. What
    counts most is that both are brought to the same position, wherever that is; that it is the
    position of the source counts 5 %.
    """
    known = found.shape[1]
    off = (found - truth.pose[:, :known]) * POSE_SIGNS[:, :known].to(found)[truth.flip]
    between = off[:drawn] - off[-drawn:]
    return between.square().mean() / 2 + _ABSOLUTE * off.square().mean()
