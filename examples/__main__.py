"""Starts the demo, and handles Ctrl-C in the second in which it loads."""

import sys

try:
    from examples.demo import main

    sys.exit(main())
except KeyboardInterrupt:
    print("\nInterrupted. Nothing is running.", file=sys.stderr)
    sys.exit(130)
