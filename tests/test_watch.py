"""The watch reports missing and foreign keys, has keys attached again, and shows no secret."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from traceback import TracebackException
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from emulators.fake import Key, Plan
from tests.story import Story, play, played, staged
from usage_plan_key import watch
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.cloudformation import is_of
from usage_plan_key.errors import EventError, FailedError, IncompleteError
from usage_plan_key.provider import about
from usage_plan_key.retry import Deadline

ARN = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"


@pytest.fixture
def story() -> Iterator[Story]:
    with staged() as story:
        yield story


test_what_it_reports = played("""
the key is in its plan
    create A free; watch nothing; drift 0; calls list=1 stack=1 -> attached free
somebody has removed it: the log says who holds it, why it is missing and what to do, and no more happens
    create A free; hand- free; watch missing=free; drift 1; log WARNING Missing: alice:free, held by A of
    stack one: API key alice is not in usage plan free: somebody has removed it, or the key is deleted.
    What to do: deploy the stack with another VerifyTrigger, or have it repaired (WatchRepairs) ->
    attached nothing
somebody has removed all keys: API Gateway leaves an empty list out (github.com/aws/aws-sdk-js/issues/1416)
    create A free; hand- free; at list empty; watch missing=free -> attached nothing
all resources that count on it are named
    create A free; create B free; create Z free Adopt; hand- free; watch missing=free; log Missing:
    alice:free, held by A of stack one, B of stack one, Z of stack two: -> drift 1
the plan is deleted: there is nothing to attach it to
    create A free; create B bob:free; gone free; watch repairs missing=free missing=bob:free; log Missing:
    bob:free, held by B of stack one: there is no usage plan free. What to do: give the resource another
    UsagePlanId, or remove it, and deploy -> drift 2
lost in a rollback: CloudFormation goes on as if it were attached, and no repair may touch it
    queue; create A free; update A free pro = MOVED; gone alice; update A pro free = LOST; watch repairs
    missing=free; log No repair touches it: it was moved away from. What to do: deploy the stack with
    another VerifyTrigger; repair A free = not it was moved away from -> attached nothing
there before us: somebody else may have removed it for good
    queue; hand+ free; create A free Adopt; hand- free; watch repairs missing=free; log No repair touches
    it: it was there before the stack, so somebody else may have removed it for good; repair A free = not it
    was there before the stack; calls none -> attached nothing
it wants another one, and a later Update has failed: what an earlier life has left is not its own
    create A gold; create A free; update A free nope = FAILED there is no; hand- gold; watch nothing ->
    attached free
a request has touched it within the last hour and a minute
    create A free; hand- free; time 3658; watch now nothing; time 3; watch now missing=free -> drift 1
a request without an issue time was answered within the hour
    queue; at create throttled=600; create A free undated = waits 20; time 600; again = ATTACHED; hand-
    free; time 3600; watch now nothing; watch missing=free -> drift 1
a request is pending
    queue; create A free; hand- free; time 7200; arrive update A free free; watch now nothing -> drift 0
a request that never got an answer hides nothing, and bars a repair
    queue; create A free; hand- free; arrive update A free free; watch repairs missing=free; log No repair
    touches it: the last request of its resource never got an answer -> drift 1
being attached when the function died
    at create dies; create A free = dies; held free=A!wanted+attaching; watch nothing -> drift 0
being detached when the function died
    create A free; at delete dead; delete A free = dies; watch nothing -> held free=A+detaching
being detached: a request that failed before its Delete will end it
    queue; create A free; at delete lost denied; update A free pro = FAILED; held free=A+detaching+away;
    watch nothing -> drift 0
moved away from
    create A free; update A free pro = MOVED; watch nothing -> held free=A+away pro=A
left by an Update: its Delete is to come, or it is retained
    create A free; update A free gold; hand- free; watch nothing -> held free=A gold=A
nobody knows whether it was attached, and CloudFormation never believed so
    at create lost denied*; create A free = FAILED; hand- free; watch nothing; at create -> drift 0
detached while the watch looks at the plans: neither missing nor foreign
    create A free; create B bob:gold; time 7200; at list ok{delete A free; delete B bob:gold}; watch now
    nothing -> attached nothing
