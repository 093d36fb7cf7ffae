"""A real Dask cluster on this machine: a scheduler and workers, processes that talk TLS."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
import distributed  # noqa: F401 - has the defaults of the configuration
import psutil
import yaml

HERE = Path(__file__).parent
CERTIFICATES = HERE.parent / "deploy" / "certificates.sh"
DASK = [sys.executable, "-m", "dask"]


class Cluster:
    """A scheduler, and a nanny that starts workers again when they are killed."""

    def __init__(self, folder, workers=3):
        """Make certificates; start nothing yet. `file` will be the scheduler's file."""
        self.folder, self.workers, self.file = folder, workers, folder / "scheduler.json"
        subprocess.run([CERTIFICATES, folder / "tls"], check=True)
        self.config = folder / "tls" / "dask.yaml"
        self._started = []

    def start(self):
        """Start the scheduler and its workers."""
        self.file.unlink(missing_ok=True)
        where = ["--host", "tls://127.0.0.1", "--port", "0", "--scheduler-file", str(self.file)]
        self._run("scheduler", *where, "--no-dashboard")
        while not self.file.exists():
            assert self._started[0].poll() is None, "the scheduler ended: see its log"
            time.sleep(0.1)
        of = ["--scheduler-file", str(self.file), "--local-directory", str(self.folder)]
        self._run(
            "worker", *of, "--nworkers", str(self.workers), "--nthreads", "1", "--no-dashboard"
        )

    def kill_scheduler(self):
        """Kill the scheduler, and what of the workers is left then."""
        self._started[0].kill()
        self.stop()

    def kill_worker(self, seed):
        """Kill one of the workers that run now; tell whether there was one."""
        nanny = psutil.Process(self._started[1].pid)
        running = [each for each in nanny.children() if "spawn_main" in " ".join(each.cmdline())]
        if running:
            random.Random(seed).choice(running).send_signal(signal.SIGKILL)
        return bool(running)

    def stop(self):
        """End all processes."""
        for process in self._started:
            with suppress(psutil.NoSuchProcess):
                nanny = psutil.Process(process.pid)
                for each in [nanny, *nanny.children(recursive=True)]:
                    each.kill()
            process.wait()
        self._started = []

    def _run(self, *command):
        environment = os.environ | {"DASK_CONFIG": str(self.config), "PYTHONPATH": str(HERE)}
        with (self.folder / f"{command[0]}.log").open("a") as log:
            self._started.append(
                subprocess.Popen(
                    [*DASK, *command], env=environment, stdout=log, stderr=log, cwd=self.folder
                )
            )


@contextmanager
def certified(config):
    """Have this process prove itself with the certificates of a cluster."""
    tls = yaml.safe_load(config.read_text())["distributed"]["comm"]["tls"]
    mine = {"ca-file": tls["ca-file"], "client": tls["client"]}
    with dask.config.set({f"distributed.comm.tls.{name}": value for name, value in mine.items()}):
        yield


def contents(folder):
    """The bytes of each file, but for those that say when and where a run was."""
    skipped = ("job.json", "summary.json", "report.html")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped
    }
