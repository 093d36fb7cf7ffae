"""Conditions of a policy: Python's own parser and Kleene's tables are the oracle."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepssim_scan.audit.config.conditions import Condition
from deepssim_scan.errors import InputError

KINDS = {"a": float, "b": float, "rate_2": float, "yes": bool, "no": bool}
VALUES = {"a": 3.0, "b": 0.5, "rate_2": 0.0, "yes": True, "no": False}

numbers = st.one_of(
    st.sampled_from(["a", "b", "rate_2"]),
    st.integers(0, 999).map(str),
    st.floats(0, 1e9).map(repr),
)
comparisons = st.builds(
    " ".join, st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers)
)
facts = st.one_of(comparisons, st.sampled_from(["yes", "no", "true", "false", "yes == no"]))
conditions = st.recursive(
    facts,
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("not ({})".format, inner),
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(conditions)
def test_a_condition_means_what_it_means_in_python(text):
    names = VALUES | {"true": True, "false": False}
    wanted = eval(text, {"__builtins__": {}}, names)  # noqa: S307 - of the test's own text
    assert Condition.parse(text, KINDS).decide(VALUES) is wanted


THREE = {"true": True, "false": False, "unknown": None}


def _kleene(word, one, two):
    """The tables of Kleene (1952, Introduction to Metamathematics, 64), written out."""
    if word == "and":
        table = {(True, True): True, (True, None): None, (None, True): None, (None, None): None}
        return table.get((one, two), False)
    table = {(False, False): False, (False, None): None, (None, False): None, (None, None): None}
    return table.get((one, two), True)


@pytest.mark.parametrize("word", ["and", "or"])
def test_what_is_not_known_is_neither_true_nor_false(word):
    kinds = {"one": bool, "two": bool}
    for one, two in itertools.product(THREE.values(), repeat=2):
        values = {"one": one, "two": two}
        found = Condition.parse(f"one {word} two", kinds).decide(values)
        assert found is _kleene(word, one, two)
    assert Condition.parse("not one", kinds).decide({"one": None}) is None


def test_a_comparison_with_what_is_not_known_cannot_be_told():
    for sign in ("<", "<=", ">", ">=", "==", "!="):
        assert Condition.parse(f"a {sign} 1", KINDS).decide(VALUES | {"a": None}) is None


def test_the_quantities_that_a_condition_names_are_told():
    found = Condition.parse("a > 1 and not (no or b < 2)", KINDS)
    assert found.quantities == {"a", "b", "no"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected a quantity or a number, found the end"),
        ("a >", "expected a quantity or a number, found the end"),
        ("a > 1 b", "expected the end, 'and' or 'or', found 'b' at character 7"),
        ("a > > 1", "found '> 1' at character 5"),
        ("duplicate > 0", "no quantity 'duplicate'"),
        ("rate2 > 0", "Did you mean 'rate_2'?"),
        ("a", "must be true or false, and is a number"),
        ("a and yes", "what 'and' joins must be true or false"),
        ("yes and a", "what 'and' joins must be true or false, found 'a'"),
        ("not a", "what follows 'not' must be true or false"),
        ("yes > no", "true and false can be compared by == and != alone"),
        ("a == true", "compares a number with true or false"),
        ("(a > 1", "expected ')', found the end"),
        ("a > 1)", "expected the end"),
        ("a > 5%", "expected a quantity, a number or a comparison, found '%'"),
        ("__import__('os')", "expected a quantity, a number or a comparison"),
        ("a > ٣", "expected a quantity, a number or a comparison"),
        ("not " * 60 + "yes", "has more than 50 parts in one another"),
        ("(" * 60 + "yes" + ")" * 60, "has more than 50 parts in one another"),
        ("a" * 1001, "at most 1000 characters"),
    ],
)
def test_what_is_no_condition_is_refused_and_told_where(text, what):
    with pytest.raises(InputError) as error:
        Condition.parse(text, KINDS)
    assert what in str(error.value)


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=40), st.text("ab()<>=!. notandr0123", max_size=40)))
@example("1e999 > a")
@example("\0")
def test_any_text_is_understood_or_refused(text):
    try:
        found = Condition.parse(text, KINDS)
    except InputError:
        return
    assert found.decide(VALUES) in (True, False)
    assert found.decide(dict.fromkeys(VALUES)) in (True, False, None)
