"""The command line: parses, calls one function of the library, prints."""

import atexit
import gc


def main() -> None:
    """Run the command line."""
    from deepssim_scan.cli.app import run

    atexit.register(gc.freeze)  # or it looks for garbage at its end, a fifth of a second
    run()
