"""Plays stories over the whole function, in virtual time: one line of steps each, checked after every step.

    nobody, present, Adopt
        hand+ free; create A free Adopt = ADOPTED; held free=A!before; delete A free -> attached free

`played` makes tests of a table of them; a sentence is a test's name. A step is one of:

    create A free …, update A free pro …, delete A free …, repair A free
                        A request: the resource, its id (`free`, `bob:gold` or a foreign one), what it wants,
                        then options: Adopt, Take, old=Take, Value, P1 (a trigger), for=60 (ServiceTimeout),
                        undated, ahead=90 (its issue time), with=NAME (issued in that one's second). A to D
                        are resources of stack one, Y and Z of stack two.
    … = ATTACHED        What comes of it: an outcome, ok, FAILED word|words, waits 1-2 (it goes back, for so
                        many seconds), dies, unsent, raises (Lambda invokes again), any; of a repair: not
                        word|words. Else: ok.
    NAME: issue …, arrive … or serve NAME, again NAME
                        The request is issued, has arrived (its fence), is served, is delivered once more.
    at create lost busy*3 {hand+ free}denied
                        The fates of the next calls: create (or create:pro, of that plan), get, delete, plan,
                        plans, list, read, write, fence (a write at an arrival), check (of the answer's
                        host), put (its delivery), stack, send and hide (the queue's). Braces hold what
                        others do before or after it. `*` is for ever.
    backup, restore, restore nothing
                        The ledger is saved, put back as it was then, or replaced with an empty one. To the
                        function a key that nobody holds then is somebody else's.
    watch missing=free unheld=gold …
                        What the watch reports two hours later, exactly: gone=A too, queued=free (a repair;
                        `serve i/alice:free` is its turn), unasked=1 (stacks), unseen=1 (plans and pages; then
                        it fails). Before these its options: now, repairs, only=free (that plan).
    stack two DELETE_COMPLETE
                        What CloudFormation says of a stack from now on; `none`: that it does not exist.
    hand+ free, hand- free, gone free alice, plan PLAN STAGE …, time 60, letgo A, put NAME, crowd, excuse free
                        What others do, to the end of it: an operator has a resource let go (ok, and what,
                        or FAILED); somebody puts a bare request into the queue; A's Updates have left 120
                        plans. An excused key may be left attached and unheld.
    queue, no ledger, seconds 60
                        The function has a queue, has no table, has so long.
    attached …, held free=A,B!before+away, beliefs A free=known, calls create=1, ledger 1R 2W, drift 1, log
    words               What is so: exactly. `calls` and `ledger` are those of the last request, or of the
                        watch, whose metric is `drift`.
"""

import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import copy_context
from copy import deepcopy
from dataclasses import replace
from io import StringIO
from random import Random
from typing import Any, Final
from unittest import mock

import pytest
from botocore.exceptions import CredentialRetrievalError, ReadTimeoutError

from emulators import rules
from emulators.fake import Key, Plan
from tests.function import (
    SIGNATURE,
    STACK,
    Death,
    Message,
    Pair,
    Services,
    cancelled,
    decided,
    event,
    refusal,
    still,
    throttled,
)
from usage_plan_key import service
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import FailedError, IncompleteError, UnclearError, UndeliveredError
from usage_plan_key.ledger import Pages, Table, at_once
from usage_plan_key.model import Association, Belief, Hold, Holder, Origin, Snapshot
from usage_plan_key.queue import Queue
from usage_plan_key.request import Request, repair_event
from usage_plan_key.retry import Deadline
from usage_plan_key.watch import Watch

