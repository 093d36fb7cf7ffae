"""What is done with the candidate pairs of a block, where it runs.

CandidatePairs -> Answer with the arrays of their Evidence
"""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepssim_scan.encoder.tta import seen
from deepssim_scan.execution.answer import Answer
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.registration import comparison
from deepssim_scan.imaging.registration.comparison import Comparison, compare_candidates
from deepssim_scan.imaging.registration.sides import Sides
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.evidence import CandidatePairs, Evidence
from deepssim_scan.matching.known import sides_of
from deepssim_scan.progress import Collected


def looked_at(device: str, pairs: CandidatePairs) -> Answer:
    """Look at pairs, register and compare. Each image is read once, if at all."""
    sides = dict(pairs.images.read()), sides_of(pairs.training)
    warned, found = Collected(), Evidence.none(pairs.views.shape)
    there = [np.isin(np.arange(len(pairs.views)), [*sides[0]])[:, None]]
    there.append(np.isin(pairs.numbers, [*sides[1]]))
    query, column = np.argwhere(np.logical_and(*there)).T
    runner = BatchRunner(device, "registration", warned)

    def work(device: str, part: Tensor) -> None:
        at = np.isin(query, part.numpy())
        found.set(query[at], column[at], _compared(device, sides, pairs, query[at], column[at]))

    if len(query):
        runner.run(work, torch.from_numpy(np.unique(query)))
    return Answer(None, {f.name: getattr(found, f.name) for f in fields(found)}, warned.warnings)


def _compared(
    device: str,
    sides: tuple[Mapping[int, Pixels], Mapping[int, Sides]],
    pairs: CandidatePairs,
    query: NDArray[np.int64],
    column: NDArray[np.int64],
) -> Comparison:
    """Compare the pairs (P,) of some images on a device."""
    views = pairs.views[query, column]
    in_view, ours = np.unique(np.stack([query, views], 1), axis=0, return_inverse=True)
    training, theirs = np.unique(pairs.numbers[query, column], return_inverse=True)
    images = np.stack([sides[0][number] for number in in_view[:, 0].tolist()])
    synthetic = _in_views(torch.from_numpy(images).to(device), in_view[:, 1])
    known = Sides.joined([sides[1][number] for number in training.tolist()], device)
    whose = pairs.subjects[query, column]
    wanted = comparison.Pairs(ours.ravel(), theirs, query, whose)
    return compare_candidates(synthetic, known, wanted).cpu()


def _in_views(images: Tensor, views: NDArray[np.int64]) -> Tensor:
    """Return images (N, H, W), each as it is in its test-time view (N,)."""
    viewed, which = images.clone(), torch.from_numpy(views).to(images.device)
    for view in which.unique().tolist():
        viewed[which == view] = seen(images[which == view], view)
    return viewed
