"""All nights of all synthetic sets on one page.

history -> HISTORY/trend.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepssim_scan.audit.config.conditions import Value
from deepssim_scan.audit.history import History, Night
from deepssim_scan.audit.outputs import night_folder
from deepssim_scan.reporting.html.page import trend_plot
from deepssim_scan.reporting.html.render import render
from deepssim_scan.storage.files import replacing

TREND = "trend.html"
_PLOTTED = {
    "duplicates": "Images that copy a subject for whom no waiver answers, by night.",
    "similar_rate": "Images with the verdict similar, as a share of the judged ones, by night.",
    "canary_recall": "Planted copies that were found, as a share, by night.",
}
_COLUMNS = "judged", "duplicates", "new", "persisting", "gone", "waived", "similar", "rejected"
_TONES = {"passed": "good", "warned": "unsure"}

Sets = Mapping[str, Mapping[str, Value]]
"""Quantities by the name of a synthetic set."""


def write_trend(history: History) -> None:
    """Write the page beside the history, with links to the pages of the nights."""
    nights = [(each, history.quantities(each)) for each in history.nights()]
    last, _ = nights[-1]
    text = render(
        "trend.html.j2",
        title=f"{len(nights):,} nights",
        tone=_TONES.get(last.state, "bad"),
        verdict=f"The last night, {last.number}, {last.started}: {last.state}.",
        plots=[
            (trend_plot(name, lines), caption)
            for name, caption in _PLOTTED.items()
            if (lines := _lines(nights, name))
        ],
        columns=_COLUMNS,
        rows=[row for each, sets in reversed(nights) for row in _rows(each, sets)],
    )
    with replacing(history.path.with_name(TREND)) as file:
        file.write(text.encode("utf-8"))


def _lines(nights: Sequence[tuple[Night, Sets]], quantity: str) -> dict[str, dict[int, float]]:
    """Return the values of a quantity by night, of each set that has any."""
    lines: dict[str, dict[int, float]] = {}
    for night, sets in nights:
        for name, quantities in sets.items():
            value = quantities[quantity]
            if value is not None:
                lines.setdefault(name, {})[night.number] = float(value)
    return lines


def _rows(night: Night, sets: Sets) -> list[dict[str, Any]]:
    """Return the rows of a night: one a set, those that could not be queried last.

    A night without a set has one row.
    """
    told = {"night": night.number, "started": night.started, "state": night.state}
    rows = [
        told
        | {"name": name, "page": f"{night_folder(night.number)}/{name}.html"}
        | {"numbers": [None if (n := of_set[each]) is None else int(n) for each in _COLUMNS]}
        for name, of_set in sets.items()
    ]
    nothing = told | {"page": None, "numbers": [None] * len(_COLUMNS)}
    rows += [nothing | {"name": f"{name} (not audited)"} for name in night.errors]
    return rows or [nothing | {"name": ""}]
