"""The report that is in place before another takes its place, as far as it is of use.

report folder, job -> EarlierReport: a store to take rows from, the evidence of the same pairs
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepssim_scan.errors import Damaged, ScanError, StoreMismatch
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.jobs.identity import same_but_for_files
from deepssim_scan.jobs.query.proof.sampling import Kept, read_kept
from deepssim_scan.matching.cache import EvidenceCache, PartFiles, part_files
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import EVIDENCE, REGIONS, SEEN, SUMMARY, SYNTHETIC
from deepssim_scan.storage.publish import Job, read_job
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.store import Store
from deepssim_scan.store.unchanged import Unchanged


@dataclass(frozen=True, slots=True)
class EarlierReport:
    """What is taken from an earlier report: rows of images that did not change, and evidence.

    `sampled` and `regions` are files of what was seen of samples, and of regions.
    """

    unchanged: Unchanged | None = None
    parts: tuple[PartFiles, ...] = ()
    sampled: Path | None = None
    regions: Path | None = None

    def seen(self) -> Kept:
        """Return what was seen of samples of both sides."""
        return {} if self.sampled is None else read_kept(self.sampled)

    def cache(self, dimension: int) -> EvidenceCache:
        """Return the evidence, and embeddings of views with `dimension` numbers."""
        try:
            return EvidenceCache(self.parts, dimension)
        except Damaged:  # of an encoder of another dimension, or of an earlier version
            return EvidenceCache((), dimension)


@contextmanager
def earlier_report(report: Path, job: Job, ingest: IngestConfig) -> Iterator[EarlierReport]:
    """Give what is of use of the report that a job is to replace, open until the block ends.

    Rows are of use where the synthetic images were read and embedded in the same way. Evidence is
    found by all that it depends on. Nothing is taken that is damaged.
    """
    with ExitStack() as held:
        unchanged = _unchanged(report, job, ingest, held)
        evidence = report / EVIDENCE
        yield EarlierReport(unchanged, _parts(report), evidence / SEEN, evidence / REGIONS)


def _unchanged(report: Path, job: Job, ingest: IngestConfig, held: ExitStack) -> Unchanged | None:
    record = read_job(report)
    if record is None or not same_but_for_files(job, record, "embedded"):
        return None
    try:
        store = held.enter_context(store_of(report))
    except ScanError:
        return None
    return held.enter_context(closing(Unchanged(store, ingest)))


@contextmanager
def store_of(report: Path) -> Iterator[Store]:
    """Open the store of a finished report.

    Raises Damaged when it is, StoreMismatch when it is not the one that the summary tells of.
    """
    with Store.open(report / SYNTHETIC) as store:
        store.verify()
        wanted = read_json(report / SUMMARY).get("fingerprints", {}).get("synthetic")
        if store.digest != wanted:
            raise StoreMismatch(f"{report}: its summary is of {wanted}, its store {store.digest}")
        yield store


def _parts(report: Path) -> tuple[PartFiles, ...]:
    """Return the files of evidence that are as they were written, by the summary."""
    try:
        digests = read_json(report / SUMMARY)["files"]
    except (ScanError, KeyError):
        return ()

    def is_whole(path: Path) -> bool:
        wanted = digests.get(f"{EVIDENCE}/{path.name}")
        return wanted is not None and path.is_file() and sha256(path) == wanted

    numbers = [name for name in digests if name.startswith(f"{EVIDENCE}/")]
    found = [part_files(report / EVIDENCE, number) for number in range(len(numbers) // 2)]
    return tuple(each for each in found if is_whole(each.evidence) and is_whole(each.looked))
