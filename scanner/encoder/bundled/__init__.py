"""The encoder that comes with the package, and a calibration; no patient was used for either."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "encoder.safetensors"
CALIBRATION = Path(__file__).parent / "calibration.json"
"""Of pseudo-subjects, for indexes that are too small to be calibrated."""
