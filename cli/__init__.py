"""The command line: parses, calls one function of the library, prints.

`main` imports the commands when it is called: the processes that decode images import the
program's own script again, and must not load torch with it, several times their memory.
"""


def main() -> None:
    """Run the command line."""
    from deepssim_scan.cli.app import run

    run()
