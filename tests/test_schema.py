"""The published schemas describe what is written, and are valid themselves."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_audit import audited, first_night, plant, root, waive  # noqa: F401 - fixtures

SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"


def check(name, value):
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)] == []


def read(path):
    return json.loads(path.read_text())


def test_what_a_night_leaves_is_as_published(root):  # noqa: F811
    plant(root, "s03", "copy.png")
    found = audited(root)
    check("night", found.as_json())
    check("night", read(root / "audits" / "nights" / "000002" / "night.json"))
    for name in ("first", "second"):
        check("summary", read(root / "audits" / "reports" / name / "summary.json"))
    waive(root, "0" * 16, "2030-01-01")
    check("night", audited(root).as_json())


@pytest.mark.parametrize("name", ["summary", "night"])
def test_a_schema_refuses_what_it_does_not_name(name):
    with pytest.raises(AssertionError, match="required property"):
        check(name, {})
