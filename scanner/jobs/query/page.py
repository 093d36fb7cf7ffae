"""The page of a report, and its plots.

what a query found, in the folder that becomes its report -> report.html, distribution.svg and .png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepssim_scan.calibration.rule import Rule
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.config import PageConfig
from deepssim_scan.reporting.distributions import Distributions
from deepssim_scan.reporting.html.page import Content, page
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.matches import MatchCounts, of_best
from deepssim_scan.reporting.partial import read_partial
from deepssim_scan.reporting.pictures import Pictures, draw
from deepssim_scan.reporting.plots import draw_distributions
from deepssim_scan.reporting.subjects import read_subjects
from deepssim_scan.reporting.volumes import read_volumes
from deepssim_scan.storage.files import replacing
from deepssim_scan.storage.layout import PLOT, PLOTS, REPORT
from deepssim_scan.store.reread import Reader

PICTURED = 300
"""Findings of which pictures are drawn at most; a page has no room for more."""
_TITLE = "Copies of training images among synthetic images"


def write_distributions(folder: Path, rule: Rule) -> None:
    """Write distributions.json, and its plots."""
    found = Distributions.of(of_best(folder, Distributions.column(rule)), rule)
    found.write(folder)
    for name in PLOTS:
        with replacing(folder / name) as file:
            file.write(draw_distributions(found, name.rpartition(".")[2]))


def write_page(
    folder: Path,
    summary: Mapping[str, Any],
    counts: MatchCounts,
    config: PageConfig,
    pictures: Sequence[Pictures | None] = (),
) -> None:
    """Write the page."""
    found = Distributions.read(folder)
    tables = counts.findings, read_subjects(folder), read_volumes(folder), read_partial(folder)
    plot = (folder / PLOT).read_bytes()
    content = Content(_TITLE, summary, *tables, found, plot, pictures)
    text = page(content.renamed(config.pseudonyms) if config.pseudonyms else content)
    with replacing(folder / REPORT) as file:
        file.write(text.encode("utf-8"))


def pictures_of(
    findings: Sequence[Match], synthetic: Reader, training: Reader
) -> list[Pictures | None]:
    """Draw the first findings; None for one of which an image is gone."""
    first = findings[:PICTURED]
    ours = _pixels(synthetic, {each.synthetic_row for each in first})
    theirs = _pixels(training, {each.training_row for each in first})
    found = list[Pictures | None]()
    for each in first:
        one, other = ours.get(each.synthetic_row), theirs.get(each.training_row)
        if one is None or other is None or each.transform is None:
            found.append(None)
        else:
            found.append(draw(one, other, each.transform))
    return found


def _pixels(reader: Reader, rows: set[int]) -> dict[int, Pixels]:
    return dict(reader.pixels(rows))
