"""DeepSSIM as the paper has it: the cosine of two embeddings, and its two thresholds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.inference import embed
from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.metrics.metric import Pairs, Scores, products
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.decision import REFERENCE
from deepssim_scan.progress import SILENT


class DeepSSIM:
    """The cosine of the embeddings of an encoder: a checkpoint, the bundled one by default."""

    bounds = REFERENCE

    def __init__(self, encoder: Path | None) -> None:
        self._loaded = checkpoint.opened(encoder or BUNDLED)
        self.standardisation = self._loaded.architecture.standardisation

    def score(
        self, training: Sequence[Pixels], synthetic: Sequence[Pixels], pairs: Pairs
    ) -> Scores:
        """Score pairs; see `Metric`."""
        least = self._loaded.architecture.least_side
        if (smallest := min(min(image.shape) for image in (*training, *synthetic))) < least:
            raise InputError(
                f"The encoder needs images of {least} pixels a side, and one of the pairs has "
                f"{smallest}. Leave its pairs out, or give another encoder."
            )
        rows = [
            embed(self._loaded, "cpu", side, [0], SILENT)[:, 0] for side in (training, synthetic)
        ]
        return products(rows[0], rows[1], pairs).clip(-1, 1).astype(np.float64)
