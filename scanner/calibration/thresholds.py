"""The thresholds that fit an encoder, found by a query of copies and non-members of its images.

    encoder, images trained on, images held out -> positives, negatives -> Thresholds

The query goes as a user's does: test-time views, the best candidates by their score, registration
of each, and the verdict of `matching.decision`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.encoder.network import Encoder, device_of, embed
from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.encoder.tta import best_scores, embed_tta
from deepssim_scan.imaging.augment import other_subject, simulate_copy
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.image_set import ImageSet, distinct
from deepssim_scan.imaging.registration import SIDE, register_on
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.matching.config import CANDIDATES
from deepssim_scan.matching.decision import VERDICTS, judge

_GALLERY, _QUERIES = 32_768, 512  # training images, and copies of them, at most
_PART = 1024  # images embedded, and pairs registered, at a time
_FALSE = 0.005  # share of non-members that may be duplicates
_FALSE_BY_SCORE = 0.01  # share of non-members that may be above `duplicate`, whatever their SSIM
_MISSED = 0.005  # share of copies that may be below `similar`
_LEAST_SSIM = Thresholds().ssim  # also where the score alone keeps non-members out
_MOST = 0.999  # that a threshold of scores or SSIM can be
_TRIED = 50  # thresholds of the score that are tried
_DUPLICATE = VERDICTS.index("duplicate")


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs of Q queries with n candidates each: scores (Q, n) and SSIM after registration (Q, n).

    Both are float32 on the CPU; the first candidate of a query has its highest score.
    """

    scores: Tensor
    ssim: Tensor


def fit_thresholds(
    encoder: Encoder, training: ImageSet, validation: ImageSet, seed: int
) -> Thresholds:
    """Choose an encoder's thresholds on its device; the same images and seed give the same draws.

    The gallery are the images trained on, at most 32,768: the more there are, the nearer a
    non-member is to one of them. Positives are simulated copies of 512 of them, each with its
    source. Negatives are 512 images held out, and other subjects in place of the 512 that were
    copied, each with its best candidates, as many as a query registers.
    """
    generator = Generator(device_of(encoder)).manual_seed(seed)
    indices = distinct(len(training), _GALLERY, generator)
    sources = training.at(indices[:_QUERIES], generator.device)
    copies = simulate_copy(sources, generator)[0]
    unseen = validation.some(_QUERIES, generator)
    others = torch.cat([unseen, other_subject(sources, generator)])
    gallery = _Gallery(encoder, training, indices)
    return choose_thresholds(gallery.sources_of(copies), gallery.candidates_of(others))


class _Gallery:
    """Training images to search in: their embeddings, and the images for registration."""

    def __init__(self, encoder: Encoder, training: ImageSet, indices: Tensor) -> None:
        self.encoder, self.training, self.indices = encoder, training, indices
        self.device = device_of(encoder)
        self.runner = BatchRunner(self.device.type, "registration")
        parts = (training.at(part, self.device) for part in indices.split(_PART))
        self.embeddings = torch.cat([embed(encoder, part) for part in parts])

    def sources_of(self, copies: Tensor) -> ScoredPairs:
        """Pair the copies (C, H, W) of the first C images with their sources: (C, 1)."""
        views = embed_tta(self.encoder, copies)
        scores = best_scores(views, self.embeddings[: len(copies)]).diagonal()[:, None]
        rows = torch.arange(len(copies))[:, None]
        return ScoredPairs(scores.cpu(), self._ssim(copies, rows))

    def candidates_of(self, queries: Tensor) -> ScoredPairs:
        """Pair queries (Q, H, W) with the candidates that a query would register: (Q, n)."""
        scores = best_scores(embed_tta(self.encoder, queries), self.embeddings)
        best = scores.topk(min(CANDIDATES, len(self.indices)), 1)
        return ScoredPairs(best.values.cpu(), self._ssim(queries, best.indices.cpu()))

    def _ssim(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Register queries (Q, H, W) with rows (Q, n) of the gallery: SSIM (Q, n)."""
        owners = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
        found = []
        for owner, row in zip(owners.split(_PART), rows.flatten().split(_PART), strict=True):
            pairs = queries[owner], self.training.at(self.indices[row], self.device)
            found.append(register_on(self.runner, *map(_resized, pairs)).ssim)
        return torch.cat(found).view(rows.shape)


def _resized(images: Tensor) -> Tensor:
    """Bring images to the size at which they are registered; a query would pad oblong ones."""
    if images.shape[1:] == (SIDE, SIDE):
        return images
    sized = functional.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return restandardise(sized[:, 0])


def choose_thresholds(positives: ScoredPairs, negatives: ScoredPairs) -> Thresholds:
    """Choose the thresholds that find the most positives and let few negatives pass.

    `high_ssim` is the SSIM that all but 0.5 % of the negatives stay below, whatever their scores:
    the strongest are slices with next to nothing on them. `duplicate` and `ssim` are those that
    together find the most positives and let 0.5 % of the negatives pass, with an `ssim` of 0.8 at
    least. At most 1 % of the negatives pass `duplicate` alone, which is all there is where a pair
    cannot be registered. `similar` is the score that all but 0.5 % of the positives reach, and at
    most `duplicate`.
    """
    least = float(negatives.scores[:, 0].quantile(1 - _FALSE_BY_SCORE))
    duplicate, ssim = _score_and_ssim(positives, negatives, least)
    similar = min(_floored(positives.scores.amax(1).quantile(_MISSED)), duplicate)
    strongest = negatives.ssim.amax(1).quantile(1 - _FALSE, interpolation="higher")
    high_ssim = min(max(_ceiled(strongest), ssim), _MOST)
    return Thresholds(max(similar, -1.0), duplicate, ssim, high_ssim)


def _score_and_ssim(
    positives: ScoredPairs, negatives: ScoredPairs, least: float
) -> tuple[float, float]:
    """Choose the thresholds `duplicate`, which is `least` or above, and `ssim`.

    Of several that find as many positives, those in the middle: there is room on both sides.
    """
    tried = []
    most = max(least, float(positives.scores.amax()))
    for bound in torch.linspace(least, most, _TRIED).tolist():
        score = min(_ceiled(bound), _MOST)
        ssim = max(_ssim_that_keeps_out(negatives, score), _LEAST_SSIM)
        tried.append((_found(positives, score, ssim), score, ssim))
    best = max(found for found, _, _ in tried)
    chosen = [(score, ssim) for found, score, ssim in tried if found == best]
    return chosen[len(chosen) // 2]


def _ssim_that_keeps_out(negatives: ScoredPairs, score: float) -> float:
    """Return the SSIM that all but 0.5 % stay below among the candidates above a score."""
    passing = torch.where(negatives.scores > score, negatives.ssim, -1.0).amax(1)
    return min(_ceiled(passing.quantile(1 - _FALSE, interpolation="higher")), _MOST)


def _found(positives: ScoredPairs, score: float, ssim: float) -> float:
    """Return the share of positives whose verdict is duplicate because of both."""
    thresholds = Thresholds(-1.0, score, ssim, high_ssim=1.0)
    verdicts = judge(positives.scores.numpy(), thresholds, positives.ssim.numpy())
    return float((verdicts == _DUPLICATE).any(1).mean())


def _ceiled(value: Tensor | float) -> float:
    return math.ceil(float(value) * 1000) / 1000


def _floored(value: Tensor | float) -> float:
    return math.floor(float(value) * 1000) / 1000
