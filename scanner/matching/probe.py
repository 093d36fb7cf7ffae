"""Images looked for in an index as a query does, without a folder of their own.

    pixels of images -> embeddings of their views -> candidates -> evidence -> Part

Calibration looks for training images and planted copies, and every query for its canaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deepssim_scan.index.flat import TrainingIndex
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.matching.candidates import Rows, propose
from deepssim_scan.matching.evidence import RULE, Verifier
from deepssim_scan.matching.parts import Part
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Held


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks for images; `candidates` of each are verified.

    `subjects` (N,) numbers those of the training rows.
    """

    embedder: Embedder
    search: TrainingIndex
    verifier: Verifier
    subjects: Rows
    candidates: int

    def look_for(self, images: Sequence[Pixels], left_out: Sequence[Rows] | None = None) -> Part:
        """Find the candidates of images and gather their evidence: (Q, n).

        images (H, W), standardised as the encoder wants them. `left_out` names rows of the store
        for each image that are not to be among its candidates.
        """
        views = self.embedder.embed_pixels(images)
        found = propose(self.search, views, self.candidates, self.subjects, left_out)
        same = self.embedder.loaded.architecture.standardisation == RULE
        pixels = images if same else [standardise(image, RULE) for image in images]
        return Part(found, self.verifier.gather(lambda part: Held(pixels[part]), found))
