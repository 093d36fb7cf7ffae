"""Audits: what is asked of every night, what was found in each, and what it is decided by."""
