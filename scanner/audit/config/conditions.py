"""Conditions of a policy: text, parsed once, decided by the quantities of a night.

    "duplicates > 0 or not complete" -> Condition -> True, False, or None where it cannot be told

    condition   any { "or" any }            any   every { "and" every }
    every       "not" every | "(" condition ")" | comparison
    comparison  operand [ ("<" | "<=" | ">" | ">=" | "==" | "!=") operand ]
    operand     a quantity, a number, true, false

A quantity that is not known, such as the recall of canaries where none were planted, makes a
comparison unknown. Unknown is neither true nor false, as NULL in SQL. Nothing is run as Python.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from deepssim_scan.errors import InputError

Value = float | bool | None
_Decide = Callable[[Mapping[str, Value]], Value]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|<|>|\(|\)))",
    re.ASCII,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_WORDS = {"true": True, "false": False}
_LONGEST = 1000  # characters of a condition
_DEEPEST = 50  # parentheses and "not" in one another


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was understood; `quantities` are those that it names."""

    text: str
    quantities: frozenset[str]
    _decide: _Decide

    @classmethod
    def parse(cls, text: str, kinds: Mapping[str, type]) -> "Condition":
        """Understand a condition; `kinds` has the type of each quantity, bool or float.

        Raises InputError, which shows where the condition is wrong.
        """
        if len(text) > _LONGEST:
            raise InputError(f"a condition has at most {_LONGEST} characters, found {len(text)}")
        parser = _Parser(text, kinds)
        kind, decide = parser.condition()
        parser.end()
        if kind is not bool:
            raise parser.error("must be true or false, and is a number: compare it", 0)
        return cls(text, frozenset(parser.named), decide)

    def decide(self, values: Mapping[str, Value]) -> bool | None:
        """Return whether the condition holds; None where a quantity that matters is not known."""
        found = self._decide(values)
        return None if found is None else bool(found)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    """Goes through the tokens of a condition once, from left to right."""

    def __init__(self, text: str, kinds: Mapping[str, type]) -> None:
        self._text, self._kinds = text, kinds
        self._tokens = self._split()
        self._depth = 0
        self.named = set[str]()

    def condition(self) -> tuple[type, _Decide]:
        return self._joined("or", self._any)

    def end(self) -> None:
        """Raise InputError where something is left."""
        if self._now.kind != "end":
            raise self.error("expected the end, 'and' or 'or'", self._now.at)

    def error(self, what: str, at: int) -> InputError:
        shown = f"{self._text[at : at + 20]!r}" if at < len(self._text) else "the end"
        return InputError(f"condition {self._text!r}: {what}, found {shown} at character {at + 1}")

    def _split(self) -> list[_Token]:
        tokens, at = list[_Token](), 0
        while self._text[at:].strip():
            match = _TOKEN.match(self._text, at)
            if match is None:
                start = at + len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self.error("expected a quantity, a number or a comparison", start)
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", len(self._text))]

    @property
    def _now(self) -> _Token:
        return self._tokens[0]

    def _taken(self, *texts: str) -> _Token | None:
        """Take the next token where it is one of some texts."""
        return self._tokens.pop(0) if self._now.text in texts else None

    def _any(self) -> tuple[type, _Decide]:
        return self._joined("and", self._every)

    def _joined(self, word: str, part: Callable[[], tuple[type, _Decide]]) -> tuple[type, _Decide]:
        """Parse parts that are joined by a word; one part alone may be a number."""
        start = self._now.at
        kind, first = part()
        parts = [first]
        while self._taken(word):
            if kind is not bool:
                raise self.error(f"what {word!r} joins must be true or false", start)
            start = self._now.at
            kind, further = part()
            parts.append(further)
        if len(parts) == 1:
            return kind, first
        if kind is not bool:
            raise self.error(f"what {word!r} joins must be true or false", start)
        ends = word == "or"  # the value that decides, whatever the others are
        return bool, lambda values: _kleene([part(values) for part in parts], ends)

    def _every(self) -> tuple[type, _Decide]:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self.error(f"has more than {_DEEPEST} parts in one another", self._now.at)
        try:
            if self._taken("not"):
                return self._negated()
            if self._taken("("):
                found = self.condition()
                if not self._taken(")"):
                    raise self.error("expected ')'", self._now.at)
                return found
            return self._comparison()
        finally:
            self._depth -= 1

    def _negated(self) -> tuple[type, _Decide]:
        start = self._now.at
        kind, inner = self._every()
        if kind is not bool:
            raise self.error("what follows 'not' must be true or false", start)
        return bool, lambda values: None if (found := inner(values)) is None else not found

    def _comparison(self) -> tuple[type, _Decide]:
        start = self._now.at
        kind, left = self._operand()
        sign = self._taken(*_COMPARE)
        if sign is None:
            return kind, left
        other, right = self._operand()
        if kind is not other:
            raise self.error("compares a number with true or false", start)
        if kind is bool and sign.text not in ("==", "!="):
            raise self.error("true and false can be compared by == and != alone", sign.at)
        compare = _COMPARE[sign.text]

        def decide(values: Mapping[str, Value]) -> Value:
            one, two = left(values), right(values)
            return None if one is None or two is None else compare(one, two)

        return bool, decide

    def _operand(self) -> tuple[type, _Decide]:
        token = self._tokens.pop(0)
        if token.kind == "number":
            number = float(token.text)
            return float, lambda values: number
        if token.text in _WORDS:
            word = _WORDS[token.text]
            return bool, lambda values: word
        if token.kind != "name" or token.text in ("and", "or", "not"):
            raise self.error("expected a quantity or a number", token.at)
        if token.text not in self._kinds:
            near = get_close_matches(token.text, self._kinds, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"condition {self._text!r}: no quantity {token.text!r}.{hint}")
        self.named.add(token.text)
        return self._kinds[token.text], lambda values: values[token.text]


def _kleene(values: list[Value], ends: bool) -> bool | None:
    """Join truth values by "or" (`ends` true) or "and", as Kleene's logic of three values does."""
    if any(value is ends for value in values):
        return ends
    return None if None in values else not ends
