"""Plays stories over the whole function, in virtual time: one line of steps each, checked after every step.

    nobody, present, Adopt
        hand+ free; create A free Adopt = ADOPTED; held free=A!before; delete A free -> attached free

`stories` reads tables of them; a sentence is a test's name. A step is one of:

    create A free …, update A free pro …, delete A free …, repair A free
                        A request: the resource, its id (`free`, `bob:gold` or a foreign one), what it wants,
                        then options: Adopt, Take, old=Take, Value, P1 (a trigger), for=60 (ServiceTimeout),
                        undated, ahead=90 (its issue time), with=NAME (issued in that one's second). A to D
                        are resources of stack one, Y and Z of stack two.
    … = ATTACHED        What comes of it: an outcome, ok, FAILED word|words, waits 1-2 (it goes back, for so
                        many seconds), dies, unsent, any; of a repair: not word|words. Else: ok.
    NAME: issue …, arrive … or serve NAME, again NAME
                        The request is issued, has arrived (its fence), is served, is delivered once more.
    at create lost busy*3 {hand+ free}denied
                        The fates of the next calls: create (or create:pro, of that plan), get, delete, plan,
                        plans, read, write, fence (a write at an arrival), put (an answer's delivery). Braces
                        hold what others do before or after it. `*` is for ever.
    backup, restore, restore nothing
                        The ledger is saved, put back as it was then, or replaced with an empty one. To the
                        function a key that nobody holds then is somebody else's.
    watch missing=free unheld=gold
                        What the watch reports two hours later, exactly.
    asleep {…} {…}      What others do while the function sleeps.
    hand+ free, hand- free, gone free alice, plan PLAN STAGE …, time 60, letgo A, put NAME, excuse free
                        What others do, to the end of it: an operator has a resource let go; somebody puts a
                        bare request into the queue. An excused key may be left attached and unheld.
    queue, no ledger, seconds 60
                        The function has a queue, has no table, has so long.
    attached …, held free=A,B!before+away, beliefs A free=known, calls create=1, ledger 1R 2W, log words,
    unlogged words      What is so: exactly. `calls` and `ledger` are those of the last request.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from emulators import fake, rules
from emulators.dynamodb import DynamoDb
from emulators.fake import Key, Plan
from tests.memory import Clock, Inline
from usage_plan_key import decide, retry, service
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.decide import Answer, Attach, Back, Detach, Finish, GoOn, Look, Repeat, Step, Wait
from usage_plan_key.errors import UndeliveredError
from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, Holder, Origin, Snapshot
from usage_plan_key.provider import Provider
from usage_plan_key.queue import Queue
from usage_plan_key.request import Request, repair_event
from usage_plan_key.retry import Deadline
from usage_plan_key.watch import Watch

OPERATIONS: Final = {
    "CreateUsagePlanKey": "create",
    "GetUsagePlanKey": "get",
    "DeleteUsagePlanKey": "delete",
    "GetUsagePlan": "plan",
    "GetUsagePlans": "plans",
}
KINDS: Final = ("create", "update", "delete", "repair")
SIGNATURE: Final = "marked-signature"
WHERE: Final = "(function f, log group g, log stream s)"


class Death(BaseException):
    """Lambda ends the function here and now."""


def _error(status: int, code: str, message: str, **headers: str) -> ClientError:
    about: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": about}, "Call")


#: What a call may meet in place of being carried out.
REFUSALS: Final[dict[str, Callable[[], BaseException]]] = {
    "busy": lambda: _error(409, "ConflictException", rules.BUSY.message),
    "odd": lambda: _error(409, "ConflictException", "Conflict"),
    "throttled": lambda: _error(429, "TooManyRequestsException", "Too Many Requests"),
    "quota": lambda: _error(429, "LimitExceededException", "Limit exceeded"),
    "broken": lambda: _error(500, "InternalFailure", "Broken"),
    "denied": lambda: _error(403, "AccessDeniedException", "Not authorized"),
    "unauthorized": lambda: _error(401, "UnauthorizedException", "Not authorized"),
    "bad": lambda: _error(400, "BadRequestException", "Bad"),
    "cut": lambda: ReadTimeoutError(endpoint_url="https://aws"),
    "crash": lambda: ZeroDivisionError("oops"),
    "dies": Death,
}
#: What may become of its reply once it is carried out.
LOSSES: Final = {"lost": REFUSALS["cut"], "dead": Death, "crashed": REFUSALS["crash"]}


class _Hours(Clock):
    """Time passes while the function sleeps, and others act meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep: list[Callable[[], object]] = []
        self.due: list[tuple[float, Callable[[], object]]] = []

    def sleep(self, seconds: float, /) -> None:
        ends = self.now + seconds
        for due in sorted((due for due in self.due if due[0] <= ends), key=lambda due: due[0]):
            self.due.remove(due)
            self.now = due[0]
            due[1]()
        self.now = ends
        if self.asleep:
            self.asleep.pop(0)()


