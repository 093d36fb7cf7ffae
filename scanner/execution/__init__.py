"""Where blocks of work run: in this process, in processes of this machine, on a cluster."""

from typing import TYPE_CHECKING

from deepssim_scan.execution.scheduler import Scheduler as Scheduler

if TYPE_CHECKING:
    from deepssim_scan.execution.executor import Executor

_SHARE_A_GPU = 4  # processes, by default: some decode while others compute


def open_executor(
    workers: int | None, scheduler: Scheduler | None = None, gpus: int = 0
) -> "Executor":
    """Return what runs blocks: a cluster, `workers` processes, or this process for 0.

    For None there is a process for each core, and at most four for each of the machine's `gpus`; of
    a cluster, all workers.
    """
    if scheduler is not None:
        from deepssim_scan.execution.cluster import Cluster

        return Cluster(scheduler, workers)
    from deepssim_scan.execution.executor import InProcess
    from deepssim_scan.execution.local import LocalProcesses, cores

    if workers == 0:
        return InProcess()
    most = min(cores(), _SHARE_A_GPU * gpus) if gpus else cores()
    return LocalProcesses(workers or most, gpus)
