"""`deepssim-scan evaluate`: metrics against labelled pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deepssim_scan.cli import console, options

if TYPE_CHECKING:
    from deepssim_scan.jobs.evaluate import Evaluated

EXAMPLE = "deepssim-scan evaluate --pairs labelled.csv --training scans/ --synthetic generated/"

Labelled = Annotated[
    Path,
    options.input_option(
        "--pairs",
        metavar="CSV",
        help="Labelled pairs: columns training, synthetic (paths in the two folders) and label "
        "(different, similar, duplicate); or real_key, synth_key, label, as the paper has them.",
    ),
]
Training = Annotated[
    Path, options.input_option("--training", metavar="DIR", help="Folder of the training images.")
]
Synthetic = Annotated[
    Path, options.input_option("--synthetic", metavar="DIR", help="Folder of the synthetic images.")
]
Metrics = Annotated[
    list[str] | None,
    options.input_option(
        "--metric",
        metavar="NAME",
        help="deepssim, verdicts (those of a query), ssim, registered-ssim, correlation; with a "
        "file: deepssim=FILE, sscd=FILE, dar=FILE, semdedup=FILE. Repeatable.",
        show_default="all that need no file",
    ),
]
Index = Annotated[
    Path | None,
    options.input_option(
        "--index",
        metavar="DIR",
        help="Index of the training images, for verdicts.",
        show_default="one is built in --out",
    ),
]
Fit = Annotated[
    bool,
    options.verdict_option(
        "--fit",
        help="Fit thresholds on the pairs of half of the subjects; all figures are of the others.",
    ),
]
Out = Annotated[
    Path, options.output_option("--out", metavar="DIR", help="Folder to write the figures to.")
]


def evaluate(
    pairs: Labelled,
    training: Training,
    synthetic: Synthetic,
    metric: Metrics = None,
    index: Index = None,
    subject_regex: options.SubjectRegex = None,
    fit: Fit = False,
    out: Out = Path("deepssim-evaluation"),
    json: options.Json = False,
    device: options.Device = options.DeviceName.AUTO,
    workers: options.Workers = None,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Score labelled pairs by metrics, and say how far each agrees with the labels."""
    from deepssim_scan.ingest.config import IngestConfig

    with options.usage():
        ingest = IngestConfig(subject_regex=subject_regex)
    with options.running(workers, max_seconds, max_memory, device) as run:
        from deepssim_scan.jobs.evaluate import METRICS, EvaluateConfig
        from deepssim_scan.jobs.evaluate import evaluate as job

        with options.usage():
            config = EvaluateConfig(tuple(metric or METRICS), fit, index, ingest)
        result = job(pairs, training, synthetic, out, config, run)
    console.show_json(result.as_json()) if json else _show(result)


def _show(result: "Evaluated") -> None:
    """Print a row a metric and kind of threshold."""
    first = next(iter(result.metrics.values()))["own"]
    labels = ", ".join(f"{count:,} {name}" for name, count in first["by_label"].items())
    table = Table(
        title=f"{first['pairs']:,} pairs: {labels}",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("metric", overflow="fold", min_width=8)
    table.add_column("rule", no_wrap=True)
    for name in ("macro F1", "95 %", "precision", "recall", "AUC", "TPR"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, told in result.metrics.items():
        for how in ("own", "fitted"):
            if told[how] is not None:
                table.add_row(Text(name), how, *_cells(told[how]))
    console.output.print(table)
    console.say(
        "Precision, recall, AUC and TPR are of duplicates against all other pairs. TPR is the "
        "share that is found where 0.1 % of the others are above the threshold."
    )
    console.say(f"Written: {result.folder}")


def _cells(told: dict[str, Any]) -> list[str]:
    both = [_number(told["auc"]), _number(told["true_positives_at_0.001"])]
    if "macro_f1" not in told:
        return ["-", "-", "-", "-", *both]
    duplicates = told["labels"]["duplicate"]
    of_them = [_number(duplicates[name]) for name in ("precision", "recall")]
    interval = "-".join(_number(value) for value in told["macro_f1_95"])
    return [_number(told["macro_f1"]), interval, *of_them, *both]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