attached while the watch looks at the plans: not foreign
    create A free; create B bob:gold; time 7200; at list:free {create B bob:free}ok; watch now nothing ->
    attached free bob:free bob:gold
a key that nobody holds, in a plan that the ledger knows
    create A free; hand+ bob:free bob:gold; watch unheld=bob:free; log INFO Held by nobody: bob in usage
    plan free -> attached free bob:free bob:gold
a key that a resource has let go of within the hour is not foreign yet
    create A free; create B bob:free; delete A free; hand+ free; time 3650; watch now nothing; time 20;
    watch now unheld=free -> attached free bob:free
a plan that cannot be seen costs the others nothing: what is known is reported, and the run fails
    create A free; create B gold; hand- free gold; at list:gold denied; watch missing=free unseen=1; drift
    1; log ERROR Not looked at: Could not list the API keys in usage plan gold; log apigateway:GET ->
    attached nothing
a run that has not seen everything does not say that all is well, so the alarm stays as it is
    create A free; create B gold; at list:gold denied; watch unseen=1 -> drift nothing
a plan that is throttled for long does not take all the time
    create A free; create B gold; at list:gold throttled=2*; watch unseen=1; at list:gold; watch nothing
    -> drift 0
only one plan: the alarm is about all, so there is no metric
    create A free; create B bob:gold; hand- free; watch only=gold nothing; drift nothing; watch only=free
    missing=free; drift nothing; calls list=1 stack=1 -> attached bob:gold
""")


test_stacks_that_are_gone = played("""
its stack is deleted, as CloudFormation says for 90 days: the command is named, and nothing is let go of
    create A free; create B bob:free; create Z gold; stack one DELETE_COMPLETE; watch gone=A gone=B; log
    WARNING Gone: stack arn:aws:cloudformation:eu-west-1:1:stack/one/0 does not exist any more, and
    its A still holds alice:free. To let go of it and detach nothing: aws lambda invoke --function-name
    usage-plan-key     --cli-binary-format raw-in-base64-out --payload '{"LetGo": {"StackId":
    "arn:aws:cloudformation:eu-west-1:1:stack/one/0", "LogicalResourceId": "A"}}' /dev/stdout;
    calls list=2 stack=2; held free=A bob:free=B gold=Z -> attached free bob:free gold
its stack is forgotten
    create A free; update A free gold; stack one none; watch gone=A; log its A still holds alice:free,
    alice:gold. To let go of it -> held free=A gold=A
a key that only deleted stacks count on is no drift, and another stack's resource asks for the repair
    queue; create A free; create Z free Adopt; hand- free; stack one DELETE_COMPLETE; watch repairs gone=A
    missing=free queued=free; log held by Z of stack two:; serve i/alice:free; log Repaired: alice:free for
    Z of stack two; hand- free; stack two DELETE_COMPLETE; watch repairs gone=A gone=Z; drift 0 ->
    attached nothing
no more is asked once CloudFormation has refused, and the run fails
    create A free; create Z gold; hand- free; at stack denied; watch missing=free unasked=2 unseen=1;
    calls list=2 stack=1; log ERROR Asked about no more stacks: Could not ask CloudFormation about
    arn:aws:cloudformation:eu-west-1:1:stack/one/0: ; log The function's role needs
    cloudformation:DescribeStacks -> drift 1
CloudFormation is asked again, like any other
    create A free; at stack throttled=2 cut; watch nothing; calls list=1 stack=3 -> drift 0
CloudFormation cannot be reached
    create A free; at stack cut*; watch unasked=1 unseen=1; at stack; log Asked about no more stacks:
    Could not ask CloudFormation about arn:aws:cloudformation:eu-west-1:1:stack/one/0: ->
    drift nothing
a stack that CloudFormation has said nothing about gets no repair: it may be gone, and its key for good
    queue; create A free; hand- free; at stack denied; watch repairs missing=free unasked=1 unseen=1; log
    No repair touches it: CloudFormation has not said whether its stack is there -> drift 1
