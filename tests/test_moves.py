"""An Update moves a key between plans that share a stage, with a way back, and only where it may."""

import pytest

from .story import played

pytestmark = pytest.mark.usefixtures("either_conflict")

test_a_move = played("""
the old one is marked and detached, then the wanted one attached
    create A free; at delete {held free=A+detaching+away pro=A!wanted}; update A free pro = MOVED; held
    free=A+away pro=A; beliefs A free=left pro=given; calls create=2 get=1 plan=1 plans=1 delete=1; delete
    A free; calls none; held pro=A; beliefs A pro=given -> attached pro
several plans block it, all of them its own: it leaves them all
    create A free; plan alpha a:beta; update A free alpha = ATTACHED; update A alpha pro = FAILED usage
    plan free (Free) for the API stage a:prod already; attached free alpha; delete A free; update A alpha
    pro = MOVED -> attached pro
what an Update has left whose answer nobody took goes with the next Update
    create A free; update A free gold; update A free beta = ATTACHED; held free=A beta=A; delete A free;
    delete A beta -> attached nothing
others that superseded Updates left are moved away from too
    create A free; plan alpha a:beta; plan omega c:prod; plan pro a:prod a:beta c:prod; update A free
    alpha; update A free omega; calls create=1 delete=1; update A free pro = MOVED; calls create=2 get=1
    plan=1 plans=1 delete=2; held free=A+away pro=A; delete A pro; held nothing -> attached nothing
under UpdateReplacePolicy Retain the old one goes with the present one
    create A free; update A free pro; delete A pro; held nothing; calls delete=1 -> attached nothing
taken, then moved
    hand+ free; create A free Take; update A free free Take = TAKEN; update A free pro Take = MOVED; held
    free=A!taken+away pro=A -> attached pro
it leaves no plan for a Create
    plan both a:prod a:beta; create A both; create A pro = FAILED usage plan both (Both) for the API stage
    a:beta, a:prod|held by A of stack one, so the function left it alone. CloudFormation retained it: to
    move it, first declare this resource with the plan that it has there, deploy, then change the plan (;
    held both=A -> attached both
""")

test_the_way_back = played("""
refused for good: the old one is attached again
    create A free; at create ok denied; update A free pro = FAILED apigateway:POST; held free=A; beliefs A
    free=known; calls create=3 get=1 plan=1 plans=1 delete=1; delete A free -> attached nothing
nobody knows whether the old one is back: its Delete detaches it
    create A free; at create ok bad lost denied; update A free pro = FAILED bad request|could not attach
    the detached key again: Could not attach API key alice to usage plan free in eu-west-1: permission is
    missing; log ERROR Not attached again: alice:free; held free=A+attaching+away; delete A free; held
    nothing -> attached nothing
API Gateway is busy: the old one is attached again until the next turn
    queue; create A free; at create:pro ok busy*2; one: issue update A free pro; serve one = waits 2;
    attached free; held free=A; time 2; again one = MOVED; held free=A+away pro=A -> attached pro
CloudFormation gives it up while it waits in the queue: the rollback attaches the old one again
    queue; create A free; one: issue update A free pro; at create ok busy*3; serve one = waits 1-4;
    attached nothing; held free=A+away; back: arrive update A free free; again one = FAILED Superseded;
    attached nothing; time 2; serve back = REPAIRED; held free=A -> attached free
it dies once the old one is attached again: that one is its own
    queue; create A free; one: issue update A free pro; at create:pro ok denied; at create:free dead;
    serve one = dies; again one = waits; time 60; again one = FAILED usage plan free; held free=A; delete
    A free -> attached nothing
a third plan blocks the way back: it is named, and what was not attached is let go of all the same
    create A free; at delete ok{hand+ third}; update A free pro = FAILED usage plan third (Third)|could
    not attach the detached key again: usage plan third (Third) for the API stage a:prod blocks it; held
    free=A+away -> attached third
it comes to nothing: it gives up while there is time to undo it
    create A free; at create:pro {time 1}ok {time 6}busy*; update A free pro = FAILED gave up after; held
    free=A -> attached free
somebody else attaches the old one before it is undone: it is theirs
    create A free; at create ok {hand+ free}denied; update A free pro = FAILED permission; held
    free=A!before; delete A free -> attached free
""")

