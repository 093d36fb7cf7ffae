"""A block as a message to a worker, and what the worker answers.

pickled (block, task) -> run, in the worker -> packed Answer -> checked, of the caller
"""

import ctypes
import os
import pickle
import sys
from traceback import format_exc

from deepssim_scan import errors
from deepssim_scan.errors import ScanError
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.child import Work

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FAILED = "failed"  # in the records of an answer: the name and the text of a ScanError

_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ScanError)
}


def serving(gpu: int | None = None) -> Work:
    """Return what runs blocks, in a worker process that sees one GPU alone, where one is named."""
    _keep_memory()
    if gpu is not None:
        _see_alone(gpu)
    return run


def _see_alone(gpu: int) -> None:
    """Let CUDA see one of the GPUs that it would see: it looks when it is first used."""
    all_seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = all_seen.split(",")[gpu] if all_seen else str(gpu)


def _keep_memory() -> None:
    """Keep up to 512 MB of memory that was freed, where the C library is GNU's.

    To get it from the system again for every batch, page by page, takes a tenth of the time.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def run(message: bytes) -> bytes:
    """Run the block of a message on its task; return its answer, or what it raised, packed."""
    try:
        block, task = pickle.loads(message)  # noqa: S301 - of the caller
        answer: Answer = block(task)
        return answer.pack()
    except ScanError as error:
        return failed(error)
    except Exception:
        return Answer({_FAILED: ["", f"in a worker process:\n{format_exc()}"]}).pack()


def failed(error: ScanError) -> bytes:
    """Return an answer that tells of an error, packed."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    return Answer({_FAILED: [name, str(error)]}).pack()


def checked(answer: Answer) -> Answer:
    """Return an answer, or raise the error that it tells of."""
    if isinstance(answer.records, dict) and _FAILED in answer.records:
        name, text = answer.records[_FAILED]
        raise _ERRORS.get(name, RuntimeError)(text)
    return answer