#: The names of calls in the stories; each reading and each writing of the ledger has one.
VERBS: Final = {
    "create_usage_plan_key": "create",
    "get_usage_plan_key": "get",
    "delete_usage_plan_key": "delete",
    "get_usage_plan": "plan",
    "get_usage_plans": "plans",
    "get_usage_plan_keys": "list",
    "describe_stacks": "stack",
    "send_message": "send",
    "change_message_visibility_batch": "hide",
    "scan": "read",
    "transact_get_items": "read",
    "transact_write_items": "write",
    "deliver": "put",
}
KINDS: Final = ("create", "update", "delete", "repair")
WHERE: Final = "(function usage-plan-key, log group /aws/lambda/usage-plan-key, log stream stream)"
#: AWS's texts may repeat a request, but no log line, page or Reason does.
ECHO: Final = f"https://bucket/x?X-Amz-Signature={SIGNATURE} with value-of-alice-0123456789"
#: What a call may meet in place of being carried out.
REFUSALS: Final[dict[str, BaseException]] = {
    "busy": refusal(409, "ConflictException", rules.BUSY.message),
    "odd": refusal(409, "ConflictException", f"Conflict, {ECHO}"),
    "throttled": refusal(429, "TooManyRequestsException", "Too Many Requests"),
    "broken": refusal(500, "value-of-alice-0123456789", f"Broken, {ECHO}"),
    "denied": refusal(403, "AccessDeniedException", f"Not authorized, {ECHO}"),
    "bad": refusal(400, "BadRequestException", f"Bad, {ECHO}"),
    "slow": refusal(400, "ProvisionedThroughputExceededException", ECHO),
    "progress": refusal(400, "TransactionInProgressException"),
    "limit": refusal(400, "RequestLimitExceeded"),
    "absent": refusal(400, "ResourceNotFoundException"),
    "conflict": cancelled("None", "TransactionConflict"),
    "changed": cancelled("TransactionConflict", "ConditionalCheckFailed"),
    "invalid": cancelled("ValidationError"),
    "garbled": AttributeError("'list' object has no attribute 'get'"),
    "cut": ReadTimeoutError(endpoint_url=ECHO),
    "crash": ZeroDivisionError("oops"),
    "elsewhere": FailedError("ResponseURL leads elsewhere"),
    "unsigned": CredentialRetrievalError(provider="env", error_msg=ECHO),
    "dies": Death(),
}
#: Replies that say nothing about pages, and the reference's for pages that are not there.
REPLIES: Final[dict[str, Any]] = {
    "html": {"ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html"}}},
    "empty": {},
    "short": {"Responses": [{}]},
    "null": {"Responses": [None, None]},
    "newer": {"Responses": [{"Item": {"format": {"N": "99"}}}] * 2},
}
#: The property that an option of a request sets.
OPTIONS: Final = {
    **dict.fromkeys(["Adopt", "Take"], "OnExisting"),
    **dict.fromkeys(["P1", "P2", "P3"], "VerifyTrigger"),
    "Value": "IncludeValue",
    "for": "ServiceTimeout",
    "nonsense": "Nonsense",
}
#: What it may meet once it is carried out.
LOSSES: Final = {"lost": "cut", "dead": "dies", "crashed": "crash", "hung": "hangs"}


