"""Every file of the corpus of bad inputs ends as it must: nothing is lost, and nothing is added.

Both jobs run on it with real worker processes and a small encoder of random weights: the one
through the library, with files that change and vanish meanwhile, the other through the command
line, in processes whose network is blocked.
"""

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import (
    BLANK,
    EMBEDDED,
    EXECUTED,
    MAX_MEMORY,
    MAX_SECONDS,
    ROWS,
    corpus,
    embedded,
    expected,
    manifest_corpus,
    moved,
    picture,
    plant,
    rejected,
)
from dicom_bytes import PATIENT, PATIENT_ID
from image_bytes import nifti
from pictures import TINY

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.rejection import REASONS
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.progress import Silent
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.store import Store

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).parent / "deepssim-scan"
LIMITS = Limits(MAX_SECONDS, MAX_MEMORY)
SHARDS = EmbedConfig(shard_rows=50)
BLOCKER = """
import os, socket, sys

def note(*words):
    with open(os.environ["SOCKET_LOG"], "a") as log:
        log.write(f"{os.getpid()} {' '.join(words)}\\n")

def watch(event, arguments):
    if event == "os.fork":
        note("forks")
    lookup = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    use = event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
    if lookup or use and isinstance(arguments[1], tuple):
        # What urllib3 asks when it is imported, to know whether there is IPv6: nothing is sent.
        if (event, arguments[1]) != ("socket.bind", ("::1", 0)):
            note("refused", event, repr(arguments[1:]))
        raise RuntimeError("sockets are blocked")

sys.addaudithook(watch)
note("started", *sys.orig_argv)
"""


def catalog(store):
    """Read the catalog of a store as `expected` lists it, without the program's own code."""
    query = "SELECT path, member, frame, coalesce(reason, ?) FROM images"
    with closing(sqlite3.connect(store / "catalog.sqlite")) as database:
        rows = database.execute(query, (EMBEDDED,)).fetchall()
    return sorted((os.fsdecode(path), os.fsdecode(member), *rest) for path, member, *rest in rows)


