"""Draw what each type of index finds of the best matches, by queries a second.

python benchmarks/figure_search.py --out docs/search.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULT = Path(__file__).parent / "results" / "search_real.json"


def main() -> None:
    """Read the result of `bench_search.py`, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/search.png"))
    out = parser.parse_args().out
    told = json.loads(RESULT.read_text("utf-8"))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for kind, found in told["types"].items():
        curve = found.get("curve", [])[:-1]
        if curve:
            missed = [max(1 - point["found"] / point["rows"], 1e-4) for point in curve]
            rates = [point["rows"] / point["seconds"] for point in curve]
            axes.plot(rates, missed, marker="o", label=f"{kind}: {found['factory']}")
        else:
            axes.axvline(found["queries_s"], linestyle=":", color="grey")
            axes.annotate(kind, (found["queries_s"], 0.5), rotation=90, ha="right", va="top")
    axes.set(xscale="log", yscale="log", xlabel="queries a second (two cores, best match)")
    axes.set_ylabel("share of best matches missed")
    axes.set_title(f"{told['training']:,} rows of real images and pseudo-people")
    axes.legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