class Story:
    """An account, two stacks, the function, and somebody else with a console."""

    def __init__(self) -> None:
        self.clock = _Hours()
        self.api = fake.ApiGateway()
        self.api.keys = {key: Key(f"Key of {key}", f"value-of-{key}-0123456789") for key in ("alice", "bob")}
        stages = {
            "free": "a:prod",
            "pro": "a:prod a:beta",
            "gold": "b:prod",
            "beta": "a:beta",
            "third": "a:prod",
        }
        for plan, names in stages.items():
            self._plan([plan, *names.split()])
        self.dynamodb = DynamoDb()
        self.fates: dict[str, list[str]] = {}
        self.calls: Counter[str] = Counter()
        self.strangers: set[tuple[str, str]] = set()
        """What somebody else has attached, and the function may not detach."""
        self.leaving: set[tuple[str, str]] = set()
        """What is detached, and still there: DeleteUsagePlanKey answers 202."""
        self.taken: set[tuple[str, str]] = set()
        """What a TAKEN has allowed it to."""
        self.moved: set[tuple[str, str]] = set()
        """What was a stranger's before a move that takes it over."""
        self.events: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, list[dict[str, Any]]] = {}
        self.put: list[dict[str, Any]] = []
        self.receives: Counter[str] = Counter()
        self.messages: dict[str, dict[str, Any]] = {}
        self.hidden: list[int] = []
        self.lines: list[str] = []
        self.seconds, self.is_queued, self.has_ledger = 900.0, False, True
        self.is_arriving = False
        self.moments: Iterator[int] | None = None
        """The function dies after so many moments, before and after its calls."""
        self.died = False
        self.depth = 0
        self.ids = itertools.count(1)
        self.told: list[str] = []
        self._function()

    def _function(self) -> None:
        self.function = Provider(
            api=ApiGateway(self),  # type: ignore[arg-type]  # a fake
            sender=self,  # type: ignore[arg-type]  # a fake
            table=Table(self, "ledger") if self.has_ledger else None,  # type: ignore[arg-type]  # a fake
            queue=self._queue() if self.is_queued else None,
            cloudformation=lambda: SimpleNamespace(describe_stacks=_deleted),
            clock=self.clock,
            background=Inline,
        )

    def _queue(self) -> Queue:
        return Queue(self, "queue")  # type: ignore[arg-type]  # a fake

    # --- The steps ---

    def play(self, line: str) -> None:
        """Play a line of steps; a failure shows them up to its own."""
        try:
            self._steps(line.replace("->", ";"))
            left = {name for name, fates in self.fates.items() if fates and not fates[-1].endswith("*")}
            assert not left, f"these calls never came: {left}"
        except BaseException as error:
            error.add_note("\n".join(self.told))
            raise

    def _steps(self, line: str) -> None:
        for step in _split(line, ";"):
            self.told.append("  " * self.depth + step)
            self.depth += 1
            self._step(step)
            self.depth -= 1
            self._check()

    def _step(self, step: str) -> None:
        asked, _, expected = (
            (part.strip() for part in step.partition(" = ")) if step.count("{") == 0 else (step, "", "")
        )
        name, rest = re.fullmatch(r"(?:(\w+): )?(.*)", asked).groups()  # type: ignore[union-attr]  # it matches
        verb, *words = _split(rest, " ")
        if verb in KINDS:
            verb, words = "send", [verb, *words]
        if verb in ("send", "issue", "arrive", "serve", "again"):
            if words and words[0] in KINDS:
                self._issue(name or "", words)
            id_ = words[0] if words and words[0] in self.events else [*self.events][-1]
            if verb != "issue":
                self._deliver(id_, verb, expected)
            return
        getattr(self, f"_{_VERBS.get(verb, verb)}")(words)

    def _issue(self, name: str, words: list[str]) -> None:
        """Make a request; its id is its name in the story."""
        self._time(["1"])
        kind, resource, *ids = words
        options = {word for word in ids if re.fullmatch(r"[A-Z]\w*|\w+=\w+|undated", word)}
        ids = [id_ for id_ in ids if id_ not in options]
        given = dict(option.split("=") for option in options if "=" in option)
        holder = holder_of(resource)
        id_ = name or f"request-{next(self.ids)}"
        issued = self.clock.now + int(given.get("ahead", 0))
        if "with" in given:
            issued = self.events[given["with"]]["issued"]
        signed = datetime.fromtimestamp(issued, UTC).strftime("%Y%m%dT%H%M%SZ")
        date = "" if "undated" in options else f"X-Amz-Date={signed}&"
        properties: dict[str, str] = {}
        if kind in ("create", "update") and ids[-1] != "nothing":
            properties = dict(zip(("KeyId", "UsagePlanId"), _pair(ids[-1]), strict=True))
        for option in options & {"Adopt", "Take"}:
            properties["OnExisting"] = option
        properties |= {"IncludeValue": "true"} if "Value" in options else {}
        if trigger := [option for option in options if re.fullmatch(r"P\d", option)]:
            properties["VerifyTrigger"] = trigger[0]
        names = {"for": "ServiceTimeout", "nonsense": "Nonsense"}
        properties |= {names[name]: value for name, value in given.items() if name in names}
        event: dict[str, Any] = {
            "RequestType": kind.title(),
            "RequestId": id_,
            "StackId": holder.stack_id,
            "LogicalResourceId": resource,
            "ResponseURL": f"https://bucket/{id_}?{date}X-Amz-Signature={SIGNATURE}",
            "ResourceProperties": properties,
        }
        if kind != "create":
            event["PhysicalResourceId"] = _id(ids[0])
        if kind == "update":
            event["OldResourceProperties"] = {"OnExisting": given["old"]} if "old" in given else {}
        if kind == "repair":
            event = repair_event(id_, holder, Association(*_pair(ids[0]))) | {"ResourceProperties": {}}
        self.messages.pop(id_, None)
        self.events[id_] = {"event": event, "issued": issued, "by": given.get("old"), "asks": options}

    def _deliver(self, id_: str, verb: str, expected: str) -> None:
        """Have the function served a request, and check what comes of it."""
        event = self.events[id_]["event"]
        is_repair = event["RequestType"] == "Repair"
        self.put, self.hidden, outer, lines, place = [], [], self.put, len(self.lines), len(self.told) - 1
        came = ""
        try:
            if (self.is_queued or verb == "arrive") and id_ not in self.messages and not is_repair:
                self._arrive(id_, event)
            if verb != "arrive" and not self.put:
                if self.depth == 1:
                    self.calls.clear()
                came = self._serve(id_, event)
        except Death:
            came = "dies"
            self._function()
        answers, self.put = self.put, outer
        for answer in answers:
            self.told[place] += f"   [{_told(answer)}]"
            self._answered(id_, answer)
        if verb == "arrive" and not expected and not came:
            return
        if is_repair and not came:
            said = [line.partition(": ")[2] for line in self.lines[lines:] if "epaired: " in line]
            assert said, "the log says what came of a repair"
            came = f"not {said[0]}" if "Not repaired" in " ".join(self.lines[lines:]) else "ok"
        if not came:
            assert len(answers) <= 1, "one answer"
            came = _told(answers[0]) if answers else "unsent"
        if expected or verb != "again" or not answers:  # `_answered` compares an answer with the earlier one.
            _expect(came, expected or "ok")

    def _arrive(self, id_: str, event: dict[str, Any]) -> None:
        """CloudFormation invokes the function, which fences the request, and queues it."""
        self.is_arriving = True
        try:
            replace(self.function, queue=self._queue()).on_event(deepcopy(event), self)
        finally:
            self.is_arriving = False

    def _serve(self, id_: str, event: dict[str, Any]) -> str:
        """Have a request served where it arrives; or the queue delivers it."""
        self.ends = self.clock.now + self.seconds
        if not self.is_queued and event["RequestType"] != "Repair" and id_ not in self.messages:
            copy_context().run(self.function.on_event, deepcopy(event), self)
            return ""
        message = self.messages.setdefault(
            id_, {"body": json.dumps({"event": event, "arrived": self.clock.now}), "sent": self.clock.now}
        )
        self.receives[id_] += 1
        message.setdefault("first", self.clock.now)
        about = {
            "ApproximateReceiveCount": str(self.receives[id_]),
            "ApproximateFirstReceiveTimestamp": str(int(1000 * message["first"])),
            "SentTimestamp": str(int(1000 * message["sent"])),
            "MessageGroupId": event["StackId"],
        }
        record = {"messageId": id_, "receiptHandle": id_, "attributes": about, "body": message["body"]}
        reply = copy_context().run(self.function.on_batch, [record], self)
        if not reply["batchItemFailures"]:
            return ""
        return f"waits {self.hidden[-1]}" if self.hidden else "fails"

    def _answered(self, id_: str, answer: dict[str, Any]) -> None:
        """Check an answer's form, and that it is true, and the same as before."""
        event, asks_value = self.events[id_]["event"], "Value" in self.events[id_]["asks"]
        succeeds, is_delete = answer["Status"] == "SUCCESS", event["RequestType"] == "Delete"
        key, plan = wanted = tuple(
            event["ResourceProperties"].get(name, "") for name in ("KeyId", "UsagePlanId")
        )
        new = f"{key}:{plan}" if key else event["LogicalResourceId"]
        expected = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
        expected["PhysicalResourceId"] = (
            new if succeeds and not is_delete else event.get("PhysicalResourceId", new)
        )
        expected |= {"Status": answer["Status"], "NoEcho": succeeds and not is_delete and asks_value}
        data, reason = answer.get("Data", {}), answer.get("Reason", "")
        assert answer == expected | ({"Data": data} if data else {}) | ({"Reason": reason} if reason else {})
        assert (bool(data), bool(reason)) == (succeeds and not is_delete, not succeeds)
        assert succeeds or (reason.endswith(f" {WHERE}") and "\n" not in reason)
        if data:
            shown = {"Id": new, "KeyId": key, "UsagePlanId": plan, "KeyType": "API_KEY"}
            assert data.items() >= shown.items()
            assert {"KeyName", "Outcome"} <= data.keys() - shown.keys() <= {"KeyName", "Outcome", "Value"}
            assert asks_value or "Value" not in data
            if data["Outcome"] == "LOST":
                assert data.get("Value", "") == ""
            elif not self.bodies.get(id_):
                assert wanted in self.api.attached, "what CloudFormation believes to be attached is attached"
                assert data["KeyName"] == self.api.keys[key].name
                assert data.get("Value") in (None, self.api.keys[key].value)
            if data["Outcome"] == "TAKEN":
                self.taken.add((key, plan))
        for earlier in self.bodies.setdefault(id_, []):
            assert _shown(earlier) == _shown(answer), "the same request, the same answer"
        self.bodies[id_].append(answer)

    def _check(self) -> None:
        """Check what holds after every step."""
        shown = f"{self.dynamodb.items} {self.lines}"
        assert "value-of-" not in shown
        assert SIGNATURE not in shown
        if self.depth or not self.has_ledger:
            return
        pages = self._pages()
        held = {(who, one) for who, record in pages.records.items() for one in record.holds}
        assert held == {(who, one) for one, entry in pages.entries.items() for who in entry.holders}
        ours = {Association(*pair) for pair in self.api.attached - self.strangers - self.leaving}
        assert ours <= {one for _, one in held}, "what we attached and nobody holds is detached"

    def _pages(self) -> Any:
        return Table(self.dynamodb, "ledger").pages(Deadline(ends=1e12))  # type: ignore[arg-type]  # a fake

    # --- What others do ---

    def _attach_by_hand(self, words: list[str]) -> None:
        for pair in map(_pair, words):
            if pair not in self.api.attached:
                self.api.attached.add(pair)
                self.strangers.add(pair)

    def _detach_by_hand(self, words: list[str]) -> None:
        for pair in map(_pair, words):
            self.api.attached.discard(pair)
            self.strangers.discard(pair)

    def _gone(self, words: list[str]) -> None:
        for word in words:
            self._detach_by_hand([f"{key}:{plan}" for key, plan in self.api.attached if word in (key, plan)])
            self.api.keys.pop(word, None)
            self.api.plans.pop(word, None)

    def _plan(self, words: list[str]) -> None:
        stages = tuple((api, stage) for api, _, stage in (word.partition(":") for word in words[1:]))
        self.api.plans[words[0]] = Plan(words[0].title(), stages)

    def _letgo(self, words: list[str]) -> None:
        stack, resource = holder_of(words[0])
        self.function.let_go({"StackId": stack, "LogicalResourceId": resource}, self)

    def _put(self, words: list[str]) -> None:
        body = json.dumps(self.events[words[0]]["event"])
        self.messages[words[0]] = {"body": body, "sent": self.clock.now}

    def _excuse(self, words: list[str]) -> None:
        self.strangers |= {*map(_pair, words)}

    def _backup(self, words: list[str]) -> None:
        self.saved = self.dynamodb.items

    def _restore(self, words: list[str]) -> None:
        self.dynamodb.items = {} if words else self.saved
        held = {one for one, entry in self._pages().entries.items() if entry.holders}
        self.strangers |= self.api.attached - held

    def _time(self, words: list[str]) -> None:
        asleep, self.clock.asleep = self.clock.asleep, []
        self.clock.sleep(float(words[0]))
        self.clock.asleep = asleep

    def _has_queue(self, words: list[str]) -> None:
        self.is_queued, self.seconds = True, 90.0
        self._function()

    def _has_no_ledger(self, words: list[str]) -> None:
        self.has_ledger = False
        self._function()

    def _seconds(self, words: list[str]) -> None:
        self.seconds = float(words[0])

    def _at(self, words: list[str]) -> None:
        self.fates[words[0]] = words[1:]

    def _asleep(self, words: list[str]) -> None:
        self.clock.asleep = [partial(self._nested, word[1:-1]) for word in words]

    def _nested(self, line: str) -> None:
        self.depth += 1
        try:
            self._steps(line)
        except Exception as error:  # noqa: BLE001  # the function's own handlers must not catch it
            pytest.fail(f"{type(error).__name__}: {error}")
        self.depth -= 1

    # --- What is so ---

    def _attached(self, words: list[str]) -> None:
        expected = {_id(word) for word in words if word != "nothing"}
        _same({f"{key}:{plan}" for key, plan in self.api.attached}, expected)

    def _held(self, words: list[str]) -> None:
        found = []
        for one, entry in self._pages().entries.items():
            if entry.holders:
                names = ",".join(sorted(holder.logical_id for holder in entry.holders))
                origin = "" if entry.origin is Origin.OURS else f"!{entry.origin}"
                marks = ("attaching", "detaching", "away")
                found.append(
                    f"{_short(one)}={names}{origin}" + "".join(f"+{m}" for m in marks if getattr(entry, m))
                )
        _same({*found}, {*words} - {"nothing"})

    def _beliefs(self, words: list[str]) -> None:
        records = {holder.logical_id: record for holder, record in self._pages().records.items()}
        held = records[words[0]].holds.items() if words[0] in records else ()
        _same({f"{_short(one)}={hold.belief}" for one, hold in held}, {*words[1:]})

    def _calls(self, words: list[str]) -> None:
        found = {f"{name}={count}" for name, count in self.calls.items() if name in OPERATIONS.values()}
        _same(found, {*words} - {"none"})

    def _ledger(self, words: list[str]) -> None:
        _same({f"{self.calls['read']}R", f"{self.calls['write']}W"}, {*words})

    def _watch(self, words: list[str]) -> None:
        self._time(["7200"])
        self.ends, began = self.clock.now + 900, len(self.lines)
        there = {"Stacks": [{"StackStatus": "UPDATE_COMPLETE"}]}
        Watch(
            api=ApiGateway(self.api),  # type: ignore[arg-type]  # a fake
            table=Table(self.dynamodb, "ledger"),  # type: ignore[arg-type]  # a fake
            cloudformation=lambda: SimpleNamespace(describe_stacks=lambda **_: there),
            clock=self.clock,
        ).run({}, self)
        said = "\n".join(self.lines[began:])
        missing = re.findall(r"Missing: (\S+),", said)
        unheld = re.findall(r"Held by nobody: (\S+) in usage plan (\S+)", said)
        found = [f"missing={id_.removeprefix('alice:')}" for id_ in missing]
        found += [f"unheld={_short(Association(*pair))}" for pair in unheld]
        _same({*found}, {*words} - {"nothing"})

    def _log(self, words: list[str]) -> None:
        assert any(" ".join(words) in line for line in self.lines), self.lines

    def _unlogged(self, words: list[str]) -> None:
        assert not any(" ".join(words) in line for line in self.lines), self.lines

    # --- The services, as the function's clients ---

    region = "eu-west-1"
    meta = SimpleNamespace(region_name=region)
    aws_request_id, function_name, log_group_name, log_stream_name = "i", "f", "g", "s"
    invoked_function_arn = "arn:aws:lambda:eu-west-1:1:function:f"
    ends = 0.0

    def get_remaining_time_in_millis(self) -> int:
        """Lambda's."""
        return int(1000 * (self.seconds if self.is_arriving else self.ends - self.clock.now))

    def __getattr__(self, name: str) -> Any:
        """One of the clients' methods, as the fates have it."""
        operation = "".join(word.title() for word in name.split("_"))
        if name.startswith("transact_") or name == "scan":
            verb = "read" if "write" not in name else "fence" if self.is_arriving else "write"
            return partial(self._call, verb, getattr(self.dynamodb, name))
        if operation not in OPERATIONS:
            raise AttributeError(name)
        return partial(self._call, OPERATIONS[operation], getattr(self.api, name))

    def _call(self, verb: str, call: Callable[..., Any], **arguments: Any) -> Any:
        self._moment()
        if not self.is_arriving:
            self.calls[verb] += 1
        before, kind, after = _read(
            self._fate(f"{verb}:{arguments.get('usagePlanId')}") or self._fate(verb) or "ok"
        )
        name, _, number = kind.partition("=")
        if before:
            self._nested(before)
        if name == "throttled" and number:
            raise _error(429, "TooManyRequestsException", "Too Many Requests", **{"retry-after": number})
        if name in REFUSALS:
            error = REFUSALS[name]()
            raise error
        pair = arguments.get("keyId", ""), arguments.get("usagePlanId", "")
        if name == "later":
            self.leaving.add(pair)
            self.clock.due.append((self.clock.now + float(number), partial(self._leave, pair)))
            return {}
        if verb == "delete" and pair in self.strangers & self.api.attached:
            self._taken_over(pair)
        reply = call(**arguments)
        self._moment()
        if verb == "create":
            self.strangers.discard(pair)
            if pair in self.moved:
                self.strangers.add(pair)
        if name == "bare":
            del reply["value"]
        if after:
            self._nested(after)
        if name in LOSSES:
            error = LOSSES[name]()
            raise error
        return reply

    def _moment(self) -> None:
        if self.moments and not next(self.moments, 0):
            self.moments, self.died = None, True
            raise Death

    def _fate(self, verb: str) -> str:
        """Take the next fate of a call: `busy*3` is three, and `busy*` stays."""
        fates = self.fates.get(verb)
        if not fates:
            return ""
        fate, star, times = fates[0].rpartition("*") if re.search(r"\*\d*$", fates[0]) else (fates[0], "", "")
        if not star or times == "1":
            fates.pop(0)
        elif times:
            fates[0] = f"{fate}*{int(times) - 1}"
        return fate

    def _leave(self, pair: tuple[str, str]) -> None:
        self.api.attached.discard(pair)
        self.leaving.discard(pair)

    def _taken_over(self, pair: tuple[str, str]) -> None:
        """Unless it is taken, only an Update whose old and new properties say `Take` detaches such a key."""
        asking = self.events[[*self.events][-1]]
        self.strangers.discard(pair)
        if pair in self.taken:
            return
        if asking["by"] != "Take" or "Take" not in asking["asks"]:
            pytest.fail(f"somebody else has attached {pair}")  # No `except Exception` catches it.
        self.moved.add(pair)

    def send_message(self, *, MessageBody: str, **_: Any) -> dict[str, str]:
        """SQS's."""
        id_ = json.loads(MessageBody)["event"]["RequestId"]
        self.messages[id_] = {"body": MessageBody, "sent": self.clock.now}
        return {"MessageId": id_}

    def change_message_visibility_batch(self, *, Entries: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        """SQS's."""
        self.hidden += [entry["VisibilityTimeout"] for entry in Entries]
        return {}

    def prepare(self) -> None:
        """The sender's."""

    def check(self, request: Request) -> None:
        """The sender's."""

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        """The sender's: CloudFormation has the answer."""
        assert len(body) <= 4096
        try:
            self._call("put", lambda: self.put.append(json.loads(body)))
        except ReadTimeoutError as error:
            raise UndeliveredError from error


_VERBS: Final = {
    "hand+": "attach_by_hand",
    "hand-": "detach_by_hand",
    "queue": "has_queue",
    "no": "has_no_ledger",
}


def _deleted(**_: Any) -> Any:
    return {"Stacks": [{"StackStatus": "DELETE_COMPLETE"}]}


def holder_of(resource: str) -> Holder:
    """Name a resource of the stories."""
    stack = "two" if resource in "YZ" else "one"
    return Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}/{stack}-uuid", resource)


