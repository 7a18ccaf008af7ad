"""Plays stacks as CloudFormation does, on the strict API, with everything that can go wrong.

At rest, every key that CloudFormation believes attached is attached, and no undeclared key is. Keys from
before us still are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

from botocore.exceptions import ClientError, ReadTimeoutError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emulators.fake import ApiGateway as StrictApi
from emulators.fake import Key, Plan
from emulators.rules import SHARED_STAGES, Refusal
from tests.memory import Clock, Inline, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.model import Association, Holder, ResourceRecord, Response, Snapshot
from usage_plan_key.provider import Provider
from usage_plan_key.queue import Queue
from usage_plan_key.request import Create, Delete, OnExisting, Request, Update, repair_event
from usage_plan_key.retry import Deadline

KEYS = ("alice", "bob", "carol")
PLANS = ("free", "pro", "gold")  # Free and Pro share a stage, Gold has one of its own.
STACKS = ("one", "two")
RESOURCES = ("A", "B", "C")


def read(put: dict[str, Any]) -> Response:
    """Read an answer as CloudFormation does, without its time."""
    data = put.get("Data", {})
    success = put["Status"] == "SUCCESS"
    outcome, name = data.get("Outcome", ""), data.get("KeyName", "")
    return Response(success, put["PhysicalResourceId"], put.get("Reason", ""), outcome, name)


class Death(BaseException):
    """The function ends here and now."""


class Chaos:
    """Decides at each step of a request whether something goes wrong there."""

    def __init__(self) -> None:
        self.rng: Random | None = None
        self.risk = 0.0

    def strikes(self, *kinds: str) -> str:
        if self.rng is None or self.rng.random() >= self.risk:
            return ""
        return self.rng.choice(kinds)


class ShakyApi:
    """The strict API over an unreliable connection."""

    def __init__(self, api: StrictApi, chaos: Chaos) -> None:
        self._api, self._chaos, self.meta = api, chaos, api.meta

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._api, name)

        def shaky(**arguments: Any) -> Any:
            strike = self._chaos.strikes("dies before", "dies after", "reply lost", "busy", "breaks")
            if strike == "dies before":
                raise Death
            if strike == "busy":
                error = {"Code": "ConflictException", "Message": "Please try again later."}
                raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 409}}, name)  # type: ignore[typeddict-item]
            if strike == "breaks":
                error = {"Code": "InternalFailure", "Message": ""}
                raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 500}}, name)  # type: ignore[typeddict-item]
            reply = call(**arguments)
            if strike == "dies after":
                raise Death
            if strike == "reply lost":
                raise ReadTimeoutError(endpoint_url="https://apigateway")
            return reply

        return shaky


class ShakyLedger(MemoryLedger):
    """The ledger, where the function may die before and after each write."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self._chaos = chaos

    def written(self, holder: Holder, after: Snapshot) -> None:
        strike = self._chaos.strikes("dies before", "dies after")
        if strike == "dies before":
            raise Death
        super().written(holder, after)
        if strike == "dies after":
            raise Death


@dataclass(frozen=True)
class Properties:
    """A resource's properties in a template."""

    association: Association
    on_existing: OnExisting = OnExisting.FAIL
    trigger: int = 0


@dataclass
class Resource:
    """A resource as CloudFormation knows it."""

    physical_id: str
    properties: Properties


@dataclass
class Stack:
    """A stack, and the requests of it that are on their way somewhere."""

    id: str
    resources: dict[str, Resource] = field(default_factory=dict)
    late: list[Request] = field(default_factory=list)


