"""A metric for training loops: the share of generated images that copy a training image.

    index folder -> MemorizationRate; batches of images -> update; compute -> the share so far

It has the interface of torchmetrics, and is one of its metrics where that is installed.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder, require_encoder
from deepssim_scan.jobs.query import chosen_rule
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig
from deepssim_scan.matching.decision import VERDICTS
from deepssim_scan.matching.probe import Probe
from deepssim_scan.matching.views import Views
from deepssim_scan.progress import Silent
from deepssim_scan.storage.layout import STORE
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

_LUMINANCE = 0.299, 0.587, 0.114  # of red, green and blue: ITU-R BT.601, as Pillow has it


class _Warning(Silent):
    """Tells what a query warns of as warnings of Python."""

    def warn(self, text: str) -> None:
        """Warn, on behalf of who makes the metric."""
        warnings.warn(text, stacklevel=5)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Judges images as a query of an index does; `made_of` are the arguments of `of`.

    Nothing in it changes, so copies of a metric share one. In another process the index is opened
    again.
    """

    rule: Rule
    probe: Probe
    standardisation: Standardisation
    made_of: tuple[Any, ...]

    @classmethod
    def of(cls, index: Path, config: QueryConfig, device: str) -> Self:
        """Open an index. Raises what `MemorizationRate` does."""
        run, evidence = RunContext(device, workers=0, progress=_Warning()), config.evidence
        loaded = index_encoder(index)
        store = Store.open(index / STORE)
        require_encoder(index / STORE, store.manifest.encoder, loaded.fingerprint)
        store.verify()
        groups = groups_of(store)
        rule = chosen_rule(index, store, groups, config, run.progress)
        _warn(index, store, rule)
        search = TrainingIndex.open(index, store, run.device_here, exact=True)
        gallery = Gallery(store, search, groups, training_files(store, evidence.training, run))
        views = Views(evidence.tta_views, rule.enough)
        embedder = Embedder(loaded, run=run)
        probe = gallery.calibrator(embedder, evidence.candidates, views).probe
        standardisation = loaded.architecture.standardisation
        return cls(rule, probe, standardisation, (index, config, device))

    def __deepcopy__(self, memo: object) -> Self:
        """Return the same one."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled as what it is made of."""
        return type(self).of, self.made_of

    def judge(self, images: list[Pixels]) -> tuple[NDArray[np.int8], int]:
        """Return the verdict of each image, and how many lack a training image to compare with."""
        part = self.probe.look_for(images)
        judged = self.rule.judge(part, self.probe.shown.of(part.candidates.rows))
        best = judged.verdicts[range(len(images)), judged.order[:, 0]]
        return best, int(part.evidence.missing.any(1).sum())


def _warn(index: Path, store: Store, rule: Rule) -> None:
    """Warn of an index that lacks images, or whose rates are not those of its images."""
    if store.rejected_count:
        _Warning().warn(
            f"{index}: {store.rejected_count:,} training images were rejected when it was built. "
            "Copies of them are not found."
        )
    if isinstance(rule, CalibratedRule) and rule.calibration.subjects == "bundled":
        _Warning().warn(
            f"{index}: has too few images to be calibrated. The bundled calibration is used, whose "
            "false-alarm rate is not that of these images."
        )


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
    Of `undecidable` ones next to nothing can be compared. They are judged, and not flagged.

    Warns where the index was calibrated for other queries, or not on its own images, and where
    training images were rejected.
    Raises InputMissing where there is no calibrated index, InputError where its images are gone.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    flagged: Tensor
    judged: Tensor
    rejected: Tensor
    unverified: Tensor
    undecidable: Tensor

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
        for name in ("flagged", "judged", "rejected", "unverified", "undecidable"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        evidence = EvidenceConfig(tta_views=tta_views, training=training)
        config = QueryConfig(evidence=evidence, verdict=VerdictConfig(false_alarm=false_alarm))
        self._judge = _Judge.of(Path(index), config, device)

    def update(self, images: Tensor) -> None:
        """Judge images (B, H, W), (B, 1, H, W) or (B, 3, H, W), of any range of values.

        Raises InputError for another shape.
        """
        found = list[Pixels]()
        for grey in _greys(images):
            try:
                found.append(standardise(grey, self._judge.standardisation))
            except Rejected:
                self.rejected += 1
        if not found:
            return
        verdicts, unverified = self._judge.judge(found)
        self.judged += len(found)
        self.unverified += unverified
        self.flagged += int((verdicts == VERDICTS.index("duplicate")).sum())
        self.undecidable += int((verdicts == VERDICTS.index("undecidable")).sum())

    def compute(self) -> Tensor:
        """Return the share of the judged images that are flagged; NaN before there are any."""
        return self.flagged / self.judged if self.judged else torch.tensor(torch.nan)


def _greys(images: Tensor) -> list[Pixels]:
    """Return images as grey ones (H, W) float32."""
    shape = tuple(images.shape)
    if images.ndim == 4 and shape[1] in (1, 3):
        weights = torch.tensor(_LUMINANCE if shape[1] == 3 else [1.0])
        images = (images.detach().cpu().float() * weights[:, None, None]).sum(1)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise InputError(f"images must be (B, H, W), (B, 1, H, W) or (B, 3, H, W), found {shape}")
    return list(images.detach().cpu().float().numpy())
