"""Plots of a report, by Matplotlib: as SVG and PNG, on light and on dark ground.

Distributions -> a figure -> bytes, the same for the same numbers

A figure is drawn once, and its colours are replaced for the other ground.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deepssim_scan.reporting.distributions import Distributions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT, DARK = "light", "dark"
_INK = {LIGHT: "#1f2328", DARK: "#e6edf3"}
_GROUND = {LIGHT: "#ffffff", DARK: "#0d1117"}
# Of Okabe and Ito (2008), which people with colour blindness tell apart.
_COLOURS = {"non-members": "#0072b2", "planted copies": "#d55e00", "synthetic images": "#009e73"}
_BINS = 40
_NAMES = {"statistic": "decision statistic of the best match", "score": "score of the best match"}


def draw_distributions(found: Distributions, kind: str) -> bytes:
    """Draw who has which statistic, with the bounds of the verdicts; `kind` is "svg" or "png"."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    with _figure() as figure:
        axes = figure.add_subplot()
        groups = (found.non_members, found.planted, found.synthetic)
        for (name, colour), counts in zip(_COLOURS.items(), groups, strict=True):
            total = sum(counts)
            if total:
                shares = [count / total for count in counts]
                label = f"{name} ({total:,})"
                axes.stairs(shares, found.edges, color=colour, linewidth=1.6, label=label)
        for bound, name, style in (
            (found.duplicate, "duplicate", "-"),
            (found.similar, "similar", ":"),
        ):
            axes.axvline(bound, color=_INK[LIGHT], linestyle=style, linewidth=1, label=name)
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(0.5 / max(1, sum(counts)) for counts in groups))
        axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(_NAMES[found.what])
        axes.set_ylabel("share of the images of each group")
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=5,
            frameon=False,
            fontsize=8,
            columnspacing=1.2,
            handlelength=1.5,
        )
        return _bytes(figure, kind)


def draw_trend(lines: Mapping[str, Mapping[int, float]], what: str, kind: str) -> bytes:
    """Draw a quantity of each night, a line a synthetic set; `what` names the quantity."""
    from matplotlib.ticker import MaxNLocator

    with _figure() as figure:
        axes = figure.add_subplot()
        for name, values in lines.items():
            axes.plot([*values], [*values.values()], marker="o", markersize=3, label=name)
        numbers = [value for values in lines.values() for value in values.values()]
        whole = all(float(value).is_integer() for value in numbers)
        axes.yaxis.set_major_locator(MaxNLocator(integer=whole))
        if len(lines) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
        axes.set_xlabel("night")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _bytes(figure, kind)


def draw_labels(
    scores: Mapping[str, Sequence[float]], bounds: Mapping[str, tuple[float, float]], kind: str
) -> bytes:
    """Draw the scores of the pairs of each label, and the two thresholds of each name."""
    import numpy as np

    with _figure() as figure:
        axes = figure.add_subplot()
        every = np.concatenate([np.asarray(values, float) for values in scores.values()])
        edges = np.linspace(every.min(), every.max() + 1e-9, _BINS + 1)
        for (label, values), colour in zip(scores.items(), _COLOURS.values(), strict=True):
            counts = np.histogram(values, edges)[0]
            name = f"{label} ({len(values):,})"
            axes.stairs(
                counts / max(1, len(values)), edges, color=colour, linewidth=1.6, label=name
            )
        for (name, both), style in zip(bounds.items(), ("-", ":"), strict=False):
            for bound in both:
                axes.axvline(bound, color=_INK[LIGHT], linestyle=style, linewidth=1)
            axes.plot([], [], color=_INK[LIGHT], linestyle=style, linewidth=1, label=name)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("score")
        axes.set_ylabel("share of the pairs of each label")
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8
        )
        return _bytes(figure, kind)


def on_ground(svg: bytes, ground: str) -> bytes:
    """Return a plot as it is on light or on dark ground."""
    for colours in (_INK, _GROUND):
        svg = svg.replace(colours[LIGHT].encode(), colours[ground].encode())
    return svg


@contextmanager
def _figure() -> "Iterator[Figure]":
    """Give a figure, which uses no window and no state of Matplotlib's."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, ground = _INK[LIGHT], _GROUND[LIGHT]
    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), ground),
        "font.size": 9,
        "svg.hashsalt": "deepssim-scan",  # names of parts, which are drawn at random otherwise
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.subplot.left": 0.1,
        "figure.subplot.bottom": 0.15,
        "figure.subplot.right": 0.98,
        "figure.subplot.top": 0.9,
    }
    with matplotlib.rc_context(style):
        yield Figure(figsize=(7.2, 3.2))


def _bytes(figure: "Figure", kind: str) -> bytes:
    data = io.BytesIO()
    nothing = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(data, format=kind, dpi=160, metadata=nothing)
    return data.getvalue()
