"""The command line: `densify`, or `python -m densify`. Nothing is imported before it is needed."""

from __future__ import annotations

import signal
import sys

TERMINATED = 143


def main() -> None:
    """Run the command line on the program's arguments and exit with its status."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C does: clean up, then end
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(TERMINATED))
    try:
        from densify.cli.app import app

        app(prog_name="densify")
    except KeyboardInterrupt:  # before a command could take care of it
        sys.exit(130)
