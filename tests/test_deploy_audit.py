"""The recipes for audits, each checked by its own tool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "audit"
PROGRAM = "/opt/deepssim/bin/deepssim-scan"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_units_are_what_systemd_verifies(tmp_path):
    for path in FOLDER.glob("deepssim-audit.*"):
        text = path.read_text().replace(PROGRAM, sys.executable).replace("User=deepssim\n", "")
        (tmp_path / path.name).write_text(text)
    units = [str(path) for path in tmp_path.iterdir()]
    verify = [shutil.which("systemd-analyze"), "verify", "--man=no", *units]
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    told = [line for line in found.stderr.splitlines() if "deepssim-audit" in line]
    assert (found.returncode, told) == (0, [])
    when = [shutil.which("systemd-analyze"), "calendar", "*-*-* 01:30:00"]
    assert "OnCalendar=*-*-* 01:30:00" in (FOLDER / "deepssim-audit.timer").read_text()
    assert subprocess.run(when, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "schema"),
    [("github.yml", "vendor.github-workflows"), ("gitlab-ci.yml", "vendor.gitlab-ci")],
)
def test_the_pipelines_are_as_their_schemas_say(name, schema):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    found = subprocess.run([*check, FOLDER / name], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("runs", [True, False])
def test_gitlab_shows_the_tests_of_this_night_alone(tmp_path, runs):
    """Where the audit could not run, those of the night before were shown."""
    nights, checkout = tmp_path / "srv" / "deepssim-audits" / "nights", tmp_path / "checkout"
    checkout.mkdir()
    (nights / "000001").mkdir(parents=True)
    (nights / "000001" / "junit.xml").write_text("before")
    os.utime(nights / "000001" / "junit.xml", (1, 1))
    made = f"{nights}/000002/junit.xml"
    later = f"mkdir {nights}/000002 && echo now >{made} && touch -t 203801010000 {made}"
    (tmp_path / "audit.sh").write_text(later if runs else "exit 1")
    job = yaml.safe_load((FOLDER / "gitlab-ci.yml").read_text())["audit"]
    for part in ("script", "after_script"):  # each in a shell of its own, as GitLab does
        text = "\n".join(job[part]).replace(PROGRAM, f"sh {tmp_path}/audit.sh")
        text = text.replace("/srv/audit", str(tmp_path / "srv"))
        done = subprocess.run(["/bin/sh", "-ec", text], cwd=checkout, check=False)
        assert (done.returncode == 0) == (runs or part == "after_script")
    junit = checkout / job["artifacts"]["reports"]["junit"]
    assert junit.exists() == runs
    assert not runs or junit.read_text() == "now\n"


def test_the_cron_job_is_as_kubernetes_says():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (found,) = yaml.safe_load_all((FOLDER / "cronjob.yaml").read_text())
    kubernetes_validate.validate(found, "1.30", strict=True)
    assert found["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 20 * 3600
    found["spec"]["shedule"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, "1.30", strict=True)


def test_the_line_of_cron_has_five_fields_and_a_command():
    lines = [
        line
        for line in (FOLDER / "crontab").read_text().splitlines()
        if line and not line.startswith("#") and "=" not in line.split()[0]
    ]
    (line,) = lines
    assert line.startswith("30 1 * * * cd /srv/audit && ")
