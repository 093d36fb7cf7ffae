"""What tests ask of the processes that a test started."""

import gc

import psutil


def children(pid=None):
    """Return the processes that this one (or another) or one of them started and that live.

    The nursery, of which they are forked, and what tracks the resources of ``multiprocessing``
    are not among them: both end with who started them. Those that nobody refers to any more are
    told to end.
    """
    gc.collect()
    found = psutil.Process(pid).children(recursive=True)
    return [each for each in found if _lives(each) and not _ends_with_us(each)]


def _lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _ends_with_us(process):
    """What is forked of a nursery has its command line, and it for a parent."""
    return _runs(process, "multiprocessing.resource_tracker") or (
        _runs(process, "execution.nursery") and not _runs(process.parent(), "execution.nursery")
    )


def _runs(process, module):
    return module in " ".join(process.cmdline())


def all_ended(processes=None, seconds=20):
    """Wait for processes, or for all children; tell whether they ended in time.

    Name them where their parent may be killed: they are nobody's children then.
    """
    _, alive = psutil.wait_procs(children() if processes is None else processes, seconds)
    return all(each.status() == psutil.STATUS_ZOMBIE for each in alive)
