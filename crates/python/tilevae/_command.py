"""The command ``tilevae``."""

import signal
import sys

from ._tilevae import command


def main() -> None:
    """Run the command line with the arguments of this process, and exit with its code."""
    # The command listens to Ctrl-C itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(command(["tilevae", *sys.argv[1:]]))
