"""What an encoder is worth, computed one pair at a time by scikit-image and numpy."""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from deepssim_scan.imaging.changes.augment import augment, other_subject, perturb


def unit_rows(rows):
    """Bring each row to unit norm."""
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ssim_of(first, second, stride=1):
    """Return the SSIM of a pair, averaged over which of the two the range is taken of.

    Every window counts, or every `stride`-th on each axis.
    """
    maps = [
        structural_similarity(first, second, data_range=np.ptp(each), full=True)[1]
        for each in (first, second)
    ]
    return np.mean([each[3:-3:stride, 3:-3:stride] for each in maps])


def drawn_pairs(images, seed, stride=1):
    """Give the batches that `score_mae` draws: augmented images (64, H, W), their SSIM (64, 64).

    `score_mae` itself estimates the SSIM from every third window on each axis.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        drawn = images.draw(16, generator)
        clean = torch.cat([drawn, perturb(drawn, generator), other_subject(drawn, generator)])
        augmented = augment(torch.cat([clean, drawn]), generator)
        each, source = clean.double().numpy(), np.arange(64) % 48
        exact = np.ones((48, 48))
        for one in range(48):
            for other in range(one):
                exact[one, other] = exact[other, one] = ssim_of(each[one], each[other], stride)
        yield augmented, exact[source][:, source]


def brute_force_mae(embedding, batches):
    """Return the mean of the mean absolute errors of scores in each tenth of the SSIM range.

    `embedding` gives rows (N, D) for images (N, H, W).
    """
    errors, targets = [], []
    for images, target in batches:
        rows = unit_rows(embedding(images))
        errors.append(np.abs(rows @ rows.T - target).ravel())
        targets.append(target.ravel())
    error, target = np.concatenate(errors), np.concatenate(targets)
    tenths = np.clip(np.floor(target * 10), 0, 9)
    return np.mean([error[tenths == tenth].mean() for tenth in np.unique(tenths)])
