"""Templates to a page of one file, with a policy that lets it load and run nothing else.

template, values -> HTML
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_POLICY = (
    "default-src 'none'; img-src {images}; connect-src {server}; style-src {style}; "
    "script-src {script}; base-uri 'none'; form-action 'none'"
)


def render(template: str, script: str = "", *, served: bool = False, **values: Any) -> str:
    """Return a page; everything that is put into the template is escaped.

    `script` is the file of the one script that may run, if there is any. A page that is `served`
    may ask its own server; others ask nobody.
    """
    parts = {"style": _file("style.css"), "script": _file(script) if script else ""}
    images, server = ("'self'", "'self'") if served else ("data:", "'none'")
    allowed = {
        name: f"'sha256-{_digest(text)}'" if text else "'none'" for name, text in parts.items()
    }
    policy = _POLICY.format(images=images, server=server, **allowed)
    safe = {name: Markup(text) for name, text in parts.items()}  # noqa: S704 - files of ours
    return _templates().get_template(template).render(policy=policy, **safe, **values)


def data_url(data: bytes, kind: str) -> str:
    """Return an address that holds a picture itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _file(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"count": lambda n: f"{n:,}", "share": lambda x: f"{x:.2%}"}
    return found
