"""Find synthetic medical images that copy a patient of the training set."""

from importlib.metadata import version

__version__ = version("deepssim-scan")
