"""The tables of docs/case-study.md, from the results of the case study.

    benchmarks/results/casestudy_*.json -> between `<!-- table NAME -->` and `<!-- end -->`

The text around them is written by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import RESULTS, ROOT

DOCS = ROOT / "docs" / "case-study.md"
EARLIER = ("SSCD", "Dar et al.", "SemDeDup-like (EfficientNet-Lite0)")
COMPARED = (
    "DeepSSIM, cosine, bundled",
    "DeepSSIM, cosine, adapted",
    "ours: registered SSIM",
    "ours: verdicts",
    *EARLIER,
)
HOW = ("aligned", "augmented")

Study = dict[str, Any]


def main() -> None:
    """Put the tables into the page."""
    studies = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("casestudy_*"))]
    text = DOCS.read_text("utf-8")
    for name, table in TABLES.items():
        lines = "\n".join(table(studies))
        pattern = f"(<!-- table {name} -->\n).*?(<!-- end -->)"
        parts = re.split(pattern, text, flags=re.DOTALL)
        if len(parts) != 4:
            raise SystemExit(f"{DOCS}: has {len(parts) // 3} places for the table {name}")
        text = f"{parts[0]}{parts[1]}{lines}\n{parts[2]}{parts[3]}"
    DOCS.write_text(text, "utf-8")


def rates(studies: list[Study]) -> list[str]:
    """Return the table of memorization by level of duplication."""
    rows = [
        _row(
            "",
            "duplication",
            "steps",
            "samples",
            "duplicates",
            "similar",
            "different",
            "subjects copied",
            "losses: autoencoder, diffusion",
        ),
        _rule(9),
    ]
    for study in studies:
        for level, made in study["generators"].items():
            rate = study["rates"][level]
            labels = [rate["labels"][name] for name in ("duplicate", "similar", "different")]
            shares = [f"{count / rate['samples']:.1%}" for count in labels]
            losses = f"{made['autoencoder_loss']:.4f}, {made['diffusion_loss']:.4f}"
            rows.append(
                _row(
                    study["modality"],
                    level,
                    f"{made['steps']:,}",
                    rate["samples"],
                    *shares,
                    rate["subjects"],
                    losses,
                )
            )
    return rows


def metrics(studies: list[Study]) -> list[str]:
    """Return the table of all metrics, thresholds fitted alike."""
    rows = [
        _row(
            "",
            "metric",
            *(f"macro F1, {how}" for how in HOW),
            "its own thresholds, augmented",
            "duplicates: precision, recall",
            "similar",
            "different",
            "AUC",
        ),
        _rule(9),
    ]
    for study in studies:
        for name in study["evaluations"]["augmented"]:
            told = {how: study["evaluations"][how][name] for how in HOW}
            fitted, own = told["augmented"]["fitted"], told["augmented"]["own"]
            labels = [fitted["labels"][name] for name in ("duplicate", "similar", "different")]
            by_label = [f"{each['precision']:.2f}, {each['recall']:.2f}" for each in labels]
            f1 = [_interval(told[how]["fitted"], "macro_f1") for how in HOW]
            rule = f"{own['macro_f1']:.2f}" if "macro_f1" in own else "none"
            rows.append(_row(study["modality"], name, *f1, rule, *by_label, f"{fitted['auc']:.3f}"))
    return rows


def filters(studies: list[Study]) -> list[str]:
    """Return the table of what metrics find of generated near-duplicates."""
    if not any(study["filters"] for study in studies):
        return ["Not measured yet: `run.py` was given `--no-filters`."]
    rates_of = ("aligned at 0.001", "augmented at 0.001", "augmented at 0.01")
    rows = [_row("", "metric", *rates_of, "other people's images"), _rule(6)]
    for study in studies:
        for name, told in study["filters"].items():
            shares = [_share(told[rate]) for rate in rates_of]
            flagged = told.get("others flagged at 0.001")
            others = f"{told['others']:,}" + (f", {flagged['found']} flagged" if flagged else "")
            rows.append(_row(study["modality"], name, *shares, others))
    return rows


def averages(studies: list[Study]) -> list[str]:
    """Return the macro F1 on augmented samples, averaged over modalities."""
    clear = "of pairs not near a threshold of the labels"
    rows = [_row("metric", "macro F1, augmented, mean", "against the best earlier one", clear)]
    rows.append(_rule(4))
    mean, apart = (
        {name: float(np.mean([of(study, name) for study in studies])) for name in COMPARED}
        for of in (
            lambda study, name: study["evaluations"]["augmented"][name]["fitted"]["macro_f1"],
            lambda study, name: study["clear"]["augmented"][name],
        )
    )
    best = max(mean[name] for name in EARLIER)
    for name, value in mean.items():
        gain = f"{value / best - 1:+.0%}"
        rows.append(_row(name, f"{value:.3f}", gain, f"{apart[name]:.3f}"))
    return rows


TABLES: dict[str, Callable[[list[Study]], list[str]]] = {
    "rates": rates,
    "metrics": metrics,
    "filters": filters,
    "averages": averages,
}


def _interval(told: dict[str, Any], name: str) -> str:
    low, high = told[f"{name}_95"]
    return f"{told[name]:.3f} ({low:.2f}-{high:.2f})"


def _share(told: dict[str, Any]) -> str:
    share = told["found"] / told["of"] if told["of"] else 0.0
    return f"{share:.1%} of {told['of']} ({told['low']:.0%}-{told['high']:.0%})"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


if __name__ == "__main__":
    main()
