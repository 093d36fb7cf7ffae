"""What a query found, printed: the verdicts, how often they are wrong, what was not looked at.

QueryResult -> lines and tables on the terminal
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deepssim_scan.cli import console
from deepssim_scan.reporting.html.words import (
    at_most,
    copied_volumes,
    has_rate,
    membership,
    partial_copies,
    rate_at_most,
    searched,
    whom,
)
from deepssim_scan.storage.layout import REPORT

if TYPE_CHECKING:
    from deepssim_scan.jobs.query import QueryResult
    from deepssim_scan.reporting.match import Match

STYLES = {
    "duplicate": "bold red",
    "similar": "yellow",
    "different": "green",
    "undecidable": "magenta",
}
_COUNTED = {"runs": "runs of files", "hold-out": "subjects or runs of files"}


def show(result: "QueryResult") -> None:
    """Print the counts, the strongest matches, and whether the run was complete."""
    summary, counts = result.summary, result.summary["counts"]
    for each in summary["mismatches"]:
        console.warn(f"{each['text']} {each['advice']} ({each['code']})")
    console.output.print(_verdicts(summary), _strongest(result.strongest))
    rejected, blank = counts["rejected"], counts["blank"]
    console.show_ledger(counts["listed"], counts["judged"], rejected, blank)
    left_out = rejected, blank, summary["excluded"], summary["ignored"]
    console.show_left_out(result.folder, *left_out)
    _show_subjects(summary["subjects"], counts)
    if summary["volumes"] is not None:
        console.say(copied_volumes(summary["volumes"]))
    console.say(partial_copies(summary["partial"], rate_known=has_rate(summary)))
    _show_calibration(summary)
    _show_canaries(summary)
    _show_search(summary["search"])
    _show_membership(summary["membership"])
    _show_verification(summary["verification"])
    _show_views(summary["views"])
    if summary["top_k"] < summary["top_k_asked"]:
        most = summary["top_k"]
        console.note(f"Only {most} matches an image: there are no more training images.")
    console.say(f"Report: {result.folder / REPORT}")
    if not result.complete:
        _show_incomplete(summary)


def _verdicts(summary: Mapping[str, Any]) -> Table:
    """Return how many images have each verdict, and by which rule."""
    counts, calibration = summary["counts"], summary["calibration"]
    table = Table(title="Verdicts of the synthetic images")
    for name in ("verdict", "images", "share"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("best match", overflow="fold")
    bounds = summary["bounds"]
    rules = {each: f"score > {bounds[each]:g}" for each in ("duplicate", "similar")}
    if calibration is not None:
        from deepssim_scan.calibration.calibration import similar_rate

        rate = calibration["false_alarm"]
        similar = similar_rate(rate)
        rules = {"duplicate": f"p-value < {rate:.2g}", "similar": f"p-value < {similar:.2g}"}
    rules |= {"undecidable": "next to nothing on the image"} if counts["undecidable"] else {}
    for verdict in ("duplicate", "similar", "different", "undecidable"):
        if verdict != "undecidable" or counts[verdict]:
            share = f"{counts[verdict] / counts['judged']:.1%}"
            styled = Text(verdict, style=STYLES[verdict])
            table.add_row(styled, f"{counts[verdict]:,}", share, rules.get(verdict, ""))
    table.add_section()
    for state in ("judged", "rejected", "blank"):
        table.add_row(state, f"{counts[state]:,}", "", "")
    return table


def _strongest(matches: "Sequence[Match]") -> Table:
    table = Table(title="Strongest matches")
    for name in ("synthetic", "training"):
        table.add_column(name, overflow="fold")
    for name in ("score", "SSIM", "p-value"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for match in matches:
        verdict = Text(match.verdict, style=STYLES[match.verdict])
        names = Text(match.synthetic), Text(match.training)
        ssim = "-" if match.ssim is None else f"{match.ssim:.4f}"
        p_value = "-" if match.p_value is None else f"{match.p_value:.2g}"
        table.add_row(*names, f"{match.score:.4f}", ssim, p_value, verdict)
    return table


def _show_subjects(subjects: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Print the share of the images that copy, and of the subjects who are copied."""
    images = f"{counts['duplicate']:,} of {counts['judged']:,} images"
    copied, more = whom(subjects, f"of {counts['training_indexed']:,} training images")
    console.say(f"Copies: {images} copy {copied}{more}.")


