"""What tests ask of the processes that a test started."""

import psutil


def children():
    """Return the processes that this one, or one of them, started and that live."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


def all_ended(processes=None, seconds=20):
    """Wait for processes, or for all children; tell whether they ended in time.

    Name them where their parent may be killed: they are nobody's children then.
    """
    _, alive = psutil.wait_procs(children() if processes is None else processes, seconds)
    return all(each.status() == psutil.STATUS_ZOMBIE for each in alive)
