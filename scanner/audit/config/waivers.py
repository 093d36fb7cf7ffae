"""Waivers: findings that somebody answers for, until a day, in a file that can be reviewed.

    [[waiver]]
    finding = "0123456789abcdef"
    who = "who answers for it"
    why = "what was looked at, and why it may stay"
    until = 2027-01-31

waivers.toml -> Waiver by finding
"""

from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from deepssim_scan.audit.config.toml import Part, as_tuple, read_toml
from deepssim_scan.errors import InputError

_Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]


class Waiver(Part):
    """A finding that makes no night fail up to the day `until`, itself included."""

    finding: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    who: _Text
    why: _Text
    until: date


class Waivers(Part):
    """A file of waivers."""

    waiver: Annotated[tuple[Waiver, ...], BeforeValidator(as_tuple)] = ()

    @model_validator(mode="after")
    def _once(self) -> Self:
        seen = set[str]()
        for each in self.waiver:
            if each.finding in seen:
                raise InputError(f"two waivers are of the finding {each.finding}: keep one of them")
            seen.add(each.finding)
        return self


def read_waivers(path: Path | None) -> dict[str, Waiver]:
    """Return the waivers of a file by finding; none where there is no file.

    Raises InputMissing when the file is not there, InputError with a line for every mistake.
    """
    if path is None:
        return {}
    return {each.finding: each for each in read_toml(path, Waivers).waiver}
