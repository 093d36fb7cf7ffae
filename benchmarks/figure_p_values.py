"""Draw the p-values of non-members that `bench_verdicts` measured, beside those that are wanted.

python benchmarks/figure_p_values.py --out docs/p-values.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from harness import RESULTS

PREFIX = "verdicts_"
LOWEST = 1e-3
COLUMNS, WIDTH, HEIGHT = 4, 2.6, 2.7  # inches a panel


def main() -> None:
    """Draw a panel a set, and a line a split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/p-values.png"))
    options = parser.parse_args()
    results = sorted(RESULTS.glob(f"{PREFIX}*.json"))
    columns = min(COLUMNS, len(results))
    rows = -(-len(results) // columns)
    size = (WIDTH * columns, HEIGHT * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(results) :]:
        panel.remove()
    for path, panel in zip(results, panels.flat, strict=False):
        draw(panel, path)
    figure.supxlabel("p-value", fontsize=9)
    figure.supylabel("share of non-members up to it", fontsize=9)
    figure.savefig(options.out, dpi=120, metadata={"Software": None})


def draw(panel: plt.Axes, path: Path) -> None:
    """Draw the distribution function of the p-values of every split of a set."""
    panel.set_title(path.stem.removeprefix(PREFIX), fontsize=9)
    panel.plot([LOWEST, 1], [LOWEST, 1], color="0.6", linewidth=1)
    for split in json.loads(path.read_text())["splits"]:
        values = np.sort(split["p_values"])
        share = np.arange(1, len(values) + 1) / len(values)
        panel.step(values, share, where="post", linewidth=1)
    panel.set(xscale="log", yscale="log", xlim=(LOWEST, 1), ylim=(LOWEST, 1))
    panel.tick_params(labelsize=7)


if __name__ == "__main__":
    main()
