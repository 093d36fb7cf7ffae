"""The tables of docs/case-study.md, from the results of the case study.

    benchmarks/results/casestudy_*.json, seeds_*.json
        -> between `<!-- table NAME -->` and `<!-- end -->`

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
    "DeepSSIM, cosine, trained",
    "ours: registered SSIM",
    "ours: verdicts",
    *EARLIER,
)
HOW = ("aligned", "augmented")
_LABELS = ("duplicate", "similar", "different")

Study = dict[str, Any]


def main() -> None:
    """Put the tables into the page."""
    text = DOCS.read_text("utf-8")
    for name, table in TABLES.items():
        kind = "seeds" if table is seeds else "casestudy"
        found = sorted(RESULTS.glob(f"{kind}_*"))
        lines = "\n".join(table([json.loads(path.read_text("utf-8")) for path in found]))
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
            labels = [rate["labels"][name] for name in _LABELS]
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
        others = study["others"]
        shares = (f"{others['labels'][name] / others['samples']:.1%}" for name in _LABELS)
        who = "other people's images"
        rows.append(_row(study["modality"], who, "", others["samples"], *shares, "", ""))
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
            labels = [fitted["labels"][name] for name in _LABELS]
            by_label = [f"{each['precision']:.2f}, {each['recall']:.2f}" for each in labels]
            f1 = [_interval(told[how]["fitted"], "macro_f1") for how in HOW]
            rule = f"{own['macro_f1']:.2f}" if "macro_f1" in own else "none"
            rows.append(_row(study["modality"], name, *f1, rule, *by_label, f"{fitted['auc']:.3f}"))
    return rows


def errors(studies: list[Study]) -> list[str]:
    """Return the table of the errors of cosines against the SSIM of the labels."""
    ranges = [*next(iter(studies[0]["errors"].values()))]
    rows = [_row("", "score minus SSIM, by the SSIM", *ranges), _rule(2 + len(ranges))]
    for study in studies:
        for name, told in study["errors"].items():
            cells = (f"{mean:+.2f}, spread {spread:.2f}" for mean, spread in told.values())
            rows.append(_row(study["modality"], name, *cells))
    return rows


def filters(studies: list[Study]) -> list[str]:
    """Return the table of what metrics find of generated near-duplicates."""
    rates_of = [f"{how} at {rate}" for rate in ("0.001", "0.01") for how in HOW]
    titles = [f"{how}, {rate}" for rate in ("0.1 %", "1 %") for how in HOW]
    rows = [_row("", "metric", *titles), _rule(6)]
    for study in studies:
        for name, told in study["filters"].items():
            rows.append(_row(study["modality"], name, *(_share(told[rate]) for rate in rates_of)))
    return rows


def flagged(studies: list[Study]) -> list[str]:
    """Return the table of what queries flag with their defaults."""
    titles = "false alarms asked for", "other people's images flagged"
    of_duplicates = (f"of the duplicates by label, {how}" for how in HOW)
    rows = [_row("", *titles, *of_duplicates), _rule(5)]
    for study in studies:
        told = study["filters"].get("ours: verdicts")
        if told is None:  # not measured yet
            continue
        shares = (_share(told[f"{side} flagged"]) for side in ("others", *HOW))
        rows.append(_row(study["modality"], f"{told['false_alarm']:.2%}", *shares))
    return rows


def seeds(studies: list[Study]) -> list[str]:
    """Return the table of what other seeds of the encoder and of the generator give."""
    generators = "duplicates by label, by generator", "samples flagged", "duplicates flagged"
    encoders = "macro F1 of encoders, augmented", "labels that two of them agree on"
    rows = [_row("", "samples of each", *generators, *encoders), _rule(7)]
    for study in studies:
        told, made = study["encoders"], study["generators"]
        f1 = ", ".join(f"{value:.3f}" for value in told["macro_f1"])
        agreed = ", ".join(f"{value:.0%}" for value in told["agreement"])
        counts = [
            (each["labels"]["duplicate"], each["flagged"], each["flagged_duplicates"])
            for each in made
        ]
        columns = (", ".join(map(str, column)) for column in zip(*counts, strict=True))
        rows.append(_row(study["modality"], made[0]["samples"], *columns, f1, agreed))
    return rows


def averages(studies: list[Study]) -> list[str]:
    """Return the macro F1 on augmented samples, averaged over modalities."""
    groups = {
        people: [study for study in studies if study["people"] == people]
        for people in ("pseudo-people", "real")
    }
    kept = {people: some for people, some in groups.items() if some}
    titles = (
        f"{people}: {title}"
        for people in kept
        for title in ("macro F1", "above the best earlier", "not near a threshold of the labels")
    )
    rows = [_row("metric", *titles), _rule(1 + 3 * len(kept))]
    columns = [_averages(some) for some in kept.values()]
    cells = {name: [cell for each in columns for cell in each[name]] for name in COMPARED}
    return rows + [_row(name, *found) for name, found in cells.items()]


def _averages(studies: list[Study]) -> dict[str, tuple[str, str, str]]:
    """Return of each metric the mean macro F1, its gain, and the mean of pairs that are clear."""
    mean, apart = (
        {name: float(np.mean([of(study, name) for study in studies])) for name in COMPARED}
        for of in (
            lambda study, name: study["evaluations"]["augmented"][name]["fitted"]["macro_f1"],
            lambda study, name: study["clear"]["augmented"][name],
        )
    )
    best = max(mean[name] for name in EARLIER)
    return {
        name: (f"{value:.3f}", f"{value / best - 1:+.0%}", f"{apart[name]:.3f}")
        for name, value in mean.items()
    }


TABLES: dict[str, Callable[[list[Study]], list[str]]] = {
    "rates": rates,
    "metrics": metrics,
    "averages": averages,
    "errors": errors,
    "filters": filters,
    "flagged": flagged,
    "seeds": seeds,
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
