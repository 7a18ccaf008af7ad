"""The newest request wins, the same request has the same answer, and each ends in time."""

from __future__ import annotations

from .story import play, stories


@stories("""
a Create that a Delete has overtaken touches nothing
    late: issue create A free; arrive delete A #invented; serve late = FAILED Superseded: CloudFormation
    has sent a newer request for this resource|this one touched nothing; calls none; held nothing ->
    attached nothing
an Update that a newer one has overtaken touches nothing
    create A gold; late: issue update A gold free; arrive update A gold gold; serve late = FAILED
    Superseded; calls none; held gold=A; beliefs A gold=known -> attached gold
an older request supersedes nothing
    new: issue update A #former free; create A gold with=new; serve new = ATTACHED; late: issue update A
    free gold -> attached free gold
it is overtaken while it waits in the queue: it gives way, and its Delete finds nothing to do
    queue; at create busy*; create A free = waits 1-2; held nothing; gone: arrive delete A #invented; time
    2; again request-1 = FAILED Superseded; calls none; serve gone; calls none; held nothing -> attached
    nothing
a long wait that is cancelled gives way at its next look, at most 20 seconds later
    queue; at create throttled=600; create A free = waits 20; arrive delete A #invented; time 20; again
    request-1 = FAILED Superseded; calls none; ledger 1R 1W -> attached nothing
it is overtaken after it has attached: it succeeds, because it is there
    at create ok{arrive delete A #invented}; create A free = ATTACHED; serve request-2; held nothing ->
    attached nothing
without issue times the order of arrival decides
    late: issue create A free undated; delete A #invented undated; time 1; serve late = ATTACHED ->
    attached free
without an issue time a Delete is newer than what stands there
    create A free; delete A free undated; held nothing; calls delete=1 -> attached nothing
issued more than a minute ahead it counts as issued now
    create A free; delete A free ahead=90; held nothing; create A free = ATTACHED; delete A free ->
    attached nothing
issued less than a minute ahead it keeps its time
    create A free; update A free free ahead=50 = VERIFIED; late: issue update A free gold; serve late =
    FAILED Superseded -> attached free
a late request does not move the fence back
    late: issue update A #former gold; new: issue update A #former free; arrive new; arrive late; serve
    late = FAILED Superseded; serve new = ATTACHED -> attached free
one that nobody has fenced at its arrival is fenced when its turn comes
    queue; create A gold; late: issue create A free; put late; serve late = ATTACHED; beliefs A gold=known
    free=given -> attached free gold
one that nobody can fence fails
    queue; late: issue create A free; put late; at write denied; serve late = FAILED Could not write the
    ledger; calls none; bye: issue delete A free; put bye; at write denied; serve bye = FAILED Could not
    write the ledger|Still attached: alice:free, if it was -> attached nothing
an answered request that comes again passes nothing
    one: issue update A #former free; serve one; update A free gold; again one; update A gold gold =
    VERIFIED -> attached free gold
""")
def test_the_newest_request_wins(line: str) -> None:
    play(line)


@stories("""
an Update follows the clean-up of the operation before
    create A free; update A free gold; clean: issue delete A free; serve clean; update A gold bob:gold
    with=clean = ATTACHED -> attached gold bob:gold
a Create follows the Delete of the same logical id
    create A free; gone: issue delete A free; serve gone; create A free with=gone = ATTACHED -> attached
    free
a cancelled Create never passes its Delete
    late: issue create A free; delete A #invented with=late; serve late = FAILED Superseded -> attached
    nothing
a request that arrives again passes nothing
    queue; create A free; one: issue update A free pro; back: issue update A free free with=one; arrive
    one; arrive back; arrive one; serve one = FAILED Superseded; serve back = VERIFIED -> attached free
one that comes after its time is not newer than another of its second
    queue; late: issue create A free for=60; new: issue create A free with=late; serve new = ATTACHED;
    time 200; arrive late = FAILED was over; delete A free; held nothing -> attached nothing
""")
def test_within_a_second_the_order_of_arrival_decides(line: str) -> None:
    play(line)


@stories("""
SUCCESS stays SUCCESS, whatever came later, and nothing is touched
    one: issue create A free; serve one = ATTACHED; delete A free; again one = ATTACHED; calls none; held
    nothing; log The function answered this request before; log the same answer goes out again -> attached
    nothing
FAILED stays FAILED, though it would succeed by now
    one: issue create A nope; serve one = FAILED there is no usage plan nope; plan nope c:prod; again one
    = FAILED there is no usage plan nope; calls none -> attached nothing
a Delete's is the same, too
    create A free; one: issue delete A free; serve one; create A free; again one; calls none; held free=A
    -> attached free
a foreign id is answered again, and stands in no page
    one: issue delete A #s3cr3t-s3cr3t-s3cr3t:free; serve one; again one -> attached nothing
after its time it is given again
    one: issue create A free; serve one = ATTACHED; time 5000; again one = ATTACHED -> attached free
the value is looked up anew
    one: issue create A free Value; serve one = ATTACHED; again one = ATTACHED; calls get=1; update A free
    free = VERIFIED -> attached free
a value that nobody can look up is left out
    one: issue create A free Value; serve one; at get denied; again one = ATTACHED; hand- free; again one
    = ATTACHED -> attached nothing
a value that there is no time to look up waits for the next turn
    queue; one: issue create A free Value; serve one; at get throttled*9; again one = waits; at get; again
    one = ATTACHED -> attached free
a failure that cannot be written down is answered all the same
    create A free; at write denied*; update A free free = FAILED Could not write the ledger ledger in
    eu-west-1: |Check that the table is there and that the role may use it; log ERROR Could not write the
    answer down; at write; held free=A -> attached free
""")
def test_the_same_request_has_the_same_answer(line: str) -> None:
    play(line)