def _show_calibration(summary: Mapping[str, Any]) -> None:
    """Print how often the verdicts are wrong."""
    found = summary["calibration"]
    if found is None:
        if summary["rule"] == "reference":
            console.note("Judged by fixed scores: how often they are wrong is not known.")
        return
    people = found["non_members"]
    if people["from"] == "bundled":
        console.warn(
            "Judged by the bundled calibration, of pseudo-subjects: how often these verdicts are "
            "wrong is not known. The training set is too small to be calibrated."
        )
        return
    counted = _COUNTED.get(people["from"], "subjects")
    console.say(
        f"False alarms: {found['false_alarm']:.2g} of images of other people, at most "
        f"{rate_at_most(found['false_alarm_upper_95'])} (95 %; {people['images']:,} images of "
        f"{people['subjects']:,} {counted}). "
        f"Expected in this run: {found['expected_false_alarms']:.1f}."
    )
    if summary["counts"]["duplicate"]:
        console.say(
            f"Of the flagged images, {found['false_discovery']:.1%} are expected to be false "
            f"alarms, at most {at_most(found['false_discovery_upper_95'], 0)} (95 %)."
        )


def _show_canaries(summary: Mapping[str, Any]) -> None:
    """Print how many planted copies were found, and what that says of those not found."""
    canaries = summary["canaries"]
    if canaries is None:
        return
    if not canaries["planted"]:
        console.warn(
            "NO CANARIES: no training image could be read, so no copy was planted. Whether copies "
            "are found is not known. Say where the training images are with --training."
        )
        return
    console.say(
        f"Canaries: {canaries['found']:,} of {canaries['planted']:,} planted copies were found. "
        f"At most {at_most(summary['most_copies_95'])} of the images are copies (95 %)."
    )
    if not canaries["passed"]:
        console.warn(
            f"CANARIES MISSED: {canaries['least']:.1%} had to be found. Copies may have been "
            "missed: check the index with `deepssim-scan check`, and calibrate it again, which "
            "names training images of different subjects that are nearly the same."
        )


def _show_search(found: Mapping[str, Any]) -> None:
    """Print what share of the best matches an approximate search found."""
    if not found["exact"]:
        (console.say if found["passed"] else console.warn)(searched(found))


def _show_membership(found: Mapping[str, Any] | None) -> None:
    """Print how well members are told from others, where the calibration has a hold-out."""
    if found is not None:
        console.say(membership(found))


def _show_views(views: Mapping[str, int]) -> None:
    """Print when most of the flagged images are turned or inverted."""
    total = sum(views.values())
    for name, count in views.items():
        if name != "as it is" and total and count > total / 2:
            console.note(f"Of {total:,} flagged images {count:,} match under: {name}.")


def _show_verification(pairs: Mapping[str, int] | None) -> None:
    """Print how many pairs were registered, or that none was to be."""
    if pairs is None:
        console.warn("Not verified, as --no-verify asks for: judged by the score alone.")
        return
    console.say(f"Pairs looked at: {pairs['registered']:,}")
    if missing := pairs["not_registered"]:
        console.warn(
            f"Pairs not verified: {missing:,}. An image of each is gone or has changed, so they "
            "are judged by the score alone. Say where the training images are with --training."
        )


def _show_incomplete(summary: Mapping[str, Any]) -> None:
    """Print what was not looked at."""
    counts, canaries = summary["counts"], summary["canaries"]
    missing = (summary["verification"] or {}).get("not_registered", 0)
    synthetic, training = counts["rejected"], counts["training_rejected"]
    console.warn(
        f"INCOMPLETE, so this is no clean result. Not looked at: synthetic images {synthetic:,}, "
        f"training images {training:,}, pairs {missing:,}."
        + ("" if canaries is None or canaries["passed"] else " Canaries were missed.")
        + ("" if summary["search"]["passed"] else " The search found too few of the best matches.")
    )
