"""The recipes for Airflow and Prefect, run by them, where they are installed.

They need many packages, so each has an environment of its own:

    pip install apache-airflow apache-airflow-providers-standard pytest    # or: prefect pytest
    pytest --noconftest -c /dev/null tests/test_deploy_workflows.py
"""

import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "deploy" / "audit"
TRIES = [(0, 1), (3, 1), (4, 1), (1, 3)]  # exit code of the audit, and how often it is run


@pytest.fixture
def audits(tmp_path, monkeypatch):
    """Return a recipe whose audit ends with an exit code, and a function that counts its runs."""

    def made(name, code):
        monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
        recipe = import_module(name)
        script = f"echo audited >> {tmp_path}/runs; exit {code}"
        monkeypatch.setattr(recipe, "COMMAND", ["/bin/sh", "-c", script])
        monkeypatch.setattr(recipe, "FOLDER", tmp_path)
        return recipe, lambda: len((tmp_path / "runs").read_text().split())

    return made


@pytest.mark.parametrize(("code", "tries"), TRIES)
def test_airflow_tries_again_what_failed_to_run_alone(audits, code, tries):
    pytest.importorskip("airflow")
    recipe, runs = audits("airflow_dag", code)
    made = recipe.deepssim_audit()
    for task in made.tasks:
        task.retry_delay = timedelta(0)
    assert str(made.test().state) == ("success" if code == 0 else "failed")
    assert runs() == tries


@pytest.mark.parametrize(("code", "tries"), TRIES)
def test_prefect_tries_again_what_failed_to_run_alone(audits, monkeypatch, code, tries):
    pytest.importorskip("prefect")
    recipe, runs = audits("prefect_flow", code)
    monkeypatch.setattr(recipe.audit, "retry_delay_seconds", 0)
    assert recipe.deepssim_audit(return_state=True).type.name == (
        "COMPLETED" if code == 0 else "FAILED"
    )
    assert runs() == tries
