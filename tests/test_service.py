"""The contract as CloudFormation sees it: requests are served on the strict API with a ledger in memory, one rule at a time."""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.aws import rules
from tests.aws.fake import ApiGateway as StrictApi
from tests.aws.fake import Key, Plan
from tests.memory import Clock, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import FailedError, OutOfTimeError, TurnOverError
from usage_plan_key.ledger import StatelessLedger
from usage_plan_key.model import NOBODY, REMEMBERED, Association, AssociationRecord, Holder, Response, Snapshot
from usage_plan_key.request import MOST_SKEW, Create, Delete, Invalid, OnExisting, Request, Update
from usage_plan_key.retry import BEFORE_CALL, CONNECT_TIMEOUT, READ_TIMEOUT, Deadline
from usage_plan_key.service import Service

FAIL, ADOPT, TAKE = OnExisting
FREE, PRO, GOLD = "alice:free", "alice:pro", "alice:gold"  # Free and Pro share a stage, Gold has one of its own.
CREATE, GET, DELETE = "create_usage_plan_key", "get_usage_plan_key", "delete_usage_plan_key"


def error(status: int, code: str, message: str = "") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Call")


BUSY = error(409, "ConflictException", rules.BUSY.message)
THROTTLED = error(429, "TooManyRequestsException", "Too Many Requests")
BROKEN = error(500, "InternalFailure", "Broken")
DENIED = error(403, "AccessDeniedException", "Not authorized")
BAD = error(400, "BadRequestException", "Bad")
LOST = ReadTimeoutError(endpoint_url="https://apigateway")


pytestmark = pytest.mark.usefixtures("either_conflict")


class Death(BaseException):
    """The function ends here and now."""


R = TypeVar("R", bound=Request)
Step = Callable[[Callable[[], Any]], Any]
"""What happens at a call: it gets the call and makes it, or not."""


def fails(with_: BaseException) -> Step:
    """The call is not served."""

    def step(_: Callable[[], Any]) -> Any:
        raise with_

    return step


def served_then(with_: BaseException) -> Step:
    """The call is served, and its reply is not seen."""

    def step(call: Callable[[], Any]) -> Any:
        call()
        raise with_

    return step


def preceded_by(action: Callable[[], object]) -> Step:
    """Somebody does something just before the call."""

    def step(call: Callable[[], Any]) -> Any:
        action()
        return call()

    return step


def followed_by(action: Callable[[], object]) -> Step:
    """Somebody does something just after the call."""

    def step(call: Callable[[], Any]) -> Any:
        reply = call()
        action()
        return reply

    return step


def usual(call: Callable[[], Any]) -> Any:
    return call()


class Watch(Clock):
    """A clock; somebody may do something while the function sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()


def served(service: Service) -> Response:
    """Serve as crhelper's dispatch has it."""
    request = service._request
    return service.delete() if isinstance(request, Delete) else service.update() if request.physical_id else service.create()


class CloudFormation(MemoryLedger):
    """The driver: sends requests and knows what is attached and who holds it. It is its own ledger, to see each write."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Watch()
        self.meta = StrictApi().meta
        self.api = StrictApi()
        self.api.keys = {key: Key(f"Key of {key}", f"value-of-{key}") for key in ("alice", "bob")}
        self.api.plans = {
            "free": Plan("Free", (("api", "prod"),)),
            "pro": Plan("Pro", (("api", "prod"), ("api", "beta"))),
            "gold": Plan("Gold", (("other", "prod"),)),
        }
        self.script: dict[str, Iterator[Step]] = defaultdict(lambda: iter(()))
        self.tick: Callable[[], None] = lambda: None
        self.has_ledger = True
        self.refused_writes = 0
        self.lose_writes = 0
        """How many replies to writes that hold something are lost."""
        self.seconds = 900.0
        self.dies = 900.0
        self.is_over = False
        self.resumable = False
        self.warm: ApiGateway | None = None
        self.serial = itertools.count(1)

    # Asking.

    def a_create(self, name: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any) -> Create:
        return self._request(Create, name, wanted=pair(wanted), on_existing=on_existing, **more)

    def an_update(self, name: str, had: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any) -> Update:
        return self._request(Update, name, physical_id=had, wanted=pair(wanted), on_existing=on_existing, **more)

    def a_delete(self, name: str, had: str, **more: Any) -> Delete:
        return self._request(Delete, name, physical_id=had, **more)

    def create(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_create(*what, **more))

    def update(self, *what: Any, **more: Any) -> Response:
        return self.send(self.an_update(*what, **more))

    def delete(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_delete(*what, **more))

    def _request(self, kind: Callable[..., R], name: str, *, stack: str = "one", **fields: Any) -> R:
        self.clock.now += 1
        fields = {"issued": int(self.clock.now), "id": f"request-{next(self.serial)}", **fields}
        return kind(holder=holder(name, stack), response_url="https://x", service_timeout=3600, **fields)

    def service(self, request: Request) -> Service:
        ledger = self if self.has_ledger else StatelessLedger(request)
        there, here = (3600, self.seconds) if self.resumable else (self.seconds, math.inf)
        deadline = Deadline(there, self.clock, Random(0), turn=here, dies=self.dies, is_over=self.is_over)
        return Service(request, ledger, self.warm or ApiGateway(self), deadline)  # type: ignore[arg-type]  # a fake

    def arrives(self, request: Request) -> None:
        """It waits for its turn."""
        self.service(request).fence()

    def send(self, request: Request) -> Response:
        service = self.service(request)
        service.fence()
        return served(service)

    # What happens on the way.

    def at(self, operation: str, *steps: Step) -> None:
        """What happens at the next calls of an operation; afterwards all is well."""
        self.script[operation] = iter(steps)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        call = getattr(self.api, operation)

        def scripted(**arguments: Any) -> Any:
            self.tick()
            reply = next(self.script[operation], usual)(lambda: call(**arguments))
            self.tick()
            return reply

        return scripted

    def outage(self, writes: int) -> None:
        """So many writes fail from now on; their calls take no time."""
        self.refused_writes = writes

    def written(self, holder: Holder, after: Snapshot) -> None:
        self.tick()
        if self.refused_writes:
            self.refused_writes -= 1
            raise FailedError("the ledger is out of reach")
        super().written(holder, after)
        self.tick()
        if self.entries and self.lose_writes:
            self.lose_writes -= 1
            raise FailedError("nobody knows whether it was written", nothing_changed=False)

    # Seeing.

    @property
    def attached(self) -> set[str]:
        return {f"{key}:{plan}" for key, plan in self.api.attached}

    def by_hand(self, id_: str, *, attached: bool = True) -> None:
        key, plan = id_.split(":")
        (self.api.attached.add if attached else self.api.attached.remove)((key, plan))

    def entry(self, id_: str) -> AssociationRecord:
        return self.entries.get(pair(id_), AssociationRecord())

    def holders(self, id_: str) -> set[Holder]:
        return set(self.entry(id_).holders)

    def calls(self) -> dict[str, int]:
        """The calls since it was last asked."""
        calls = dict(self.api.calls)
        self.api.calls.clear()
        return calls


def pair(id_: str) -> Association:
    association = Association.parse(id_)
    assert association
    return association


def holder(name: str, stack: str = "one") -> Holder:
    return Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}/0", name)


def failed(answer: Response, *words: str) -> bool:
    """It is FAILED, and its Reason has these words."""
    assert not answer.success
    missing = [word for word in words if word not in answer.reason]
    assert not missing, f"{missing} not in {answer.reason!r}"
    return True


def outcome(answer: Response) -> str:
    assert answer.success, answer.reason
    return answer.outcome


@pytest.fixture
def cfn() -> CloudFormation:
    return CloudFormation()


class TestWanting:
    """A resource wants an association."""

    def test_attached(self, cfn: CloudFormation) -> None:
        """What nobody holds and is not in the plan is attached, with one call; the answer has the id and the key's name."""
        answer = cfn.create("A", FREE)
        assert outcome(answer) == "ATTACHED"
        assert (answer.id, answer.key_name, answer.at) == (FREE, "Key of alice", int(cfn.clock.now))
        assert cfn.calls() == {"CreateUsagePlanKey": 1}
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}

    def test_held_before_it_is_attached(self, cfn: CloudFormation) -> None:
        """Hold, then attach: at the call the holder stands in the ledger already."""
        seen: list[set[Holder]] = []
        cfn.at(CREATE, preceded_by(lambda: seen.append(cfn.holders(FREE))))
        cfn.create("A", FREE)
        assert seen == [{holder("A")}]

    def test_there_already(self, cfn: CloudFormation) -> None:
        """With `Fail` what somebody else attached is refused, with what would do instead, and neither held nor touched."""
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", FREE), "Adopt", "leave it there on Delete", "Take", "own it")
        assert cfn.attached == {FREE}
        assert not cfn.entries

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_adopted(self, cfn: CloudFormation, on_existing: OnExisting) -> None:
        """What was there before is used, and left there by a Delete, also by one that says `Take` where no Update has."""
        cfn.by_hand(FREE)
        assert outcome(cfn.create("A", FREE, on_existing)) == "ADOPTED"
        assert cfn.delete("A", FREE, take=on_existing is TAKE).success
        assert cfn.attached == {FREE}
        assert not cfn.entries

    def test_verified(self, cfn: CloudFormation) -> None:
        """An Update of what is held and attached looks, and does no more."""
        cfn.create("A", FREE)
        cfn.calls()
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        assert cfn.calls() == {"GetUsagePlanKey": 1}

    @pytest.mark.parametrize(("take", "left"), [(True, set()), (False, {FREE})], ids=["Take", "Take no longer said"])
    def test_taken(self, cfn: CloudFormation, take: bool, left: set[str]) -> None:
        """From the next Update with `Take` on it is owned; a Delete detaches it if it still says so."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        assert outcome(cfn.update("A", FREE, FREE, TAKE)) == "TAKEN"
        cfn.delete("A", FREE, take=take)
        assert cfn.attached == left

    def test_repaired(self, cfn: CloudFormation) -> None:
        """What is held and was removed by hand is attached again, by an Update."""
        cfn.create("A", FREE)
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert cfn.attached == {FREE}

    def test_repairing_makes_it_ours(self, cfn: CloudFormation) -> None:
        """What was there before and has been attached anew is detached with its last holder."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.update("A", FREE, FREE, ADOPT)
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_put_back_just_before_the_repair(self, cfn: CloudFormation) -> None:
        """What was there before, and was put back between our look and our call, is still not ours."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, preceded_by(lambda: cfn.by_hand(FREE)))
        assert outcome(cfn.update("A", FREE, FREE, ADOPT)) == "VERIFIED"
        cfn.delete("A", FREE)
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("present", [True, False], ids=["attached", "removed by hand"])
    def test_created_again(self, cfn: CloudFormation, present: bool) -> None:
        """A Create of what this resource holds already (repeated, or retained once) is ATTACHED."""
        cfn.create("A", FREE)
        if not present:
            cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.attached == {FREE}

    def test_renamed(self, cfn: CloudFormation) -> None:
        """The new name joins, and the Delete of the old one leaves it attached; the new one's detaches it."""
        cfn.create("Old", FREE)
        cfn.calls()
        assert outcome(cfn.create("New", FREE)) == "JOINED"
        assert cfn.delete("Old", FREE).success
        assert cfn.attached == {FREE}
        assert cfn.calls() == {"GetUsagePlanKey": 1}
        cfn.delete("New", FREE)
        assert not cfn.attached

    @pytest.mark.parametrize("present", [True, False], ids=["in the plan", "not in the plan"])
    def test_another_stacks(self, cfn: CloudFormation, present: bool) -> None:
        """What other stacks alone hold is refused with `Fail`, in the plan or not, naming who holds it, without a call."""
        cfn.create("Theirs", FREE, stack="two")
        if not present:
            cfn.by_hand(FREE, attached=False)
        cfn.calls()
        assert failed(cfn.create("A", FREE), "Theirs of stack two", "Adopt", "Take")
        assert not cfn.calls()
        assert cfn.holders(FREE) == {holder("Theirs", "two")}

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_shared_between_stacks(self, cfn: CloudFormation, on_existing: OnExisting) -> None:
        """With `Adopt` or `Take` it is held together, and detached when the last of them goes."""
        cfn.create("Theirs", FREE, stack="two")
        assert outcome(cfn.create("A", FREE, on_existing)) == "JOINED"
        cfn.delete("Theirs", FREE, stack="two")
        assert cfn.attached == {FREE}
        cfn.delete("A", FREE)
        assert not cfn.attached

    @pytest.mark.parametrize(("stack", "on_existing"), [("one", FAIL), ("two", ADOPT)], ids=["a sibling", "another stack"])
    def test_others_hold_it_and_it_is_gone(self, cfn: CloudFormation, stack: str, on_existing: OnExisting) -> None:
        """What others hold and somebody removed is held too and attached."""
        cfn.create("B", FREE, stack=stack)
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.create("A", FREE, on_existing)) == "REPAIRED"
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A"), holder("B", stack)}