def _split(text: str, at: str) -> list[str]:
    """Divide at a character that stands in no braces."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == at and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _read(fate: str) -> tuple[str, str, str]:
    """Divide a fate into what others do before, the call's own, and what they do after."""
    before, kind, after = re.fullmatch(r"(?:\{(.*?)\})?([\w=]*)(?:\{(.*)\})?", fate).groups()  # type: ignore[union-attr]  # it matches
    return before or "", kind or "ok", after or ""


def _pair(id_: str) -> tuple[str, str]:
    key, _, plan = _id(id_).partition(":")
    return key, plan


def _id(id_: str) -> str:
    """`free` is alice's key in Free; an id that starts with a hash is a foreign one."""
    return id_[1:] if id_.startswith("#") else id_ if ":" in id_ else f"alice:{id_}"


def _short(association: Association) -> str:
    return association.id.removeprefix("alice:")


def _told(answer: dict[str, Any]) -> str:
    if answer["Status"] == "FAILED":
        return f"FAILED {answer['Reason']}"
    return f"ok {answer['Data']['Outcome']}" if "Data" in answer else "ok"


def _shown(answer: dict[str, Any]) -> Any:
    """An answer without its value: that is looked up anew."""
    data = {name: value for name, value in answer.get("Data", {}).items() if name != "Value"}
    return {**answer, "Data": data}


