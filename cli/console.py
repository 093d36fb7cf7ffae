"""What the commands print: results on standard output, everything else on standard error."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepssim_scan.check import Checked
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.demo import DemoResult, Tally
from deepssim_scan.report import Match
from deepssim_scan.scan import IndexResult, QueryResult
from deepssim_scan.training import Trained

_NEAR_COPIES = 0.98  # SSIM of images held out and trained on, above which they are the same scans
STYLES = {"duplicate": "bold red", "similar": "yellow", "different": "green"}

output = Console(highlight=False)
messages = Console(stderr=True, highlight=False)


def show_json(value: Mapping[str, Any]) -> None:
    """Print a value for machines."""
    output.out(json.dumps(value, indent=2, sort_keys=True))


def show_index(result: IndexResult) -> None:
    """Print what an index holds, and what is not in it."""
    output.print(
        f"{result.indexed:,} training images indexed in {result.folder} "
        f"({result.seconds:.1f} s, encoder {result.encoder[:12]})",
        markup=False,
        soft_wrap=True,
    )
    _show_ledger(result.listed, result.indexed, result.rejected)
    _show_left_out(result.rejected, result.ignored, f"{result.folder}/rejected.csv")
    if not result.complete:
        _warn("INCOMPLETE: a copy of a rejected training image cannot be found.")


def show_checked(checked: Checked) -> None:
    """Print what was verified, and every problem found."""
    counts = ", ".join(f"{count:,} {name}" for name, count in checked.counts.items())
    if checked.intact:
        text = f"{checked.path}: {checked.kind} is intact" + (f" ({counts})" if counts else "")
        output.print(text, style="green", markup=False, soft_wrap=True)
        return
    table = Table(title=Text(f"{checked.path}: {checked.kind} is damaged"))
    table.add_column("where", overflow="fold")
    table.add_column("rows", no_wrap=True)
    table.add_column("what", overflow="fold")
    for problem in checked.problems:
        rows = "{:,} to {:,}".format(*problem.rows) if problem.rows else ""
        table.add_row(Text(problem.where), rows, Text(problem.what))
    output.print(table)


def show_query(result: QueryResult) -> None:
    """Print the counts, the strongest matches, and whether the run was complete."""
    summary, counts = result.summary, result.summary["counts"]
    thresholds = Thresholds(**summary["thresholds"])
    output.print(_counts_table(counts, thresholds, summary["verification"]))
    output.print(_matches_table(result.strongest))
    _show_ledger(counts["listed"], counts["judged"], counts["rejected"])
    _show_left_out(counts["rejected"], summary["ignored"], f"{result.folder}/rejected.csv")
    if not result.complete:
        _warn(
            f"INCOMPLETE, and so no clean result. Not looked at: {counts['rejected']:,} synthetic "
            f"and {counts['training_rejected']:,} training images."
        )
    _show_verification(summary["verification"])
    if summary["top_k"] < summary["top_k_asked"]:
        text = f"Only {summary['top_k']} matches an image: there are no more training images."
        messages.print(text, markup=False, soft_wrap=True)
    output.print(f"Report: {result.folder}", markup=False, soft_wrap=True)


def show_demo(result: DemoResult) -> None:
    """Print, for each kind of synthetic image, how many were found and flagged."""
    table = Table(title="Planted copies and strangers")
    table.add_column("synthetic images")
    for name in ("images", "flagged", "own source first"):
        table.add_column(name, justify="right")
    for copies in (True, False):
        for row in (row for row in result.rows if row.copies == copies):
            table.add_row(*_tally_cells(row))
        table.add_section()
        table.add_row(*_tally_cells(result.total(copies=copies)), style="bold", end_section=True)
    output.print(table)
    output.print(
        f"{result.training_images:,} training images; everything is in {result.folder}",
        markup=False,
        soft_wrap=True,
    )


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line; those of a group after its name."""
    table = Table(title=Text(title), show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flat(facts):
        table.add_row(Text(name), Text(str(value)))
    output.print(table)


def show_trained(trained: Trained) -> None:
    """Print what the encoder reaches on the images held out, before training and after."""
    before, after = trained.before, trained.after
    table = Table(title=f"On the {trained.held_out:,} images held out")
    table.add_column("")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    rows = {
        "error of the score against SSIM": ("error", ".4f"),
        "copies whose source comes first": ("right", ".1%"),
        "copies above 99 % of other subjects": ("apart", ".1%"),
    }
    for label, (name, form) in rows.items():
        cells = (format(getattr(each, name), form) if each else "-" for each in (before, after))
        table.add_row(label, *cells)
    output.print(table)
    if before and (after.error > before.error or after.apart < before.apart):
        _warn("Not better in every row: more images, or more --steps, may help.")
    if (ssim := trained.checkpoint.thresholds.ssim) > _NEAR_COPIES:
        _warn(
            f"The threshold of SSIM is {ssim:g}, which few changed copies reach: images held out "
            "are near copies of images trained on. Give each subject a folder of its own: from 20 "
            "folders on, they are held out whole."
        )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every value with its whole name, groups of groups too."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _tally_cells(row: Tally) -> list[str]:
    flagged, found = (f"{n} ({n / row.images:.1%})" for n in (row.flagged, row.found))
    return [row.kind, f"{row.images:,}", flagged, found if row.copies else "-"]


def _counts_table(
    counts: Mapping[str, int], thresholds: Thresholds, verification: Mapping[str, int] | None
) -> Table:
    table = Table(title="Verdicts of the synthetic images")
    for name in ("verdict", "images", "share"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("best match", overflow="fold")
    flagged = f"score > {thresholds.duplicate:g}"
    if verification is not None:
        both = f"{flagged} and SSIM > {thresholds.ssim:g}"
        flagged = f"SSIM > {thresholds.certain:g}, or {both}"
    rules = {"duplicate": flagged, "similar": f"score > {thresholds.similar:g}", "different": ""}
    for verdict, rule in rules.items():
        share = f"{counts[verdict] / counts['judged']:.1%}"
        styled = Text(verdict, style=STYLES[verdict])
        table.add_row(styled, f"{counts[verdict]:,}", share, rule)
    table.add_section()
    table.add_row("judged", f"{counts['judged']:,}", "", "")
    table.add_row("rejected", f"{counts['rejected']:,}", "", "")
    return table


def _matches_table(matches: list[Match]) -> Table:
    table = Table(title="Strongest matches")
    table.add_column("synthetic", overflow="fold")
    table.add_column("training", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("SSIM", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for match in matches:
        verdict = Text(match.verdict, style=STYLES[match.verdict])
        names = Text(match.synthetic), Text(match.training)
        ssim = "-" if match.ssim is None else f"{match.ssim:.4f}"
        table.add_row(*names, f"{match.score:.4f}", ssim, verdict)
    return table


def _show_verification(counts: Mapping[str, int] | None) -> None:
    if counts is None:
        return
    text = f"Pairs registered: {counts['registered']:,}, of which verified: {counts['verified']:,}"
    output.print(text, markup=False, soft_wrap=True)
    if missing := counts["not registered"]:
        _warn(
            f"Pairs not verified: {missing:,}, judged by their score alone, since an image of them "
            "is gone or not the same any more. Say where the training images are with --training."
        )


def _show_ledger(listed: int, embedded: int, rejected: int) -> None:
    text = f"Images: {listed:,} listed = {embedded:,} embedded + {rejected:,} rejected"
    output.print(text, markup=False, soft_wrap=True)


def _show_left_out(rejected: int, ignored: int, path: str) -> None:
    if rejected:
        _warn(f"Rejected images: {rejected:,}; {path} says why.")
    if ignored:
        text = f"Ignored files, not asked for or no images by name and content: {ignored:,}."
        messages.print(text, markup=False, soft_wrap=True)


def _warn(text: str) -> None:
    messages.print(text, style="bold yellow", markup=False, soft_wrap=True)
