"""Plays every order of events in small worlds, and looks for a broken promise. `make check` runs all of it.

    searches ─► __main__ ─► cloudformation ─► world ─► the function
    what may     every       what stacks       the services below it,
    happen       order       ask and believe   each call a choice

A search lists what may happen, and how often. From each state, the program plays each next event with every
fate of every call that the function makes, remembers the states it has seen, and goes on from the new ones.
Nothing here reads the function's rules, or the meaning of its pages. The function is the whole one: Provider,
Service, `decide`, Table, ApiGateway and Queue; only boto3's clients, the clock and the way to CloudFormation
are the world's. `World.decide` also asks each question again on the pages that the answer writes.

To add a search, add a line to `searches.py`: what stands at the beginning, what each stack may deploy, and
how often each of these may happen: `faults` (see `FATES` in `world.py`), `faults of API Gateway`, `later` (a
202 that comes into force after three seconds), `cancels`, `attaches`, `detaches` and `vanishes` (somebody
else), `misdated`, `overlaps`, `twice`, `repairs`, `denied …`, `deadly …`. `surprises` bounds all of these
together. Then run it alone: `make check ARGS='--surprises 1 "its name"'`. A rule that the search is there for
goes into `tests/test_check.py`, broken by hand.
"""
