"""Where the scheduler of a Dask cluster is, and which connections to it are private enough."""

import ipaddress
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deepssim_scan.errors import InputError, InputMissing


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Where the scheduler of a cluster is: tls://HOST:PORT, tcp://HOST:PORT or a scheduler file.

    Certificates are those of Dask's configuration (`distributed.comm.tls`). What is sent by tcp://
    can be read and changed on its way, so it must stay on this machine unless `insecure`.
    """

    place: str
    insecure: bool = False

    @property
    def address(self) -> str:
        """The scheduler's address. Raises InputMissing or InputError where there is none."""
        if "://" in self.place:
            return self.place
        path = Path(self.place)
        if not path.is_file():
            raise InputMissing(
                f"{self.place}: no such file, and no address. A scheduler is given as "
                "tls://HOST:PORT, tcp://HOST:PORT, or the file that `dask scheduler "
                "--scheduler-file` wrote."
            )
        try:
            return str(json.loads(path.read_text())["address"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: is not what `dask scheduler --scheduler-file` writes ({error!r})."
            ) from error

    def check(self, address: str, whose: str) -> None:
        """Raise InputError for an address that is not encrypted where it must be."""
        parts = urlsplit(address)
        if parts.scheme not in ("tls", "tcp") or not parts.hostname:
            raise InputError(
                f"the {whose} is {address!r}, and must be tls://HOST:PORT or tcp://HOST:PORT"
            )
        if parts.scheme == "tcp" and not self.insecure and not _on_loopback(parts.hostname):
            raise InputError(
                f"the {whose} is {address}, where images and embeddings would travel unencrypted. "
                "Use tls:// (docs/cluster.md has a recipe), or --insecure on a network that only "
                "you use."
            )


def _on_loopback(host: str) -> bool:
    """Tell whether what is sent to a host stays on this machine."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)