def _same(found: set[str], expected: set[str]) -> None:
    assert found == expected, f"{sorted(found - expected)} and not {sorted(expected - found)}"


def _expect(came: str, expected: str) -> None:
    kind, _, words = expected.partition(" ")
    if kind == "any":
        return
    if kind == "waits":
        assert came.startswith("waits "), came
        low, _, high = (words or "0-20").partition("-")
        assert int(low) <= int(came.removeprefix("waits ")) <= int(high or low), came
    elif kind in ("FAILED", "not"):
        assert came.startswith(kind), came
        missing = [word for word in words.split("|") if word not in came]
        assert not missing, f"{missing} not in {came!r}"
    elif kind.isupper():
        assert came == f"ok {kind}", came
    else:
        assert came.partition(" ")[0] == kind, came


def _again(state: Snapshot, request: Request, facts: decide.Facts) -> Step:
    """`next_step`; and decided again on what it has decided, it is the same."""
    step = decide.next_step(state, request, facts)
    changes = isinstance(step.act, GoOn | Wait | Back) or step.facts.tried != facts.tried
    if not changes and step.facts.value_sought == facts.value_sought:
        twice = decide.next_step(step.pages, request, step.facts).act
        if _kind(twice) != _kind(step.act):
            pytest.fail(f"{step.act}, and decided again {twice}")  # No `except Exception` catches it.
    return step


