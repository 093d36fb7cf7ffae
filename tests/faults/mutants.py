"""Faults put into our code on purpose: each must be noticed by the tests.

    python tests/faults/mutants.py

A mutant is a copy of the package with one line of it changed. The tests of publishing, of the
store and of `check`, and a sample of the fault trials, run on each. One on which they all pass
shows what they do not look at, and the exit status is 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from harness import ROOT, console, parser, write

TESTS = (
    *("test_publish", "test_store", "test_check", "test_files", "test_records", "test_query"),
    *("test_index", "test_subjects", "faults/test_store_machine", "faults/test_jobs"),
)
SECONDS = 3600  # that the tests may take on one

PUBLISH, CATALOG, CHECK = "storage/publish.py", "store/catalog.py", "jobs/check/__init__.py"
MUTANTS = (
    (PUBLISH, "refuse_foreign(path, names)  # again", "pass  # again"),
    (PUBLISH, "if old.exists() and not path.exists():", "if False:"),
    (PUBLISH, "        if restart:\n", "        if not restart:\n"),
    (PUBLISH, "for beside in (partial, old):", "for beside in (partial,):"),
    (PUBLISH, "if left == job.record() and of_use:", "if left is not None and of_use:"),
    (PUBLISH, "kept = job.same_as(left or {})", "kept = job.stages if left else ()"),
    (PUBLISH, "for name in stage.leaves:", "for name in ():"),
    (PUBLISH, "            shutil.rmtree(partial)\n            raise", "            raise"),
    (
        PUBLISH,
        "        if old.exists():\n            old.replace(path)\n        raise",
        "        raise",
    ),
    (PUBLISH, "    _remove(old)\n    flush(partial)", "    flush(partial)"),
    (PUBLISH, "    flush(path.parent)\n    _remove(old)", "    flush(path.parent)"),
    (PUBLISH, "if _same_file(descriptor, lock):", "if True:"),
    (PUBLISH, "if os.fstat(descriptor).st_nlink > 1:", "if False:"),
    (
        PUBLISH,
        "    if changes:\n        raise Unfinished(",
        "    if False:\n        raise Unfinished(",
    ),
    (PUBLISH, "LOCK_EX | fcntl.LOCK_NB", "LOCK_SH | fcntl.LOCK_NB"),
    (CATALOG, "FROM shards ORDER BY shard", "FROM shards ORDER BY shard DESC"),
    (CATALOG, "return all(row == number", "return True or all(row == number"),
    (CATALOG, "if digest != self._images_sha256(before, shard.last_image):", "if False:"),
    (CATALOG, "DELETE FROM images WHERE id > ?", "DELETE FROM images WHERE id >= ?"),
    (CATALOG, "DELETE FROM shards WHERE shard >= ?", "DELETE FROM shards WHERE shard > ?"),
    (CATALOG, "elif found != manifest:", "elif False:"),
    (CATALOG, "row NOTNULL ORDER BY row", "row NOTNULL ORDER BY row DESC"),
    (CATALOG, "        self._last += 1\n", "        self._last += 2\n"),
    (CATALOG, "count(DISTINCT sha256) != 1", "count(DISTINCT sha256) < 1"),
    (CHECK, "    if bad is not None:\n        findings", "    if False:\n        findings"),
    (CHECK, "if rows_sha256(rows) != shard.sha256:", "if False:"),
    (CHECK, "            check_sha256(folder / name, digest)", "            pass"),
    (CHECK, "if found != wanted or any(", "if any("),
    (CHECK, "if (found.encoder, found.store) != ", "if False and (found.encoder, found.store) != "),
    (CHECK, "if catalog.items() != footer.items or ", "if "),
    (CHECK, "if name not in files and ", "if False and "),
    (CHECK, "if not (ours.items() <= summary", "if False and not (ours.items() <= summary"),
)


def main() -> None:
    """Run the tests on every mutant, and tell which they did not notice."""
    options = parser(__doc__, {"first": 1, "last": len(MUTANTS)}).parse_args()
    where, same, _ = MUTANTS[0]
    if notices(where, same, same):
        raise SystemExit("The tests fail on a package without a change, so they show nothing.")
    survived = []
    for number in range(options.first, options.last + 1):
        where, old, new = MUTANTS[number - 1]
        noticed = notices(where, old, new)
        console.print(
            f"{number} {where}: {old.strip()!r}: {'noticed' if noticed else 'NOT NOTICED'}"
        )
        survived += [] if noticed else [[where, old, new]]
    count = options.last - options.first + 1
    write("mutants", options, {}, {}, mutants=count, noticed=count - len(survived))
    raise SystemExit(bool(survived))


def notices(where: str, old: str, new: str) -> bool:
    """Tell whether a test fails on a package with one change."""
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "deepssim_scan"
        shutil.copytree(ROOT / "scanner", package)
        for room in ("index", "cli"):
            shutil.copytree(ROOT / room, package / room)
        text = (package / where).read_text("utf-8")
        (package / where).write_text(text.replace(old, new), "utf-8")
        tests = [str(ROOT / "tests" / f"{test}.py") for test in TESTS]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": name, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, cwd=name, capture_output=True, timeout=SECONDS
        )
        assert done.returncode in (0, 1), done.stdout.decode()[-2000:]
        return done.returncode == 1


if __name__ == "__main__":
    main()
