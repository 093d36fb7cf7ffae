"""The shim and the fork server from the outside: a fault, a run that meets it, how that ended."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

HERE = Path(__file__).parent
PROCESSES = 2
MEMORY = Path("/dev/shm")  # noqa: S108 - in it, TemporaryDirectory makes a folder of its own
DATA, NAMES, SYNC, READS, LOOKS = 1, 2, 4, 8, 16  # kinds of calls, as in shim.c
WRITING, ALL = DATA | NAMES | SYNC, DATA | NAMES | SYNC | READS | LOOKS
COUNT, KILL_BEFORE, KILL_AFTER, KILL_TORN, FAIL, FAIL_ON, SHORT = range(7)  # as in shim.c
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at call number `n`, from 1, of those of `kinds`: the name says how."""

    name: str
    action: int
    n: int
    kinds: int = ALL
    error: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: returned, raised, killed, crashed or hung; and which call was struck."""

    ended: str
    calls: int = 0
    struck: str = ""
    value: Any = None
    error: Mapping[str, Any] = field(default_factory=dict)
    signal: int = 0
    exit: int = 0

    def __str__(self) -> str:
        cause = f"{self.error['classes'][0]}: {self.error['text']}" if self.error else ""
        return f"{self.ended} {cause}".strip()


class Server(AbstractContextManager["Server"]):
    """A fork server with the shim loaded, and the folder that its trials work in."""

    def __init__(self, shim: Path, modules: Sequence[str], root: Path) -> None:
        """Start the process, which imports `modules`; `root` is made anew for every trial."""
        self.root = root
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(HERE / "server.py"), *modules],
            env=os.environ | ONE_THREAD | {"LD_PRELOAD": str(shim)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        function: str,
        arguments: Mapping[str, Any],
        fault: Fault | None = None,
        seconds: float = 60,
        record: Path | None = None,
    ) -> Outcome:
        """Call "module:function" in a child that works in the root; ended "hung" after seconds.

        `record` is a file, outside of the root, in which what it does there is recorded.
        """
        request = {
            "function": function,
            "arguments": dict(arguments),
            "folder": str(self.root),
            "fault": fault and asdict(fault),
            "seconds": seconds,
            "record": record and str(record),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait()}; see above")
        return Outcome(**json.loads(line))


@contextmanager
def fork_servers(
    modules: Sequence[str], folder: Path, count: int = PROCESSES
) -> Iterator[list[Server]]:
    """Start fork servers that work in `folder`."""
    shim = build_shim(folder)
    with ExitStack() as stack:
        servers = (Server(shim, modules, folder / f"root-{number}") for number in range(count))
        yield [stack.enter_context(server) for server in servers]


@contextmanager
def workplace(where: Path | None = None) -> Iterator[Path]:
    """Give a folder that is gone afterwards: in `where`, or in memory if there is such a place.

    No disk is waited for so, and nothing is lost: what a killed process has written stays.
    """
    where = where or (MEMORY if MEMORY.is_dir() else None)
    with TemporaryDirectory(prefix="faults-", dir=where) as folder:
        yield Path(folder)


def build_shim(folder: Path) -> Path:
    """Compile shim.c into `folder`; RuntimeError, which says what is missing, when it cannot."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError(
            "the fault harness needs a C compiler, and there is no `cc` in PATH. Install gcc or "
            "clang (Debian, Ubuntu: apt-get install gcc libc6-dev)."
        )
    library = folder / "shim.so"
    options = ["-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command = [compiler, *options, "-o", str(library), str(HERE / "shim.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the fault harness's shim.c does not compile here:\n{done.stderr}")
    return library
