"""AWS on this machine, for the tests, the benchmarks and the demo: as strict as AWS, and without Docker."""
