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
    from densify.cli import interrupts

    interrupts.listen()
    try:
        from densify.cli.app import app

        app(prog_name="densify")
    except KeyboardInterrupt:  # before a command could take care of it
        interrupts.tell()
        sys.exit(interrupts.INTERRUPTED)
    except SystemExit as end:  # or while its words were read
        if end.code == interrupts.INTERRUPTED and not interrupts.told():
            interrupts.tell()
        raise
