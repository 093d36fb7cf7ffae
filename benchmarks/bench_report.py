"""How long a report with many findings takes to be written, and to be opened in Chromium.

Opened is a page when its first findings are drawn, sorting and filtering work, and its load event
has fired. Sorting and filtering are timed, too.

    python benchmarks/bench_report.py
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, Spread, parser, show, write
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(ROOT / "tests"))
from test_page import content, match

from deepssim_scan.reporting.html.page import page


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__, {"findings": 20_000, "repeats": 5}, seeded=False).parse_args()
    findings = [match(number) for number in range(options.findings)]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "report.html"
        started = time.perf_counter()
        path.write_text(page(content(findings)), "utf-8")
        written = time.perf_counter() - started
        size = path.stat().st_size
        taken = opened(path, options.repeats)
    spreads = {"written": Spread.of([written], "s"), "size": Spread.of([size / 1e6], "MB")}
    spreads |= {name: Spread.of(values, "s") for name, values in taken.items()}
    show(f"A report with {options.findings:,} findings", spreads, {})
    write("report", options, spreads, {})


def opened(path: Path, repeats: int) -> dict[str, list[float]]:
    """Return how long it takes to open the page, to sort it, and to filter it."""
    taken: dict[str, list[float]] = {"opened": [], "sorted": [], "filtered": []}
    program = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(repeats):
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(path.as_uri())
            tab.wait_for_function("document.getElementById('shown').textContent.length > 0")
            taken["opened"].append(time.perf_counter() - started)
            taken["sorted"].append(_timed(tab, "document.querySelectorAll('th button')[4].click()"))
            text = "const box = document.getElementById('filter'); box.value = '0123'; "
            text += "box.dispatchEvent(new Event('input'))"
            taken["filtered"].append(_timed(tab, text))
            tab.close()
    return taken


def _timed(tab: Page, script: str) -> float:
    """Return the seconds that a script takes, until what it changed is laid out."""
    text = f"""() => {{
        const started = performance.now();
        {script};
        document.body.getBoundingClientRect();
        return (performance.now() - started) / 1000;
    }}"""
    return float(tab.evaluate(text))


if __name__ == "__main__":
    main()
