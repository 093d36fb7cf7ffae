"""Audits that are killed go on, and the history stays whole: `make faults` has many more."""

from audit_kills import trials


def test_a_killed_audit_is_gone_on_with(tmp_path):
    taken, problems = trials(tmp_path, kills=2, training=24, synthetic=4)
    assert len(taken) == 2
    assert problems == []
