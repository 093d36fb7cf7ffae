"""Blocks of work on a real Dask cluster, whose workers and scheduler are killed."""

import threading
import time
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version

import dask
import distributed
import pytest
from cluster import Cluster, certified, contents
from worker_faults import fails, nonsense, number, slept, threads

from deepssim_scan.errors import Damaged, InputError, InputMissing, ScanError
from deepssim_scan.execution import Scheduler, open_executor
from deepssim_scan.execution import cluster as connecting
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig

KILLS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.start()
    try:
        with certified(made.config):
            yield made
    finally:
        made.stop()


@pytest.fixture
def scheduler(cluster):
    return Scheduler(str(cluster.file))


def test_answers_come_in_the_order_of_the_tasks_and_errors_by_name(scheduler):
    with closing(open_executor(None, scheduler=scheduler)) as executor:
        assert len([*executor.map(slept, [0.2, 0.0, 0.1, 0.0])]) == 4
        assert [each.records for each in executor.map(number, iter(range(30)))] == [*range(30)]
        assert next(executor.map(threads, [None])).records == 1
        with pytest.raises(Damaged, match="a file is damaged"):
            [*executor.map(fails, ["a", "damaged"])]
        with pytest.raises(RuntimeError, match="a bug"):
            [*executor.map(fails, ["bug"])]
        with pytest.raises(ScanError, match="at the same work"):
            [*executor.map(nonsense, ["bad"])]
        assert not executor.gpu


@pytest.mark.parametrize("most", [None, 1])
def test_work_in_flight_is_bounded(scheduler, most):
    taken = []
    tasks = (taken.append(value) or value for value in range(1000))
    with closing(open_executor(most, scheduler=scheduler)) as executor:
        answers = executor.map(number, tasks)
        assert next(answers).records == 0
        assert len(taken) == (most or 2 * executor.workers + 2)
        answers.close()


def test_a_cluster_gives_the_bytes_of_one_machine_while_its_workers_are_killed(
    cluster, scheduler, people, tmp_path
):
    ended, kills = threading.Event(), []

    def kill():
        while len(kills) < KILLS and not ended.wait(6):
            kills.append(cluster.kill_worker(len(kills)))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        index = built(people, tmp_path / "index", RunContext("cpu", scheduler=scheduler))
        queried(people, index, tmp_path / "there", RunContext("cpu", scheduler=scheduler))
    finally:
        ended.set()
        killer.join()
    assert sum(kills) > 1
    queried(people, people / "index", tmp_path / "here", RunContext("cpu", workers=0))
    assert contents(index) == contents(people / "index")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_scheduler_that_is_killed_costs_what_was_in_flight(
    cluster, people, tmp_path, monkeypatch
):
    scheduler, seen = Scheduler(str(cluster.file)), []

    class Killing:
        """Kills the scheduler when the first images are embedded."""

        def __call__(self, stage, done, total, note=""):
            if stage == "training images" and 0 < done < total and not seen:
                seen.append(done)
                cluster.kill_scheduler()

        def warn(self, text): ...

    with monkeypatch.context() as patch:
        patch.setattr(connecting, "_PATIENCE", 5)
        run = RunContext("cpu", progress=Killing(), scheduler=scheduler)
        with pytest.raises(ScanError, match=r"scheduler is gone.*same command to go on"):
            built(people, tmp_path / "index", run)
    cluster.start()
    assert seen
    index = built(people, tmp_path / "index", RunContext("cpu", scheduler=scheduler))
    assert contents(index) == contents(people / "index")


def test_that_the_scheduler_is_gone_is_told_after_the_client_gave_up(cluster, monkeypatch):
    """It raised that the client is closed, as soon as work was cancelled or sent."""
    monkeypatch.setattr(connecting, "_PATIENCE", 2)
    with closing(open_executor(None, scheduler=Scheduler(str(cluster.file)))) as executor:
        answers = executor.map(number, iter(range(100)))
        next(answers)
        cluster.kill_scheduler()
        try:
            deadline = time.monotonic() + 60
            while executor._client.status != "closed":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with pytest.raises(ScanError, match="scheduler is gone"):
                list(answers)
            with pytest.raises(ScanError, match="scheduler is gone"):
                next(executor.map(number, [1]))
        finally:
            cluster.start()


