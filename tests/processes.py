"""What tests ask of the processes that a test started."""

import time

import psutil


def children():
    """Return the processes that this one, or one of them, started and that live."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


def all_ended(seconds=20):
    """Wait until none lives; tell whether that was so in time."""
    deadline = time.monotonic() + seconds
    while children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not children()