""")


test_repairs = played("""
asked for, served in its stack's order, and nobody is answered
    queue; create A free; hand- free; watch repairs missing=free queued=free; log What to do: wait for its
    repair, which is queued; serve i/alice:free; log INFO Repaired: alice:free for A of stack one; calls
    create=1 get=1; attached free; held free=A; watch repairs nothing; repair A free = not its key is there
    again; calls get=1; delete A free -> attached nothing
it waits for ten minutes at most, and is left to the next watch
    queue; create A free; hand- free; watch repairs missing=free queued=free; time 600; serve i/alice:free
    = not over before its turn came; watch missing=free -> attached nothing
a key that was taken over becomes ours
    queue; hand+ free; create A free Take; update A free free Take = TAKEN; hand- free; repair A free;
    held free=A -> attached free
somebody puts it back just now: the marks stay
    queue; hand+ free; create A free Take; update A free free Take = TAKEN; hand- free; at create {hand+
    free}ok; repair A free = not its key is there again; held free=A!taken -> attached free
the queue refuses it, or cannot be reached: the run fails, and the next one asks again
    queue; create A free; hand- free; at send denied; watch repairs missing=free unseen=1; log ERROR Queued
    no more repairs: ; at send cut*; watch repairs missing=free unseen=1; at send; watch repairs
    missing=free queued=free -> drift 1
the ledger is out of reach: its stack's requests go on, and the next repair mends it
    queue; create A free; hand- free; at write denied; repair A free = not Could not write the ledger;
    attached nothing; repair A free -> attached free
nobody knows whether it was attached: it is ours, and its Delete detaches it
    queue; create A free; hand- free; at create lost denied; at get {}ok denied*; repair A free = not
    permission; at get; held free=A+attaching; time 2; delete A free -> attached nothing
""")


@pytest.mark.parametrize(
    "moment", ["read {}ok", "read ok{}", "write {}ok", "write ok{}", "get {}ok", "create {}ok", "create ok{}"]
)
@pytest.mark.parametrize(
    ("kind", "ends"),
    [("delete A free", "nothing"), ("update A free free", "free"), ("update A free pro", "pro")],
)
def test_a_request_that_arrives_at_any_moment_of_a_repair_wins(moment: str, kind: str, ends: str) -> None:
    """The queue serves it after the repair, which comes again behind it."""
    arrives = moment.replace("{}", f"{{new: arrive {kind}}}")
    play(
        f"queue; create A free; hand- free; at {arrives}; fix: repair A free = any; serve new; "
        f"attached {ends}; again fix = not; attached {ends}"
    )


def test_another_runs_repair_has_another_id(story: Story) -> None:
    """The queue would take the same one for a repetition."""
    story.play("queue; create A free; hand- free; watch repairs missing=free queued=free")
    story.aws_request_id = "j"
    story.play("watch repairs missing=free queued=free; serve j/alice:free -> attached free")


def test_nobody_but_the_watch_has_a_key_repaired(story: Story) -> None:
    """CloudFormation's invocation takes no repair; and without a ledger nobody can check one."""
    story.play("queue; create A free; hand- free; watch repairs missing=free queued=free")
    with pytest.raises(EventError, match="RequestType"):
        story.function.on_event(story.events["i/alice:free"]["event"], story)
    with pytest.raises(AssertionError, match="fails"):
        story.play("no ledger; serve i/alice:free")
    assert not story.api.attached


@pytest.mark.parametrize(
    ("event", "on", "came"),
    [
        ({"Repair": False}, True, 0),
        ({"Repair": True, "UsagePlanId": "free"}, True, 1),
        ({}, True, 1),
        ({}, False, 0),
        ({"Repair": True}, False, "^repairs are off: deploy the function with WatchRepairs=true"),
        *(({name: odd}, True, "both optional") for name, odd in (("repair", True), ("Repair", "yes"))),
        *(({"UsagePlanId": odd}, True, "both optional") for odd in ("../x", 7)),
    ],
)
def test_an_operator_says_whether_to_repair(story: Story, event: object, on: bool, came: Any) -> None:
    story.play("queue; create A free; hand- free; time 7200")
    with nullcontext() if isinstance(came, int) else pytest.raises(EventError, match=came):
        assert story.watch(event, repairs=on)["repairs"] == came


