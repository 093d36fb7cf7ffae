"""Find synthetic medical images that copy a patient of the training set.

This is the public API; docs/api.md describes it. A name is imported when it is first used, so
that `import deepssim_scan` loads neither torch nor any other large library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepssim_scan.calibration.assess import Assessment as Assessment
    from deepssim_scan.calibration.calibration import Calibration as Calibration
    from deepssim_scan.encoder.checkpoint import Checkpoint as Checkpoint
    from deepssim_scan.encoder.checkpoint import load
    from deepssim_scan.errors import Busy as Busy
    from deepssim_scan.errors import CheckpointError as CheckpointError
    from deepssim_scan.errors import Damaged as Damaged
    from deepssim_scan.errors import DependencyMissing as DependencyMissing
    from deepssim_scan.errors import InputError as InputError
    from deepssim_scan.errors import InputMissing as InputMissing
    from deepssim_scan.errors import ScanError as ScanError
    from deepssim_scan.errors import StoreMismatch as StoreMismatch
    from deepssim_scan.errors import Unfinished as Unfinished
    from deepssim_scan.errors import WriteFailed as WriteFailed
    from deepssim_scan.execution.scheduler import Scheduler as Scheduler
    from deepssim_scan.index.config import SearchConfig as SearchConfig
    from deepssim_scan.ingest.config import IngestConfig as IngestConfig
    from deepssim_scan.ingest.config import RunContext as RunContext
    from deepssim_scan.ingest.config.limits import Limits as Limits
    from deepssim_scan.ingest.config.read_options import ReadOptions as ReadOptions
    from deepssim_scan.ingest.config.selection import Selection as Selection
    from deepssim_scan.jobs.build_index import IndexResult as IndexResult
    from deepssim_scan.jobs.build_index import build_index as build_index
    from deepssim_scan.jobs.calibrate import CalibrationResult as CalibrationResult
    from deepssim_scan.jobs.calibrate import calibrate as calibrate
    from deepssim_scan.jobs.check import Checked as Checked
    from deepssim_scan.jobs.check import check as check
    from deepssim_scan.jobs.check.findings import Problem as Problem
    from deepssim_scan.jobs.config import CalibrateConfig as CalibrateConfig
    from deepssim_scan.jobs.config import IndexConfig as IndexConfig
    from deepssim_scan.jobs.config import QueryConfig as QueryConfig
    from deepssim_scan.jobs.config import RepairConfig as RepairConfig
    from deepssim_scan.jobs.config import TrainConfig as TrainConfig
    from deepssim_scan.jobs.evaluate import EvaluateConfig as EvaluateConfig
    from deepssim_scan.jobs.evaluate import Evaluated as Evaluated
    from deepssim_scan.jobs.evaluate import evaluate as evaluate
    from deepssim_scan.jobs.query import QueryResult as QueryResult
    from deepssim_scan.jobs.query import query as query
    from deepssim_scan.jobs.repair import repair as repair
    from deepssim_scan.jobs.train import Trained as Trained
    from deepssim_scan.jobs.train import train as train
    from deepssim_scan.matching.config import CanaryConfig as CanaryConfig
    from deepssim_scan.matching.config import EvidenceConfig as EvidenceConfig
    from deepssim_scan.matching.config import PageConfig as PageConfig
    from deepssim_scan.matching.config import VerdictConfig as VerdictConfig
    from deepssim_scan.progress import Progress as Progress
    from deepssim_scan.reporting.match import Match as Match
    from deepssim_scan.store.config import EmbedConfig as EmbedConfig
    from deepssim_scan.training.config import ADAPTING as ADAPTING
    from deepssim_scan.training.config import SCRATCH as SCRATCH
    from deepssim_scan.training.config import TrainingConfig as TrainingConfig

    load_checkpoint = load
    __version__: str

_HOMES = {
    "calibration.assess": ("Assessment",),
    "calibration.calibration": ("Calibration",),
    "encoder.checkpoint": ("Checkpoint", "load_checkpoint"),
    "errors": (
        *("Busy", "CheckpointError", "Damaged", "DependencyMissing", "InputError"),
        *("InputMissing", "ScanError", "StoreMismatch", "Unfinished", "WriteFailed"),
    ),
    "execution.scheduler": ("Scheduler",),
    "index.config": ("SearchConfig",),
    "ingest.config": ("IngestConfig", "RunContext"),
    "ingest.config.limits": ("Limits",),
    "ingest.config.read_options": ("ReadOptions",),
    "ingest.config.selection": ("Selection",),
    "jobs.build_index": ("IndexResult", "build_index"),
    "jobs.calibrate": ("CalibrationResult", "calibrate"),
    "jobs.check": ("Checked", "check"),
    "jobs.config": (
        *("CalibrateConfig", "IndexConfig", "QueryConfig", "RepairConfig", "TrainConfig"),
    ),
    "jobs.evaluate": ("EvaluateConfig", "Evaluated", "evaluate"),
    "jobs.check.findings": ("Problem",),
    "jobs.query": ("QueryResult", "query"),
    "jobs.repair": ("repair",),
    "jobs.train": ("Trained", "train"),
    "matching.config": ("CanaryConfig", "EvidenceConfig", "PageConfig", "VerdictConfig"),
    "progress": ("Progress",),
    "reporting.match": ("Match",),
    "store.config": ("EmbedConfig",),
    "training.config": ("ADAPTING", "SCRATCH", "TrainingConfig"),
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
_RENAMED = {"load_checkpoint": "load"}

__all__ = sorted([*_MODULES, "__version__"])

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        """Import what is asked for, and keep it."""
        if name == "__version__":
            from importlib.metadata import version

            value = version("deepssim-scan")
        elif name in _MODULES:
            value = getattr(import_module(_MODULES[name]), _RENAMED.get(name, name))
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
