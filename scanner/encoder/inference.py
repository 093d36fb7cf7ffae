"""Embeds images where a block runs, on a device that may have too little memory.

Checkpoint, standardised images (H, W) of any shapes -> embeddings (n, V, D) of V test-time views
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import device_of
from deepssim_scan.encoder.tta import embed_views
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.progress import Progress


def embed(
    loaded: Checkpoint,
    device: str,
    images: Sequence[Pixels],
    views: Sequence[int],
    progress: Progress,
) -> NDArray[np.float32]:
    """Embed test-time views of standardised images (H, W) of any shapes: (n, V, D)."""
    encoder = loaded.encoder.to(device)
    runner = BatchRunner(device, "embedding", progress)

    def work(device: str, part: Tensor) -> Tensor:
        if device_of(encoder).type != device:
            encoder.to(device)
        return embed_views(encoder, part.to(device), views).float().cpu()

    rows = np.empty((len(images), len(views), loaded.architecture.dimension), np.float32)
    for shape in sorted({image.shape for image in images}):
        same = [index for index, image in enumerate(images) if image.shape == shape]
        pixels = torch.from_numpy(np.stack([images[index] for index in same]))
        rows[same] = torch.cat(runner.run(work, pixels)).numpy()
    return rows
