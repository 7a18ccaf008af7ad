"""No tests: test_watch.py takes the driver from here until it imports it from cloudformation.py."""

from .cloudformation import *  # noqa: F403  # every name, for as long as that lasts
