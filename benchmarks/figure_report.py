"""Screenshots of report.html for the documentation, of what `demo` left: light, dark and printed.

The report is made again with pictures, which are of pseudo-people.

python benchmarks/figure_report.py --demo deepssim-demo --out docs
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import PageConfig
from deepssim_scan.storage.layout import REPORT

WIDTH, HEIGHT = 1100, 1000  # pixels
_COLOURS = 128


def main() -> None:
    """Draw the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("deepssim-demo"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report"
        config = QueryConfig(page=PageConfig(thumbnails=True))
        query(options.demo / "synthetic", options.demo / "index", report, config, RunContext("cpu"))
        draw(report / REPORT, options.out)


def draw(page: Path, out: Path) -> None:
    """Write report-light.png, report-dark.png and report-print.png; the last two of findings."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, media in (
            ("light", {"color_scheme": "light"}),
            ("dark", {"color_scheme": "dark"}),
            ("print", {"media": "print"}),
        ):
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            tab.emulate_media(**media)
            tab.goto(page.as_uri())
            tab.wait_for_timeout(300)
            if name != "light":
                tab.evaluate("document.getElementById('findings-title').scrollIntoView()")
            path = out / f"report-{name}.png"
            tab.screenshot(path=path)
            Image.open(path).convert("RGB").quantize(_COLOURS).save(path, optimize=True)
            tab.close()


if __name__ == "__main__":
    main()
