"""Findings shown to readers, what they decide, and how far they agree."""
