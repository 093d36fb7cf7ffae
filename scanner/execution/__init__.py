"""Where blocks of work run: in this process, in processes of this machine, on a cluster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepssim_scan.execution.executor import Executor


def open_executor(workers: int | None, most: int | None = None) -> "Executor":
    """Return what runs blocks: `workers` processes, or this process for 0.

    For None there is a process for each core, and at most `most`.
    """
    from deepssim_scan.execution.executor import InProcess
    from deepssim_scan.execution.local import LocalProcesses, cores

    if workers == 0:
        return InProcess()
    return LocalProcesses(workers or min(cores(), most or cores()))
