"""A DAG of Airflow 3 that audits every night. It belongs into the folder of DAGs.

A broken policy (exit code 3) and an incomplete night (4) fail the run, and are not tried again.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

COMMAND = ["/opt/deepssim/bin/deepssim-scan", "audit", "--config", "audit.toml"]
FOLDER = "/srv/audit"
FINDINGS = {3: "the policy is broken", 4: "something was not looked at"}


@dag(schedule="30 1 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def deepssim_audit():
    """Audit, once a night."""

    @task(retries=2, retry_delay=timedelta(minutes=10), execution_timeout=timedelta(hours=20))
    def audit():
        done = subprocess.run(COMMAND, cwd=FOLDER, check=False)
        if done.returncode in FINDINGS:
            raise AirflowFailException(FINDINGS[done.returncode])
        done.check_returncode()

    audit()


deepssim_audit()