@pytest.mark.parametrize(
    ("place", "insecure", "error", "says"),
    [
        ("tcp://192.0.2.1:8786", False, InputError, "unencrypted.*tls://.*--insecure"),
        ("ws://127.0.0.1:1", True, InputError, "must be tls://HOST:PORT or tcp://HOST:PORT"),
        ("tls://", True, InputError, "must be tls://HOST:PORT"),
        ("no-such-file", False, InputMissing, "no such file, and no address"),
        ("tcp://127.0.0.1:1", False, ScanError, "no scheduler can be reached there"),
        ("tcp://localhost:1", False, ScanError, "no scheduler can be reached there"),
    ],
)
def test_what_is_no_scheduler_is_told(place, insecure, error, says, monkeypatch):
    monkeypatch.setattr(connecting, "_PATIENCE", 1)
    with pytest.raises(error, match=says):
        open_executor(None, scheduler=Scheduler(place, insecure))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": null}'])
def test_a_scheduler_file_that_is_none_is_told(text, tmp_path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError):
        open_executor(None, scheduler=Scheduler(str(tmp_path / "file")))


@pytest.mark.parametrize("file", [None, "no-such-file"])
def test_a_scheduler_that_is_encrypted_needs_certificates(file):
    names = "ca-file", "client.cert", "client.key"
    with (
        dask.config.set({f"distributed.comm.tls.{name}": file for name in names}),
        pytest.raises(ScanError, match=r"certificates for it cannot be loaded.*DASK_CONFIG"),
    ):
        open_executor(None, scheduler=Scheduler("tls://127.0.0.1:1"))


def test_a_cluster_that_lost_its_workers_has_no_gpu(scheduler, monkeypatch):
    monkeypatch.setattr(connecting.Cluster, "_joined", lambda self: [])
    with closing(open_executor(None, scheduler=scheduler)) as executor:
        assert not executor.gpu


def test_a_worker_that_may_not_be_used_costs_nothing_that_was_done(
    scheduler, people, tmp_path, monkeypatch
):
    class Joining:
        """Has a worker join whose connection is not encrypted."""

        def __call__(self, stage, done, total, note=""):
            if stage == "training images" and 0 < done < total:
                found = {"workers": {"tcp://192.0.2.1:1": {}}}
                monkeypatch.setattr(distributed.Client, "scheduler_info", lambda *_, **__: found)

        def warn(self, text): ...

    with pytest.raises(ScanError, match=r"worker is tcp://192\.0\.2\.1:1.* unencrypted"):
        built(
            people, tmp_path / "index", RunContext("cpu", progress=Joining(), scheduler=scheduler)
        )
    assert (tmp_path / ".index.partial" / "store" / "catalog.sqlite").exists()


def test_a_worker_of_another_version_is_refused(scheduler, monkeypatch):
    monkeypatch.setattr(connecting, "version", lambda name: "0.0.0")
    with pytest.raises(ScanError, match=r"has deepssim-scan .* and 0.0.0 is wanted. Install"):
        open_executor(None, scheduler=scheduler)


@pytest.mark.parametrize("name", ["scipy", "pillow", "pydicom", "pylibjpeg-openjpeg"])
def test_a_worker_that_decodes_by_other_libraries_is_refused(scheduler, monkeypatch, name):
    """Images were decoded by whatever a worker had; one without a decoder rejected its share."""

    def ours(asked):
        if asked == name:
            raise PackageNotFoundError
        return version(asked)

    monkeypatch.setattr(connecting, "version", ours)
    with pytest.raises(ScanError, match=f"has {name} .*, and none is wanted. Install"):
        open_executor(None, scheduler=scheduler)


def test_a_gpu_that_not_every_worker_has_is_told(scheduler):
    with pytest.raises(InputError, match="not every worker has a GPU"):
        _ = RunContext("cuda", scheduler=scheduler).device_of_blocks
    assert RunContext("auto", scheduler=scheduler).device_of_blocks == "cpu"


def built(people, folder, run):
    build_index(people / "training", folder, IndexConfig(adapt="never"), run)
    return folder


def queried(people, index, report, run):
    config = QueryConfig(canaries=CanaryConfig(14))
    query(people / "training" / "s59", index, report, config, run)