class Story(Services):
    """An account, two stacks, the function, and somebody else with a console."""

    aws_request_id = "i"

    def __init__(self) -> None:
        super().__init__()
        self.api.meta = self.db.meta
        self.table = Table(self.db, "ledger")  # type: ignore[arg-type]  # a fake
        self.api.keys = {key: Key(f"Key of {key}", f"value-of-{key}-0123456789") for key in ("alice", "bob")}
        for plan in ("free a:prod", "pro a:prod a:beta", "gold b:prod", "beta a:beta", "third a:prod"):
            self._others("plan", plan.split())
        self.fates: dict[str, list[str]] = {}
        self.calls: Counter[str] = Counter()
        self.strangers = set[Pair]()  # What somebody else has attached, and the function may not detach
        self.events: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.put: list[dict[str, Any]] = []
        self.messages, self.leaving = {}, {}
        self.stacks: dict[str, str] = {}  # What CloudFormation says of the unusual ones
        self.dice, self.ids = Random(0), itertools.count(1)
        self.log = StringIO()
        self.seconds, self.is_queued, self.has_ledger = 900.0, False, True
        self.is_arriving = False
        #: At the end of so many moments, before and after its calls, the function meets this.
        self.moments: Iterator[int] | None = None
        self.ending = "dies"
        self.depth, self.told = 0, list[str]()
        self.guard: CustomResource
        self._function()

    @property
    def lines(self) -> list[str]:
        """The log."""
        return self.log.getvalue().splitlines()

    def _function(self) -> None:
        self.queue = Queue(self.line(self), "queue")
        more = {} if self.has_ledger else {"table": None}
        self.function = self.provider(
            queue=self.queue if self.is_queued else None, cloudformation=lambda: self.line(self), **more
        )

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
        split = re.fullmatch(r"(?:(\w+): )?(.*?)(?: = ([^{}]*))?", step)
        name, asked, expected = split.groups("")  # type: ignore[union-attr]  # it matches
        verb, *words = _split(asked, " ")
        if verb in KINDS:
            verb, words = "send", [verb, *words]
        if verb in ("send", "issue", "arrive", "serve", "again"):
            if words and words[0] in KINDS:
                self._issue(name, words)
            id_ = words[0] if words and words[0] in self.events else [*self.events][-1]
            if verb != "issue":
                self._deliver(id_, verb, expected)
        elif verb == "letgo":
            _expect(self._let_go(words), expected or "ok")
        elif is_so := getattr(self, f"_{verb}", None):
            is_so(words)
        else:
            self._others(verb, words)

    def _issue(self, name: str, words: list[str]) -> None:
        """Make a request; its id is its name in the story."""
        self.sleep(1)
        kind, resource, *ids = words
        options = {word for word in ids if re.fullmatch(r"[A-Z]\w*|\w+=\w+|undated", word)}
        ids = [id_ for id_ in ids if id_ not in options]
        given = {option: value for option, _, value in (word.partition("=") for word in options)}
        id_ = name or f"request-{next(self.ids)}"
        issued = self.events[given["with"]]["issued"] if "with" in given else self.now
        issued += int(given.get("ahead", 0))
        given |= {"Value": "true"} if "Value" in given else {}
        wants = {OPTIONS[word]: value or word for word, value in given.items() if word in OPTIONS}
        if kind in ("create", "update") and ids[-1] != "nothing":
            wants |= zip(("KeyId", "UsagePlanId"), _pair(ids[-1]), strict=True)
        more: dict[str, Any] = {} if kind == "create" else {"PhysicalResourceId": _id(ids[0])}
        if kind == "update":
            more["OldResourceProperties"] = {"OnExisting": given["old"]} if "old" in given else {}
        holder, date = holder_of(resource), None if "undated" in options else issued
        asked = event(kind.title(), id_, holder, wants, date, **more)
        if kind == "repair":
            asked = repair_event(id_, holder, Association(*_pair(ids[0]))) | {"ResourceProperties": {}}
        self.messages.pop(id_, None)
        self.events[id_] = {"event": asked, "issued": issued, "by": given.get("old"), "asks": options}

    def _deliver(self, id_: str, verb: str, expected: str) -> None:
        """Have the function served a request, and check what comes of it."""
        asked = self.events[id_]["event"]
        is_repair = asked["RequestType"] == "Repair"
        self.put, outer, lines, place = [], self.put, len(self.lines), len(self.told) - 1
        came = ""
        try:
            if (self.is_queued or verb == "arrive") and id_ not in self.messages and not is_repair:
                self._arrive(asked)
            if verb != "arrive" and not self.put:
                if self.depth == 1:
                    self.calls.clear()
                came = self._serve(id_, asked)
        except Death:
            came = "dies"
            self._function()
        except (FailedError, UnclearError):
            came = "raises"
            assert (self.put, id_ in self.messages) == ([], False), "Lambda invokes again"
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

    def _arrive(self, asked: dict[str, Any]) -> None:
        """CloudFormation invokes the function, which fences the request, and queues it."""
        self.is_arriving, self.ends = True, self.now + self.seconds
        try:
            replace(self.function, queue=self.queue).on_event(deepcopy(asked), self)
        finally:
            self.is_arriving = False

    def _serve(self, id_: str, asked: dict[str, Any]) -> str:
        """Have a request served where it arrives; or the queue delivers it."""
        self.ends = self.now + self.seconds
        if not self.is_queued and asked["RequestType"] != "Repair" and id_ not in self.messages:
            copy_context().run(self.function.on_event, deepcopy(asked), self)
            return ""
        if id_ not in self.messages:
            body = json.dumps({"event": asked, "arrived": self.now})
            self.messages[id_] = Message(id_, asked["StackId"], body, self.now)
        if not self._hand_out([id_]):
            return ""
        hidden = self.messages[id_].visible
        return f"waits {int(hidden - self.now)}" if hidden != self.handed[id_].visible else "fails"

    def _hand_out(self, names: list[str]) -> list[str]:
        """The queue delivers these messages in one batch; return those that come again."""
        self.ends = self.now + self.seconds
        self.handed = {name: self.messages[name].received(self.now) for name in names}
        self.messages |= self.handed
        records = [message.record() for message in self.handed.values()]
        reply = copy_context().run(self.function.on_batch, records, self)
        return [item["itemIdentifier"] for item in reply["batchItemFailures"]]

    def _answered(self, id_: str, answer: dict[str, Any]) -> None:
        """Check an answer's form, and that it is true, and the same as before."""
        asked, asks_value = self.events[id_]["event"], "Value" in self.events[id_]["asks"]
        key, plan = wanted = tuple(
            asked["ResourceProperties"].get(name, "") for name in ("KeyId", "UsagePlanId")
        )
        new = f"{key}:{plan}" if key else asked["LogicalResourceId"]
        succeeds = answer["Status"] == "SUCCESS"
        tells = succeeds and asked["RequestType"] != "Delete"
        data, reason = answer.get("Data", {}), answer.get("Reason", "")
        assert answer == {
            **{name: asked[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
            "Status": answer["Status"],
            "PhysicalResourceId": new if tells else asked.get("PhysicalResourceId", new),
            "NoEcho": tells and asks_value,
            **({"Data": data} if tells else {}),
            **({} if succeeds else {"Reason": reason}),
        }
        assert succeeds or (reason.endswith(f" {WHERE}") and "\n" not in reason)
        _shows_no_secret(reason)
        if tells:
            given = {"Id": new, "KeyId": key, "UsagePlanId": plan, "KeyType": "API_KEY"}
            assert data.items() >= given.items()
            assert {"KeyName", "Outcome"} <= data.keys() - given.keys() <= {"KeyName", "Outcome", "Value"}
            assert asks_value or "Value" not in data
            if data["Outcome"] == "LOST":
                empty = "" if asks_value else None
                assert (data["KeyName"], data.get("Value")) == (f"Key of {key}", empty), "as last answered"
            elif id_ not in self.bodies:
                assert wanted in self.api.attached, "what CloudFormation believes to be attached is attached"
                assert data["KeyName"] == self.api.keys[key].name
                assert data.get("Value") in (None, self.api.keys[key].value)
            if data["Outcome"] == "TAKEN":
                self.strangers.discard((key, plan))
        # A value is looked up anew.
        shown = answer | {"Data": {name: it for name, it in data.items() if name != "Value"}}
        assert self.bodies.setdefault(id_, shown) == shown, "the same request, the same answer"

    def _check(self) -> None:
        """Check what holds after every step."""
        _shows_no_secret(f"{self.db.items} {self.log.getvalue()}")
        if self.depth or not self.has_ledger:
            return
        pages = self.pages()
        held = {(who, one) for who, record in pages.records.items() for one in record.holds}
        assert held == {(who, one) for one, entry in pages.entries.items() for who in entry.holders}
        ours = {Association(*pair) for pair in self.api.attached - self.strangers - self.leaving.keys()}
        assert ours <= {one for _, one in held}, "what we attached and nobody holds is detached"

    def pages(self) -> Pages:
        """All pages of the ledger."""
        return self.table.pages(Deadline(ends=self.now + 60, clock=self))

    # --- What others do ---

    def _others(self, verb: str, words: list[str]) -> None:
        pairs = {*map(_pair, words)}
        match verb:
            case "hand+":
                self.strangers |= pairs - self.api.attached
                self.api.attached |= pairs
            case "hand-":
                self.api.attached -= pairs
                self.strangers -= pairs
            case "gone":
                self._others("hand-", [":".join(pair) for pair in self.api.attached if {*pair} & {*words}])
                for word in words:
                    self.api.keys.pop(word, None)
                    self.api.plans.pop(word, None)
            case "plan":
                stages = tuple((api, stage) for api, _, stage in (word.partition(":") for word in words[1:]))
                self.api.plans[words[0]] = Plan(words[0].title(), stages)
            case "excuse":
                self.strangers |= pairs
            case "backup":
                self.saved = self.db.items
            case "restore":
                self.db.items = {} if words else self.saved
                held = {one for one, entry in self.pages().entries.items() if entry.holders}
                self.strangers |= self.api.attached - held
            case "put":
                asked = self.events[words[0]]["event"]
                self.messages[words[0]] = Message(words[0], asked["StackId"], json.dumps(asked), self.now)
            case _:
                self._set(verb, words)

    def _let_go(self, words: list[str]) -> str:
        """An operator has a resource let go."""
        stack, resource = holder_of(words[0])
        self.ends = self.now + self.seconds
        try:
            let_go = self.function.let_go({"StackId": stack, "LogicalResourceId": resource}, self)
        except FailedError as failed:
            return f"FAILED {failed}"
        return f"ok {' '.join(map(_bare, let_go['LetGo']))}".strip()

    def _crowd(self, words: list[str]) -> None:
        """Updates of A have left 120 plans."""
        holder, left = holder_of("A"), Hold("one", Belief.LEFT, marked_by="one")

        def hold(state: Snapshot) -> Snapshot:
            for one in state.entries:
                state = state.held(holder, one, left).with_entry(one, away=True)
            return state

        for part in at_once([Association("alice", f"plan{number}") for number in range(120)]):
            self.table.change(holder, part, hold, Deadline(ends=math.inf))

    def _set(self, verb: str, words: list[str]) -> None:
        match verb, words:
            case "time", [seconds]:
                self.sleep(float(seconds))
            case "seconds", [seconds]:
                self.seconds = float(seconds)
            case "stack", [stack, said]:
                self.stacks[stack] = said
            case "at", [call, *fates]:
                parted = [re.fullmatch(r"(.*?)(?:\*(\d+))?", fate) for fate in fates]
                self.fates[call] = [one[1] for one in parted if one for _ in range(int(one[2] or 1))]
            case "queue", []:
                self.is_queued, self.seconds = True, 90.0
                self._function()
            case "no", ["ledger"]:
                self.has_ledger = False
                self._function()
            case _:
                raise ValueError(f"no story has this step: {verb}")

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
        for one, entry in self.pages().entries.items():
            if entry.holders:
                names = ",".join(sorted(holder.logical_id for holder in entry.holders))
                origin = "" if entry.origin is Origin.OURS else f"!{entry.origin}"
                marks = ("attaching", "detaching", "away")
                told = "".join(f"+{mark}" for mark in marks if getattr(entry, mark))
                found.append(f"{_bare(one.id)}={names}{origin}{told}")
        _same({*found}, {*words} - {"nothing"})

    def _beliefs(self, words: list[str]) -> None:
        records = {holder.logical_id: record for holder, record in self.pages().records.items()}
        held = records[words[0]].holds.items() if words[0] in records else ()
        _same({f"{_bare(one.id)}={hold.belief}" for one, hold in held}, {*words[1:]})

    def _calls(self, words: list[str]) -> None:
        others = ("read", "write", "put", "hide", "check")
        found = {f"{name}={count}" for name, count in self.calls.items() if name not in others}
        _same(found, {*words} - {"none"})

    def _ledger(self, words: list[str]) -> None:
        _same({f"{self.calls['read']}R", f"{self.calls['write']}W"}, {*words})

    def watch(self, event: object = None, *, repairs: bool = False, left: float = 900.0) -> dict[str, Any]:
        """Run the watch."""
        self.ends = self.now + left
        watch = Watch(
            api=ApiGateway(self.line(self.api)),
            table=Table(self.line(self.db), "ledger"),
            queue=self.queue if repairs else None,
            cloudformation=lambda: self.line(self),
            clock=self,
            sample=self.dice.sample,
        )
        with mock.patch.object(self, "function_name", "usage-plan-key-watch"):
            return watch.run(event, self)

    def describe_stacks(self, *, StackName: str) -> dict[str, Any]:
        said = self.stacks.get(StackName.split("/")[1], "UPDATE_COMPLETE")
        if said == "none":
            raise refusal(400, "ValidationError", "does not exist")
        return {"Stacks": [{"StackStatus": said}]}

    def _watch(self, words: list[str]) -> None:
        asked = {word for word in words if re.fullmatch(r"now|repairs|only=\w+", word)}
        expected = {*words} - asked - {"nothing"}
        only = dict(word.replace("only", "UsagePlanId").split("=") for word in asked if "=" in word)
        fails = any(word.startswith("unseen") for word in expected)
        self.sleep(0 if "now" in asked else 7200)
        began, waiting = len(self.lines), {*self.messages}
        self.calls.clear()
        raises = pytest.raises(IncompleteError) if fails else nullcontext()
        with redirect_stdout(StringIO()) as self.metrics, raises:
            self.watch(only or {"detail-type": "Scheduled Event"}, repairs="repairs" in asked)
        said = "\n".join(self.lines[began:])
        found = [f"missing={_bare(id_)}" for id_ in re.findall(r"Missing: (\S+),", said)]
        unheld = re.findall(r"nobody: (.+) in usage plan (.+)", said)
        found += [f"unheld={_bare(f'{key}:{plan}')}" for key, plan in unheld]
        found += [f"gone={name}" for name in re.findall(r"Gone: .*, and its (\w+) still holds", said)]
        for id_ in self.messages.keys() - waiting:
            found.append(f"queued={_bare(id_.partition('/')[2])}")
            event = json.loads(self.messages[id_].body)["event"]
            self.events[id_] = {"event": event, "issued": self.now, "by": None, "asks": set()}
        counts = json.loads(re.findall(r"Watched: (.*)", said)[0])
        seen = Counter(one.partition("=")[0] for one in found)
        of = {"missing": "missing", "unheld": "unheld", "gone": "gone", "queued": "repairs"}
        assert all(counts[count] == seen[kind] for kind, count in of.items()), counts
        unknown = {"unasked": counts["stacks_not_asked"], "unseen": counts["not_looked_at"]}
        _same({*found, *(f"{name}={count}" for name, count in unknown.items() if count)}, expected)

    def _drift(self, words: list[str]) -> None:
        _same({*re.findall(r'"Drift":\[(\d+)', self.metrics.getvalue())}, {*words} - {"nothing"})

    def _log(self, words: list[str]) -> None:
        assert any(" ".join(words) in line for line in self.lines), self.lines

    # --- The services, as the function's clients ---

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        """One of the function's calls, as the fates have it."""
        self._moment()
        verb = VERBS.get(operation, operation)
        if self.is_arriving and verb == "write":
            verb = "fence"
        if not self.is_arriving:
            self.calls[verb] += 1
        plan = about[1] if about else getattr(make, "keywords", {}).get("usagePlanId")
        fate = self._fate(f"{verb}:{plan}") or self._fate(verb) or "ok"
        before, name, number, after = _read(fate)
        if before:
            self._nested(before)
        self._meet(name, number)
        if name in REPLIES:
            return REPLIES[name]
        if name == "later" and about:
            self.leaving[about] = self.now + float(number)
            return {}
        if verb == "delete" and about in self.strangers & self.api.attached:
            self._taken_over(about)
        reply = make()
        self._moment()
        if name == "bare":
            del reply["value"]
        if after:
            self._nested(after)
        self._meet(LOSSES.get(name, ""))
        return reply

    def _meet(self, fate: str, number: str = "") -> None:
        if fate == "hangs":  # The guard answers, and then Lambda ends the function.
            self._guarded(self.guard, self.ends - GUARD_TIME)
            self.now = self.ends
            raise Death
        if fate in REFUSALS:
            raise throttled(int(number)) if number else REFUSALS[fate]

    def _guarded(self, guard: CustomResource, now: float) -> None:
        """The guard strikes when the function's time is nearly up."""
        self.guard, self.now = guard, max(self.now, now)
        if self.now >= self.ends - GUARD_TIME:
            guard._timeout()
            assert self.now < self.ends, "the guard answers in its time"

    def _moment(self) -> None:
        if self.moments and not next(self.moments, 0):
            self.moments = None
            self._meet(self.ending)

    def _fate(self, verb: str) -> str:
        """Take the next fate of a call."""
        fates = self.fates.get(verb) or [""]
        return fates[0].removesuffix("*") if fates[0].endswith("*") else fates.pop(0)

    def _taken_over(self, pair: Pair) -> None:
        """Only an Update whose old and new properties say `Take` detaches such a key, for a while."""
        asking = self.events[[*self.events][-1]]
        if asking["by"] != "Take" or "Take" not in asking["asks"]:
            pytest.fail(f"somebody else has attached {pair}")  # No `except Exception` catches it.

    def check(self, request: Request) -> None:
        """The sender's: whether the answer may go there."""
        self.call("check", lambda: None)

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        """The sender's: CloudFormation has the answer."""
        assert len(body) <= 4096
        try:
            self.call("deliver", lambda: self.put.append(json.loads(body)))
        except ReadTimeoutError as error:
            raise UndeliveredError from error


def holder_of(resource: str) -> Holder:
    """Name a resource of the stories."""
    return Holder(STACK.format("two" if resource in "YZ" else "one"), resource)


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


def _read(fate: str) -> tuple[str, ...]:
    """Divide a fate into what others do before, the call's own with its number, and what they do after."""
    return re.fullmatch(r"(?:\{(.*?)\})?(\w*)(?:=(\w+))?(?:\{(.*)\})?", fate).groups("")  # type: ignore[union-attr]  # it matches


def _pair(id_: str) -> tuple[str, str]:
    key, _, plan = _id(id_).partition(":")
    return key, plan


def _id(id_: str) -> str:
    """`free` is alice's key in Free; an id that starts with a hash is a foreign one."""
    return id_[1:] if id_.startswith("#") else id_ if ":" in id_ else f"alice:{id_}"


def _bare(id_: str) -> str:
    return id_.removeprefix("alice:")


def _told(answer: dict[str, Any]) -> str:
    if answer["Status"] == "FAILED":
        return f"FAILED {answer['Reason']}"
    return f"ok {answer['Data']['Outcome']}" if "Data" in answer else "ok"


def _same(found: set[str], expected: set[str]) -> None:
    assert found == expected, f"{sorted(found - expected)} and not {sorted(expected - found)}"


def _shows_no_secret(text: str) -> None:
    assert not [secret for secret in (SIGNATURE, "value-of-") if secret in text]


def _expect(came: str, expected: str) -> None:
    _shows_no_secret(came)
    kind, _, words = expected.partition(" ")
    if kind == "waits":
        assert came.startswith("waits "), came
        low, _, high = (words or "0-20").partition("-")
        assert int(low) <= int(came.removeprefix("waits ")) <= int(high or low), came
    elif kind in ("FAILED", "not"):
        missing = [word for word in (kind, *words.split("|")) if word not in came]
        assert not missing, f"{missing} not in {came!r}"
    elif kind.isupper():
        assert came == f"ok {kind}", came
    else:
        assert kind in ("any", came.partition(" ")[0]), came


@contextmanager
def staged(of: type[Story] = Story) -> Iterator[Story]:
    """Set the stage: a story, its log, and no chance."""
    story = of()
    log, lines = logging.getLogger("usage_plan_key"), logging.StreamHandler(story.log)
    lines.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    level, log.propagate = log.level, False
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    try:
        with (
            still(lambda guard: story._guarded(guard, story.now)),
            mock.patch.object(service, "next_step", decided),
        ):
            yield story
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
        log.propagate = True


def play(line: str, of: type[Story] = Story) -> Story:
    """Play a story."""
    with staged(of) as story:
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


def played(text: str, of: type[Story] = Story) -> Callable[[str], None]:
    """Make tests of a table that only play its stories."""

    @stories(text)
    def test(line: str) -> None:
        play(line, of)

    return test
