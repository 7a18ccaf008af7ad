"""The newest request wins, the same request has the same answer, and each ends in time."""

from types import SimpleNamespace
from unittest import mock

from usage_plan_key import retry

from .story import played, staged

test_the_newest_request_wins = played("""
a Create that a Delete has overtaken touches nothing
    late: issue create A free; arrive delete A #invented; serve late = FAILED Superseded: CloudFormation
    has sent a newer request for this resource; calls none; held nothing ->
    attached nothing
a long wait that is cancelled gives way at its next look, at most 20 seconds later
    queue; at create throttled=600; create A free = waits 20; arrive delete A #invented; time 20; again
    request-1 = FAILED Superseded; calls none; ledger 1R 1W -> attached nothing
without an issue time a Delete is newer than what stands there
    create A free; delete A free undated; held nothing; calls delete=1 -> attached nothing
issued more than a minute ahead it counts as issued now
    create A free; delete A free ahead=90; held nothing; create A free = ATTACHED; delete A free ->
    attached nothing
issued less than a minute ahead it keeps its time
    create A free; update A free free ahead=50 = VERIFIED; late: issue update A free gold; serve late =
    FAILED Superseded -> attached free
one that nobody has fenced at its arrival is fenced when its turn comes
    queue; create A gold; late: issue create A free; put late; serve late = ATTACHED; beliefs A gold=known
    free=given -> attached free gold
one that nobody can fence fails
    queue; late: issue create A free; put late; at write denied; serve late = FAILED Could not write the
    ledger; calls none; bye: issue delete A free; put bye; at write denied; serve bye = FAILED Could not
    write the ledger|Still attached: alice:free, if it was -> attached nothing
a late Delete ends no belief, and a late Create begins no life
    create A free; bye: issue delete A free; new: issue create A free; update A free gold = ATTACHED; arrive
    bye; arrive new; beliefs A free=left gold=given; delete A free; delete A gold -> attached nothing
a request that arrives again passes nothing
    queue; create A free; one: issue update A free pro; back: issue update A free free with=one; arrive
    one; arrive back; arrive one; serve one = FAILED Superseded; serve back = VERIFIED -> attached free
""")

test_the_same_request_has_the_same_answer = played("""
SUCCESS stays SUCCESS, whatever came later, and nothing is touched
    one: issue create A free; serve one = ATTACHED; delete A free; again one = ATTACHED; calls none; held
    nothing; log The function answered this request before; log the same answer goes out again -> attached
    nothing
a Delete's, after its resource was made anew: nobody reads more than its page
    create A free; one: issue delete A free; serve one; create A free; again one; calls none; ledger 1R 0W
    -> attached free
FAILED stays FAILED, though it would succeed by now
    one: issue create A nope; serve one = FAILED there is no usage plan nope; plan nope c:prod; again one
    = FAILED there is no usage plan nope; calls none -> attached nothing
a value that nobody can look up is left out
    one: issue create A free Value; serve one; at get denied; again one = ATTACHED; hand- free; again one
    = ATTACHED -> attached nothing
a value is looked up while there is time to deliver it
    one: issue create A free Value; serve one; seconds 15; again one = ATTACHED; calls get=1; seconds 9;
    again one = ATTACHED; calls none -> attached free
a value that there is no time to look up waits for the next turn
    queue; one: issue create A free Value; serve one; at get throttled*9; again one = waits; at get; again
    one = ATTACHED -> attached free
""")

test_a_request_whose_time_is_over_touches_nothing = played("""
a Delete without an answer names what stays
    create A free; late: issue delete A free; time 3700; serve late = FAILED was over|Still attached:
    alice:free, if it was; calls none; held free=A; again late = FAILED was over -> attached free
unusable properties, too
    late: issue create A nothing; time 3700; serve late = FAILED was over -> attached nothing
too late, a Create that nobody has fenced is fenced, and an Update is not
    queue; create A gold; up: issue update A gold free; put up; late: issue create A free; put late; time
    3700; serve up = FAILED was over; beliefs A gold=given; serve late = FAILED was over; beliefs A
    gold=known -> attached gold
its time begins when CloudFormation issues it, but for a minute
    queue; late: issue create A free for=100; time 155; serve late = FAILED was over -> attached nothing
a minute's skew of the clocks is forgiven
    queue; late: issue create A free for=100; time 60; arrive late; time 80; serve late = ATTACHED ->
    attached free
""")

# `ledger` counts a turn's, with the one read that a batch shares.
test_no_path_takes_more_calls_than_it_must = played("""
each request of a resource's life
    queue; create A free = ATTACHED; calls create=1; ledger 1R 2W; update A free free = VERIFIED; calls
    get=1; ledger 1R 1W; hand- free; update A free free = REPAIRED; calls create=1 get=1; ledger 1R 2W;
    create B free = JOINED; calls get=1; ledger 1R 2W; delete A free; calls none; ledger 1R 1W; delete A
    free; calls none; ledger 1R 1W; delete B free; calls delete=1; ledger 1R 2W -> attached nothing
a move that is seen for the first time, and its rollback
    queue; create A free; update A free pro = MOVED; calls create=2 get=1 plan=1 plans=1 delete=1; ledger
    1R 4W; update A pro free = MOVED; calls create=1 get=1 delete=1; ledger 1R 3W -> attached free
a move that is known; and one that API Gateway refuses, and that is undone
    queue; create A free; create B bob:free; update B bob:free bob:pro; at create denied; update A free
    pro = FAILED permission; calls create=2 delete=1; ledger 1R 4W; update A free pro = MOVED; calls
    create=1 delete=1; ledger 1R 3W -> attached pro bob:pro
refused: it was there before, no permission, others hold it
    queue; hand+ free; create A free = FAILED there already; calls create=1 get=1; ledger 1R 2W; hand-
    free; at create denied; create A free = FAILED permission; calls create=1; ledger 1R 2W; create Z
    free; create A free = FAILED it is held by Z of stack two, and OnExisting is Fail. Adopt or Take would
    hold it too|the function detaches it when its last holder goes. If that stack is gone; calls none;
    ledger 1R 1W -> attached free
a redelivery before its time asks nobody, and writes nothing
    queue; at create throttled=60; create A free = waits 20; time 20; again = waits 20; calls none; ledger
    1R 0W; time 40; again = ATTACHED -> attached free
a redelivery that is answered already
    queue; create A free; again = ATTACHED; calls none; ledger 1R 1W; again = ATTACHED; ledger 1R 1W ->
    attached free
""")


def test_a_wait_begins_at_half_of_its_back_off() -> None:
    """The stories' dice always fall high."""
    low = SimpleNamespace(uniform=lambda low, high: low)
    with staged() as story, mock.patch.object(retry, "random", low):
        story.play("queue; at create busy*; create A free = waits 1; time 1; again = waits 2")
