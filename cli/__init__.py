"""The command line: parses, calls one function of the library, prints."""

from deepssim_scan.cli.commands import main

__all__ = ["main"]
