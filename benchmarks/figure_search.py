"""Draw what each type of index finds of the best matches, by how many rows it looks at.

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
    drawn = [found for found in told["types"].values() if found.get("curve")]
    styles = ("-", "--", ":")  # types that read the same lists have one curve
    for found, style in zip(drawn, styles, strict=False):
        curve = found["curve"][:-1]
        missed = [max(1 - point["found"] / point["queries"], 1e-4) for point in curve]
        compared = [point["compared"] / told["training"] for point in curve]
        label = f"{found['factory']}: {found['queries_s']:,.0f} queries/s"
        axes.plot(compared, missed, style, marker="o", label=label)
    exact = told["types"]["flat"]["queries_s"]
    axes.set(xscale="log", yscale="log", xlabel="share of the rows that a query is compared with")
    axes.set_ylabel("share of best matches missed")
    axes.set_title(f"{told['training']:,} rows; all of them compared: {exact:,.0f} queries/s")
    axes.legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
