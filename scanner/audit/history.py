"""What nights found, in SQLite: nights, their synthetic sets, findings, and readers' decisions.

folder -> History: a night is begun, its sets are put into it, and it is finished

A night that was killed is gone on with: it has the state "running" until it is finished. The
SHA-256 of all rows is kept beside them: a changed byte is found before anything is decided by it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from deepssim_scan.audit.config.conditions import Value
from deepssim_scan.audit.findings import Finding
from deepssim_scan.errors import Damaged, InputError, InputMissing, StoreMismatch, WriteFailed
from deepssim_scan.storage.files import make_folder

FORMAT = 2
NAME, NIGHTS = "history.sqlite", "nights"
"""In the folder of a history: the database, and a folder of what each night left."""
RUNNING = "running"

_SCHEMA = """
CREATE TABLE nights (
    night INTEGER PRIMARY KEY, started TEXT NOT NULL, finished TEXT, state TEXT NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}');
CREATE TABLE sets (
    night INTEGER NOT NULL REFERENCES nights ON DELETE CASCADE, name TEXT NOT NULL,
    summary TEXT NOT NULL, quantities TEXT NOT NULL, scores BLOB NOT NULL,
    PRIMARY KEY (night, name));
CREATE TABLE findings (
    night INTEGER NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, finding TEXT NOT NULL,
    state TEXT NOT NULL, waiver TEXT NOT NULL, synthetic TEXT NOT NULL, training TEXT NOT NULL,
    subject TEXT NOT NULL, score REAL NOT NULL, ssim REAL, p_value REAL,
    PRIMARY KEY (night, name, number),
    FOREIGN KEY (night, name) REFERENCES sets ON DELETE CASCADE);
CREATE INDEX of_finding ON findings (finding);
CREATE TABLE decisions (
    finding TEXT NOT NULL, reader TEXT NOT NULL, decision TEXT NOT NULL, blinded INTEGER NOT NULL,
    made TEXT NOT NULL, PRIMARY KEY (finding, reader));
