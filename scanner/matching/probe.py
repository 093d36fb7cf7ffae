"""Images looked for in an index as a query does, without a folder of their own.

    pixels of images -> embeddings of their views -> candidates -> evidence -> Part

Calibration looks for training images and planted copies, and every query for its canaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.matching.candidates import Rows, Shown, propose
from deepssim_scan.matching.evidence import RULE, Verifier
from deepssim_scan.matching.parts import Part
from deepssim_scan.matching.views import Views
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Held


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks for images in some views; `candidates` of each are verified."""

    embedder: Embedder
    shown: Shown
    verifier: Verifier
    candidates: int
    views: Views

    def look_for(self, images: Sequence[Pixels], left_out: Sequence[Rows] | None = None) -> Part:
        """Find the candidates of images and gather their evidence: (Q, n).

        images (H, W), standardised as the encoder wants them. `left_out` names rows of the store
        for each image that are not to be among its candidates.
        """
        first = self.embedder.embed_pixels(images)
        best = propose(self.shown, first[:, None], 1, left_out).scores[:, 0]

        def embed(numbers: Rows, asked: NDArray[np.bool_]) -> Vectors:
            def of(part: slice) -> Held:
                return Held([images[number] for number in numbers[part].tolist()])

            return self.embedder.embed_views(of, asked)

        views, _ = self.views.complete(first, best, embed)
        found = propose(self.shown, views, self.candidates, left_out)
        same = self.embedder.loaded.architecture.standardisation == RULE
        pixels = images if same else [standardise(image, RULE) for image in images]

        def images_of(part: slice) -> Held:
            return Held(pixels[part])

        return Part(found, self.verifier.gather(images_of, found, self.shown.of(found.rows)))
