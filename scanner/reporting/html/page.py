"""report.html of a query: tables, plots and pictures.

summary.json, findings, subjects, distributions -> HTML
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deepssim_scan.reporting.distributions import Distributions
from deepssim_scan.reporting.html.render import data_url, render
from deepssim_scan.reporting.html.words import (
    at_risk,
    copied_volumes,
    has_rate,
    left_out,
    membership,
    method,
    partial_copies,
    rare,
    verdict,
)
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.partial import PartialCopy
from deepssim_scan.reporting.pictures import Pictures
from deepssim_scan.reporting.plots import DARK, LIGHT, draw_trend, on_ground
from deepssim_scan.reporting.subjects import Reproduced
from deepssim_scan.reporting.volumes import COPY, CopiedVolume
from deepssim_scan.storage.layout import SUBJECTS, VOLUMES

PAGE = 100  # findings shown at once
_SUBJECTS = _VOLUMES = _PARTIAL = 20
_MOST_BYTES = 4_000_000  # of findings
_MOST_PICTURES = 4_000_000
_COLUMNS = (
    ("finding", False),
    ("synthetic image", False),
    ("training image", False),
    ("subject", False),
    ("score", True),
    ("SSIM", True),
    ("p-value", True),
    ("change", False),
)
_NAMES = "synthetic", "training", "subject"
_ALTERNATIVES = "the synthetic image", "the training image, aligned with it", "their difference"


@dataclass(frozen=True, slots=True)
class Night:
    """What an audit adds to a report.

    `lines` say which conditions hold, each with its tone; `states` tell of findings whether they
    are new, `gone` names those that are no more, and `trend` counts duplicates by night.
    """

    lines: Sequence[tuple[str, str]]
    states: Mapping[str, str]
    gone: Sequence[str]
    trend: Mapping[int, float]

    def renamed(self, key: bytes) -> "Night":
        """Return the same with names of findings that tell nobody anything without the key."""
        of = partial(pseudonym, key, "finding")
        states = {of(name): state for name, state in self.states.items()}
        return replace(self, states=states, gone=[of(name) for name in self.gone])


@dataclass(frozen=True, slots=True)
class Content:
    """What a report is made of; `pictures` are of the first findings, where there are.

    `plot` is that of the distributions, as SVG.
    """

    title: str
    summary: Mapping[str, Any]
    findings: Sequence[Match]
    subjects: Sequence[Reproduced]
    volumes: Sequence[CopiedVolume]
    partial: Sequence[PartialCopy]
    distributions: Distributions
    plot: bytes
    pictures: Sequence[Pictures | None] = ()
    night: Night | None = None

    def renamed(self, key: bytes) -> "Content":
        """Return the same with names that tell nobody anything without the key.

        The name of a finding is one of them: whoever tries the names of subjects may find whose it
        is (`finding_of`).
        """
        of = partial(pseudonym, key)

        def hidden(each: Match | CopiedVolume | PartialCopy) -> dict[str, Any]:
            return {name: of(name, getattr(each, name)) for name in _NAMES}

        subjects = [
            replace(
                each,
                subject=of("subject" if each.named else "training", each.subject),
                synthetic=of("synthetic", each.synthetic),
                training=of("training", each.training),
            )
            for each in self.subjects
        ]
        columns = {
            name: column
            | {"most": [each | {"value": of("value", each["value"])} for each in column["most"]]}
            for name, column in self.summary["provenance"].items()
        }
        summary = dict(self.summary) | {"provenance": columns}
        return replace(
            self,
            summary=summary,
            findings=[
                replace(each, **hidden(each), finding=of("finding", each.finding or ""))
                for each in self.findings
            ],
            subjects=subjects,
            volumes=[replace(each, **hidden(each)) for each in self.volumes],
            partial=[replace(each, **hidden(each)) for each in self.partial],
            night=self.night and self.night.renamed(key),
        )


def pseudonym(key: bytes, kind: str, name: str) -> str:
    """Return what stands for a name: its hash under a key, or "" for no name."""
    digest = hmac.new(key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()
    return f"{kind}-{digest[:12]}" if name else ""


def page(content: Content) -> str:
    """Return the page."""
    summary, found, night = content.summary, content.distributions, content.night
    rows = _rows(content.findings, night)
    pictures = _pictures(content.pictures[: len(rows)])
    names = [*_COLUMNS, *([("state", False)] if night else [])]
    columns = [{"name": name, "number": number} for name, number in names]
    named = bool(summary["subjects"]["training"])
    shown: dict[str, Any] = {"rows": rows, "columns": columns, "page": PAGE, "pictures": pictures}
    shown |= {"alternatives": _ALTERNATIVES}
    return render(
        "report.html.j2",
        "script.js",
        title=content.title,
        verdict=verdict(summary),
        mismatches=summary["mismatches"],
        left_out=left_out(summary),
        broken=[{"tone": tone, "text": text} for tone, text in night.lines] if night else [],
        gone=night.gone if night else [],
        distribution=_grounds(content.plot),
        distribution_text=_plotted(found),
        trend=trend_plot("duplicates", {content.title: night.trend}) if night else None,
        kinds=_kinds(summary),
        membership=membership(summary["membership"]) if summary["membership"] else None,
        provenance=summary["provenance"],
        named=named,
        subjects=[_subject(each) for each in content.subjects[:_SUBJECTS]],
        subjects_text=at_risk(summary) + _cut(content.subjects, _SUBJECTS, SUBJECTS),
        rare_text=rare(sum(each.rare for each in content.subjects)),
        volumes=[_volume(each) for each in content.volumes[:_VOLUMES]],
        volumes_text=copied_volumes(summary["volumes"]) + _cut(content.volumes, _VOLUMES, VOLUMES),
        partial=[_partial(each) for each in content.partial[:_PARTIAL]],
        partial_text=partial_copies(summary["partial"], rate_known=has_rate(summary)),
        findings_text=_findings(content, rows, pictures),
        method=method(summary),
        facts=_facts(summary),
        made=f"Made {summary['made']}.",
        data=shown,
        **shown,
    )


def trend_plot(what: str, lines: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Return a plot of a quantity by night, a line a synthetic set, on both grounds."""
    return _grounds(draw_trend(lines, what, "svg"))


