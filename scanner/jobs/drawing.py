"""Pictures of findings of a report, drawn when they are asked for.

report and index folders -> a function that draws matches
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepssim_scan.errors import StoreMismatch
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.jobs.gallery import training_files
from deepssim_scan.jobs.query.page import pictures_of
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.pictures import Pictures
from deepssim_scan.storage.layout import STORE, SUMMARY, SYNTHETIC
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store


@contextmanager
def drawing(
    report: Path, index: Path, run: RunContext
) -> Iterator[Callable[[Sequence[Match]], list[Pictures | None]]]:
    """Give what draws matches of a report; None for a match of which an image is gone.

    Raises StoreMismatch when the report is of another state of the index.
    """
    with Store.open(report / SYNTHETIC) as ours, Store.open(index / STORE) as theirs:
        wanted = read_json(report / SUMMARY)["fingerprints"]["training"]
        if wanted != theirs.digest:
            raise StoreMismatch(
                f"{report}: is of training images {wanted[:12]}, and {index} has "
                f"{theirs.digest[:12]}. Query again."
            )
        files = Lookup(Path(ours.manifest.source["folder"]), run)
        synthetic = Reader(ours, files, RULE, run)
        training = Reader(theirs, training_files(theirs, None, run), RULE, run)
        yield lambda matches: pictures_of(matches, synthetic, training)
