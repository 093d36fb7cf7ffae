"""What an audit would do: its folders looked at, and nothing written.

audit.toml -> lines of text by name
"""

from collections.abc import Iterator

from deepssim_scan.audit.config.audit import AuditConfig
from deepssim_scan.audit.config.waivers import read_waivers
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.identity import list_for_store
from deepssim_scan.storage.layout import INDEX_MANIFEST


def plan_of(config: AuditConfig) -> Iterator[tuple[str, str]]:
    """Give what would be done, in order: a name and a text each.

    Raises InputMissing or InputError where a folder, a key or the waivers cannot be used.
    """
    training, policy, run = config.training, config.policy, RunContext("cpu", workers=0)
    listing = list_for_store(training.images, training.ingest(training.key()), run)
    there = (training.index / INDEX_MANIFEST).is_file()
    what = "would be brought up to date" if there else "would be built"
    yield "training", f"{len(listing.files):,} files in {training.images}"
    yield "index", f"{training.index} {what}"
    for each in config.synthetic:
        files = list_for_store(each.images, each.ingest(b""), run).files
        yield f"synthetic {each.name}", f"{len(files):,} files in {each.images}"
    for name, conditions in (("fail_if", policy.fail_if), ("warn_if", policy.warn_if)):
        yield name, "; ".join(each.text for each in conditions) or "nothing"
    config.report.key()
    yield "waivers", f"{len(read_waivers(policy.waivers)):,}"
    yield "history", f"{config.history.path}, kept for {config.history.keep_days:,} days"