@stories("""
a Create without an answer
    late: issue create A free; time 3700; serve late = FAILED CloudFormation's time for this request
    (ServiceTimeout) was over before its turn came; calls none; held nothing; again late -> attached
    nothing
an Update without an answer
    create A free; late: issue update A free gold; time 3700; serve late = FAILED was over; calls none;
    held free=A; again late -> attached free
a Delete without an answer names what stays
    create A free; late: issue delete A free; time 3700; serve late = FAILED was over|Still attached:
    alice:free, if it was; calls none; held free=A; again late = FAILED was over -> attached free
a Delete for nothing, too
    late: issue delete A free; time 3700; serve late = FAILED was over|Still attached: alice:free, if it
    was -> attached nothing
unusable properties, too
    late: issue create A nothing; time 3700; serve late = FAILED was over -> attached nothing
too late, a Create fences all the same: it begins a life, and its Delete may follow
    create A gold; late: issue create A free; time 3700; serve late = FAILED was over; beliefs A
    gold=known; delete A #invented; held gold=A -> attached gold
too late, an Update fences nothing
    create A gold; late: issue update A gold free; time 3700; serve late = FAILED was over; beliefs A
    gold=given -> attached gold
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
def test_a_request_whose_time_is_over_touches_nothing(line: str) -> None:
    play(line)


@stories("""
a Create
    queue; create A free = ATTACHED; calls create=1; ledger 1R 2W -> attached free
verified
    queue; create A free; update A free free = VERIFIED; calls get=1; ledger 1R 1W -> attached free
repaired
    queue; create A free; hand- free; update A free free = REPAIRED; calls create=1 get=1; ledger 1R 2W ->
    attached free
joined
    queue; create A free; create B free = JOINED; calls get=1; ledger 1R 2W -> attached free
a move, seen for the first time
    queue; create A free; update A free pro = MOVED; calls create=2 get=1 plan=1 plans=1 delete=1; ledger
    1R 4W -> attached pro
a move that is known
    queue; create A free; create B bob:free; update B bob:free bob:pro; update A free pro = MOVED; calls
    create=1 delete=1; ledger 1R 3W -> attached pro bob:pro
its rollback
    queue; create A free; update A free pro; update A pro free = MOVED; calls create=1 get=1 delete=1;
    ledger 1R 3W -> attached free
a move that API Gateway refuses, and that is undone
    queue; create A free; create B bob:free; update B bob:free bob:pro; at create denied; update A free
    pro = FAILED permission; calls create=2 delete=1; ledger 1R 4W -> attached free bob:pro
there before, Fail
    queue; hand+ free; create A free = FAILED there already; calls create=1 get=1; ledger 1R 2W ->
    attached free
refused for good
    queue; at create denied; create A free = FAILED permission; calls create=1; ledger 1R 2W -> attached
    nothing
held by others, Fail
    queue; create Z free; create A free = FAILED Z of stack two; calls none; ledger 1R 1W -> attached free
the last holder's Delete
    queue; create A free; delete A free; calls delete=1; ledger 1R 2W -> attached nothing
another holder's Delete
    queue; create A free; create B free; delete A free; calls none; ledger 1R 1W -> attached free
a Delete of nothing
    queue; delete A free; calls none; ledger 1R 1W -> attached nothing
a redelivery before its time asks nobody, and writes nothing
    queue; at create throttled=60; create A free = waits 20; time 20; again = waits 20; calls none; ledger
    1R 0W; time 40; again = ATTACHED -> attached free
a redelivery that is refused again, throttled
    queue; at create throttled*; create A free = waits 1-2; time 2; again = waits 1-4; calls create=1;
    ledger 1R 2W; at create -> attached nothing
a redelivery that is refused again, busy
    queue; at create busy*; create A free = waits 1-2; time 2; again = waits 1-4; calls create=1; ledger
    1R 2W; at create -> attached nothing
a redelivery that is answered already
    queue; create A free; again = ATTACHED; calls none; ledger 1R 1W; again = ATTACHED; ledger 1R 1W ->
    attached free
""")
def test_no_path_takes_more_calls_than_it_must(line: str) -> None:
    """`ledger` counts a turn's, with the one read that a batch shares."""
    play(line)