def _kind(act: decide.Act) -> Any:
    match act:
        case Answer(response) | Repeat(response, _):
            return "answer", response._replace(value=None)
        case Attach() | Detach() | Look() | Finish():
            return type(act), act.association
    return type(act)


class _Lines(logging.Handler):
    def __init__(self, story: Story) -> None:
        super().__init__(level=1)
        self.story = story

    def emit(self, record: logging.LogRecord) -> None:
        self.story.lines.append(f"{record.levelname} {self.format(record)}")


@contextmanager
def staged() -> Iterator[Story]:
    """Set the stage: a story, its log, and no chance."""
    story = Story()
    log, lines = logging.getLogger("usage_plan_key"), _Lines(story)
    level, log.propagate = log.level, False
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    try:
        with (
            mock.patch.object(retry, "random", Random(0)),
            mock.patch.object(service, "next_step", _again),
            mock.patch.object(CustomResource, "_set_timeout"),
        ):
            yield story
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
        log.propagate = True


def play(line: str) -> Story:
    """Play a story."""
    with staged() as story:
        story.play(line)
    return story


def told(text: str) -> dict[str, str]:
    """Read a table: each sentence at the margin, its story indented below it."""
    found: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        if line[0] != " ":
            assert line not in found, f"told twice: {line}"
            found[line] = ""
        else:
            found[[*found][-1]] += f" {line.strip()}"
    return found


def stories(text: str) -> pytest.MarkDecorator:
    """Make tests of a table."""
    return pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in told(text).items()])