def rejections(folder):
    with (folder / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def named(path, member, frame):
    inside = ",".join(["member=" + member] * bool(member) + [frame] * bool(frame))
    return f"{path}#{inside}" if inside else path


def undone(text):
    """Return the name that a report shows as this text."""

    def character(escape):
        code = escape[1]
        if code[0] in "xuU":
            number = int(code[1:], 16)
            return chr(number if code[0] != "x" or number < 0x80 else 0xDC00 + number)
        return {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[code]

    text = re.sub(r"^\./(?=[=+@-])", "", text)
    return re.sub(r"\\(x..|u.{4}|U.{8}|.)", character, text)


def bytes_under(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def encoder_file(path):
    torch.manual_seed(0)
    checkpoint.save(path, Encoder(TINY), {})
    return path


class Meddler(Silent):
    """Does something when all files are listed, and none has been read."""

    def __init__(self, meddle):
        self.meddle = meddle

    def __call__(self, stage, done, total, note=""):
        if not done:
            self.meddle()


class Built:
    """An index of the corpus, and what must be in it."""

    def __init__(self, root):
        self.training, self.index = root / "training", root / "index"
        names = ("goes.png", "grows.png", "is-touched.png", "is-replaced.png")
        rng = np.random.default_rng(0)
        victims = moved(embedded({name: picture(rng) for name in names}), "row-23")
        plant(self.training, [*corpus(0), *victims])
        ends = [*rejected("vanished", {names[0]: b""})]
        ends += rejected("changed", dict.fromkeys(names[1:], b""))
        self.cases = [*corpus(0), *moved(ends, "row-23")]
        self.other = picture(rng)
        config = IndexConfig(
            encoder_file(root / "encoder.safetensors"), embed=SHARDS, calibrate=False
        )
        run = RunContext("cpu", 2, LIMITS, Meddler(self.meddle))
        self.result = build_index(self.training, self.index, config, run)

    def meddle(self):
        goes, grows, touched, replaced = sorted((self.training / "row-23").iterdir())[:4]
        goes.unlink()
        grows.write_bytes(grows.read_bytes() + b"\0")
        replaced.with_name("other").write_bytes(self.other)
        replaced.with_name("other").rename(replaced)
        os.utime(touched, (0, 0))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Built(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """An environment in which every Python process notes that it is there, and has no network."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return os.environ | {"PYTHONPATH": str(folder)}


class Audited:
    """Both commands, run on images that are all good and on the corpus."""

    def __init__(self, root, blocked):
        self.root, self.log, self.report = root, root / "sockets.log", root / "report"
        self.environment = blocked | {"SOCKET_LOG": str(self.log)}
        # Row 28 is in the other job: it takes as long as the limits of time let it.
        self.cases = [case for case in corpus(1) if not case.path.startswith("row-28/")]
        plant(root / "synthetic", self.cases)
        rng = np.random.default_rng(1)
        plant(root / "training", embedded({f"{number}.png": picture(rng) for number in range(9)}))
        encoder_file(root / "encoder.safetensors")
        options = ("--index", "index", "--json", "--workers", "2", "--device", "cpu")
        limits = ("--max-memory", str(MAX_MEMORY / (1 << 30)), "--report", "report")
        encoder = ("--training", "training", "--encoder", "encoder.safetensors")
        self.first = self.run("build-index", *encoder, *options)
        self.second = self.run("query", "--synthetic", "synthetic", *options, *limits)

    def run(self, *arguments):
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            check=False,
        )


@pytest.fixture(scope="module")
def audited(tmp_path_factory, blocked):
    return Audited(tmp_path_factory.mktemp("audited"), blocked)


def test_rows_01_to_48_every_file_ends_as_it_must(built):
    assert catalog(built.index / "store") == expected(built.cases)
    assert built.result.ignored == sum(case.ignored for case in built.cases)
    assert not built.result.complete


def test_the_states_sum_to_what_was_listed(built, audited):
    counts = json.loads(audited.second.stdout)["counts"]
    ends = Counter(end for *_, end in expected(audited.cases))
    assert counts["judged"] == ends[EMBEDDED]
    assert counts["listed"] == ends.total()
    assert counts["rejected"] == ends.total() - ends[EMBEDDED] - ends[BLANK]
    with Store.open(built.index / "store") as store:
        found = {
            "embedded": store.rows,
            "rejected": store.rejected_count,
            "blank": store.blank_count,
        }
        blanks = sorted(record.name for record in store.blanks())
        assert len(blanks) == store.blank_count
    with closing(sqlite3.connect(built.index / "store/catalog.sqlite")) as database:
        query = "SELECT state, count(*) FROM images GROUP BY state"
        assert dict(database.execute(query)) == found
    assert blanks == sorted(named(*key) for *key, end in expected(built.cases) if end == BLANK)
    assert built.result.listed == len(expected(built.cases))


def test_a_query_ends_the_same_way_and_with_exit_code_4(audited):
    assert (audited.first.returncode, audited.second.returncode) == (0, 4), audited.second.stderr
    assert catalog(audited.report / "synthetic") == expected(audited.cases)
    summary = json.loads(audited.second.stdout)
    assert summary["complete"] is False
    assert summary["ignored"] == sum(case.ignored for case in audited.cases)


@pytest.mark.parametrize("job", ["built", "audited"])
def test_row_25_rejected_csv_names_each_and_no_other(job, request):
    made = request.getfixturevalue(job)
    folder = made.index if job == "built" else made.report
    rows = [(undone(row["path"]), row["reason"]) for row in rejections(folder)]
    ends = [(named(*key), end) for *key, end in expected(made.cases)]
    wanted = [(name, end) for name, end in ends if end not in (EMBEDDED, BLANK)]
    assert sorted(rows) == sorted(wanted)
    text = (folder / "rejected.csv").read_bytes()
    assert len(text.splitlines()) == len(rows) + 1
    assert all(value >= 32 or value in b"\r\n" for value in text)
    assert not any(row["path"].startswith(("=", "+", "-", "@")) for row in rejections(folder))


def test_row_07_two_of_16_bits_stay_two_rows_whatever_their_format(built):
    with Store.open(built.index / "store") as store:
        rows, names = store.read(0, store.rows), store.paths()
    one, other, tiff = (
        rows[names.index(f"row-07/{name}")] for name in ("one.png", "other.png", "one.tif")
    )
    assert np.array_equal(one, tiff)
    assert not np.array_equal(one, other)


def test_the_corpus_has_every_reason_that_a_file_can_give(built):
    ends = {end for *_, end in expected(built.cases)} - {EMBEDDED}
    # These take a worker that dies of a file, an encoder that is not finite, and one of any size.
    assert set(REASONS) - ends == {"decoder-crashed", "embedding", "too-small"}
    assert ends <= set(REASONS)


def test_row_13_no_pickle_is_run(built, audited):
    assert (audited.root / "synthetic" / "row-13" / "pickled.npy").is_file()
    assert not Path(EXECUTED).exists()
    assert not (audited.root / EXECUTED).exists()


def test_row_14_and_15_no_patient_is_named(built, audited):
    told = [audited.first.stdout, audited.first.stderr, audited.second.stdout]
    told += [audited.second.stderr, bytes_under(audited.report), bytes_under(built.index)]
    told.append("".join(map(str, built.index.rglob("*"))).encode())
    for tag in (PATIENT, PATIENT_ID):
        assert tag.encode() in bytes_under(audited.root / "synthetic" / "row-14")
        assert not any(tag.encode() in text for text in told)


def test_row_16_what_a_dicomdir_lists_is_not_looked_for(audited):
    entries = [entry for entry in catalog(audited.report / "synthetic") if "row-16" in entry[0]]
    assert entries == [("row-16/study.zip", "a.png", "", EMBEDDED)]
    assert b"PASSWD" not in bytes_under(audited.report)


def test_no_process_touches_the_network(audited):
    lines = [(line + "  ").split(" ", 2) for line in audited.log.read_text().splitlines()]
    assert [line for line in lines if line[1] == "refused"] == []
    started = [words for _, _, words in lines]
    for job in ("build-index", "query"):
        assert any(str(PROGRAM) in words and f" {job} " in words for words in started)
    nurseries = {pid for pid, _, words in lines if "execution.nursery" in words}
    assert len(nurseries) == 2  # one for each job, which watches what is forked of it as well
    forks = Counter(pid for pid, what, _ in lines if what == "forks" and pid in nurseries)
    assert min(forks.values()) >= 2  # one that computes, and one that decodes
    assert forks.keys() == nurseries


@pytest.mark.parametrize(
    "use",
    [
        "socket.socket().connect(('127.0.0.1', 9))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "socket.socket().bind(('127.0.0.1', 0))",
        "socket.create_connection(('localhost', 9))",
    ],
)
def test_a_socket_would_be_noticed_in_a_process_of_a_process(tmp_path, blocked, use):
    code = f"import socket; {use}"
    program = (
        "from multiprocessing import get_context\n"
        "if __name__ == '__main__':\n"
        f"    child = get_context('spawn').Process(target=exec, args=({code!r},))\n"
        "    child.start(); child.join()\n"
        "    raise SystemExit(child.exitcode)\n"
    )
    path, log = tmp_path / "program.py", tmp_path / "log"
    path.write_text(program)
    environment = blocked | {"SOCKET_LOG": str(log)}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"sockets are blocked" in done.stderr
    assert len(re.findall(r"^\d+ refused socket\.", log.read_text(), re.MULTILINE)) == 1


def test_row_22_every_row_of_a_manifest_has_an_end(built, tmp_path):
    text, cases = manifest_corpus(0)
    plant(tmp_path / "images", cases)
    plant(tmp_path / "images", embedded({"not-named.png": picture(np.random.default_rng(2))}))
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    ingest = IngestConfig(Selection(manifest=tmp_path / "manifest.csv"))
    config = IndexConfig(built.index.parent / "encoder.safetensors", ingest, calibrate=False)
    run = RunContext("cpu", workers=1)
    result = build_index(tmp_path / "images", tmp_path / "index", config, run)
    assert catalog(tmp_path / "index" / "store") == expected(cases)
    assert result.ignored == sum(case.ignored for case in cases)


def test_row_43_a_volume_with_blank_end_slices_makes_no_run_incomplete(built, tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (40, 40, 9), np.uint8)
    volume[..., :2] = volume[..., 8] = 0
    (tmp_path / "images").mkdir()
    (tmp_path / "images/t1.nii").write_bytes(nifti(volume))
    config = IndexConfig(built.index.parent / "encoder.safetensors", calibrate=False)
    result = build_index(
        tmp_path / "images", tmp_path / "index", config, RunContext("cpu", workers=0)
    )
    assert result.complete
    assert (result.listed, result.indexed, result.rejected) == (9, 6, 0)
    assert rejections(tmp_path / "index") == []
    with Store.open(tmp_path / "index/store") as store:
        blank = [record.name for record in store.blanks()]
    assert blank == [f"t1.nii#axis=2,slice={number}" for number in (0, 1, 8)]


def rows_of_the_table():
    text = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| *\d", line)]
    return {int(number): [cell.strip() for cell in cells] for number, *cells in rows}


def test_every_row_of_the_table_of_inputs_has_tests_that_exist():
    tests = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tests |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    table = rows_of_the_table()
    assert list(table) == [*range(1, 67)]
    for number, (_, _, proof) in table.items():
        names = re.findall(r"`(\w+)`", proof)
        assert set(names) <= tests, number
        assert ("corpus" in proof) == (number in ROWS), number
        own = [name for name in names if re.match(rf"test_row_(\d\d_and_)*{number:02d}_", name)]
        assert own or number in ROWS or "not tested:" in proof, number


def test_the_table_of_inputs_explains_every_reason():
    text = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    assert set(REASONS) == set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    codes = " ".join(cells[1] for cells in rows_of_the_table().values())
    assert set(re.findall(r"R `([a-z-]+)`", codes)) <= set(REASONS)
