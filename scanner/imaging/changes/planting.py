"""A block of work that plants copies, where it runs.

Originals -> Answer of changed images
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.execution.answer import Answer


@dataclass(frozen=True, slots=True)
class Originals:
    """Images (H, W), the kind of copy (n,) that becomes of each, an index in KINDS, and a seed."""

    images: Sequence[NDArray[np.float32]]
    kinds: NDArray[np.int64]
    seed: int


def change(originals: Originals) -> Answer:
    """Change images, each in the way of its kind: a block. The copies are named in their order."""
    import torch

    from deepssim_scan.imaging.changes.copies import plant

    images, changed = originals.images, dict[str, NDArray[np.float32]]()
    generator = torch.Generator().manual_seed(originals.seed)
    for size in sorted({image.shape for image in images}):
        same = [index for index, image in enumerate(images) if image.shape == size]
        batch = torch.from_numpy(np.stack([images[index] for index in same]))
        planted = plant(batch, torch.from_numpy(originals.kinds[same]), generator)
        changed |= {f"{index:06d}": each.numpy() for index, each in zip(same, planted, strict=True)}
    return Answer(None, changed)
