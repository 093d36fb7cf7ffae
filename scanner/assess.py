"""What an encoder is worth on images that were not trained on, and the thresholds that fit it.

encoder, images held out -> Assessment; encoder, all images -> Thresholds
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.augment import augment, disguise, other_subject
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.encoder import Encoder, device_of, embed
from deepssim_scan.pools import Images, Pool, distinct, pairs, range_weights
from deepssim_scan.registration import SIDE, register
from deepssim_scan.transform import restandardise
from deepssim_scan.verdicts import VERIFIED
from deepssim_scan.views import best_scores, embed_views

_GALLERY, _QUERIES = 32_768, 512  # images of an audit
_PART = 1024  # images embedded at a time
_FALSE, _FALSE_UNVERIFIED = 0.005, 0.01  # strangers that may pass both thresholds, and the first
_MISSED = 0.005  # copies that may fall below `similar`
_LEAST_SSIM = Thresholds().ssim  # of a duplicate, also where the score alone keeps strangers out
_TRIED = 50  # thresholds of the score tried


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an encoder reaches on images held out.

    error: mean absolute error of the score against SSIM; right: share of disguised copies whose
    source is their best match; apart: share of them above the score that 1 % of the strangers
    reach, which are other subjects at the same place.
    """

    error: float
    right: float
    apart: float


def assess(encoder: Encoder, pool: Pool, seed: int) -> Assessment:
    """Assess an encoder on a pool, with draws that are the same at every call."""
    generator = Generator(device_of(encoder)).manual_seed(seed)
    images = pool.some(_QUERIES, generator)
    known = embed(encoder, images)
    copies, strangers = (
        best_scores(embed_views(encoder, made), known)
        for made in (disguise(images, generator)[0], other_subject(images, generator))
    )
    own = torch.arange(len(images), device=copies.device)
    bound = strangers.amax(1).quantile(0.99)
    return Assessment(
        score_error(encoder, pool, seed),
        float((copies.argmax(1) == own).float().mean()),
        float((copies.amax(1) > bound).float().mean()),
    )


def score_error(encoder: Encoder, pool: Pool, seed: int, batches: int = 4) -> float:
    """Return the mean absolute error of score against SSIM on images not trained on.

    Pairs are made as in training and augmented as in the reference, with draws that are the same
    at every call; every tenth of the SSIM range that occurs counts alike.
    """
    generator = Generator(device_of(encoder)).manual_seed(seed)
    scores, targets = [], []
    for _ in range(batches):
        sources, target = pairs(pool.draw(16, generator), generator)
        embeddings = embed(encoder, augment(sources, generator))
        scores.append((embeddings @ embeddings.T).flatten())
        targets.append(target.flatten())
    score, target = torch.cat(scores), torch.cat(targets)
    weights = range_weights(target)
    return float(((score - target).abs() * weights).sum() / weights.sum())


def fit_thresholds(encoder: Encoder, images: Images, seed: int) -> Thresholds:
    """Choose the default thresholds by playing an audit through, verification included.

    Training images are those trained on, at most 32,768: strangers are the nearer to one of them
    the more there are. Copies are 512 of them, disguised. Strangers are of two kinds: 512 images
    held out, and pseudo-subjects made of the 512 that were copied. What counts of a stranger is the
    strongest of its five best matches, registered as in an audit, and all are looked at in several
    views.

    `certain` is the SSIM that all but 0.5 % of the strangers stay below, whatever the scores: the
    strongest are slices with next to nothing on them. `duplicate` and `ssim` are those that
    together find the most copies and let 0.5 % of the strangers pass, `ssim` being 0.8 at least. At
    most 1 % may pass `duplicate` alone, which is all there is where a pair cannot be verified.
    `similar` is the score that all but 0.5 % of the copies reach, and at most `duplicate`.
    """
    generator, training = Generator(device_of(encoder)).manual_seed(seed), images.training
    gallery = distinct(len(training.pixels), _GALLERY, generator)
    copied = training.at(gallery[:_QUERIES], generator.device)
    copies = disguise(copied, generator)[0]
    unseen = images.validation.some(_QUERIES, generator)
    strangers = torch.cat([unseen, other_subject(copied, generator)])
    parts = (training.at(part, generator.device) for part in gallery.split(_PART))
    known = torch.cat([embed(encoder, part) for part in parts])
    of_copies = best_scores(embed_views(encoder, copies), known[: len(copies)]).diagonal()
    of_strangers = best_scores(embed_views(encoder, strangers), known)
    nearest = of_strangers.topk(min(VERIFIED, len(gallery)), 1)
    alike = _verified(copies, copied)
    likeness = _verified(
        strangers.repeat_interleave(nearest.indices.shape[1], 0),
        training.at(gallery[nearest.indices.flatten().cpu()], generator.device),
    ).view_as(nearest.values)
    least = float(nearest.values[:, 0].quantile(1 - _FALSE_UNVERIFIED))
    duplicate, ssim = _both(of_copies, alike, nearest.values, likeness, least)
    similar = min(_floored(of_copies.quantile(_MISSED)), duplicate)
    strongest = likeness.amax(1).quantile(1 - _FALSE, interpolation="higher")
    certain = min(max(_ceiled(strongest), ssim), 0.999)
    return Thresholds(max(similar, -1.0), duplicate, ssim, certain)


def _both(
    of_copies: Tensor, alike: Tensor, of_strangers: Tensor, likeness: Tensor, least: float
) -> tuple[float, float]:
    """Choose the thresholds of score and SSIM, the score's at `least` or above.

    Of several that find as many copies, those in the middle: there is room on both sides.
    Scores and SSIM of copies (C,) and of the best matches of strangers (S, k).
    """
    tried = []
    for bound in torch.linspace(least, max(least, float(of_copies.amax())), _TRIED).tolist():
        score = min(_ceiled(bound), 0.999)
        passing = torch.where(of_strangers > score, likeness, -1.0).amax(1)
        ssim = min(_ceiled(passing.quantile(1 - _FALSE, interpolation="higher")), 0.999)
        ssim = max(ssim, _LEAST_SSIM)
        found = float(((of_copies > score) & (alike > ssim)).float().mean())
        tried.append((found, score, ssim))
    most = max(found for found, _, _ in tried)
    best = [(score, ssim) for found, score, ssim in tried if found == most]
    return best[len(best) // 2]


def _verified(synthetic: Tensor, training: Tensor) -> Tensor:
    """Return the SSIM of pairs (P, H, W) once they are registered: (P,)."""
    return register(*(_resized(images) for images in (synthetic, training))).ssim


def _resized(images: Tensor) -> Tensor:
    """Bring images to the size at which an audit registers them, which would pad oblong ones."""
    if images.shape[1:] == (SIDE, SIDE):
        return images
    sized = functional.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return restandardise(sized[:, 0])


def _ceiled(value: Tensor | float) -> float:
    return math.ceil(float(value) * 1000) / 1000


def _floored(value: Tensor | float) -> float:
    return math.floor(float(value) * 1000) / 1000
