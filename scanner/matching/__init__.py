"""Candidate pairs, their evidence, and the verdict on each."""
