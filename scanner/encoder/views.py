"""The test-time views in which a synthetic image is embedded."""

TTA_VIEWS = ((0.0, 0.0), (0.0, 0.04), (0.0, -0.04), (6.0, 0.0), (-6.0, 0.0))
"""Degrees by which an image is rotated, and the share of its height by which it is shifted."""