CREATE TABLE content (sha256 TEXT NOT NULL);
"""
_CONTENT = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid",
    *(f"SELECT * FROM {t} ORDER BY rowid" for t in ("nights", "sets", "findings", "decisions")),
)
_REPAIR = "Restore it, or begin another history."
_FINDING = "finding, state, waiver, synthetic, training, subject, score, ssim, p_value"


@dataclass(frozen=True, slots=True)
class Night:
    """A night: its number, times in UTC, and its state: "running", or what it was decided to be."""

    number: int
    started: str
    finished: str | None
    state: str
    facts: dict[str, Any]

    @property
    def errors(self) -> dict[str, str]:
        """Why sets could not be queried, by name."""
        return dict(self.facts.get("errors", {}))


@dataclass(frozen=True, slots=True)
class SetOfNight:
    """What a night found of a synthetic set: summary.json, quantities, findings.

    `scores` counts the images by their best score: `drift.BINS` numbers.
    """

    name: str
    summary: dict[str, Any]
    quantities: dict[str, Value]
    scores: list[int]
    findings: list[Finding]


class History(AbstractContextManager["History"]):
    """The history in a folder; a context manager. Every change is whole or not there, and kept."""

    def __init__(self, folder: Path, *, begin: bool = False) -> None:
        """Open the history of a folder; `begin` makes one where there is none.

        Raises InputMissing when there is none, Damaged when the file is none of ours or not what
        was written, or is gone and its nights are there, StoreMismatch when it has another format.
        """
        self.path = folder / NAME
        was_there = self.path.is_file()
        if begin:
            make_folder(folder, 0o700)
        elif not was_there:
            raise InputMissing(f"{self.path}: there is no history yet. Run an audit first.")
        if not was_there and (folder / NIGHTS).exists():
            raise Damaged(f"{self.path}: is gone, and its {NIGHTS}/ are there. {_REPAIR}")
        with self._errors():
            self._database = sqlite3.connect(self.path, isolation_level=None)
            if begin:
                self.path.chmod(0o600)
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.execute("PRAGMA synchronous = EXTRA")
            (found,) = self._one("PRAGMA user_version")
            if found == 0 and self._one("SELECT count(*) FROM sqlite_master") == (0,):
                if was_there and (not begin or (folder / NIGHTS).exists()):
                    raise Damaged(f"{self.path}: is empty. {_REPAIR}")
                with self._changing():
                    for statement in _SCHEMA.split(";\n"):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                raise StoreMismatch(
                    f"{self.path}: a history of format {found}, and this version reads {FORMAT}. "
                    "Use the version that wrote it, or begin another history."
                )
            self._verify()

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def begin(self) -> tuple[Night, bool]:
        """Return the night that was killed, or else a new one, and whether it was killed.

        It starts now: all sets are queried again, and the first try may be days ago.
        """
        with self._changing():
            row = self._database.execute(
                "SELECT night FROM nights WHERE state = ?", (RUNNING,)
            ).fetchone()
            if row is None:
                added = self._database.execute(
                    "INSERT INTO nights (started, state) VALUES (?, ?)", (now(), RUNNING)
                )
                number = added.lastrowid
            else:
                (number,) = row
                self._database.execute("DELETE FROM sets WHERE night = ?", (number,))
                self._database.execute(
                    "UPDATE nights SET started = ? WHERE night = ?", (now(), number)
                )
        night = self.night(int(number or 0))
        return night, row is not None

    def put(self, night: Night, found: SetOfNight) -> None:
        """Put what a night found of a set."""
        values = json.dumps(found.summary), json.dumps(found.quantities), json.dumps(found.scores)
        with self._changing():
            self._database.execute(
                "INSERT INTO sets VALUES (?, ?, ?, ?, ?)", (night.number, found.name, *values)
            )
            self._database.executemany(
                f"INSERT INTO findings (night, name, number, {_FINDING})"
                f" VALUES (?, ?, ?{', ?' * 9})",
                [
                    (night.number, found.name, number, *astuple(each))
                    for number, each in enumerate(found.findings)
                ],
            )

    def finish(self, night: Night) -> None:
        """Take down when a night was finished, what it was decided to be, and facts of it."""
        values = night.finished, night.state, json.dumps(night.facts), night.number
        with self._changing():
            self._database.execute(
                "UPDATE nights SET finished = ?, state = ?, facts = ? WHERE night = ?", values
            )

    def forget(self, days: int, names: Collection[str]) -> list[int]:
        """Drop the nights that were finished more than so many days ago; return their numbers.

        The last one that was finished stays, whatever its age, and so does the last one of each set
        of `names`: a set that could not be queried for long is compared with it later.
        """
        before = (datetime.now(UTC) - timedelta(days)).isoformat(timespec="seconds")
        query = (
            "SELECT night FROM nights WHERE finished < ? AND night < "
            "(SELECT max(night) FROM nights WHERE finished NOTNULL) AND night NOT IN "
            "(SELECT max(night) FROM sets JOIN nights USING (night) WHERE finished NOTNULL"
            " AND name IN (SELECT value FROM json_each(?)) GROUP BY name) ORDER BY night"
        )
        with self._changing():
            numbers = [int(number) for (number,) in self._all(query, before, json.dumps([*names]))]
            for number in numbers:
                self._database.execute("DELETE FROM nights WHERE night = ?", (number,))
        return numbers

    def night(self, number: int) -> Night:
        """Return a night; InputError where there is none of that number."""
        found = [each for each in self.nights() if each.number == number]
        if not found:
            raise InputError(f"{self.path}: holds no night {number}.")
        return found[0]

    def nights(self) -> list[Night]:
        """Return all nights, the first one first."""
        query = "SELECT night, started, finished, state, facts FROM nights ORDER BY night"
        return [
            Night(number, started, finished, state, json.loads(facts))
            for number, started, finished, state, facts in self._all(query)
        ]

    def quantities(self, night: Night) -> dict[str, dict[str, Value]]:
        """Return the quantities of each set of a night, by name, without its findings."""
        query = "SELECT name, quantities FROM sets WHERE night = ? ORDER BY rowid"
        return {name: json.loads(values) for name, values in self._all(query, night.number)}

    def last_facts(self) -> dict[str, Any]:
        """Return the facts of the last night that was finished; none where there is none."""
        finished = [night for night in self.nights() if night.finished is not None]
        return finished[-1].facts if finished else {}

    def last_sets(self, before: Night) -> list[str]:
        """Return the names of the sets of the last finished night before another.

        Those that could not be queried are among them.
        """
        nights = [each for each in self.nights() if each.finished and each.number < before.number]
        return [*self.quantities(nights[-1]), *nights[-1].errors] if nights else []

    def last(self, name: str, before: Night) -> SetOfNight | None:
        """Return what was found of a set in the last finished night before another, if any was."""
        query = (
            "SELECT max(night) FROM sets JOIN nights USING (night)"
            " WHERE name = ? AND finished NOTNULL AND night < ?"
        )
        (number,) = self._one(query, name, before.number)
        return None if number is None else self.set(number, name)

    def sets(self, night: Night) -> list[SetOfNight]:
        """Return what a night found of each set."""
        query = "SELECT name FROM sets WHERE night = ? ORDER BY rowid"
        return [self.set(night.number, name) for (name,) in self._all(query, night.number)]

    def set(self, night: int, name: str) -> SetOfNight:
        """Return what a night found of a set."""
        query = "SELECT summary, quantities, scores FROM sets WHERE night = ? AND name = ?"
        summary, quantities, scores = map(json.loads, self._one(query, night, name))
        query = f"SELECT {_FINDING} FROM findings WHERE night = ? AND name = ? ORDER BY number"
        findings = [Finding(*row) for row in self._all(query, night, name)]
        return SetOfNight(name, summary, quantities, scores, findings)

    def decisions(self) -> dict[str, dict[str, str]]:
        """Return what readers decided: by finding, by reader."""
        found: dict[str, dict[str, str]] = {}
        for finding, reader, decision in self._all(
            "SELECT finding, reader, decision FROM decisions ORDER BY made"
        ):
            found.setdefault(finding, {})[reader] = decision
        return found

    def decide(self, finding: str, reader: str, decision: str, blinded: bool) -> None:
        """Take down what a reader decided, in place of what the same one decided before."""
        with self._changing():
            self._database.execute(
                "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)",
                (finding, reader, decision, blinded, now()),
            )

    def _verify(self) -> None:
        """Look through all of the file, and compare its rows with their SHA-256."""
        self._database.execute("BEGIN")  # another process may write
        problems = [str(problem) for (problem,) in self._all("PRAGMA integrity_check")]
        whole = [*self._all("SELECT sha256 FROM content")] == [(self._sha256(),)]
        self._database.execute("COMMIT")
        if problems != ["ok"] or not whole:
            found = "its rows are not those that were written" if not whole else problems[0]
            raise Damaged(f"{self.path}: {found}. {_REPAIR}")

    def _sha256(self) -> str:
        """Return the SHA-256 of all rows."""
        digest = hashlib.sha256()
        for query in _CONTENT:
            for row in self._database.execute(query):
                digest.update(repr(row).encode())
        return digest.hexdigest()

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        return next(self._all(query, *values))

    def _all(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self._errors():
            yield from self._database.execute(query, values)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("DELETE FROM content")
                self._database.execute("INSERT INTO content VALUES (?)", (self._sha256(),))
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # of a full disk SQLite rolls back itself
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                raise WriteFailed(f"{self.path}: {error}.") from error
            raise Damaged(f"{self.path}: {error}. {_REPAIR}") from error


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
