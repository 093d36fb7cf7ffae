"""Metrics that pairs of images can be scored by: a module each, by name."""

from collections.abc import Callable
from pathlib import Path

from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.metrics.correlation import PixelCorrelation
from deepssim_scan.evaluation.metrics.dar import Dar
from deepssim_scan.evaluation.metrics.deepssim import DeepSSIM
from deepssim_scan.evaluation.metrics.metric import Metric
from deepssim_scan.evaluation.metrics.registered import RegisteredSSIM
from deepssim_scan.evaluation.metrics.semdedup import SemDeDup
from deepssim_scan.evaluation.metrics.sscd import SSCD
from deepssim_scan.evaluation.metrics.ssim import RawSSIM

METRICS: dict[str, Callable[[Path | None], Metric]] = {
    "deepssim": DeepSSIM,
    "ssim": RawSSIM,
    "registered-ssim": RegisteredSSIM,
    "correlation": PixelCorrelation,
    "sscd": SSCD,
    "dar": Dar,
    "semdedup": SemDeDup,
}


def metric_of(text: str) -> tuple[str, Metric]:
    """Return a metric by "name", or "name=FILE" for one of a network in a file, and its title.

    Raises InputError for another name, and what the metric raises of its file.
    """
    name, _, file = text.partition("=")
    if name not in METRICS:
        raise InputError(f"metric {name!r}: must be one of {', '.join(METRICS)}, or verdicts")
    return text if name == "deepssim" else name, METRICS[name](Path(file) if file else None)
