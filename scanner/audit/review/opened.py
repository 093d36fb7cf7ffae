"""A review of the findings of the last night, opened.

audit.toml, a reader -> Review
"""

import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from deepssim_scan.audit.config.audit import AuditConfig
from deepssim_scan.audit.config.waivers import read_waivers
from deepssim_scan.audit.findings import asked_about, holding
from deepssim_scan.audit.history import History
from deepssim_scan.audit.night import REPORTS
from deepssim_scan.audit.review.server import Review, undecided
from deepssim_scan.errors import InputError, StoreMismatch
from deepssim_scan.jobs.drawing import drawing
from deepssim_scan.progress import Progress
from deepssim_scan.reporting.matches import read_counts


@contextmanager
def reviewing(
    config: AuditConfig, reader: str, progress: Progress, *, blinded: bool, port: int = 0
) -> Iterator[Review]:
    """Give a review of all findings that a reader has not decided on, and that are not waived.

    A set that was not queried since the index changed is left out, with a warning. Raises
    InputMissing where no night was audited, InputError for a reader without a name, and what
    `drawing` raises.
    """
    reader = unicodedata.normalize("NFC", " ".join(reader.split()))  # one person, one name
    if not reader:
        raise InputError("a reader must have a name")
    today = datetime.now(UTC).date()
    waived = holding(read_waivers(config.policy.waivers), today)
    with ExitStack() as held:
        run = held.enter_context(config.machine.run(progress).opened())
        history = held.enter_context(History(config.history.path))
        flagged = {}
        for each in config.synthetic:
            report = config.history.path / REPORTS / each.name
            if report.is_dir():
                _, counts = read_counts(report)
                try:
                    draw = held.enter_context(drawing(report, config.training.index, run))
                except StoreMismatch as error:
                    progress.warn(f"{each.name}: is left out: {error}")
                    continue
                found = asked_about(report, counts.flagged, waived)
                flagged[each.name] = [match for match in found if match.finding not in waived], draw
        cases = undecided(flagged, history, reader)
        yield held.enter_context(Review(cases, history, reader, blinded=blinded, port=port))
