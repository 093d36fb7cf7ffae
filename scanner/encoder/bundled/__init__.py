"""The encoder that comes with the package; it was trained on no patient."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "encoder.safetensors"
