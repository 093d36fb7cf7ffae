"""Which images are held out of training.

subjects (N,), a share, a seed -> indices to train on and indices to validate on, (N,) bool each
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FEWEST = 32
"""Images to train on, at least, and to validate on."""

_MANY_SUBJECTS = 20  # from here on, subjects that are only guessed are held out whole
_RUNS = 7  # of neighbouring files held out, at most
_RUN = 16  # files of a run, at least
_GAP = 8  # files on either side of a run that are left out: often of the same subject


def hold_out(
    subjects: Sequence[int], share: float, seed: int, *, known: bool
) -> tuple[Tensor, Tensor]:
    """Choose the images to train on, and at least 32 to validate on: (N,) bool each.

    `subjects` (N,) numbers the subjects in the order in which they first appear: the choice depends
    on that order and the seed, not on names. Whole subjects are held out where they are `known` and
    more than one, or from 20 of them on. Fewer that are only guessed say little, as when all images
    lie in a few folders: then runs of neighbouring files are held out, and the files beside a run
    are in neither part.
    """
    rng = np.random.default_rng(seed)
    wanted = max(FEWEST, round(share * len(subjects)))
    sizes = Counter(subjects)
    if len(sizes) < (2 if known else _MANY_SUBJECTS):
        return _runs(len(subjects), wanted, int(rng.integers(len(subjects))))
    members = list(sizes.items())
    held: set[int] = set()
    for index in rng.permutation(len(members)):
        if wanted <= 0:
            break
        subject, size = members[index]
        held.add(subject)
        wanted -= size
    chosen = torch.tensor([subject in held for subject in subjects])
    return ~chosen, chosen


def _runs(count: int, wanted: int, offset: int) -> tuple[Tensor, Tensor]:
    """Hold out evenly spaced runs of `wanted` images together, and leave gaps beside them."""
    runs = min(_RUNS, wanted // _RUN)
    gap = min(_GAP, max(0, count - wanted - FEWEST) // (2 * runs))
    phase = runs * (torch.arange(count) + offset)
    held = phase % count < wanted
    beside = (phase + runs * gap) % count < wanted + 2 * runs * gap
    return ~beside, held
