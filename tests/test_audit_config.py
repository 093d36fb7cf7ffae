"""audit.toml and waivers: what is right is read, and every mistake is told with its line."""

import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepssim_scan.audit.config.audit import read_config
from deepssim_scan.audit.config.quantities import NOT_KNOWN, QUANTITIES, values_of
from deepssim_scan.audit.config.template import TEMPLATE
from deepssim_scan.audit.config.waivers import read_waivers
from deepssim_scan.errors import InputError, InputMissing, ScanError

GOOD = """\
[training]
images = "scans/"
index = "deepssim-index"
subject-regex = "(sub-[0-9]+)/"
exclude = "**/localizer*"

[[synthetic]]
name = "ldm-v3"
images = "generated/ldm-v3/"

[[synthetic]]
name = "gan"
images = "/data/gan"
include = ["**/*.png"]
slices = "0.2:0.8"

[policy]
fail_if = [
    "duplicates > 0",
    "complete == false",
]
false_alarm = 0.001

[history]
path = "deepssim-audits"
"""


@pytest.fixture
def written(tmp_path):
    """Write a configuration and read it."""

    def write(text):
        path = tmp_path / "audit.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path)

    return write


def test_what_is_asked_for_is_read_with_paths_beside_the_file(written, tmp_path):
    found = written(GOOD)
    assert found.training.images == tmp_path / "scans"
    assert found.training.index == tmp_path / "deepssim-index"
    assert found.training.ingest(b"").subject_regex == "(sub-[0-9]+)/"
    assert found.training.ingest(b"").selection.exclude == ("**/localizer*",)
    assert [each.name for each in found.synthetic] == ["ldm-v3", "gan"]
    assert str(found.synthetic[1].images) == "/data/gan"
    assert found.synthetic[1].ingest(b"").read_options.slices == "0.2:0.8"
    assert [each.text for each in found.policy.fail_if] == ["duplicates > 0", "complete == false"]
    assert found.policy.verdict.false_alarm == 0.001
    assert (found.history.keep_days, found.policy.readers) == (365, 2)


def test_the_file_that_init_writes_is_right_and_so_is_each_comment_of_it(written):
    assert written(TEMPLATE).synthetic[0].name == "ldm-v3"
    everything = re.sub(r"^# (?=[a-z_-]+ = |\[\[)", "", TEMPLATE, flags=re.MULTILINE)
    everything = everything.replace('manifest = "training.csv"', "")  # not beside include
    found = written(everything)
    assert [each.name for each in found.synthetic] == ["ldm-v3", "gan-baseline"]
    assert found.machine.scheduler == "tls://10.1.0.5:8786"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "[training]",
            "[trainings]",
            ["1: trainings: there is no such key", "training: is missing"],
        ),
        ('index = "deepssim-index"', "", ["1: training.index: is missing"]),
        (
            'images = "scans/"',
            "images = 5",
            ["2: training.images: must be a path in quotes, found 5"],
        ),
        ('images = "scans/"', 'imgs = "scans/"', ["2: training.imgs: there is no such key"]),
        ('"(sub-[0-9]+)/"', '"(sub-"', ["1: training: subject_regex ('(sub-') must be a regular"]),
        ('name = "gan"', 'name = "../gan"', ["12: synthetic[2].name: must be letters, digits"]),
        ('name = "gan"', 'name = "LDM-v3"', ["two synthetic sets have the name 'ldm-v3'"]),
        ('"0.2:0.8"', '"half"', ["11: synthetic[2]: slices ('half') must be START:STOP"]),
        ('"duplicates > 0"', '"copies > 0"', ["18: policy.fail_if[1]: condition 'copies > 0'"]),
        (
            '"duplicates > 0"',
            "7",
            ["18: policy.fail_if[1]: must be a condition in quotes, found 7"],
        ),
        ("= 0.001", "= 2.0", ["17: policy: false_alarm must lie between 0 and 1, found 2"]),
        (
            "= 0.001",
            '= "low"',
            ["22: policy.false_alarm: input should be a valid number, found 'low'"],
        ),
        (
            "[history]",
            "[history]\nkeep_days = 0",
            ["25: history.keep_days: input should be greater"],
        ),
        ('"deepssim-audits"', '"scans/audits"', ["lies in the images of training.images"]),
        (
            "[history]",
            "[history]\nkeep-days = 3\nkeep_days = 4",
            ["history.keep_days is given twice"],
        ),
        ("[history]", "[history]\nkeep_days = 1000000", ["25: history.keep_days: input"]),
        (
            'index = "deepssim-index"',
            'index = "i"\nholdout = "scans/other"',
            ["hold the same images"],
        ),
        (
            'index = "deepssim-index"',
            'index = "i"\nholdout = "generated"',
            ["training.holdout", "and the images of synthetic 'ldm-v3'", "hold the same images"],
        ),
        (
            'index = "deepssim-index"',
            'index = "i"\nholdout = "/data/gan/people"',
            ["and the images of synthetic 'gan' (/data/gan) hold the same images"],
        ),
        (
            'index = "deepssim-index"',
            'index = "i"\nholdout = "deepssim-audits"',
            ["history.path", "lies in the images of training.holdout"],
        ),
        ('"deepssim-audits"', '"deepssim-index"', ["history.path", "lies in training.index"]),
        ('"deepssim-audits"', '"./deepssim-index/nights"', ["which is replaced as a whole"]),
        ("[history]", "[history", ["is not TOML", "line 24"]),
        ("= 0.001", f"= {'9' * 5000}", [":22: "]),
        ("= 0.001", f"= {'[' * 5000}", [":22: "]),
    ],
)
def test_a_mistake_is_told_with_its_line(written, old, new, told):
    with pytest.raises(InputError) as error:
        written(GOOD.replace(old, new, 1))
    for part in told:
        assert part in str(error.value)


