"""A flow of Prefect 3 that audits every night: `python prefect_flow.py` serves it.

A broken policy (exit code 3) and an incomplete night (4) fail the run, and are not tried again.
"""

import subprocess

from prefect import flow, task

COMMAND = ["/opt/deepssim/bin/deepssim-scan", "audit", "--config", "audit.toml"]
FOLDER = "/srv/audit"
FINDINGS = {3: "the policy is broken", 4: "something was not looked at"}


class Finding(RuntimeError):
    """The audit ran, and what it found needs somebody."""


def is_to_be_tried_again(_task, _run, state):
    """Tell whether a failed run may go better the next time."""
    return not isinstance(state.result(raise_on_failure=False), Finding)


@task(
    retries=2,
    retry_delay_seconds=600,
    retry_condition_fn=is_to_be_tried_again,
    timeout_seconds=20 * 3600,
)
def audit():
    """Run the audit, whose own output goes to the log of the process."""
    done = subprocess.run(COMMAND, cwd=FOLDER, check=False)
    if done.returncode in FINDINGS:
        raise Finding(FINDINGS[done.returncode])
    done.check_returncode()


@flow(name="deepssim-audit")
def deepssim_audit():
    """Audit, once a night."""
    audit()


if __name__ == "__main__":
    deepssim_audit.serve(name="nightly", cron="30 1 * * *", limit=1)