def _grounds(svg: bytes) -> dict[str, str]:
    """Return a plot on both grounds, as addresses that hold it."""
    return {ground: data_url(on_ground(svg, ground), "image/svg+xml") for ground in (LIGHT, DARK)}


def _kinds(summary: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    canaries = summary["canaries"]
    return [(kind, *counts) for kind, counts in canaries["by_kind"].items()] if canaries else []


def _plotted(found: Distributions) -> str:
    what = "decision statistic" if found.what == "statistic" else "score"
    return (
        f"The {what} of the best match of each image: of people who are not in the training set, "
        "of planted copies, and of the synthetic images. Images to the right of the solid line are "
        "flagged; those right of the dotted line are similar."
    )


def _cut(rows: Sequence[Any], most: int, file: str) -> str:
    """Say where all rows are, of a table that has the first ones alone."""
    return f" The first {most} are here; {file} has all." if len(rows) > most else ""


def _subject(each: Reproduced) -> dict[str, Any]:
    p_value = "-" if each.p_value is None else f"{each.p_value:.2g}"
    return {
        "subject": each.subject,
        "synthetic_images": each.synthetic_images,
        "training_images": each.training_images,
        "p_value": p_value,
        "rarity": "-" if each.rarity is None else f"{each.rarity:.2f}",
        "rare": each.rare,
        "synthetic": each.synthetic,
    }


def _volume(each: CopiedVolume) -> dict[str, Any]:
    return {
        "synthetic": each.synthetic,
        "training": each.training,
        "copied": f"{each.copied:,} of {each.slices:,}",
        "verdict": "copy" if each.verdict == COPY else "single slices",
        "order": "-" if each.order is None else f"{each.order:.2f}",
        "ncc": "-" if each.ncc is None else f"{each.ncc:.2f}",
        "ssim": "-" if each.ssim is None else f"{each.ssim:.2f}",
    }


def _partial(each: PartialCopy) -> dict[str, Any]:
    box = each.left, each.top, each.right, each.bottom
    return {
        "synthetic": each.synthetic,
        "training": each.training,
        "p_value": f"{each.p_value:.2g}",
        "correlation": f"{each.correlation:.2f}",
        "mirrored": "yes" if each.mirrored else "no",
        "box": "-" if None in box else "{}, {} to {}, {}".format(*box),
    }


def _rows(findings: Sequence[Match], night: Night | None) -> list[list[Any]]:
    """Return the rows of the findings, the strongest first, as many as the page may hold."""
    rows, left = list[list[Any]](), _MOST_BYTES
    for each in findings:
        numbers = [_rounded(value) for value in (each.score, each.ssim, each.p_value)]
        more = f" and {each.images - 1:,} more" if each.images > 1 else ""
        names = [each.finding, each.synthetic + more, each.training, each.subject or None]
        row = [*names, *numbers, _changed(each.transform)]
        row += [night.states.get(str(each.finding))] if night else []
        left -= len(json.dumps(row)) + 1
        if left < 0:
            break
        rows.append(row)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _changed(transform: Mapping[str, Any] | None) -> str | None:
    """Say in words what makes the synthetic image of the training image."""
    if transform is None:
        return None
    flips = {"none": "", "both": "flipped both ways"}
    flip = flips.get(transform["flip"], f"flipped {transform['flip']}ly")
    parts = [
        flip,
        f"turned {transform['degrees']:.1f}°" if abs(transform["degrees"]) >= 0.5 else "",
        f"scaled {transform['scale']:.2f}" if abs(transform["scale"] - 1) >= 0.01 else "",
        _shifted(transform["right"], transform["down"]),
        f"gamma {transform['gamma']:.2f}" if abs(transform["gamma"] - 1) >= 0.05 else "",
        "quarter turn" if transform["quarter_turn"] else "",
        "inverted" if transform["inverted"] else "",
    ]
    return ", ".join(part for part in parts if part) or "as it is"


def _shifted(right: float, down: float) -> str:
    moved = max(abs(right), abs(down)) >= 0.5
    return f"shifted {right:.1f} right, {down:.1f} down" if moved else ""


def _pictures(found: Sequence[Pictures | None]) -> list[list[str]]:
    """Return the pictures of the first findings, as many as the page may hold."""
    drawn, left = list[list[str]](), _MOST_PICTURES
    for each in found:
        three = (each.synthetic, each.training, each.difference) if each else ()
        urls = [data_url(data, "image/png") for data in three]
        left -= sum(map(len, urls))
        if left < 0:
            break
        drawn.append(urls)
    return drawn


def _findings(content: Content, rows: Sequence[Any], pictures: Sequence[Any]) -> str:
    lines = [f"{content.summary['counts']['duplicate']:,} images are flagged."]
    if len(rows) < len(content.findings):
        lines.append(f"The {len(rows):,} strongest are here; flagged.csv has all.")
    if pictures and len(pictures) < len(rows):
        lines.append(f"The first {len(pictures):,} have pictures.")
    if not pictures:
        lines.append("Pictures of patients are not in this page.")
    return " ".join(lines)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    prints = summary["fingerprints"]
    calibration = summary["calibration"] or {}
    return [
        *((f"{name}, fingerprint", prints[name]) for name in ("encoder", "training", "synthetic")),
        *([("calibration, digest", calibration["digest"])] if calibration.get("digest") else []),
        *summary["versions"].items(),
    ]
