"""The demo; apart from it, since loading it takes a second in which Ctrl-C is as welcome as later."""

import sys

try:
    from examples.demo import main

    sys.exit(main())
except KeyboardInterrupt:
    print("\nInterrupted. Nothing is running.", file=sys.stderr)
    sys.exit(130)
