"""Where blocks of work run: in this process, in processes of this machine, on a cluster."""

from typing import TYPE_CHECKING

from deepssim_scan.execution.scheduler import Scheduler as Scheduler

if TYPE_CHECKING:
    from deepssim_scan.execution.executor import Executor


def open_executor(
    workers: int | None, most: int | None = None, scheduler: Scheduler | None = None
) -> "Executor":
    """Return what runs blocks: a cluster, `workers` processes, or this process for 0.

    For None there is a process for each core, and at most `most`; of a cluster, all workers.
    """
    if scheduler is not None:
        from deepssim_scan.execution.cluster import Cluster

        return Cluster(scheduler, workers)
    from deepssim_scan.execution.executor import InProcess
    from deepssim_scan.execution.local import LocalProcesses, cores

    if workers == 0:
        return InProcess()
    return LocalProcesses(workers or min(cores(), most or cores()))