class TestUpdate:
    """An Update that names something else, and what comes after it."""

    def test_replaced(self, cfn: CloudFormation) -> None:
        """The answer carries the new id, and the old one stays attached and held until its Delete comes."""
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, GOLD)
        assert outcome(answer) == "ATTACHED"
        assert answer.id == GOLD
        assert cfn.attached == {FREE, GOLD}
        cfn.delete("A", FREE)
        assert cfn.attached == {GOLD}

    @pytest.mark.parametrize("carried", [FREE, GOLD], ids=["with the old id", "with the new id"])
    def test_rolled_back(self, cfn: CloudFormation, carried: str) -> None:
        """An Update with the properties swapped comes out right, whichever id it carries."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        assert cfn.update("A", carried, FREE).id == FREE
        cfn.delete("A", GOLD)
        assert cfn.attached == {FREE}

    def test_a_former_providers_id(self, cfn: CloudFormation) -> None:
        """A foreign id is served like any other, and its Delete releases nothing."""
        assert cfn.update("A", "former", FREE).id == FREE
        assert cfn.delete("A", "former").id == "former"
        assert cfn.attached == {FREE}

    def test_what_a_superseded_one_left(self, cfn: CloudFormation) -> None:
        """The rollback of an Update that nobody waited for releases what it had attached."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)  # CloudFormation cancelled it, and does not know its id.
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        assert cfn.attached == {FREE}

    def test_what_an_id_has_named_is_left_alone(self, cfn: CloudFormation) -> None:
        """It may have been retained: UpdateReplacePolicy's Delete never comes."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        cfn.update("A", GOLD, GOLD)
        assert cfn.attached == {FREE, GOLD}

    def test_a_former_life_is_retained(self, cfn: CloudFormation) -> None:
        """What a resource of the same name left with DeletionPolicy: Retain outlives a cancelled Create."""
        cfn.create("A", GOLD)
        cfn.create("A", FREE)
        cfn.delete("A", "invented")
        assert cfn.attached == {GOLD}

    def test_a_failed_create_is_followed_by_a_delete(self, cfn: CloudFormation) -> None:
        """That Delete does not undo what an earlier life of the resource retained."""
        cfn.create("A", FREE)
        cfn.at(GET, fails(DENIED))
        answer = cfn.create("A", FREE)
        assert failed(answer)
        cfn.delete("A", answer.id)
        assert cfn.attached == {FREE}


class TestRefused:
    """What API Gateway says instead."""

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            ("alice:nope", ["alice", "there is no usage plan nope", "eu-central-1"]),
            ("carol:free", ["free", "there is no API key carol", "eu-central-1"]),
        ],
        ids=["plan", "key"],
    )
    def test_not_found(self, cfn: CloudFormation, wanted: str, words: list[str]) -> None:
        """The plan or the key: which it was is named, and the region; nothing is held."""
        answer = cfn.create("A", wanted)
        assert failed(answer, *words)
        assert (answer.id, answer.at) == (wanted, int(cfn.clock.now))
        assert not cfn.entries

    @pytest.mark.parametrize(
        ("refusal", "words"),
        [
            (BAD, ["bad request", "Bad", "Check KeyId and UsagePlanId"]),
            (error(401, "UnauthorizedException"), ["apigateway:POST on ", "eu-central-1::/usageplans/free/keys,"]),
            (DENIED, ["apigateway:POST on ", "eu-central-1::/usageplans/free/keys,"]),
        ],
        ids=["bad request", "unauthorized", "access denied"],
    )
    def test_refused_for_good(self, cfn: CloudFormation, refusal: ClientError, words: list[str]) -> None:
        """What was being done to which ids, where, why it failed and what to do; the hold is taken back."""
        cfn.at(CREATE, fails(refusal))
        assert failed(cfn.create("A", FREE), "API key alice to usage plan free in eu-central-1", *words)
        assert not cfn.attached
        assert not cfn.entries

    def test_an_update_fails_with_its_own_id(self, cfn: CloudFormation) -> None:
        """Any other would be a replacement; and what it had is still held."""
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, "alice:nope")
        assert failed(answer)
        assert answer.id == FREE
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_repair_that_is_refused(self, cfn: CloudFormation) -> None:
        """What was held before stays held, with its marks as they were."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT))
        assert cfn.holders(FREE) == {holder("A")}
        assert cfn.entry(FREE).preexisting

    def test_a_repeated_create_that_cannot_look(self, cfn: CloudFormation) -> None:
        """Its first delivery may have attached the key, so the hold stays, and the Delete that follows detaches it."""
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, served_then(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.send(request), "apigateway:GET")
        assert cfn.holders(FREE) == {holder("A")}
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_a_joiner_that_cannot_look(self, cfn: CloudFormation) -> None:
        """It has attached nothing, so it holds nothing; the other one still does."""
        cfn.create("B", FREE)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.create("A", FREE), "apigateway:GET")
        assert cfn.holders(FREE) == {holder("B")}

    @pytest.mark.parametrize("trouble", [BUSY, THROTTLED, BROKEN, LOST], ids=["busy", "throttled", "broken", "lost"])
    def test_passing_trouble(self, cfn: CloudFormation, trouble: Exception) -> None:
        """It is tried again until it passes."""
        cfn.at(CREATE, fails(trouble), fails(trouble))
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("trouble", [BUSY, THROTTLED], ids=["busy", "throttled"])
    def test_out_of_time(self, cfn: CloudFormation, trouble: ClientError) -> None:
        """FAILED with the attempts, the time and the last error. A clear refusal of each leaves nothing to hold."""
        cfn.at(CREATE, *[fails(trouble)] * 999)
        answer = cfn.create("A", FREE)
        assert failed(answer, "gave up after ", " attempts in 8", trouble.response["Error"]["Message"].rstrip("."))
        assert not cfn.entries

    @pytest.mark.parametrize("trouble", [BROKEN, LOST], ids=["broken", "lost"])
    def test_out_of_time_and_nobody_knows(self, cfn: CloudFormation, trouble: Exception) -> None:
        """Where an attempt may have been served the hold stays, so that the Delete that follows detaches it."""
        cfn.at(CREATE, served_then(trouble), *[fails(BUSY)] * 999)
        answer = cfn.create("A", FREE)
        assert failed(answer)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}
        cfn.delete("A", answer.id)
        assert not cfn.attached

    def test_a_lost_reply(self, cfn: CloudFormation) -> None:
        """The next attempt is refused as a duplicate, and finds its own: ATTACHED, and a Delete detaches it."""
        cfn.at(CREATE, served_then(LOST))
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_unusable_properties(self, cfn: CloudFormation) -> None:
        """All faults are named, and nothing is touched."""
        answer = cfn.send(cfn._request(Invalid, "A", physical_id=None, wanted=None, faults=("one", "two")))
        assert failed(answer, "one; two")
        assert answer.id == "A"
        assert not cfn.calls()

    def test_an_internal_error(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """CloudFormation is answered all the same; what may be attached stays held."""
        cfn.at(CREATE, served_then(ZeroDivisionError("oops")))
        assert failed(cfn.create("A", FREE), "internal error", "ZeroDivisionError: oops")
        assert cfn.holders(FREE) == {holder("A")}
        assert "An internal error" in caplog.text

    def test_no_ledger_to_write_to(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """A ledger that cannot be read fails the request and leaves nobody hanging."""

        def broken() -> None:
            raise FailedError("no table")

        request = cfn.a_create("A", FREE)
        cfn.tick = broken
        assert failed(served(cfn.service(request)), "no table")
        assert "could not be written down" in caplog.text
        assert not cfn.calls()


class TestMoving:
    """Between plans that share a stage."""

    def test_moved(self, cfn: CloudFormation) -> None:
        """The old one is detached and the wanted one attached; the Delete for the old one then has nothing to detach."""
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, PRO)
        assert outcome(answer) == "MOVED"
        assert answer.id == PRO
        assert cfn.attached == {PRO}
        assert cfn.holders(FREE) == {holder("A")}
        cfn.calls()
        assert cfn.delete("A", FREE).success
        assert not cfn.calls()
        assert not cfn.holders(FREE)

    @pytest.mark.parametrize("carried", [FREE, PRO], ids=["with the old id", "with the new id"])
    def test_moved_and_rolled_back(self, cfn: CloudFormation, carried: str) -> None:
        """The rollback moves it back."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        assert outcome(cfn.update("A", carried, FREE)) == "MOVED"
        cfn.delete("A", PRO)
        assert cfn.attached == {FREE}

    def test_marked_while_it_is_detached(self, cfn: CloudFormation) -> None:
        """Mark, then detach."""
        marks: list[AssociationRecord] = []
        cfn.create("A", FREE)
        cfn.at(DELETE, preceded_by(lambda: marks.append(cfn.entry(FREE))))
        request = cfn.an_update("A", FREE, PRO)
        cfn.send(request)
        assert [(entry.detaching is not None, entry.moved_by) for entry in marks] == [(True, request.id)]
        assert cfn.entry(FREE).detaching is None

    def test_a_detaching_takes_a_moment(self, cfn: CloudFormation) -> None:
        """DeleteUsagePlanKey answers 202: a refusal that still names the detached plan is retried, and nothing detached twice."""
        cfn.create("A", FREE)
        cfn.calls()
        cfn.at(DELETE, lambda _: {})
        cfn.at(CREATE, usual, usual, usual, preceded_by(lambda: cfn.by_hand(FREE, attached=False)))
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        assert cfn.attached == {PRO}
        assert cfn.calls()["CreateUsagePlanKey"] == 4

    def test_refused_for_good_after_the_detaching(self, cfn: CloudFormation) -> None:
        """The old one is attached again."""
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "apigateway:POST")
        assert cfn.attached == {FREE}
        assert cfn.entries == {pair(FREE): AssociationRecord(frozenset({holder("A")}), begun_by="request-2 again")}

    def test_neither_way(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """When the old one cannot be attached again either, the Reason and an ERROR say so, and it stays held to be repaired."""
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED), fails(BAD))
        assert failed(cfn.update("A", FREE, PRO), "apigateway:POST", "could not be attached again", "usage plan free")
        assert ("usage_plan_key.service", logging.ERROR, f"Not attached again: {FREE}") in caplog.record_tuples
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert cfn.attached == {FREE}

    def test_nobody_knows_whether_the_old_one_is_attached_again(self, cfn: CloudFormation) -> None:
        """A lost reply may have attached it, so the ledger no longer says that it was moved away, and its Delete detaches it."""
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED), served_then(LOST), fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "could not be attached again")
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).moved_by is None
        assert cfn.delete("A", FREE).success
        assert not cfn.attached

    def test_the_detaching_is_refused(self, cfn: CloudFormation) -> None:
        """What was not detached is as it was, without a mark."""
        cfn.create("A", FREE)
        earlier = dict(cfn.entries)
        cfn.at(DELETE, fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "apigateway:DELETE", "/usageplans/free/keys/alice")
        assert cfn.attached == {FREE}
        assert cfn.entries == earlier

    def test_taken_and_moved(self, cfn: CloudFormation) -> None:
        """What was there before may be moved once it was taken."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        cfn.update("A", FREE, FREE, TAKE)
        assert outcome(cfn.update("A", FREE, PRO, TAKE)) == "MOVED"

    def test_kept_from_it_by_what_was_there_before(self, cfn: CloudFormation) -> None:
        """What was adopted is not broken for a move: the Reason names the plan, the stage, who holds it and what to do."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        words = ["API key alice to usage plan pro", "usage plan free (Free)", "api:prod", "A of stack one, and was there before"]
        assert failed(cfn.update("A", FREE, PRO), *words, "first set OnExisting to Take, deploy, then change the plan")
        assert cfn.attached == {FREE}
        assert not cfn.holders(PRO)

    def test_kept_from_it_by_hand(self, cfn: CloudFormation) -> None:
        """What no stack holds is not touched."""
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", PRO), "usage plan free (Free)", "api:prod", "held by no stack")
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("stack", ["one", "two"])
    def test_kept_from_it_by_another(self, cfn: CloudFormation, stack: str) -> None:
        """What another resource holds too is not detached."""
        cfn.create("B", FREE, stack=stack)
        cfn.create("A", FREE, ADOPT)
        answer = cfn.update("A", FREE, PRO)
        assert failed(answer, f"held by A of stack one, B of stack {stack}, so it was left alone")
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).detaching is None

    def test_a_create_never_moves(self, cfn: CloudFormation) -> None:
        """What an earlier life of the resource retained stays retained."""
        cfn.create("A", FREE)
        assert failed(cfn.create("A", PRO), "usage plan free (Free)", "A of stack one")
        assert cfn.attached == {FREE}

    def test_all_or_none(self, cfn: CloudFormation) -> None:
        """Where one of several plans in the way is not ours, none is detached."""
        cfn.api.plans["beta"] = Plan("Beta", (("api", "beta"),))
        cfn.create("A", FREE)
        cfn.by_hand("alice:beta")
        assert failed(cfn.update("A", FREE, PRO), "usage plan beta (Beta)", "api:beta")
        assert cfn.attached == {FREE, "alice:beta"}

    def test_joined_on_the_way(self, cfn: CloudFormation) -> None:
        """What another resource has come to hold since the move began is not detached, and the move is undone."""
        cfn.api.plans["beta"] = Plan("Beta", (("api", "beta"),))
        cfn.create("A", FREE)
        cfn.update("A", FREE, "alice:beta")
        cfn.at(DELETE, followed_by(lambda: cfn.create("B", "alice:beta")))
        assert failed(cfn.update("A", FREE, PRO), "usage plan beta (Beta)", "B of stack one")
        assert cfn.attached == {FREE, "alice:beta"}

    def test_superseded_on_the_way(self, cfn: CloudFormation) -> None:
        """A move that CloudFormation gives up while it waits puts the old one back."""
        cfn.create("A", FREE)
        rollback = cfn.an_update("A", FREE, FREE, issued=int(cfn.clock.now) + 9)
        cfn.at(CREATE, usual, fails(BUSY))
        cfn.clock.meanwhile = [lambda: cfn.arrives(rollback)]
        assert failed(cfn.update("A", FREE, PRO), "Superseded")
        assert cfn.attached == {FREE}
        assert outcome(cfn.send(rollback)) == "VERIFIED"


class TestMovingAgain:
    """A function that has lately seen that two plans share a stage."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.warm = ApiGateway(cfn)  # type: ignore[arg-type]  # a fake
        cfn.create("A", FREE)
        cfn.create("B", "bob:free")
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        cfn.calls()
        return cfn

    def test_within_seconds(self, cfn: CloudFormation) -> None:
        """It takes two calls."""
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.calls() == {"DeleteUsagePlanKey": 1, "CreateUsagePlanKey": 1}
        assert cfn.attached == {PRO, "bob:pro"}

    def test_later(self, cfn: CloudFormation) -> None:
        """What was seen longer ago is looked at again."""
        cfn.clock.now += 61
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.calls()["GetUsagePlan"] == 1

    def test_what_it_may_not_detach(self, cfn: CloudFormation) -> None:
        """The rules are the same."""
        cfn.create("C", "bob:free")
        assert failed(cfn.update("B", "bob:free", "bob:pro"), "C of stack one")
        assert cfn.attached == {PRO, "bob:free"}

    def test_a_plan_that_has_lost_the_stage_seconds_ago(self, cfn: CloudFormation) -> None:
        """It is moved all the same: what was seen in the same batch counts. Once it is answered nothing is different."""
        cfn.api.plans["pro"] = Plan("Pro", (("api", "beta"),))
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.attached == {PRO, "bob:pro"}

    def test_a_plan_without_that_stage(self, cfn: CloudFormation) -> None:
        """Nothing is broken before it is made."""
        assert outcome(cfn.update("B", "bob:free", "bob:gold")) == "ATTACHED"
        assert cfn.attached == {PRO, "bob:free", "bob:gold"}


class TestResumable:
    """Served from the queue: out of the function's time, not of CloudFormation's, a request is served again."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.resumable = True
        return cfn

    def goes_on(self, cfn: CloudFormation, request: Request, operation: str, *steps: Step) -> Response:
        cfn.at(operation, *steps, *[fails(BUSY)] * 999)
        with pytest.raises(OutOfTimeError):
            cfn.send(request)
        assert request.id not in cfn.records[request.holder].answers
        cfn.at(operation)
        return cfn.send(request)

    def test_a_create_goes_on(self, cfn: CloudFormation) -> None:
        """It is not answered before it has come to an end."""
        assert outcome(self.goes_on(cfn, cfn.a_create("A", FREE), CREATE)) == "ATTACHED"
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_move_goes_on(self, cfn: CloudFormation) -> None:
        """What was detached is not attached again meanwhile, and stays held."""
        cfn.create("A", FREE)
        assert self.goes_on(cfn, cfn.an_update("A", FREE, PRO), CREATE, usual).success
        assert cfn.attached == {PRO}
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_move_goes_on_to_its_end(self, cfn: CloudFormation) -> None:
        """Where the attaching is refused for good at last, what was detached earlier is attached again."""
        cfn.create("A", FREE)
        request = cfn.an_update("A", FREE, PRO)
        cfn.at(CREATE, usual, *[fails(BUSY)] * 999)
        with pytest.raises(OutOfTimeError):
            cfn.send(request)
        assert not cfn.attached
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.send(request), "apigateway:POST")
        assert cfn.attached == {FREE}

    def test_a_delete_goes_on(self, cfn: CloudFormation) -> None:
        """Nothing is said to stay attached before it does."""
        cfn.create("A", FREE)
        assert self.goes_on(cfn, cfn.a_delete("A", FREE), DELETE).success
        assert not cfn.attached

    def test_refused_for_good(self, cfn: CloudFormation) -> None:
        """Only time is to be had again."""
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.create("A", FREE), "apigateway:POST")


class TestDelete:
    """What a Delete does."""

    def test_the_last_holder_detaches(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """With one call, and nothing is left in the ledger; the answer has the event's id."""
        cfn.create("A", FREE)
        cfn.calls()
        caplog.set_level(logging.INFO)
        answer = cfn.delete("A", FREE)
        assert answer.success
        assert (answer.id, answer.at) == (FREE, int(cfn.clock.now))
        assert cfn.calls() == {"DeleteUsagePlanKey": 1}
        assert "nothing is touched" not in caplog.text
        assert not cfn.attached
        assert not cfn.entries

    @pytest.mark.parametrize(
        ("id_", "shown"),
        [(FREE, FREE), ("stack-A-1ABC", "stack-A-1ABC"), ("s3cr3t-s3cr3t-s3cr3t:free", "a foreign id of 25 characters")],
    )
    def test_not_held(self, cfn: CloudFormation, id_: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
        """SUCCESS with the event's own id; nothing is touched, and a line in the log says so."""
        caplog.set_level(logging.INFO)
        cfn.by_hand(FREE)
        answer = cfn.delete("A", id_)
        assert answer.success
        assert answer.id == id_
        assert not cfn.calls()
        assert f"does not hold {shown}: nothing is touched" in caplog.text

    @pytest.mark.parametrize("gone", ["association", "plan", "key"])
    def test_not_found_is_forgiven(self, cfn: CloudFormation, gone: str) -> None:
        """Whatever part of it is gone."""
        cfn.create("A", FREE)
        cfn.by_hand(FREE, attached=False)
        cfn.api.plans.pop("free" if gone == "plan" else "", None)
        cfn.api.keys.pop("alice" if gone == "key" else "", None)
        assert cfn.delete("A", FREE).success
        assert not cfn.entries

    def test_an_invented_id(self, cfn: CloudFormation) -> None:
        """CloudFormation makes one up when a Create was cancelled: all that it took is released."""
        cfn.create("A", FREE)
        assert cfn.delete("A", "invented").id == "invented"
        assert not cfn.attached

    def test_it_must_fail(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """The Reason and an ERROR name what stays attached, and it stays held, so that another Delete succeeds."""
        cfn.create("A", FREE)
        cfn.at(DELETE, fails(DENIED))
        answer = cfn.delete("A", FREE)
        assert failed(answer, "apigateway:DELETE", "What stays attached: API key alice in usage plan free")
        assert answer.id == FREE
        assert (logging.ERROR, answer.reason) in [(level, text) for _, level, text in caplog.record_tuples]
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))
        assert cfn.delete("A", FREE).success
        assert not cfn.attached

    def test_out_of_time(self, cfn: CloudFormation) -> None:
        """It names the attempts and what stays attached."""
        cfn.create("A", FREE)
        cfn.at(DELETE, *[fails(BUSY)] * 999)
        assert failed(cfn.delete("A", FREE), "gave up after", "What stays attached: API key alice in usage plan free")

    def test_it_fails_and_nobody_knows_whether_it_is_detached(self, cfn: CloudFormation) -> None:
        """The mark stays, so nobody joins what may be gone; the next Delete finishes it."""
        cfn.create("A", FREE)
        cfn.at(DELETE, served_then(LOST), fails(DENIED))
        assert failed(cfn.delete("A", FREE), "apigateway:DELETE")
        assert cfn.entry(FREE).detaching is not None
        assert cfn.delete("A", FREE).success
        assert not cfn.entries

    def test_the_first_of_several_fails(self, cfn: CloudFormation) -> None:
        """All that stays attached is named, also what was not tried."""
        cfn.create("A", FREE)
        cfn.update("A", "other", "bob:free")
        cfn.at(DELETE, fails(DENIED))
        assert failed(cfn.delete("A", "invented"), "What stays attached: API key alice in", ", API key bob in usage plan free")

    def test_the_last_of_several_fails(self, cfn: CloudFormation) -> None:
        """There is no SUCCESS before all is released; what is detached already is not named."""
        cfn.create("A", FREE)
        cfn.update("A", "other", "bob:free")
        cfn.at(DELETE, usual, fails(DENIED))
        answer = cfn.delete("A", "invented")
        assert failed(answer, "What stays attached: API key bob in usage plan free")
        assert "alice" not in answer.reason
        assert cfn.attached == {"bob:free"}

    @pytest.mark.parametrize("id_", [FREE, "invented"])
    def test_nothing_that_is_wanted_again(self, cfn: CloudFormation, id_: str) -> None:
        """A Delete that is served after a newer Update has arrived leaves alone what that wants."""
        cfn.create("A", FREE)
        late = cfn.a_delete("A", id_)
        cfn.arrives(cfn.an_update("A", GOLD, FREE))
        cfn.send(late)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}


