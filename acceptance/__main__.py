"""Starts a run, and handles Ctrl-C in the second in which it loads."""

import sys

try:
    from acceptance.cli import main

    sys.exit(main(sys.argv[1:]))
except KeyboardInterrupt:
    print("\nInterrupted. Nothing is running.", file=sys.stderr)
    sys.exit(130)
