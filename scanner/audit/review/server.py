"""Findings shown to a reader, one after another, on a page of this machine alone.

findings that a reader has not decided on -> a page on the loopback address -> decisions

The address holds a token that is drawn anew each time. Whoever does not know it gets nothing.
"""

import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from deepssim_scan.audit.history import History
from deepssim_scan.audit.review.agreement import DECISIONS
from deepssim_scan.errors import ScanError
from deepssim_scan.reporting.html.render import render
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.pictures import Pictures

_LARGEST = 1000  # bytes of a request
Draw = Callable[[Sequence[Match]], list[Pictures | None]]
"""Draws matches; None for one of which an image is gone."""

_PICTURES = ("synthetic", "training", "difference")


@dataclass(frozen=True, slots=True)
class Case:
    """A finding of a set, and what draws it."""

    name: str
    match: Match
    draw: Draw

    @property
    def key(self) -> str:
        """The name of the finding."""
        return str(self.match.finding)


class Review(HTTPServer):
    """Serves the cases of a reader until it is shut down; single-threaded, as SQLite wants it."""

    def __init__(
        self, cases: Sequence[Case], history: History, reader: str, *, blinded: bool, port: int = 0
    ) -> None:
        """Listen on the loopback address; on a free port for 0."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.cases = {case.key: case for case in cases}
        self.history, self.reader, self.blinded = history, reader, blinded
        self.token = secrets.token_urlsafe(24)
        self.decided: dict[str, str] = {}

    @property
    def address(self) -> str:
        """What a browser is to open."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def page(self) -> str:
        """Return the page."""
        cases = [self._shown(case) for case in self.cases.values()]
        return render(
            "review.html.j2",
            "review.js",
            served=True,
            title="Review of findings",
            reader=self.reader,
            blinded=self.blinded,
            data={"cases": cases, "decisions": DECISIONS},
        )

    def picture(self, key: str, which: str) -> bytes | None:
        """Return a picture of a case; None where there is none."""
        case = self.cases.get(key)
        found = case.draw([case.match])[0] if case and which in _PICTURES else None
        return None if found is None else bytes(getattr(found, which))

    def decide(self, value: Any) -> bool:
        """Take down a decision; tell whether it is one."""
        if not isinstance(value, dict) or value.keys() != {"finding", "decision"}:
            return False
        finding, decision = str(value["finding"]), value["decision"]
        if finding not in self.cases or decision not in DECISIONS:
            return False
        self.history.decide(finding, self.reader, decision, blinded=self.blinded)
        self.decided[finding] = decision
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went on before it had its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def _shown(self, case: Case) -> dict[str, Any]:
        """Return what the page says of a case; of a blinded one no number and no name."""
        match = case.match
        facts = [
            ("set", case.name),
            ("synthetic image", match.synthetic),
            ("training image", match.training),
            ("score", _number(match.score)),
            ("SSIM", _number(match.ssim)),
            ("p-value", _number(match.p_value)),
        ]
        return {"finding": case.key, "facts": [] if self.blinded else facts}


def undecided(
    flagged: Mapping[str, tuple[Sequence[Match], Draw]],
    history: History,
    reader: str,
) -> list[Case]:
    """Return the findings of sets, by name, that a reader has not decided on, each once."""
    done = {key for key, readers in history.decisions().items() if reader in readers}
    cases: dict[str, Case] = {}
    for name, (matches, draw) in flagged.items():
        for match in matches:
            if match.finding not in done:
                cases.setdefault(str(match.finding), Case(name, match, draw))
    return list(cases.values())


class _Handler(BaseHTTPRequestHandler):
    """Answers the page, its pictures and decisions, to whoever has the token."""

    server: Review
    timeout = 5  # seconds: a connection that says nothing must not keep others waiting

    def do_GET(self) -> None:
        """Answer the page or a picture."""
        with self._errors_told():
            self._get(self._parts())

    def do_POST(self) -> None:
        """Take a decision."""
        with self._errors_told():
            self._post(self._parts())

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Answer what keeps a picture from being drawn, or a decision from being taken down."""
        try:
            yield
        except (ScanError, OSError) as error:
            if isinstance(error, ConnectionError):
                raise
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, data=str(error).encode())

    def _get(self, parts: list[str] | None) -> None:
        if parts == [""]:
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page().encode())
        elif parts is not None and len(parts) == 2:
            data = self.server.picture(parts[0], parts[1].removesuffix(".png"))
            if data is not None:
                self._answer(HTTPStatus.OK, "image/png", data)
                return
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _post(self, parts: list[str] | None) -> None:
        if parts != ["decide"]:
            self._answer(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST:
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        try:
            value = json.loads(self.rfile.read(int(length)))
        except ValueError:
            value = None
        taken = self.server.decide(value)
        self._answer(HTTPStatus.NO_CONTENT if taken else HTTPStatus.BAD_REQUEST)

    def log_message(self, *_: Any) -> None:
        """Say nothing: an address holds the token."""

    def _parts(self) -> list[str] | None:
        """Return the parts of the path after the token; None for whoever does not have it.

        The host must be ours: a page of another site that lets its name lead here has none of it.
        """
        port = self.server.server_port
        ours = self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}")
        token, _, rest = self.path.removeprefix("/").partition("/")
        known = compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        return rest.split("/") if ours and known else None

    def _answer(self, status: HTTPStatus, kind: str = "", data: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (
            ("Content-Type", kind or "text/plain; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