test_a_rollback_that_fails_and_is_skipped = played("""
the key stays in the new plan, and the next deploy moves it back, by the old id
    create A free; update A free pro = MOVED; at create denied; update A free free = FAILED permission; held
    free=A+away pro=A; attached pro; update A free free P1 = MOVED; held free=A; delete A free -> attached
    nothing
or by the new id
    create A free; update A free pro = MOVED; at delete denied; update A pro free = FAILED permission;
    attached pro; update A pro free P1 = MOVED; delete A pro -> attached free
the next deploy is taken for a rollback: it is LOST, and comes back by the plan that the key is in
    create A free; update A free pro = MOVED; at delete denied; update A pro free = FAILED permission;
    update A free free P1 = LOST; attached pro; update A free pro P2 = VERIFIED; update A pro free P3 = MOVED;
    delete A pro; delete A free -> attached nothing
the plans share no stage: the key is in both, and the old one is verified
    create A free; update A free gold; at get denied; update A free free = FAILED permission; attached free
    gold; update A free free P1 = VERIFIED; held free=A; delete A free -> attached nothing
""")

test_a_move_begins_only_while_there_is_time_to_undo_it = played("""
just enough for the detaching and to undo it
    create A free; seconds 33; update A free pro = MOVED -> attached pro
a tenth of a second less
    create A free; seconds 32.9; update A free pro = FAILED Could not attach API key alice to usage plan
    pro: no time was left -> attached free
from a queue it waits for the next invocation
    queue; create A free; seconds 40; update A free pro = waits 0; attached free; held free=A; seconds 90;
    again = MOVED -> attached pro
""")

test_what_blocks_a_move = played("""
an adopted key
    hand+ free; create A free Adopt; update A free pro = FAILED the key is in usage plan free (Free) for
    the API stage a:prod already, and API Gateway takes a key once for each stage|A of stack one, and was
    there before it, so the function left it alone. This resource adopted it: to move it, first set
    OnExisting to Take, deploy, then change the plan (; held free=A!before -> attached free
a key that no stack holds
    hand+ free; create A pro = FAILED usage plan free (Free)|a:prod|held by no stack, so the function
    left it alone. Remove it there first (; held nothing -> attached free
another resource of the stack holds it
    create B free; create A pro = FAILED held by B of stack one, so the function left it alone. Keep the
    logical id to move a key: declare this resource with the plan that the key has, deploy, then change
    the plan. If the id names the plan (CDK, SAM, Serverless), docs/use-from.md, "Move a customer to
    another plan", has the steps (; held free=B -> attached free
one of several plans is not ours: none is detached
    create A free; hand+ beta; update A free pro = FAILED usage plan beta (Beta)|a:beta; held free=A;
    calls create=1 get=1 plan=1 plans=1 -> attached free beta
what another event's id has named
    create A free; update A free gold; update A gold gold; update A gold pro = FAILED usage plan free
    (Free); held free=A gold=A -> attached free gold
before, Take said by the new properties only
    hand+ free; create A free Adopt; update A free pro Take = FAILED and was there before it -> attached
    free
taken, Take no longer said
    hand+ free; create A free Take; update A free free Take; update A free pro old=Take = FAILED and was
    there before it -> attached free
what may not be detached still blocks a move that is known
    create A free; create B bob:free; update A free pro; create C bob:free; update B bob:free bob:pro =
    FAILED C of stack one -> attached pro bob:free
""")

test_taken_over_and_moved_by_one_deploy = played("""
by the next deploy, old and new properties say Take
    hand+ free; create A free Take; update A free pro Take old=Take = MOVED; held free=A!before+away
    pro=A; attached pro; delete A free Take; delete A pro Take; held nothing -> attached nothing
rolled back with the new id: it was there before
    hand+ free; create A free Take; update A free pro Take old=Take = MOVED; update A pro free Take
    old=Take; held free=A!before pro=A+away; delete A pro Take; delete A free Take -> attached free
undone at once: it was there before
    hand+ free; create A free Take; at create ok denied; update A free pro Take old=Take = FAILED
    permission; held free=A!before -> attached free
a rollback into a plan that shares the stage takes nothing over
    hand+ free; create A free Take; update A free gold Take; plan gold a:prod; update A gold free Take
    old=Take = VERIFIED; hand- gold; update A free gold Take old=Take = LOST; held free=A!before gold=A ->
    attached free
""")