class TestWaiting:
    """Somebody is detaching what is wanted."""

    @pytest.fixture
    def dead(self, cfn: CloudFormation) -> Delete:
        """B's Delete has died between its mark and its call."""
        cfn.create("B", FREE)
        request = cfn.a_delete("B", FREE)
        cfn.at(DELETE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        assert cfn.entry(FREE).detaching is not None
        return request

    def test_until_it_is_done(self, cfn: CloudFormation, dead: Delete) -> None:
        """It waits for the mark to go, and then attaches; the marker's own next delivery finishes it."""
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.send(dead)]
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.holders(FREE) == {holder("A")}
        assert cfn.attached == {FREE}

    def test_in_vain(self, cfn: CloudFormation, dead: Delete) -> None:
        """Out of time it is FAILED, naming whom it waited for; the mark and the association are left alone."""
        cfn.seconds = 300
        assert failed(cfn.create("A", FREE), "API key alice to usage plan free", "being detached for B of stack one")
        assert cfn.holders(FREE) == {dead.holder}
        assert cfn.attached == {FREE}

    def test_a_stale_mark(self, cfn: CloudFormation, dead: Delete) -> None:
        """What a function has marked that can run no more is finished by whoever waits for it."""
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now = marked - 1.5
        waits: list[float] = []
        cfn.clock.meanwhile = [lambda: waits.append(cfn.clock.now)] * 9
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert len(waits) == 1
        assert cfn.holders(FREE) == {holder("A")}
        assert dead.holder not in cfn.records or not cfn.records[dead.holder].holds

    def test_a_mark_says_until_when_its_function_can_run(self, cfn: CloudFormation) -> None:
        """So whoever waits after a death waits no longer than that function could have run."""
        cfn.create("A", FREE)
        cfn.dies = 90
        dies_at(cfn, cfn.a_delete("A", FREE))
        assert cfn.entry(FREE).detaching == int(cfn.clock.now) + 90 + MOST_SKEW

    def test_a_stale_mark_that_its_marker_finishes_first(
        self, cfn: CloudFormation, dead: Delete, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between its look and its turn to finish, the marker's Delete ends and a third resource attaches the key."""
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now = marked
        change = cfn.change

        def preceded(holder_: Holder, *rest: Any) -> Snapshot:
            if holder_ == dead.holder:
                monkeypatch.setattr(cfn, "change", change)
                assert cfn.send(dead).success
                assert outcome(cfn.create("C", FREE)) == "ATTACHED"
            return change(holder_, *rest)

        monkeypatch.setattr(cfn, "change", preceded)
        assert outcome(cfn.create("A", FREE)) == "JOINED"
        assert cfn.calls()["DeleteUsagePlanKey"] == 1, "the marker's"
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A"), holder("C")}

    @pytest.mark.parametrize("wanted", [FREE, GOLD], ids=["the same", "another"])
    def test_its_own_mark(self, cfn: CloudFormation, dead: Delete, wanted: str) -> None:
        """The holder's next request finishes at once what its dead one began."""
        began = cfn.clock.now
        assert outcome(cfn.update("B", "former", wanted)) == "ATTACHED"
        assert cfn.clock.now - began == 1
        assert cfn.attached == {wanted}
        assert cfn.entry(FREE).detaching is None

    def test_a_superseded_request_finishes_nothing(self, cfn: CloudFormation, dead: Delete) -> None:
        """It touches nothing, what its dead predecessor began included."""
        late = cfn.an_update("B", FREE, GOLD)
        cfn.arrives(cfn.an_update("B", FREE, PRO))
        cfn.calls()
        assert failed(cfn.send(late), "Superseded")
        assert not cfn.calls()
        assert cfn.holders(FREE) == {dead.holder}

    def test_superseded_while_it_waits(self, cfn: CloudFormation, dead: Delete) -> None:
        """What CloudFormation gives up meanwhile is passed over, and touches nothing."""
        request = cfn.a_create("A", FREE)
        cfn.clock.meanwhile = [lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        cfn.calls()
        assert failed(cfn.send(request), "Superseded")
        assert cfn.holders(FREE) == {dead.holder}
        assert not cfn.calls()


class TestOrder:
    """The newest request wins; the same request gets the same answer."""

    @pytest.mark.parametrize("kind", [Create, Update])
    def test_superseded(self, cfn: CloudFormation, kind: type[Request]) -> None:
        """A Create or an Update is FAILED when a newer request has arrived, and touches nothing."""
        late = cfn.a_create("A", FREE) if kind is Create else cfn.an_update("A", GOLD, FREE)
        cfn.arrives(cfn.a_delete("A", "invented"))
        answer = cfn.send(late)
        assert failed(answer, "Superseded", "nothing was touched")
        assert answer.id == late.answer_id
        assert not cfn.calls()
        assert not cfn.entries

    def test_superseded_between_two_attempts(self, cfn: CloudFormation) -> None:
        """It stops at the next pause and takes back its hold."""
        cfn.at(CREATE, *[fails(BUSY)] * 9)
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        assert failed(cfn.create("A", FREE), "Superseded")
        assert not cfn.entries
        assert not cfn.attached

    def test_without_issue_times_there_is_no_fence(self, cfn: CloudFormation) -> None:
        """What comes is served as if it were new."""
        late = cfn.a_create("A", FREE, issued=None)
        cfn.send(cfn.a_delete("A", "invented", issued=None))
        assert outcome(cfn.send(late)) == "ATTACHED"

    def test_the_same_answer(self, cfn: CloudFormation) -> None:
        """A request that comes again is given its answer again, whatever has come since, and nothing is touched."""
        request = cfn.a_create("A", FREE)
        answer = cfn.send(request)
        cfn.delete("A", FREE)
        cfn.calls()
        assert cfn.send(request) == answer
        assert not cfn.attached
        assert not cfn.calls()

    def test_the_same_failure(self, cfn: CloudFormation) -> None:
        """FAILED stays FAILED, also when it would succeed by now."""
        request = cfn.a_create("A", "alice:nope")
        answer = cfn.send(request)
        cfn.api.plans["nope"] = Plan("Nope")
        assert cfn.send(request) == answer
        assert not cfn.attached

    def test_the_value_is_never_written_down(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """It goes out where it was asked for alone, and is looked up for an answer that goes out again."""
        request = cfn.a_create("A", FREE, include_value=True)
        assert cfn.send(request).value == "value-of-alice"
        assert "value-of-alice" not in repr(cfn.records)
        assert cfn.send(request).value == "value-of-alice"
        assert cfn.send(cfn.an_update("A", FREE, FREE)).value is None
        cfn.at(GET, fails(DENIED))
        assert cfn.send(request).value is None
        cfn.by_hand(FREE, attached=False)
        assert cfn.send(request).value is None
        assert "An internal error" not in caplog.text

    def test_a_value_that_there_is_no_time_to_look_up_is_looked_up_in_the_next_turn(self, cfn: CloudFormation) -> None:
        """Else the answer would go out without the value, and Fn::GetAtt would fail."""
        request = cfn.a_create("A", FREE, include_value=True)
        first = cfn.send(request)
        cfn.resumable = True
        cfn.at(GET, *[fails(THROTTLED)] * 999)
        with pytest.raises(TurnOverError):
            cfn.send(request)
        cfn.at(GET)
        assert cfn.send(request) == first

    def test_who_prints_what_was_served_prints_no_value(self) -> None:
        assert "value-of-alice" not in repr(Response(success=True, id=FREE, value="value-of-alice"))


Given = Callable[[CloudFormation], Request]


def _fresh(cfn: CloudFormation) -> Request:
    return cfn.a_create("A", FREE)


def _joining(cfn: CloudFormation) -> Request:
    cfn.create("B", FREE)
    return cfn.a_create("A", FREE)


def _repairing(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.by_hand(FREE, attached=False)
    return cfn.an_update("A", FREE, FREE)


def _taking(cfn: CloudFormation) -> Request:
    cfn.by_hand(FREE)
    cfn.create("A", FREE, TAKE)
    return cfn.an_update("A", FREE, FREE, TAKE)


def _replacing(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.an_update("A", FREE, GOLD)


def _moving(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.an_update("A", FREE, PRO)


def _moving_back(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.update("A", FREE, PRO)
    return cfn.an_update("A", FREE, FREE)


def _deleting(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.a_delete("A", FREE)


def _deleting_one_of_two(cfn: CloudFormation) -> Request:
    cfn.create("B", FREE)
    cfn.create("A", FREE)
    return cfn.a_delete("A", FREE)


def _deleting_all(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.update("A", FREE, GOLD)
    return cfn.a_delete("A", "invented")


@pytest.mark.parametrize(
    "given",
    [
        _fresh, _joining, _repairing, _taking, _replacing, _moving, _moving_back, _deleting, _deleting_one_of_two, _deleting_all
    ],
)  # fmt: skip
def test_a_death_between_any_two_steps_is_harmless(given: Given) -> None:
    """Whichever call or write was the last, the next delivery comes to what would have been."""
    undisturbed = CloudFormation()
    expected = undisturbed.send(given(undisturbed))
    assert expected.success
    for last in itertools.count(1):
        cfn = CloudFormation()
        request = given(cfn)
        steps = itertools.count(1)

        def tick(last: int = last, steps: Iterator[int] = steps) -> None:
            if next(steps) == last:
                raise Death

        cfn.tick = tick
        try:
            cfn.send(request)
        except Death:
            cfn.tick = lambda: None
        else:
            assert last > 4
            break
        answer = cfn.send(request)
        assert (answer.success, answer.id) == (True, expected.id), f"step {last}: {answer.reason}"
        assert cfn.attached == undisturbed.attached, f"step {last}"
        assert cfn.holders(FREE) == undisturbed.holders(FREE), f"step {last}"
        assert not [entry for entry in cfn.entries.values() if entry.detaching]
        marks = [[(entry.preexisting, entry.taken_over) for entry in ledger.entries.values()] for ledger in (cfn, undisturbed)]
        assert marks[0] == marks[1], f"step {last}"


class TestNoLedger:
    """No table is configured: the event is taken at its word."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.has_ledger = False
        return cfn

    def test_a_resource_holds_what_its_id_names(self, cfn: CloudFormation) -> None:
        """So it is created, verified, repaired, moved and deleted."""
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        assert cfn.delete("A", PRO).success
        assert not cfn.attached
        assert not cfn.records

    def test_a_create_holds_nothing_yet(self, cfn: CloudFormation) -> None:
        """What is there already was there before."""
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", FREE), "Adopt", "Take")
        assert outcome(cfn.create("A", FREE, ADOPT)) == "ADOPTED"

    def test_a_foreign_id_names_nothing(self, cfn: CloudFormation) -> None:
        """Its Delete touches nothing."""
        cfn.by_hand(FREE)
        assert cfn.delete("A", "invented").success
        assert not cfn.calls()


class TestAtTheSameTime:
    """Without a queue, and between stacks, requests are served at the same time."""

    @pytest.mark.parametrize(("stack", "on_existing"), [("one", FAIL), ("two", ADOPT)], ids=["a sibling", "another stack"])
    def test_two_want_it(self, cfn: CloudFormation, stack: str, on_existing: OnExisting) -> None:
        """One attaches it, the other one joins; the last to go detaches it."""
        cfn.at(CREATE, preceded_by(lambda: cfn.create("B", FREE, on_existing, stack=stack)))
        assert outcome(cfn.create("A", FREE)) == "JOINED"
        cfn.delete("A", FREE)
        assert cfn.attached == {FREE}
        cfn.delete("B", FREE, stack=stack)
        assert not cfn.attached

    @pytest.mark.parametrize("on_existing", [FAIL, ADOPT])
    def test_one_request_twice(self, cfn: CloudFormation, on_existing: OnExisting) -> None:
        """Both deliveries give the answer of the first, and what that attached is held and ours."""
        request = cfn.a_create("A", FREE, on_existing)
        first: list[Response] = []
        cfn.at(CREATE, preceded_by(lambda: first.append(cfn.send(request))))
        assert cfn.send(request) == first[0]
        assert outcome(first[0]) == "ATTACHED"
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))

    def test_one_request_twice_and_one_dies(self, cfn: CloudFormation) -> None:
        """What a delivery attached before it died is this resource's own."""
        request = cfn.a_create("A", FREE)

        def other_delivery() -> None:
            with pytest.raises(Death):
                cfn.send(request)

        cfn.at(CREATE, preceded_by(other_delivery), served_then(Death()))
        assert cfn.send(request).success
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))

    def test_one_request_twice_and_one_is_refused(self, cfn: CloudFormation) -> None:
        """A delivery that fails takes nothing back from one that has succeeded."""
        request = cfn.a_create("A", FREE)

        def other_delivery(_: Callable[[], Any]) -> Any:
            assert cfn.send(request).success
            raise DENIED

        cfn.at(CREATE, other_delivery)
        assert cfn.send(request).success
        assert cfn.holders(FREE) == {holder("A")}

    def test_repaired_while_somebody_joins(self, cfn: CloudFormation) -> None:
        """Whoever joins meanwhile does not put back the mark `before`, which the repair has cleared."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(GET, preceded_by(lambda: cfn.update("A", FREE, FREE, ADOPT)))
        cfn.create("B", FREE)
        cfn.delete("A", FREE)
        cfn.delete("B", FREE)
        assert not cfn.attached

    def test_joined_before_it_was_known_to_be_there(self, cfn: CloudFormation) -> None:
        """What was there before both is not ours, though the other held it too when the refusal came."""
        cfn.by_hand(FREE)
        cfn.at(CREATE, preceded_by(lambda: cfn.create("B", FREE)))
        cfn.create("A", FREE)
        cfn.delete("A", FREE)
        cfn.delete("B", FREE)
        assert cfn.attached == {FREE}


class TestHalfWay:
    """What failed after something had been attached."""

    @pytest.mark.parametrize("operation", [GET, "get_usage_plans"])
    def test_a_lost_reply_and_no_look(self, cfn: CloudFormation, operation: str) -> None:
        """Where an attempt may have been served the hold stays, also when it cannot be looked at afterwards."""
        step = served_then(LOST) if operation == GET else fails(LOST)
        cfn.at(CREATE, step, fails(error(409, "ConflictException", "Conflict")))
        cfn.at(operation, fails(DENIED))
        assert failed(cfn.create("A", FREE))
        assert cfn.holders(FREE) == {holder("A")}

    def test_repaired_and_a_leftover_stays(self, cfn: CloudFormation) -> None:
        """What was repaired is ours, also when the Update fails for what a superseded one left."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.update("A", FREE, GOLD)
        cfn.by_hand(FREE, attached=False)
        cfn.at(DELETE, fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT), "apigateway:DELETE")
        assert FREE in cfn.attached
        assert not cfn.entry(FREE).preexisting

    def test_moved_back_in_vain(self, cfn: CloudFormation) -> None:
        """Where somebody has put the key into a third plan for the stage, the Reason says that the old one is detached."""
        cfn.api.plans["third"] = Plan("Third", (("api", "prod"),))
        cfn.create("A", FREE)
        cfn.at(DELETE, followed_by(lambda: cfn.by_hand("alice:third")))
        assert failed(cfn.update("A", FREE, PRO), "usage plan third (Third)", "could not be attached again")
        assert not cfn.holders(PRO), "what was not attached is let go of all the same"

    @pytest.mark.parametrize("known", [False, True], ids=["seen for the first time", "known"])
    @pytest.mark.parametrize("resumable", [False, True], ids=["to be answered", "resumable"])
    def test_a_move_with_time_for_the_detaching_alone(self, cfn: CloudFormation, known: bool, resumable: bool) -> None:
        """Nothing is detached unless there is time to undo it."""
        cfn.warm = ApiGateway(cfn)  # type: ignore[arg-type]  # a fake
        cfn.create("A", FREE)
        if known:
            cfn.create("B", "bob:free")
            cfn.update("B", "bob:free", "bob:pro")
        cfn.seconds, cfn.resumable = BEFORE_CALL + 5, resumable
        update = cfn.an_update("A", FREE, PRO)
        if resumable:
            with pytest.raises(OutOfTimeError):
                cfn.send(update)
        else:
            assert failed(cfn.send(update), "no time was left")
        assert FREE in cfn.attached

    def test_a_detaching_that_other_worker_has_finished(self, cfn: CloudFormation) -> None:
        """After a pause it looks whether its mark still stands: by then the key may be somebody else's."""
        cfn.create("A", FREE)
        delete = cfn.a_delete("A", FREE)

        def other_worker() -> None:
            cfn.at(DELETE)
            assert cfn.send(delete).success
            assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [other_worker]
        assert cfn.send(delete).success
        assert cfn.attached == {FREE}

    def test_a_delete_of_what_a_dead_move_has_marked(self, cfn: CloudFormation) -> None:
        """It lets go of it: no holder is left that no stack has."""
        cfn.create("A", FREE)
        cfn.at(DELETE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(cfn.an_update("A", FREE, PRO))
        assert cfn.delete("A", FREE).success
        assert not cfn.attached
        assert pair(FREE) not in cfn.entries

    def test_a_delete_after_a_failed_update_and_no_rollback(self, cfn: CloudFormation) -> None:
        """What the Update may have attached goes, too."""
        cfn.create("A", FREE)
        cfn.seconds = 60
        cfn.at(CREATE, served_then(BROKEN), *[fails(BROKEN)] * 99)
        assert failed(cfn.update("A", FREE, GOLD))
        cfn.seconds = 900
        cfn.at(CREATE)
        assert cfn.delete("A", FREE).success
        assert not cfn.attached
        assert not cfn.entries


class TestLost:
    """A rollback succeeds though its key or its plan is gone; nothing else does."""

    @staticmethod
    def gone(cfn: CloudFormation, thing: str = "alice") -> None:
        """Somebody deletes the key, or the plan."""
        cfn.api.attached = {pair for pair in cfn.api.attached if thing not in pair}
        cfn.api.keys.pop(thing, None)
        cfn.api.plans.pop(thing, None)

    @pytest.mark.parametrize("thing", ["alice", "free"])
    def test_a_failed_update_is_taken_back_though_the_key_is_gone(
        self, cfn: CloudFormation, thing: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn, thing)
        assert failed(
            cfn.update("A", FREE, FREE, ADOPT, digest="P2"), "there is no", "alice" if thing == "alice" else "plan free"
        )
        answer = cfn.update("A", FREE, FREE, digest="P1")
        assert outcome(answer) == "LOST"
        assert (answer.id, answer.key_name) == (FREE, "Key of alice")
        assert any("LOST" in record.message for record in caplog.records if record.levelname == "ERROR")
        assert failed(cfn.update("A", FREE, FREE, digest="P3"), "there is no"), "the next deploy fails again"
        assert outcome(cfn.update("A", FREE, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", FREE).success

    def test_what_is_lost_does_not_count_as_attached(self, cfn: CloudFormation) -> None:
        """Whoever puts the key back later has put it there, so it stays when the resource goes."""
        cfn.create("A", FREE, digest="P1")
        cfn.delete("A", FREE)
        cfn.create("A", GOLD, digest="P1")
        self.gone(cfn)
        assert outcome(cfn.update("A", GOLD, FREE, digest="P1")) == "LOST"
        assert cfn.entry(FREE).begun_by is not None

    @pytest.mark.parametrize("carried", [FREE, GOLD])
    def test_an_update_that_succeeded_is_taken_back_though_the_key_is_gone(self, cfn: CloudFormation, carried: str) -> None:
        """What it had left is wanted again, and no Delete has come for it."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        self.gone(cfn)
        assert outcome(cfn.update("A", carried, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", GOLD).success
        assert cfn.holders(FREE) == {holder("A")}

    def test_after_its_delete_what_was_left_is_wanted_anew(self, cfn: CloudFormation) -> None:
        """The clean-up's Delete failed, so it is still held: an Update that wants it is a deployment, and fails."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        cfn.at(DELETE, fails(DENIED))
        assert not cfn.delete("A", FREE).success
        self.gone(cfn)
        assert failed(cfn.update("A", GOLD, FREE, digest="P3"), "there is no")

    def test_an_update_fails_though_it_wants_what_it_had_before(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, FREE, digest="P2")
        self.gone(cfn)
        assert failed(cfn.update("A", FREE, FREE, digest="P3"), "there is no")

    def test_a_create_fails(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn)
        assert failed(cfn.create("A", FREE, digest="P1"), "there is no")

    def test_without_a_ledger_nothing_is_lost(self, cfn: CloudFormation) -> None:
        cfn.has_ledger = False
        self.gone(cfn)
        assert failed(cfn.update("A", FREE, FREE, digest="P1"), "there is no")

    def test_a_value_that_was_asked_for_is_empty(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn)
        served = cfn.send(cfn.an_update("A", FREE, FREE, digest="P1", include_value=True))
        assert (served.outcome, served.value) == ("LOST", "")

    def test_a_move_is_taken_back_though_the_key_is_gone(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        assert outcome(cfn.update("A", FREE, PRO, digest="P2")) == "MOVED"
        self.gone(cfn)
        assert outcome(cfn.update("A", PRO, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", PRO).success
        assert cfn.delete("A", FREE).success
        assert not cfn.entries


class TestTakenThenMoved:
    """What was taken over can be moved by the next deployment, whose rollback leaves it as it was."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        return cfn

    def test_it_is_taken_over_by_the_move(self, cfn: CloudFormation) -> None:
        assert outcome(cfn.update("A", FREE, PRO, TAKE, took=True)) == "MOVED"
        assert cfn.attached == {PRO}
        assert cfn.delete("A", FREE, take=True).success
        assert cfn.delete("A", PRO, take=True).success
        assert not cfn.attached
        assert not cfn.entries

    @pytest.mark.parametrize(("on_existing", "took"), [(TAKE, False), (ADOPT, True), (FAIL, True)])
    def test_old_and_new_properties_have_to_say_so(self, cfn: CloudFormation, on_existing: OnExisting, took: bool) -> None:
        assert failed(cfn.update("A", FREE, PRO, on_existing, took=took), "was there before it, so it was left alone")
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("carried", [FREE, PRO])
    def test_rolled_back_it_was_there_before(self, cfn: CloudFormation, carried: str) -> None:
        cfn.update("A", FREE, PRO, TAKE, took=True)
        assert cfn.update("A", carried, FREE, TAKE, took=True).success
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).preexisting
        assert cfn.delete("A", PRO, take=True).success
        assert cfn.delete("A", FREE, take=True).success
        assert cfn.attached == {FREE}, "it was never taken"

    def test_undone_at_once_it_was_there_before(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, usual, fails(DENIED))
        assert not cfn.update("A", FREE, PRO, TAKE, took=True).success
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).preexisting
        assert cfn.entry(FREE).moved_by is None

    def test_a_rollback_takes_nothing_over(self, cfn: CloudFormation) -> None:
        """What it wants this resource has held before."""
        cfn.update("A", FREE, GOLD, TAKE)
        cfn.by_hand(PRO, attached=True) if FREE not in cfn.attached else None
        assert cfn.entry(FREE).preexisting
        assert cfn.update("A", GOLD, FREE, TAKE, took=True).success
        assert cfn.entry(FREE).preexisting


class TestMovedAway:
    """What was moved away from is let go of with the present association, at the latest."""

    def test_with_update_replace_policy_retain_nothing_stays_held(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        assert cfn.holders(FREE), "a rollback may want it"
        assert cfn.delete("A", PRO).success
        assert not cfn.attached
        assert not cfn.entries

    def test_a_delete_of_the_old_one_leaves_the_rest(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        cfn.delete("A", FREE)
        assert cfn.holders(PRO) == {holder("A")}
        assert cfn.attached == {PRO}

    def test_what_was_retained_stays_held(self, cfn: CloudFormation) -> None:
        """It was replaced, not moved away from."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        cfn.delete("A", GOLD)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}


class TestWhoseItIs:
    """What is there is ours from the moment at which one of us has set about attaching it."""

    def test_who_joined_a_hold_that_came_to_nothing_detaches_nothing(self, cfn: CloudFormation) -> None:
        """Stack one holds it and is superseded before it attaches; stack two, with Adopt, has joined meanwhile."""
        cfn.by_hand(FREE)
        request = cfn.a_create("A", FREE)

        def meanwhile() -> None:
            assert cfn.create("B", FREE, ADOPT, stack="two").success
            cfn.arrives(cfn.a_delete("A", "invented"))

        cfn.at(CREATE, fails(BUSY))
        cfn.clock.meanwhile = [meanwhile]
        assert failed(cfn.send(request), "Superseded")
        assert cfn.delete("B", FREE, stack="two").success
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("on_existing", [FAIL, ADOPT])
    def test_who_joins_what_nobody_has_begun_to_attach_finds_what_was_there_before(
        self, cfn: CloudFormation, on_existing: OnExisting
    ) -> None:
        cfn.create("A", FREE)
        cfn.entries[pair(FREE)] = cfn.entry(FREE)._replace(begun_by=NOBODY)
        answer = cfn.create("B", FREE, on_existing)
        assert cfn.entry(FREE).preexisting
        if on_existing is FAIL:
            assert failed(answer, "it is there already")
            assert cfn.holders(FREE) == {holder("A")}
        else:
            assert outcome(answer) == "ADOPTED"

    def test_a_hold_whose_reply_was_lost_is_read_back(self, cfn: CloudFormation) -> None:
        """Its turn ends with nothing begun: what is found there next was there before."""
        cfn.by_hand(FREE)
        cfn.lose_writes = 1
        assert failed(cfn.create("A", FREE), "nobody knows")
        assert not cfn.holders(FREE)
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}

    def test_a_late_create_of_an_older_life_does_not_keep_the_key_attached(self, cfn: CloudFormation) -> None:
        late = cfn.a_create("A", FREE)
        cfn.create("A", FREE)
        assert failed(cfn.send(late), "Superseded")
        assert cfn.delete("A", FREE).success
        assert not cfn.attached


class TestLate:
    def test_one_that_comes_when_its_time_is_over_is_not_newer_than_another_of_its_second(self, cfn: CloudFormation) -> None:
        """Its first delivery found no ledger; the next Create has attached the key since."""
        request = cfn.a_create("A", FREE)
        assert cfn.create("A", FREE, issued=request.issued).success
        cfn.is_over = True
        assert not cfn.send(request).success
        cfn.is_over = False
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()


class TestValue:
    """API Gateway's reply may lack the value that IncludeValue asks for."""

    @staticmethod
    def without(call: Callable[[], Any]) -> Any:
        reply = call()
        del reply["value"]
        return reply

    def test_it_is_looked_for(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, self.without)
        assert cfn.send(cfn.a_create("A", FREE, include_value=True)).value == cfn.api.keys["alice"].value
        assert cfn.calls() == {"CreateUsagePlanKey": 1, "GetUsagePlanKey": 1}

    def test_without_one_the_answer_has_none(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        """What is attached stays; where Fn::GetAtt asks for it, CloudFormation takes it back."""
        cfn.at(CREATE, self.without)
        cfn.at(GET, self.without)
        served = cfn.send(cfn.a_create("A", FREE, include_value=True))
        assert (served.success, served.value) == (True, None)
        assert "does not return the value of API key alice" in caplog.text
        assert cfn.attached == {FREE}

    def test_who_does_not_ask_for_it_does_not_miss_it(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, self.without)
        assert cfn.create("A", FREE).success
        assert cfn.calls() == {"CreateUsagePlanKey": 1}


class TestFailedBefore:
    """What a failed request may have attached is nobody's, and goes: CloudFormation never believed in it."""

    def unclear(self, cfn: CloudFormation, request: Create | Update) -> None:
        """It is attached, its reply is lost, and the request fails."""
        cfn.at(CREATE, served_then(LOST), fails(DENIED))
        assert not cfn.send(request).success
        cfn.at(CREATE)

    def test_a_create_in_express_mode_and_then_another(self, cfn: CloudFormation) -> None:
        """No Delete follows the first; the second Create does not take it for retained."""
        self.unclear(cfn, cfn.a_create("A", FREE))
        assert cfn.attached == {FREE}
        assert cfn.create("A", GOLD).success
        assert cfn.delete("A", GOLD).success
        assert cfn.attached == set()

    def test_the_same_create_once_more_which_fails_again(self, cfn: CloudFormation) -> None:
        self.unclear(cfn, cfn.a_create("A", FREE))
        cfn.at(GET, fails(DENIED))
        assert not cfn.create("A", FREE).success
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()

    def test_an_update_without_a_rollback_is_remembered_for_longer_than_its_answer(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        self.unclear(cfn, cfn.an_update("A", FREE, GOLD))
        cfn.clock.now += 2 * REMEMBERED
        assert cfn.update("A", FREE, FREE).success
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()

    def test_what_a_success_took_up_is_its_own(self, cfn: CloudFormation) -> None:
        """Without issue times too: the clean-up of the old one leaves it attached."""
        cfn.create("A", FREE, issued=None)
        self.unclear(cfn, cfn.an_update("A", FREE, GOLD, issued=None))
        assert outcome(cfn.update("A", FREE, GOLD, issued=None)) == "VERIFIED"
        assert cfn.delete("A", FREE, issued=None).success
        assert cfn.attached == {GOLD}


class TestBoundLost:
    def test_an_update_that_goes_back_a_month_later_is_no_rollback(self, cfn: CloudFormation) -> None:
        """Under UpdateReplacePolicy Retain no Delete has come for what it goes back to."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        del cfn.api.plans["free"]
        cfn.clock.now += 30 * REMEMBERED
        assert failed(cfn.update("A", GOLD, FREE, digest="P3"), "there is no usage plan free")

    def test_given_again_it_has_the_same_value(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        del cfn.api.plans["free"]
        request = cfn.an_update("A", FREE, FREE, digest="P1", include_value=True)
        first = cfn.send(request)
        assert (first.outcome, first.value) == ("LOST", "")
        assert cfn.send(request) == first


class TestOutOfReach:
    """The ledger is, just when a mark is to be written."""

    def test_a_clear_refusal_is_written_down_at_the_last_moment(self, cfn: CloudFormation) -> None:
        """API Gateway says that the key is there already; the mark `before` cannot be written, but a little later it can."""
        cfn.by_hand(FREE)
        cfn.at(GET, followed_by(lambda: cfn.outage(2)))
        answer = cfn.create("A", FREE)
        assert failed(answer, "the ledger is out of reach")
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}

    def test_a_move_that_died_is_undone_where_the_next_delivery_fails_before_it_attaches(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        request = cfn.an_update("A", FREE, PRO)
        cfn.at(DELETE, followed_by(lambda: cfn.at(CREATE, fails(Death()))))
        with pytest.raises(Death):
            cfn.send(request)
        assert cfn.attached == set()
        cfn.at(CREATE)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.send(request), "permission is missing")
        assert cfn.attached == {FREE}

    def test_a_detaching_that_may_have_been_served_keeps_its_mark(self, cfn: CloudFormation) -> None:
        """The move's next delivery knows what to attach again."""

        def late(_: Callable[[], Any]) -> Any:
            cfn.clock.now += 89
            raise error(409, "ConflictException", "odd")

        cfn.create("A", FREE)
        cfn.resumable, cfn.seconds = True, 100
        cfn.at(DELETE, served_then(LOST), late)
        request = cfn.an_update("A", FREE, PRO)
        with pytest.raises(TurnOverError):
            cfn.send(request)
        assert cfn.entry(FREE).moved_by == request.id


class TestOver:
    """A request whose time is over touches nothing: CloudFormation may have been told that it failed."""

    @pytest.mark.parametrize("kind", ["create", "update", "delete"])
    def test_it_is_answered_failed_and_nothing_else(self, cfn: CloudFormation, kind: str) -> None:
        cfn.create("A", FREE)
        cfn.calls()
        before = dict(cfn.entries)
        cfn.is_over = True
        asked: dict[str, Request] = {
            "create": cfn.a_create("B", GOLD),
            "update": cfn.an_update("A", FREE, GOLD),
            "delete": cfn.a_delete("A", FREE),
        }
        service = cfn.service(asked[kind])
        answer = served(service)
        assert failed(answer, "was over before its turn came")
        assert (cfn.calls(), cfn.entries) == ({}, before)
        cfn.is_over = False
        assert served(cfn.service(asked[kind])) == answer, "the same again, though there is time"

    def test_one_that_was_answered_is_given_that_answer(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        given = cfn.send(request)
        cfn.is_over = True
        assert served(cfn.service(request)) == given
        assert given.success


class TestDeaths:
    """A request that was received before is marked as begun; a mark that is found standing is a death."""

    @staticmethod
    def serve(cfn: CloudFormation, request: Request) -> Response:
        deadline = Deadline(3600, cfn.clock, Random(0), turn=90)
        return served(Service(request, cfn, ApiGateway(cfn), deadline, again=True))  # type: ignore[arg-type]  # a fake

    def test_the_fourth_time_it_is_answered_failed(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        for death in range(3):
            assert cfn.service(request).died() is (death > 0 or None)
            cfn.at(CREATE, fails(Death()))
            cfn.at(GET, fails(Death()))
            with pytest.raises(Death):
                self.serve(cfn, request)
        assert failed(self.serve(cfn, request), "3 invocations died at this request")
        assert not cfn.service(request).died(), "it was answered"

    def test_answered_or_gone_back_it_is_no_suspect(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, *[fails(BUSY)] * 999)
        with pytest.raises(TurnOverError):
            self.serve(cfn, request)
        assert not cfn.service(request).died()
        cfn.at(CREATE)
        assert self.serve(cfn, request).success
        assert cfn.records[holder("A")].begun == ""

    def test_a_request_that_comes_for_the_first_time_costs_no_write_more(self, cfn: CloudFormation) -> None:
        writes: list[object] = []
        cfn.tick = lambda: writes.append(None)
        cfn.create("A", FREE)
        first = len(writes)
        writes.clear()
        request = cfn.a_create("B", GOLD)
        cfn.arrives(request)
        self.serve(cfn, request)
        assert len(writes) == first + 2, "one write more, seen before and after"


class TestSameSecond:
    """Among requests of the same second the order of arrival decides."""

    def test_an_update_follows_the_clean_up_of_the_operation_before(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        clean_up = cfn.a_delete("A", FREE)
        assert cfn.send(clean_up).success
        assert cfn.update("A", GOLD, PRO, issued=clean_up.issued).success

    def test_a_create_follows_the_delete_of_the_same_logical_id(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        delete = cfn.a_delete("A", FREE)
        assert cfn.send(delete).success
        assert cfn.create("A", FREE, issued=delete.issued).success

    def test_a_cancelled_create_never_passes_its_delete(self, cfn: CloudFormation) -> None:
        create = cfn.a_create("A", FREE)
        delete = cfn.a_delete("A", "invented", issued=create.issued)
        assert cfn.send(delete).success
        assert failed(cfn.send(create), "Superseded")
        assert not cfn.attached

    def test_a_request_that_comes_again_passes_nothing(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        update = cfn.an_update("A", FREE, PRO)
        rollback = cfn.an_update("A", FREE, FREE, issued=update.issued)
        cfn.arrives(update)
        cfn.arrives(rollback)
        cfn.arrives(update)
        assert failed(served(cfn.service(update)), "Superseded")
        assert served(cfn.service(rollback)).success
        assert cfn.attached == {FREE}


class TestWaitingInSlices:
    """The function waits in slices, and reads the fence after each."""

    def test_a_request_that_was_cancelled_meanwhile_gives_way_within_20_seconds(self, cfn: CloudFormation) -> None:
        waits = error(429, "TooManyRequestsException", "Too Many Requests")
        waits.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": "600"}
        cfn.at(CREATE, fails(waits))
        request = cfn.a_create("A", FREE)
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        began = cfn.clock.now
        assert failed(cfn.send(request), "Superseded")
        assert cfn.clock.now - began <= 41


def dies_at(cfn: CloudFormation, request: Request) -> None:
    """The function dies when it has marked what the request is to detach, and before that is detached."""
    cfn.at(DELETE, fails(Death()))
    with pytest.raises(Death):
        cfn.send(request)


def dies_at_a_move(cfn: CloudFormation) -> None:
    dies_at(cfn, cfn.an_update("A", FREE, PRO))


class Rolls(Random):
    """Rolls the least number, and dies at the fifth roll."""

    def __init__(self) -> None:
        super().__init__()
        self.rolled: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        if len(self.rolled) == 4:
            raise Death
        self.rolled.append((a, b))
        return a


class TestEachStep:
    """What is done, written and said at each step."""

    def received_again(self, cfn: CloudFormation, request: Request, *, seconds: float) -> Service:
        deadline = Deadline(3600, cfn.clock, Random(0), turn=seconds)
        return Service(request, cfn, ApiGateway(cfn), deadline, again=True)  # type: ignore[arg-type]  # a fake

    def test_a_turn_ends_though_its_mark_cannot_be_taken_off(self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise FailedError("the ledger is out of reach")

        monkeypatch.setattr("usage_plan_key.rules.rest", refuse)
        cfn.script[CREATE] = itertools.repeat(fails(BUSY))
        with pytest.raises(TurnOverError):
            served(self.received_again(cfn, cfn.a_create("A", FREE), seconds=60))

    def test_the_mark_is_taken_off_in_the_requests_own_time(self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
        clocks: list[object] = []
        change = cfn.change

        def watched(holder_: Holder, associations: Any, rule: Any, deadline: Deadline, seen: Snapshot | None = None) -> Snapshot:
            clocks.append(deadline.clock)
            return change(holder_, associations, rule, deadline, seen)

        monkeypatch.setattr(cfn, "change", watched)
        cfn.script[CREATE] = itertools.repeat(fails(BUSY))
        with pytest.raises(TurnOverError):
            served(self.received_again(cfn, cfn.a_create("A", FREE), seconds=60))
        assert set(clocks) == {cfn.clock}
        assert cfn.records[holder("A")].begun == ""

    def test_a_hold_that_cannot_be_read_back_fails_with_the_first_error(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        cfn.lose_writes = 1
        outages = iter([0])  # Before the first write; after it, and from then on, the ledger is out of reach.
        cfn.tick = lambda: cfn.outage(next(outages, 99))
        assert failed(served(cfn.service(request)), "nobody knows whether it was written")

    def test_what_is_lost_is_logged_in_full(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        cfn.create("A", FREE, digest="P1")
        TestLost.gone(cfn)
        reason = cfn.update("A", FREE, FREE, ADOPT, digest="P2").reason
        assert outcome(cfn.update("A", FREE, FREE, digest="P1")) == "LOST"
        said = f"LOST: {reason}. CloudFormation goes on as if the key were attached. The resource's next Update fails"
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples

    @pytest.mark.parametrize(("spare", "moves"), [(0.0, True), (-0.1, False)])
    def test_a_move_needs_time_for_the_detaching_and_to_undo_it(self, cfn: CloudFormation, spare: float, moves: bool) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 2 * (CONNECT_TIMEOUT + READ_TIMEOUT) + BEFORE_CALL + spare
        answer = cfn.update("A", FREE, PRO)
        assert answer.success is moves
        assert moves or answer.reason.startswith("Could not attach API key alice to usage plan pro: no time was left")

    def test_what_blocks_the_way_back_is_named(self, cfn: CloudFormation) -> None:
        cfn.api.plans["third"] = Plan("Third", (("api", "prod"),))
        cfn.create("A", FREE)
        cfn.at(DELETE, followed_by(lambda: cfn.by_hand("alice:third")))
        reason = cfn.update("A", FREE, PRO).reason
        assert "could not be attached again: usage plan third (Third)" in reason
        assert reason.endswith("blocks it")

    def test_a_delete_whose_mark_somebody_else_has_finished_succeeds(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 3600

        def another() -> None:
            cfn.clock.now += 900 + MOST_SKEW
            cfn.at(DELETE)
            assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [another]
        assert cfn.delete("A", FREE).success
        assert cfn.holders(FREE) == {holder("B", "two")}
        assert cfn.attached == {FREE}

    def test_a_mark_is_renewed_while_it_is_finished(self, cfn: CloudFormation) -> None:
        """So nobody else takes it for stale at the same time."""
        cfn.create("A", FREE)
        dies_at(cfn, cfn.a_delete("A", FREE))
        cfn.clock.now += 100
        marks: list[int | None] = []
        cfn.at(DELETE, preceded_by(lambda: marks.append(cfn.entry(FREE).detaching)))
        cfn.update("A", "former", GOLD)
        assert marks == [int(cfn.clock.now) + 900 + MOST_SKEW]

    def test_a_mark_that_was_set_anew_meanwhile_is_left_to_who_set_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)
        dies_at(cfn, cfn.a_delete("A", FREE))
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now, cfn.seconds = marked, 3600
        anew = int(cfn.clock.now) + 5
        change = cfn.change

        def preceded(holder_: Holder, *rest: Any) -> Snapshot:
            if holder_ == holder("A"):
                monkeypatch.setattr(cfn, "change", change)
                cfn.entries[pair(FREE)] = cfn.entry(FREE)._replace(detaching=anew)
                cfn.clock.meanwhile = [lambda: marks.append(cfn.entry(FREE).detaching)]
            return change(holder_, *rest)

        marks: list[int | None] = []
        monkeypatch.setattr(cfn, "change", preceded)
        assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"
        assert marks == [anew]

    def test_the_log_says_that_an_answer_is_given_again_and_that_nothing_is_touched(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key.service")
        request = cfn.a_delete("A", FREE)
        cfn.send(request)
        cfn.send(request)
        assert f"This resource does not hold {FREE}: nothing is touched" in caplog.messages
        assert "This request was answered before; the same answer goes out again" in caplog.messages

    def test_an_answer_is_given_again_without_the_value_that_cannot_be_looked_up(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE, include_value=True)
        first = cfn.send(request)
        cfn.at(GET, fails(DENIED))
        assert cfn.send(request) == first._replace(value=None)

    def test_a_failure_that_cannot_be_written_down_is_answered_and_logged(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        cfn.outage(99)
        answer = served(cfn.service(request))
        assert answer == Response(success=False, id=FREE, reason="the ledger is out of reach", at=int(cfn.clock.now))
        assert answer.success is False
        said = "The answer could not be written down: the ledger is out of reach"
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples

    def test_an_answer_is_written_down_as_it_is_given(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        request = cfn.a_delete("A", FREE)
        answer = cfn.send(request)
        assert answer == Response(success=True, id=FREE, at=int(cfn.clock.now))
        assert cfn.records[holder("A")].answers[request.id] == answer

    @pytest.mark.parametrize(
        ("before", "writes"),
        [
            pytest.param(lambda cfn: cfn.create("B", FREE), 2, id="others hold it: arrived; released and answered"),
            pytest.param(lambda cfn: None, 3, id="the last holder: arrived; marked; detached and answered"),
            pytest.param(dies_at_a_move, 4, id="marked for a move: the mark is renewed and taken off first"),
        ],
    )
    def test_a_deletes_last_write_has_its_answer(
        self, cfn: CloudFormation, before: Callable[[CloudFormation], object], writes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)
        before(cfn)
        written: list[Holder] = []
        write = cfn.written

        def counted(holder_: Holder, after: Snapshot) -> None:
            written.append(holder_)
            write(holder_, after)

        monkeypatch.setattr(cfn, "written", counted)
        assert cfn.delete("A", FREE).success
        assert written == [holder("A")] * writes

    def test_what_is_wanted_again_meanwhile_is_neither_let_go_nor_detached(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", "former", GOLD)
        newer = cfn.an_update("A", "former", GOLD)
        cfn.at(DELETE, preceded_by(lambda: cfn.arrives(newer)))
        newer.issued = int(cfn.clock.now) + 9
        assert cfn.delete("A", "invented").success
        assert cfn.attached == {GOLD}
        assert cfn.holders(GOLD) == {holder("A")}

    def test_what_another_has_attached_and_marked_meanwhile_is_left_to_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 3600
        asked: list[object] = []
        change = cfn.change

        def watched(holder_: Holder, *rest: Any) -> Snapshot:
            asked.append(holder_)
            return change(holder_, *rest)

        def another() -> None:
            cfn.clock.now += 900 + MOST_SKEW
            cfn.at(DELETE)
            cfn.create("B", FREE, stack="two")
            dies_at(cfn, cfn.a_delete("B", FREE, stack="two"))
            monkeypatch.setattr(cfn, "change", watched)

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [another]
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("B", "two")}
        assert set(asked) == {holder("A")}

    def test_a_value_that_is_not_returned_is_logged(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        cfn.at(CREATE, TestValue.without)
        cfn.at(GET, TestValue.without)
        cfn.send(cfn.a_create("A", FREE, include_value=True))
        said = "API Gateway does not return the value of API key alice, so the answer has none"
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples

    def test_each_wait_for_a_detaching_counts_as_an_attempt(self, cfn: CloudFormation) -> None:
        cfn.create("B", FREE)
        dies_at(cfn, cfn.a_delete("B", FREE))
        began = cfn.clock.now
        assert self.rolled(cfn, cfn.a_create("A", FREE)) == [(0, 0.5), (0, 1), (0, 2), (0, 4)]
        assert cfn.clock.now - began == 1 + 4 * 1, "the request's second, and a second for each attempt"

    def test_each_wait_for_a_detached_plan_counts_as_an_attempt(self, cfn: CloudFormation) -> None:
        """DeleteUsagePlanKey has answered 202, and it has not come into force."""
        cfn.create("A", FREE)
        cfn.at(DELETE, lambda _: {})
        assert self.rolled(cfn, cfn.an_update("A", FREE, PRO)) == [(0, 0.5), (0, 1), (0, 2), (0, 4)]

    def rolled(self, cfn: CloudFormation, request: Request) -> list[tuple[float, float]]:
        """Between what the first four waits are chosen."""
        dice = Rolls()
        deadline = Deadline(900, cfn.clock, dice)
        cfn.arrives(request)
        service = Service(request, cfn, ApiGateway(cfn), deadline)  # type: ignore[arg-type]  # a fake
        with pytest.raises(Death):
            served(service)
        return dice.rolled

    def test_what_an_earlier_delivery_attached_stays_held_where_the_ledger_cannot_be_read(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, served_then(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        change, calls = cfn.change, iter(range(99))

        def unreadable(*arguments: Any) -> Snapshot:
            if next(calls) == 1:
                raise FailedError("the ledger is out of reach")
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", unreadable)
        assert failed(served(cfn.service(request)), "out of reach")
        assert cfn.holders(FREE) == {holder("A")}

    def test_what_an_earlier_delivery_has_not_attached_is_let_go_where_it_is_refused(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.send(request), "permission is missing")
        assert not cfn.entries

    def test_a_move_whose_earlier_delivery_died_is_a_move(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        request = cfn.an_update("A", FREE, PRO)
        cfn.at(DELETE, followed_by(lambda: cfn.at(CREATE, fails(Death()))))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(CREATE)
        assert outcome(cfn.send(request)) == "MOVED"

    def test_a_rollback_that_moved_and_died_is_lost_where_the_key_is_gone(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, PRO, digest="P2")
        request = cfn.an_update("A", PRO, FREE, digest="P1")
        cfn.at(DELETE, followed_by(lambda: cfn.at(CREATE, fails(Death()))))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(CREATE)
        TestLost.gone(cfn)
        assert outcome(cfn.send(request)) == "LOST"

    def test_a_ledger_that_cannot_be_read_fails_the_request(self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        change, calls = cfn.change, iter(range(99))

        def unreadable(*arguments: Any) -> Snapshot:
            if next(calls) == 1:
                raise FailedError("nobody knows", nothing_changed=False)
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", unreadable)
        assert served(cfn.service(request)).reason == "nobody knows"

    def test_a_move_that_comes_to_nothing_gives_up_while_there_is_time_to_undo_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)

        def create(**arguments: Any) -> Any:
            if arguments["usagePlanId"] == "pro" and FREE not in cfn.attached:
                raise BUSY
            return cfn.api.create_usage_plan_key(**arguments)

        monkeypatch.setattr(cfn, CREATE, create, raising=False)
        assert failed(cfn.update("A", FREE, PRO), "gave up after")
        assert cfn.attached == {FREE}

    def test_what_was_adopted_and_is_put_back_during_its_repair_is_taken(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, preceded_by(lambda: cfn.by_hand(FREE)))
        assert outcome(cfn.update("A", FREE, FREE, TAKE)) == "TAKEN"

    def test_a_repair_that_may_have_been_served_makes_it_ours(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, served_then(LOST), fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT))
        assert not cfn.entry(FREE).preexisting

    def test_what_was_read_is_not_read_again(self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each look into the ledger is a call to DynamoDB."""
        looks: list[int] = []
        change = cfn.change

        def counted(*arguments: Any) -> Snapshot:
            looks[-1] += 1
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", counted)
        for act in (
            partial(cfn.create, "A", FREE),
            partial(cfn.update, "A", FREE, FREE),
            partial(cfn.update, "A", FREE, PRO),
            partial(cfn.delete, "A", FREE),
            partial(cfn.delete, "A", PRO),
            partial(cfn.delete, "A", PRO),
        ):
            looks.append(0)
            assert act().success
        assert looks == [4, 5, 7, 5, 4, 3]

    @pytest.mark.parametrize("is_over", [False, True], ids=["in time", "too late"])
    def test_what_was_not_fenced_when_it_arrived_is_fenced_when_its_turn_comes(
        self, cfn: CloudFormation, *, is_over: bool
    ) -> None:
        """Too late, a Create alone: it begins a new life, and its Delete may follow."""
        for request in (cfn.a_create("A", FREE), cfn.an_update("B", FREE, FREE)):
            deadline = Deadline(900, cfn.clock, is_over=is_over)
            served(Service(request, cfn, ApiGateway(cfn), deadline, fenced=False))  # type: ignore[arg-type]  # a fake
        assert [cfn.records[holder(name)].issued > 0 for name in "AB"] == [True, not is_over]

    def test_a_request_whose_turn_is_over_says_which(self, cfn: CloudFormation) -> None:
        with pytest.raises(TurnOverError, match=r"^Could not serve Create: the function's time is nearly up$"):
            served(self.received_again(cfn, cfn.a_create("A", FREE), seconds=1))

    def test_an_internal_error_is_logged_with_its_traceback(self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture) -> None:
        cfn.at(CREATE, fails(ZeroDivisionError()))
        assert failed(cfn.create("A", FREE), "An internal error, please report it: ZeroDivisionError")
        (line,) = [line for line in caplog.records if line.exc_info]
        assert line.message == "An internal error"