def test_all_mistakes_are_told_at_once(written):
    text = GOOD.replace('name = "gan"', "name = 5").replace("= 0.001", "= false")
    with pytest.raises(InputError) as error:
        written(text)
    assert [line.split(": ")[0].rpartition(":")[2] for line in str(error.value).splitlines()] == [
        "12",
        "22",
    ]


def test_bytes_that_are_no_text_are_told_with_their_line(written):
    with pytest.raises(InputError, match=r":2: is not UTF-8"):
        written(b'[training]\nimages = "\xff"\n')


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputMissing, match="there is no such file"):
        read_config(tmp_path / "absent.toml")


LINES = GOOD.splitlines()
edits = st.lists(
    st.tuples(
        st.integers(0, len(LINES) - 1),
        st.sampled_from(["drop", "double", "cut", "swap", "value", "text"]),
        st.integers(0, 40),
        st.one_of(
            st.sampled_from(
                ["5", "true", "[]", "{}", '""', "1e400", "nan", "1979-05-27", "[[1]]", '"\\u0000"']
            ),
            st.text(max_size=12),
        ),
    ),
    min_size=1,
    max_size=4,
)


def edited(changes):
    lines = list(LINES)
    for at, how, place, text in changes:
        at = at % len(lines)
        line = lines[at]
        if how == "drop":
            lines[at] = ""
        elif how == "double":
            lines.insert(at, line)
        elif how == "cut":
            lines[at] = line[:place]
        elif how == "swap":
            lines[at], lines[place % len(lines)] = lines[place % len(lines)], line
        elif how == "value" and "=" in line:
            lines[at] = f"{line.partition('=')[0]}= {text}"
        else:
            lines[at] = line[:place] + text + line[place:]
    return "\n".join(lines)


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits)
def test_a_hostile_file_is_read_or_refused_with_a_line(tmp_path, changes):
    path = tmp_path / "audit.toml"
    text = edited(changes)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_config(path)
    except ScanError as error:
        lines = str(error).splitlines()
        assert lines
        for each in lines:
            found = re.search(r"audit\.toml:(\d+): |\(at line (\d+), |\(at end of document\)", each)
            assert found, each
            number = int(found[1] or found[2] or 1)
            assert 1 <= number <= text.count("\n") + 1


WAIVER = """\
[[waiver]]
finding = "0123456789abcdef"
who = "the study's data manager"
why = "a phantom, no patient"
until = 2027-01-31
"""


def test_waivers_are_read_by_their_finding(tmp_path):
    (tmp_path / "w.toml").write_text(WAIVER)
    (found,) = read_waivers(tmp_path / "w.toml").values()
    assert (found.finding, found.until) == ("0123456789abcdef", date(2027, 1, 31))
    assert read_waivers(None) == {}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0123456789abcdef", "*", "2: waiver[1].finding"),
        ('"a phantom, no patient"', '" "', "4: waiver[1].why"),
        ("who =", "# who =", "1: waiver[1].who: is missing"),
        ("2027-01-31", '"forever"', "5: waiver[1].until"),
        (WAIVER, 2 * WAIVER, "two waivers are of the finding 0123456789abcdef"),
    ],
)
def test_a_waiver_that_says_too_little_is_refused(tmp_path, old, new, told):
    (tmp_path / "w.toml").write_text(WAIVER.replace(old, new))
    with pytest.raises(InputError) as error:
        read_waivers(tmp_path / "w.toml")
    assert told in str(error.value)


def test_the_documentation_names_every_quantity():
    text = (Path(__file__).parents[1] / "docs" / "audit.md").read_text("utf-8")
    for name, quantity in QUANTITIES.items():
        told = "" if quantity.kind is float else " (true or false)"
        assert f"| `{name}` | {quantity.text}{told} |" in text


def test_every_quantity_has_a_value_and_no_other_has():
    findings = dict.fromkeys(
        ("new", "persisting", "gone", "waived", "expired_waivers", "unreviewed", "confirmed"), 0
    )
    summary = {
        "complete": True,
        "counts": dict.fromkeys(
            (
                *("listed", "judged", "rejected", "blank", "duplicate", "similar", "undecidable"),
                "training_indexed",
            ),
            0,
        ),
        "subjects": {"flagged": 0},
        "calibration": None,
        "canaries": None,
        "search": {"sample": None},
        "most_copies_95": None,
        "membership": None,
        "volumes": None,
        "partial": None,
        "mismatches": [{"code": "hub", "text": "", "advice": ""}],
    }
    found = values_of(summary, findings, None, 3)
    assert found.keys() == QUANTITIES.keys() == NOT_KNOWN.keys()
    for name, value in found.items():
        assert value is None or isinstance(value, (int, QUANTITIES[name].kind))
    assert found["flagged_rate"] is None
    assert found["training_gone"] == 3
    assert values_of(summary, findings | {"waived": 0}, 0.5, 0)["drift"] == 0.5
