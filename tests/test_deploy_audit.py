"""The recipes for audits, each checked by its own tool."""

import os
import shutil
import subprocess
import sys
import time
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


def test_the_pipeline_shows_the_night_that_it_made_alone(tmp_path):
    text = (FOLDER / "gitlab-ci.yml").read_text().replace("/srv/audit", str(tmp_path))
    job = yaml.safe_load(text)["audit"]
    nights = tmp_path / "deepssim-audits" / "nights"

    def made(night, seconds):
        (nights / night).mkdir(parents=True)
        (nights / night / "junit.xml").write_text(night)
        os.utime(nights / night / "junit.xml", (seconds, seconds))

    def run(command):
        subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, check=True)

    made("before", time.time() - 9)
    run(job["script"][0])
    run(job["after_script"][0])
    assert not (tmp_path / "junit.xml").exists()
    made("now", time.time() + 9)
    run(job["after_script"][0])
    assert (tmp_path / "junit.xml").read_text() == "now"


def test_the_cron_job_is_as_kubernetes_says():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (found,) = yaml.safe_load_all((FOLDER / "cronjob.yaml").read_text())
    kubernetes_validate.validate(found, "1.30", strict=True)
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
