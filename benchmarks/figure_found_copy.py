"""Draw copies that were found beside their training images, from what `demo` left.

python benchmarks/figure_found_copy.py --demo deepssim-demo --out docs/found-copies.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from deepssim_scan.reporting.matches import Match, best_matches

KINDS = {
    "horizontal flip": "flipped copy",
    "rotation within 10 degrees": "rotated copy",
    "gamma 0.5 to 1.5": "copy, other gamma",
    "non-member, same slice": "non-member",
}
SIDE, GAP, LINE = 192, 12, 18  # pixels
INK = "#1f2328"
COLOURS = {"duplicate": "#b42318", "similar": "#9a6700", "different": "#1a7f37"}


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("deepssim-demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/found-copies.png"))
    options = parser.parse_args()
    matches = best_matches(options.demo / "report")
    shown = [median([m for m in matches if m.synthetic.startswith(kind)]) for kind in KINDS]
    width = len(shown) * (SIDE + GAP) + GAP
    figure = Image.new("RGB", (width, 2 * (SIDE + LINE) + 3 * GAP + 2 * LINE), "white")
    for column, (kind, match) in enumerate(zip(KINDS.values(), shown, strict=True)):
        draw_pair(figure, GAP + column * (SIDE + GAP), kind, match, options.demo)
    figure.save(options.out, optimize=True)


def median(matches: list[Match]) -> Match:
    """Return the match in the middle: a typical one of its kind, not the best."""
    return matches[len(matches) // 2]


def draw_pair(figure: Image.Image, left: int, kind: str, match: Match, demo: Path) -> None:
    """Draw a synthetic image above its best match, with the verdict below."""
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(size=13)
    top = GAP
    for title, path in (
        (f"synthetic: {kind}", demo / "synthetic" / match.synthetic),
        ("training: its best match", demo / "training" / match.training),
    ):
        draw.text((left, top), title, INK, font)
        with Image.open(path) as image:
            figure.paste(image.convert("RGB").resize((SIDE, SIDE)), (left, top + LINE))
        top += LINE + SIDE + GAP
    verdict = f"{match.verdict}, score {match.score:.3f}"
    draw.text((left, top), verdict, COLOURS[match.verdict], font)


if __name__ == "__main__":
    main()