def test_the_lambda_entry_uses_apps_parts(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.play("create A free")
    wired = story.provider(cloudformation=lambda: story)
    monkeypatch.setitem(sys.modules, "usage_plan_key.app", SimpleNamespace(provider=wired))
    story.ends = story.clock.time() + 900
    assert watch.handler({"UsagePlanId": "free"}, story)["plans"] == 1
    monkeypatch.setattr(sys.modules["usage_plan_key.app"], "provider", replace(wired, table=None))
    with pytest.raises(EventError, match="needs a ledger"):
        watch.handler({}, story)


# --- Many plans, many stacks, and a call a second ---


def many(story: Story, *, keys: int, plans: int, stacks: int = 1) -> None:
    """Attach so many keys, each to one of so many plans, by resources of so many stacks."""
    story.play("create A free")
    pages = json.dumps([*story.db.items.values()])
    story.db.items, story.api.attached = {}, set()
    for n in range(keys):
        key, plan = f"k{n}", f"p{n % plans}"
        made = pages.replace("alice:free", f"{key}:{plan}").replace("stack/one", f"stack/s{n % stacks}")
        made = made.replace('#A"', f'#R{n}"').replace('"A"', f'"R{n}"')
        story.db.items.update({page["pk"]["S"]: page for page in json.loads(made)})
        story.api.plans[plan], story.api.keys[key] = Plan(plan), Key(key, f"value-of-{key}")
        story.api.attached.add((key, plan))
    story.clock.sleep(7200)


def test_300_plans_and_a_thousand_stacks_fit_into_one_run(story: Story) -> None:
    """300 plans are a region's default limit. A call takes 0.3 seconds here."""
    many(story, keys=1000, plans=300, stacks=1000)
    story.api.attached.remove(("k77", "p77"))
    story.fates["list"] = ["{time 0.3}ok*"]
    counts = {"plans": 300, "associations": 1000, "missing": 1, "stacks_not_asked": 0, "seconds": 799}
    assert story.watch().items() >= counts.items()


def test_out_of_time_it_asks_about_the_stacks_of_missing_keys_first(story: Story) -> None:
    many(story, keys=200, plans=1, stacks=100)
    for number in (7, 77):
        story.api.attached.remove((f"k{number}", "p0"))
        story.stacks[f"s{number}"] = "DELETE_COMPLETE"
    counts = {"missing": 0, "gone": 4, "not_looked_at": 0, "stacks_not_asked": 57, "seconds": 21}
    assert story.watch(left=100).items() >= counts.items()


def test_out_of_time_it_fails_and_the_next_run_draws_others(story: Story) -> None:
    many(story, keys=100, plans=100)
    story.api.attached.clear()
    seen = []
    for _ in range(2):
        began = len(story.lines)
        with pytest.raises(IncompleteError, match=r'"plans": 22, .*"missing": 22, .*"not_looked_at": 78'):
            story.watch(left=100)
        story.play("log ERROR Not looked at: the function's time is nearly up, after 22 plans")
        seen.append({line for line in story.lines[began:] if "Missing: " in line})
    assert seen[0] != seen[1]


def test_one_run_queues_so_many_repairs(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_REPAIRS", 3)
    many(story, keys=5, plans=1)
    story.api.attached.clear()
    assert story.watch(repairs=True).items() >= {"missing": 5, "repairs": 3}.items()
    assert len(story.messages) == 3
    assert len([line for line in story.lines if "A later run has " in line]) == 2


# --- What it cannot read, and what nobody may read ---


UNREAD: dict[str, Any] = {
    "holder#s#A": {"format": {"N": "99"}},
    "association#bob:free": {"format": {"N": "1"}, "version": {"S": "v"}, "holders": {"S": "?"}},
    "holder#A": {"format": {"N": "1"}, "version": {"S": "v"}},
    "nonsense": {},
}


@pytest.mark.parametrize("pk", UNREAD)
def test_a_page_that_it_cannot_read_is_named_and_costs_the_others_nothing(story: Story, pk: str) -> None:
    """Whether somebody holds its association, nobody knows."""
    story.play("create A free; hand- free; hand+ bob:free")
    story.db.items = {**story.db.items, pk: {"pk": {"S": pk}, **UNREAD[pk]}}
    story._watch(["missing=free", "unseen=1", *["unheld=bob:free"] * ("bob" not in pk)])
    story.play(f"log ERROR Not looked at: page {pk}: ")


def test_the_log_has_the_findings_as_fields_too(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    story.play("create A free; hand- free; time 7200")
    summary = story.watch()
    zeros = ["unheld", "gone", "repairs", "stacks_not_asked", "not_looked_at", "seconds"]
    assert summary == {"plans": 1, "associations": 1, "missing": 1, **dict.fromkeys(zeros, 0)}
    missing, watched = map(vars, caplog.records[-2:])
    assert missing["association"] == "alice:free"
    assert missing["holders"] == [{"stack_id": ARN.format("one"), "logical_id": "A"}]
    assert watched.items() >= summary.items()
    assert about.get() == {"function_request_id": "i"}, "the log's lines are about this run"


def test_only_a_stack_of_the_functions_account_and_region_is_its_own() -> None:
    stack, function = ARN.format("one"), "arn:aws:lambda:eu-west-1:1:function:f"
    assert is_of(stack, function)
    for old, new in (("aws", "aws-cn"), ("west-1", "west-2"), (":1:", ":2:"), ("/0", ""), ("/0", "/0/x")):
        assert not is_of(stack.replace(old, new), function)
    assert not is_of(stack.replace(":1:", "::"), "arn:aws:lambda:eu-west-1"), "an ARN without an account"


def test_another_accounts_stack_is_not_asked_about_and_gets_no_repair(story: Story) -> None:
    """This account's CloudFormation would say that it does not exist."""
    story.invoked_function_arn = "arn:aws:lambda:eu-west-1:2:function:f"
    story.play("queue; create A free; hand- free; watch repairs missing=free unasked=1; calls list=1")
    story.play("log No repair touches it: CloudFormation has not said whether its stack is there")


VALUES: list[Any] = [
    {"items": [{"id": "a"}, {"value": "value-of-a"}]},
    {"items": ["value-of-a"]},
    ["value-of-a"],
]


@pytest.mark.parametrize("reply", VALUES, ids=["an item without an id", "no item", "no reply"])
def test_no_keys_value_is_in_a_line_a_message_an_error_or_its_frames(story: Story, reply: Any) -> None:
    """API Gateway's replies hold the values; a key of GenerateDistinctId: false has its value for its id."""
    story.play("queue; create A free; hand- free; time 7200")
    for old in ("value-of-old-key-is-its-id", "value-of-another-is-its-id"):
        story.api.keys[old] = Key("old", old)
        story.api.attached.add((old, "free"))
    shown = [json.dumps(story.watch(repairs=True))]
    assert len({line for line in story.lines if "Held by nobody: an id of 26 characters (" in line}) == 2
    story.api.get_usage_plan_keys = Mock(return_value=reply)  # type: ignore[method-assign]  # it is malformed
    with pytest.raises(IncompleteError):
        story.watch(repairs=True)
    with pytest.raises(FailedError, match=r"none of API Gateway's, or is cut short") as failed:
        ApiGateway(story.line(story.api)).keys_in("free", Deadline.by(story.now + 60, story), lambda: None)
    error: TracebackException | None = TracebackException.from_exception(failed.value, capture_locals=True)
    while error is not None:
        shown += [str(error), *(str(it.locals) for it in error.stack if "/tests/" not in it.filename)]
        error = error.__cause__ or error.__context__
    assert len(shown) > 5
    assert "value-of" not in " ".join([*shown, *story.lines, str(story.messages)])


def test_it_fails_if_it_cannot_read_the_ledger(story: Story) -> None:
    with pytest.raises(FailedError, match=r"Could not read the ledger ledger in eu-west-1: .*AccessDenied"):
        story.play("create A free; at read denied; watch")


def test_a_holder_without_a_page_counts_on_nothing(story: Story) -> None:
    story.play("create A free; hand- free")
    story.db.items = {pk: page for pk, page in story.db.items.items() if not pk.startswith("holder")}
    story.sleep(7200)
    assert story.watch()["missing"] == 0
