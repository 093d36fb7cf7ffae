"""Runs blocks on the workers of a Dask cluster.

A task goes to a worker as bytes, and its answer comes back as bytes (`Answer.pack`). The scheduler
gives the task of a worker that is lost to another one. Workers read files by their paths, so they
need the same file system, and the same version of this package.
"""

import logging
import pickle
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from socket import gethostname
from threading import Lock
from typing import Any

from deepssim_scan.errors import InputError, ScanError
from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.execution.executor import Block, T
from deepssim_scan.execution.scheduler import Scheduler
from deepssim_scan.execution.serving import checked, failed, run

_PATIENCE = 30  # seconds in which the scheduler must answer, and a worker must have joined
_LOSSES = 3  # times that a task is given to the cluster; each time Dask tries it on 4 workers
DECODERS = "pillow", "nibabel", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"
"""What files are decoded by, where it is installed."""

_SAME = ("deepssim-scan", "torch", "numpy", "scipy", *DECODERS)  # everywhere: the same bytes
_BUSY = Lock()  # of a worker: it has one decoder, so it works on one block at a time


class Cluster:
    """Runs blocks on a cluster: as many at once as it has workers, and at most `most`."""

    def __init__(self, scheduler: Scheduler, most: int | None = None) -> None:
        """Connect. Raises InputError or ScanError where there is nothing to work with."""
        self._scheduler, self._most, self._address = scheduler, most, scheduler.address
        scheduler.check(self._address, "scheduler")
        self._allowed: set[str] = set()
        self._versions = {name: _installed(name) for name in _SAME}
        self._client = _connected(self._address)
        try:
            asked = [self._sent(pickle.dumps((_has_gpu, None)), each) for each in self._joined()]
            self.gpu = bool(asked) and all(self._answer(each).records for each in asked)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        joined = len(self._joined())
        return min(joined, self._most or joined)

    def map(self, block: Block[T], tasks: Iterable[T]) -> Generator[Answer, None, None]:
        """Give the answer of each task, in their order; at most 2 * workers + 2 are in flight."""
        tasks, waiting = iter(tasks), deque[_Sent]()
        try:
            while True:
                room = self._most or 2 * self.workers + 2
                for task in islice(tasks, max(0, room - len(waiting))):
                    waiting.append(self._sent(pickle.dumps((block, task))))
                if not waiting:
                    return
                yield self._answer(waiting[0])
                waiting.popleft()
        finally:
            for sent in waiting:
                with suppress(Exception):  # a client without a scheduler has nothing to cancel
                    sent.future.cancel()

    def close(self) -> None:
        """Leave the cluster, whose workers go on to wait."""
        self._client.close(timeout=_PATIENCE)

    def _joined(self) -> list[str]:
        """Return the addresses of the workers; there are none where the scheduler is gone.

        Raises ScanError where one of them may not be used. That is no InputError, which would drop
        what was done before such a worker joined.
        """
        found = sorted(self._client.scheduler_info(n_workers=-1).get("workers", ()))
        for address in set(found) - self._allowed:
            try:
                self._scheduler.check(address, "address of a worker")
            except InputError as error:
                raise ScanError(str(error)) from error
            self._allowed.add(address)
        return found

    def _sent(self, message: bytes, worker: str | None = None) -> "_Sent":
        """Send a task to the cluster, to a certain worker if it is still there."""
        from dask import config

        where = {"workers": worker, "allow_other_workers": True} if worker else {}
        with config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
            try:
                future = self._client.submit(_worked, message, self._versions, pure=False, **where)
            except Exception as error:
                if self._client.status == "closed":
                    raise self._gone() from error
                raise
        return _Sent(message, future)

    def _answer(self, sent: "_Sent") -> Answer:
        """Wait for an answer; a task whose workers were lost is given to others."""
        from distributed import KilledWorker

        for _ in range(_LOSSES):
            try:
                answer = Answer.unpack(sent.future.result())
            except (KilledWorker, NoAnswer) as error:
                cause = error
            except (CancelledError, OSError, TimeoutError) as error:
                raise self._gone() from error
            else:
                return checked(answer)
            sent.future = self._sent(sent.message).future
        raise ScanError(
            f"{self._address}: workers failed {_LOSSES} times at the same work ({cause}). Look at "
            "what they printed. If they were killed, their memory is too small."
        )

    def _gone(self) -> ScanError:
        return ScanError(
            f"{self._address}: the scheduler is gone. What was finished is kept: start the "
            "scheduler and its workers again, and give the same command to go on."
        )


@dataclass(slots=True)
class _Sent:
    """A task on its way: its bytes, and where its answer will be."""

    message: bytes
    future: Any


def _connected(address: str) -> Any:
    """Return a client of the scheduler at an address, which has a worker at least."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it tells, errors here tell
    security = _security(address)
    try:
        client = Client(address, security=security, timeout=_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ScanError(
            f"{address}: no scheduler can be reached there ({error}). Look whether it runs, and "
            "whether it speaks the same protocol."
        ) from error
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        client.close()
        raise ScanError(
            f"{address}: no worker has joined within {_PATIENCE} seconds. Start some: dask worker "
            f"{address} --nthreads 1"
        ) from error
    return client


def _security(address: str) -> Any:
    """Return the certificates for an address, as Dask's configuration names them."""
    from distributed import Security

    security = Security(require_encryption=address.startswith("tls://"))
    if not security.require_encryption:
        return security
    try:
        if security.get_connection_args("client")["ssl_context"] is None:
            raise ValueError("none are named")
    except (OSError, ValueError) as error:
        raise ScanError(
            f"{address}: the certificates for it cannot be loaded ({error}). Name them in Dask's "
            "configuration (distributed.comm.tls), as the dask.yaml that deploy/certificates.sh "
            "writes does, and its path in DASK_CONFIG."
        ) from error
    return security


def _has_gpu(_: None) -> Answer:
    """Tell whether there is a GPU: a block."""
    import torch

    return Answer(torch.cuda.is_available())


def _installed(name: str) -> str:
    """Return the version of a distribution, "none" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _worked(message: bytes, versions: Mapping[str, str]) -> bytes:
    """Run a block on a worker of the same versions, in one thread of torch's."""
    for name, wanted in versions.items():
        if (found := _installed(name)) != wanted:
            return failed(
                ScanError(
                    f"The worker on {gethostname()} has {name} {found}, and {wanted} is wanted. "
                    "Install the same everywhere."
                )
            )
    import torch

    with _BUSY:
        torch.set_num_threads(1)
        return run(message)
