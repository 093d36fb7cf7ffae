"""A metric for training loops: the share of generated images that copy a training image.

    index folder -> MemorizationRate; batches of images -> update; compute -> the share so far

It has the interface of torchmetrics, and is one of its metrics where that is installed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder, require_encoder
from deepssim_scan.jobs.query import chosen_rule
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig
from deepssim_scan.matching.decision import VERDICTS
from deepssim_scan.matching.views import Views
from deepssim_scan.progress import SILENT
from deepssim_scan.storage.layout import STORE
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

_LUMINANCE = 0.299, 0.587, 0.114  # of red, green and blue: ITU-R BT.601, as Pillow has it


class _Metric:
    """What is used of torchmetrics, for those who do not have it: states that are added up."""

    def __init__(self) -> None:
        self._defaults: dict[str, Tensor] = {}

    def add_state(self, name: str, default: Tensor, dist_reduce_fx: str) -> None:
        """Have a state, which begins with `default`."""
        self._defaults[name] = default
        setattr(self, name, default.clone())

    def reset(self) -> None:
        """Begin anew."""
        for name, default in self._defaults.items():
            setattr(self, name, default.clone())


if TYPE_CHECKING:
    Base = _Metric
else:
    try:
        from torchmetrics import Metric as Base
    except ImportError:
        Base = _Metric


class MemorizationRate(Base):
    """The share of images that are flagged as copies of training images of an index.

    `false_alarm` is the share of images of other people that may be flagged; None: the default of
    a query. `training` is where the training images are now; None: where they were indexed. Images
    are compared in `tta_views` views: 1, as they are, is the fastest. `device` is "cpu", "cuda" or
    "auto".

    States: `flagged` images of `judged` ones; `rejected` ones are constant or not finite. Of
    `unverified` ones a training image to compare with is gone, so that a copy may not be flagged.

    Raises InputMissing where there is no calibrated index, InputError where its images are gone.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    flagged: Tensor
    judged: Tensor
    rejected: Tensor
    unverified: Tensor

    def __init__(
        self,
        index: Path | str,
        *,
        false_alarm: float | None = None,
        training: Path | None = None,
        tta_views: int = len(TTA_VIEWS),
        device: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name in ("flagged", "judged", "rejected", "unverified"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        index, run = Path(index), RunContext(device, workers=0)
        loaded = index_encoder(index)
        store = Store.open(index / STORE)
        require_encoder(index / STORE, store.manifest.encoder, loaded.fingerprint)
        store.verify()
        evidence = EvidenceConfig(tta_views=tta_views, training=training)
        config = QueryConfig(evidence=evidence, verdict=VerdictConfig(false_alarm=false_alarm))
        groups = groups_of(store)
        self._rule = chosen_rule(index, store, groups, config, SILENT)
        search = TrainingIndex.open(index, store, run.device_here, exact=True)
        gallery = Gallery(store, search, groups, training_files(store, training, run))
        views = Views(tta_views, self._rule.enough)
        embedder = Embedder(loaded, run=run)
        self._probe = gallery.calibrator(embedder, evidence.candidates, views).probe
        self._subjects = gallery.groups.number
        self._standardisation = loaded.architecture.standardisation

    def update(self, images: Tensor) -> None:
        """Judge images (B, H, W), (B, 1, H, W) or (B, 3, H, W), of any range of values.

        Raises InputError for another shape.
        """
        found = list[Pixels]()
        for grey in _greys(images):
            try:
                found.append(standardise(grey, self._standardisation))
            except Rejected:
                self.rejected += 1
        if not found:
            return
        part = self._probe.look_for(found)
        judged = self._rule.judge(part, self._subjects)
        best = judged.verdicts[range(len(found)), judged.order[:, 0]]
        self.judged += len(found)
        self.unverified += int(part.evidence.missing.any(1).sum())
        self.flagged += int((best == VERDICTS.index("duplicate")).sum())

    def compute(self) -> Tensor:
        """Return the share of the judged images that are flagged; NaN before there are any."""
        return self.flagged / self.judged if self.judged else torch.tensor(torch.nan)


def _greys(images: Tensor) -> list[Pixels]:
    """Return images as grey ones (H, W) float32."""
    if images.ndim == 4 and images.shape[1] in (1, 3):
        weights = torch.tensor(_LUMINANCE if images.shape[1] == 3 else [1.0])
        images = (images.detach().cpu().float() * weights[:, None, None]).sum(1)
    elif images.ndim != 3:
        raise InputError(
            f"images must be (B, H, W), (B, 1, H, W) or (B, 3, H, W), found {tuple(images.shape)}"
        )
    return list(images.detach().cpu().float().numpy())