class Stacks(RuleBasedStateMachine):
    """CloudFormation, an operator with a console, and the function between them and API Gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.api = StrictApi()
        self.api.keys = {key: Key(key, f"value-of-{key}") for key in KEYS}
        self.api.plans = {
            "free": Plan("Free", (("api", "prod"),)),
            "pro": Plan("Pro", (("api", "prod"),)),
            "gold": Plan("Gold", (("other", "prod"),)),
        }
        self.chaos = Chaos()
        self.gateway = ApiGateway(ShakyApi(self.api, self.chaos))  # type: ignore[arg-type]  # a fake
        self.ledger = ShakyLedger(self.chaos)
        self.stacks = {name: Stack(f"arn:aws:cloudformation:eu-west-1:1:stack/{name}/0") for name in STACKS}
        self.outside: set[Association] = set()
        """Keys attached by hand that no resource held: the function must not detach them, unless taken."""
        self.taken: set[Association] = set()
        self.removed: set[Association] = set()
        """Keys removed by hand, and not checked since."""
        self.ever_retained: set[Association] = set()
        """After a retained removal a holder may stay, even if its key was not attached or came back."""
        self.retains: dict[Holder, set[Association]] = {}
        """Keys that a removed resource left attached, because its policy was Retain."""
        self.answers: dict[str, tuple[Request, Response]] = {}
        self.serial = itertools.count(1)

        self.taken_over: set[tuple[Holder, Association]] = set()
        """Keys attached by hand that a resource moved away from: a way back restores their marks."""
        self.sqs: list[dict[str, str]] = []
        """Messages that CloudFormation's invocations have queued."""
        self.delivered: dict[str, tuple[str, str, int]] = {}
        """Served messages: RequestId to body, group and the number of receives."""
        self.puts: list[dict[str, Any]] = []
        self.function = Provider(
            api=self.gateway,
            sender=self,  # type: ignore[arg-type]  # a fake
            table=self.ledger,  # type: ignore[arg-type]  # a fake
            queue=Queue(self, "queue"),  # type: ignore[arg-type]  # a fake
            clock=self.clock,
            background=Inline,
        )

    # --- The function's surroundings: the queue, and CloudFormation that takes answers ---

    aws_request_id = function_name = invoked_function_arn = log_group_name = log_stream_name = "test"

    def get_remaining_time_in_millis(self) -> int:
        return 900_000

    def send_message(self, **message: str) -> dict[str, str]:
        self.sqs.append(message)
        return {"MessageId": "test"}

    def change_message_visibility(self, **_: Any) -> None:
        """Do nothing: the next attempt receives these messages again."""

    def prepare(self) -> None:
        pass

    def check(self, request: Request) -> None:
        """Accept any ResponseURL."""

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        self.puts.append(json.loads(body))

    # --- One request ---

    def request(self, kind: type[Any], stack: Stack, resource: str, rng: Random, **fields: Any) -> Any:
        # Most requests are a second apart; some come within the same second.
        self.clock.now += rng.choice((0.0, 1.0, 1.0))
        return kind(
            id=f"request-{next(self.serial)}",
            holder=Holder(stack.id, resource),
            issued=int(self.clock.now),
            response_url="https://x",
            service_timeout=3600,
            **fields,
        )

    def arrives(self, request: Request) -> bool:
        """CloudFormation's invocation fences it, and queues it; False when the function died."""
        signed = datetime.fromtimestamp(request.issued or 0, UTC).strftime("%Y%m%dT%H%M%SZ")
        event = {
            "RequestType": type(request).__name__,
            "RequestId": request.id,
            "StackId": request.holder.stack_id,
            "LogicalResourceId": request.holder.logical_id,
            "ResponseURL": f"https://x/?X-Amz-Date={signed}",
            "ResourceProperties": {"OnExisting": "Take" if getattr(request, "take", False) else "Fail"},
        }
        if isinstance(request, Create | Update):
            properties = {
                "KeyId": request.wanted.key_id,
                "UsagePlanId": request.wanted.plan_id,
                "VerifyTrigger": request.digest,
            }
            event["ResourceProperties"] = properties | {"OnExisting": str(request.on_existing)}
        if isinstance(request, Update):
            event["OldResourceProperties"] = {"OnExisting": "Take" if request.took else "Fail"}
        if request.physical_id is not None:
            event["PhysicalResourceId"] = request.physical_id
        try:
            self.function.on_event(event, self)
        except Death:
            return False
        return True

    def attempt(self, request: Request, rng: Random | None = None) -> Response | None:
        """One delivery of a request; None when the function died.

        It shares its batch with messages that come once more: as SQS fills it, stack by stack, or, at worst,
        mixed.
        """
        self.sqs.clear()
        if request.id not in self.delivered:
            if not self.arrives(request):
                return None
            (message,) = self.sqs
            self.delivered[request.id] = message["MessageBody"], message["MessageGroupId"], 0
        earlier = rng.sample(sorted(self.answers), min(len(self.answers), rng.randrange(4))) if rng else []
        batch = [*(id_ for id_ in self.delivered if id_ in earlier and id_ != request.id), request.id]
        if rng and rng.random() < 0.5:
            batch.sort(key=lambda id_: self.delivered[id_][1] != self.delivered[request.id][1])
        records = []
        for id_ in batch:
            body, group, receives = self.delivered[id_]
            self.delivered[id_] = body, group, receives + 1
            attributes = {"MessageGroupId": group, "ApproximateReceiveCount": str(receives + 1)}
            records.append({"messageId": id_, "receiptHandle": id_, "body": body, "attributes": attributes})
        self.puts.clear()
        try:
            failed = [
                item["itemIdentifier"] for item in self.function.on_batch(records, self)["batchItemFailures"]
            ]
        except Death:
            return None
        answers = {put["RequestId"]: read(put) for put in self.puts}
        assert sorted([*answers, *failed]) == sorted(batch), "each is answered, or comes again"
        for id_ in answers.keys() & earlier:
            assert answers[id_] == self.answers[id_][1], "the same request, the same answer"
        return answers[request.id]

    def send(self, request: Request, rng: Random) -> Response:
        """Deliver a request until it has its answer, as Lambda and the queue do."""
        wanted = getattr(request, "wanted", None)
        # The documented exception: a death or a lost reply just when somebody else has attached the key.
        self.chaos.rng = None if wanted in self.outside and self.pair(wanted) in self.api.attached else rng
        answer = None
        for self.chaos.risk in (0.15, 0.15, 0.0):
            answer = self.attempt(request, rng)
            if answer is not None:
                break
        self.chaos.rng = None
        assert answer is not None
        self.answered(request, answer)
        if rng.random() < 0.2:
            self.again(request)
        return answer

    def answered(self, request: Request, answer: Response) -> None:
        assert answer.id
        if isinstance(request, Delete) or not answer.success:
            assert answer.id == request.answer_id
        self.answers[request.id] = request, answer
        if isinstance(request, Create | Update) and answer.success:
            assert self.pair(request.wanted) in self.api.attached
            self.removed.discard(request.wanted)
            self.retains.get(request.holder, set()).discard(request.wanted)  # A template declares it again.
            if answer.outcome == "ADOPTED":
                assert request.wanted in self.outside
            if answer.outcome == "TAKEN":
                assert request.on_existing is OnExisting.TAKE
                self.taken.add(request.wanted)
            if answer.outcome in ("REPAIRED", "MOVED", "ATTACHED"):
                self.outside.discard(request.wanted)
                if (request.holder, request.wanted) in self.taken_over:
                    self.outside.add(request.wanted)
            if (
                answer.outcome == "MOVED"
                and request.identified in self.outside - self.taken
                and request.identified != request.wanted
            ):
                assert isinstance(request, Update)
                assert request.took
                assert request.on_existing is OnExisting.TAKE
                self.outside.discard(request.identified)
                self.taken_over.add((request.holder, request.identified))
        if isinstance(request, Delete) and answer.success and request.identified:
            self.taken_over.discard((request.holder, request.identified))

    def again(self, request: Request) -> None:
        """Deliver the same request once more; expect the same answer."""
        before = set(self.api.attached)
        answer = self.attempt(request)
        assert answer is not None
        assert answer == self.answers[request.id][1]
        assert self.api.attached == before

    def late_ones(self, stack: Stack, rng: Random) -> None:
        """Hand in requests that CloudFormation has given up."""
        rng.shuffle(stack.late)
        for request in stack.late:
            before = set(self.api.attached)
            record = self.ledger.records.get(request.holder, ResourceRecord())
            served = request.id in record.answers  # by a delivery that died just before it could tell
            answer = self.attempt(request)
            assert answer is not None
            if not served:
                assert not answer.success
                assert answer.reason.startswith("Superseded")
            assert self.api.attached == before
        stack.late.clear()

    @staticmethod
    def pair(association: Association) -> tuple[str, str]:
        return association.key_id, association.plan_id

    # --- CloudFormation ---

    def wish(
        self, kind: type[Any], stack: Stack, name: str, properties: Properties, rng: Random, **fields: Any
    ) -> Any:
        had = stack.resources.get(name)
        wishes = {
            "wanted": properties.association,
            "on_existing": properties.on_existing,
            "digest": str(properties.trigger),
            **(
                {"took": had is not None and had.properties.on_existing is OnExisting.TAKE}
                if kind is Update
                else {}
            ),
        }
        return self.request(kind, stack, name, rng, **wishes, **fields)

    def delete(self, stack: Stack, name: str, physical_id: str, properties: Properties, rng: Random) -> None:
        take = properties.on_existing is OnExisting.TAKE
        answer = self.send(self.request(Delete, stack, name, rng, physical_id=physical_id, take=take), rng)
        assert answer.success, answer.reason

    @initialize(refusal=st.sampled_from(SHARED_STAGES))
    def a_stage_conflict_is_refused_with(self, refusal: Refusal) -> None:
        self.api.shared_stage = refusal

    @rule(
        stack=st.sampled_from(STACKS),
        template=st.dictionaries(
            st.sampled_from(RESOURCES),
            st.builds(
                Properties,
                st.builds(Association, st.sampled_from(KEYS), st.sampled_from(PLANS)),
                st.sampled_from(OnExisting),
                st.integers(0, 1),
            ),
            max_size=3,
        ),
        fails=st.booleans(),
        retains=st.sampled_from((False, False, False, True)),
        express=st.sampled_from((False, False, True)),
        rng=st.randoms(use_true_random=False),
    )
    def deploy(
        self,
        stack: str,
        template: dict[str, Properties],
        fails: bool,
        retains: bool,
        express: bool,
        rng: Random,
    ) -> None:
        """Create, update or empty a stack. `fails`: another resource fails. `express`: nothing rolls back."""
        self.play(self.stacks[stack], template, fails=fails, retains=retains, express=express, rng=rng)

    def play(
        self,
        stack: Stack,
        template: dict[str, Properties],
        *,
        fails: bool,
        retains: bool,
        express: bool = False,
        rng: Random,
    ) -> None:
        old = dict(stack.resources)
        created: dict[str, tuple[str, Properties]] = {}  # for a rollback to delete: id and properties
        updated: dict[str, str] = {}  # the id that CloudFormation has for it by now
        todo = [name for name in template if name not in old or old[name].properties != template[name]]
        rng.shuffle(todo)
        stop = rng.randrange(len(todo) + 1) if fails and not express else None
        failed = stop == 0
        for number, name in enumerate(todo, 1):
            if name in old:
                request = self.wish(
                    Update, stack, name, template[name], rng, physical_id=old[name].physical_id
                )
            else:
                request = self.wish(Create, stack, name, template[name], rng)
            if failed:
                self.cancelled(stack, name, request, created, updated, old, rng)
                continue
            answer = self.send(request, rng)
            if name in old:
                updated[name] = answer.id
            else:
                created[name] = answer.id, template[name]
            if express:
                if not answer.success:  # No Delete and no rollback follow, so it stays as it was.
                    template = {key: value for key, value in template.items() if key != name}
                    template |= {name: old[name].properties} if name in old else {}
                    updated.pop(name, None)
                    created.pop(name, None)
                continue
            failed = not answer.success or number == stop
        if not express and (fails or failed):
            self.roll_back(stack, old, created, updated, template, rng)
        else:
            self.clean_up(stack, old, template, created, updated, retains=retains, rng=rng)
        self.late_ones(stack, rng)

    def cancelled(
        self,
        stack: Stack,
        name: str,
        request: Request,
        created: dict[str, tuple[str, Properties]],
        updated: dict[str, str],
        old: dict[str, Resource],
        rng: Random,
    ) -> None:
        """Another resource fails while this request has not begun, waits, or dies in the middle."""
        how = rng.choice(("not sent", "not there yet", "waits", "dies"))
        if how != "not sent" and self.retains.get(request.holder):
            # Without a sign of its Create, nobody can tell an invented id from that of a Create with a lost
            # answer.
            self.waits(request)
        if how == "not sent":
            return
        if how == "waits":
            self.waits(request)
        wanted = getattr(request, "wanted", None)
        if how == "dies" and wanted not in self.outside:
            self.chaos.rng, self.chaos.risk = rng, 0.3
            answer = self.attempt(request)
            self.chaos.rng = None
            if answer is not None:
                self.answered(request, answer)  # The function served it after all, and nobody listens.
        stack.late.append(request)
        if name in old:
            updated[name] = old[name].physical_id
        else:
            created[name] = f"invented-{name}-{next(self.serial)}", Properties(Association("x", "y"))

    def waits(self, request: Request) -> None:
        self.sqs.clear()
        assert self.arrives(request)
        for message in self.sqs:
            self.delivered[request.id] = message["MessageBody"], message["MessageGroupId"], 0

    def roll_back(
        self,
        stack: Stack,
        old: dict[str, Resource],
        created: dict[str, tuple[str, Properties]],
        updated: dict[str, str],
        template: dict[str, Properties],
        rng: Random,
    ) -> None:
        removes: list[tuple[str, str, Properties]] = []
        again: list[tuple[str, str, Properties]] = []
        carries_new = rng.random() < 0.5
        # CloudFormation may send a Create and its Delete within a second, but not two Updates of a resource.
        self.clock.now += 1.0 if updated else 0.0
        for name, new_id in updated.items():
            carried = new_id if carries_new else old[name].physical_id
            properties = old[name].properties
            answer = self.send(self.wish(Update, stack, name, properties, rng, physical_id=carried), rng)
            if not answer.success:
                # The operator removed the key, and a resource that is about to go attached it meanwhile.
                assert "once for each stage" in answer.reason, answer.reason
                again.append((name, carried, properties))
            else:
                assert answer.id == old[name].physical_id
            if new_id != old[name].physical_id and (carries_new or not answer.success or rng.random() < 0.5):
                removes.append((name, new_id, template[name]))
        removes += [(name, *rest) for name, rest in created.items()]
        rng.shuffle(removes)
        if rng.random() < 0.3:
            self.late_ones_before(stack, removes, rng)
        for name, physical_id, properties in removes:
            self.delete(stack, name, physical_id, properties, rng)
        self.clock.now += 1.0
        for name, carried, properties in again:
            # The operator does as the Reason says, and continues the rollback.
            for rival in [rival for rival in self.outside if rival.key_id == properties.association.key_id]:
                self.remove_by_hand(rival.key_id, rival.plan_id)
            answer = self.send(self.wish(Update, stack, name, properties, rng, physical_id=carried), rng)
            # If another stack has meanwhile put a removed key into a plan for the stage, the operator skips
            # this resource.
            assert answer.success or properties.association in self.removed, answer.reason

    def late_ones_before(self, stack: Stack, removes: list[tuple[str, str, Properties]], rng: Random) -> None:
        """Hand in late Updates before the clean-up; no late Creates, since nothing newer supersedes them."""
        early: list[Request] = [request for request in stack.late if isinstance(request, Update)]
        stack.late, rest = early, [request for request in stack.late if request not in early]
        self.late_ones(stack, rng)
        stack.late = rest

    def clean_up(
        self,
        stack: Stack,
        old: dict[str, Resource],
        template: dict[str, Properties],
        created: dict[str, tuple[str, Properties]],
        updated: dict[str, str],
        *,
        retains: bool,
        rng: Random,
    ) -> None:
        removes = [
            (name, old[name].physical_id, old[name].properties) for name in old if name not in template
        ]
        for name, new_id in updated.items():
            if new_id != old[name].physical_id:
                removes.append((name, old[name].physical_id, old[name].properties))
        ids = {name: resource.physical_id for name, resource in old.items() if name in template}
        ids |= updated | {name: id_ for name, (id_, _) in created.items()}
        stack.resources = {name: Resource(ids[name], template[name]) for name in template}
        rng.shuffle(removes)
        for name, physical_id, properties in removes:
            if retains:
                if (
                    self.pair(properties.association) in self.api.attached
                ):  # A move has not detached it already.
                    self.retains.setdefault(Holder(stack.id, name), set()).add(properties.association)
                self.ever_retained.add(properties.association)
            else:
                self.delete(stack, name, physical_id, properties, rng)

    # --- The operator ---

    @rule(key=st.sampled_from(KEYS), plan=st.sampled_from(PLANS))
    def attach_by_hand(self, key: str, plan: str) -> None:
        association = Association(key, plan)
        try:
            self.api.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")
        except ClientError:
            return
        if association in self.ledger.entries and not self.ledger.entries[association].preexisting:
            self.removed.discard(association)
        else:
            self.outside.add(association)

    @rule(key=st.sampled_from(KEYS), plan=st.sampled_from(PLANS))
    def remove_by_hand(self, key: str, plan: str) -> None:
        association = Association(key, plan)
        if self.pair(association) in self.api.attached:
            self.api.attached.remove(self.pair(association))
            self.outside.discard(association)
            self.removed_retained(association)
            self.removed.add(association)

    @rule(data=st.data(), removed=st.sampled_from((True, True, False)), rng=st.randoms(use_true_random=False))
    def repair(self, data: st.DataObject, removed: bool, rng: Random) -> None:
        """The watch asks for a repair, right or wrong: it attaches only keys that a resource counts on."""
        held = sorted(
            (holder, association)
            for association, entry in self.ledger.entries.items()
            for holder in entry.holders
        )
        if not held:
            return
        holder, association = data.draw(st.sampled_from(held))
        if removed:
            self.remove_by_hand(*association)
        event = repair_event(f"repair-{next(self.serial)}", holder, association)
        body = json.dumps({"event": event, "arrived": self.clock.now})
        before = set(self.api.attached)
        self.puts.clear()
        self.chaos.rng = rng
        for number, self.chaos.risk in enumerate((0.15, 0.15, 0.0), 1):
            attributes = {"ApproximateReceiveCount": str(number), "MessageGroupId": "group"}
            record = {"messageId": "1", "receiptHandle": "1", "body": body, "attributes": attributes}
            with contextlib.suppress(Death):
                if not self.function.on_batch([record], self)["batchItemFailures"]:
                    break
        self.chaos.rng = None
        assert not self.puts
        added = self.api.attached - before
        assert before <= self.api.attached
        if added:
            assert added == {self.pair(association)}
            assert association in self.removed | self.ever_retained
            assert holder in self.believed().get(association, []) or association in self.ever_retained
            self.removed.discard(association)

    def removed_retained(self, association: Association) -> None:
        for retained in self.retains.values():
            retained.discard(association)

    @property
    def retained(self) -> set[Association]:
        return set().union(*self.retains.values())

    @rule(data=st.data())
    def deliver_an_old_request_again(self, data: st.DataObject) -> None:
        if self.answers:
            request, _ = self.answers[data.draw(st.sampled_from(sorted(self.answers)))]
            self.again(request)

    # --- The promises at rest ---

    def believed(self) -> dict[Association, list[Holder]]:
        believed: dict[Association, list[Holder]] = {}
        for stack in self.stacks.values():
            for name, resource in stack.resources.items():
                association = Association.parse(resource.physical_id)
                assert association == resource.properties.association
                believed.setdefault(association, []).append(Holder(stack.id, name))
        return believed

    @invariant()
    def each_believed_association_is_attached(self) -> None:
        for association in self.believed():
            assert self.pair(association) in self.api.attached or association in self.removed, association.id

    @invariant()
    def each_undeclared_association_is_detached(self) -> None:
        allowed = set(self.believed()) | self.outside | self.ever_retained
        for key, plan in self.api.attached:
            assert Association(key, plan) in allowed, f"{key}:{plan} was left behind"

    @invariant()
    def each_association_from_before_is_still_there(self) -> None:
        for association in self.outside - self.taken:
            assert self.pair(association) in self.api.attached, (
                f"{association.id} was there before us, and is gone"
            )
        for association in self.retained - self.taken:
            assert self.pair(association) in self.api.attached, f"{association.id} was retained, and is gone"

    @invariant()
    def the_ledger_says_so(self) -> None:
        believed = self.believed()
        for association, entry in self.ledger.entries.items():
            assert entry.detaching is None
            for holder in entry.holders:
                assert association in self.ledger.records[holder].holds
                assert holder in believed.get(association, []) or association in self.ever_retained
        for association, holders in believed.items():
            assert set(holders) <= self.ledger.entries[association].holders


TestStacks = Stacks.TestCase
TestStacks.settings = settings(
    max_examples=200, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
