r"""The watch compares the ledger with the usage plans, and reports. It detaches nothing.

It is a function of its own. With the parameter WatchSchedule EventBridge runs it. To run it by hand, put the
serving function's name in the place of NAME:

    aws lambda invoke --function-name NAME-watch --cli-read-timeout 0 /dev/stdout
    aws lambda invoke --function-name NAME-watch --cli-read-timeout 0 --cli-binary-format raw-in-base64-out \
        --payload '{"Repair": true, "UsagePlanId": "a1b2c3"}' /dev/stdout

`Repair` says whether the watch has missing keys attached again; its default is the parameter WatchRepairs.
`true` needs WatchRepairs=true, because the permission comes with it. `UsagePlanId` limits the watch to one
plan.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from . import metrics
from .api_gateway import ApiGateway
from .cloudformation import is_of, stack_is_gone
from .errors import EventError, FailedError, IncompleteError, MissingError, UnclearError
from .ledger import Pages, Table
from .model import Association, Holder, ResourceRecord, well_formed
from .provider import Context, about
from .queue import Queue
from .request import LONGEST_SERVICE_TIMEOUT, MOST_SKEW, repair_event
from .retry import BEFORE_CALL, Clock, Deadline
from .rules import barred, counts_on, is_pending

logger = logging.getLogger(__name__)

#: Seconds from one call to API Gateway to the next: one of the ten calls a second that the account has.
#: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
PLAN_PACE: Final = 1.0
#: Seconds from one call to CloudFormation to the next. No document says how many calls it takes.
STACK_PACE: Final = 0.5
#: Seconds for the attempts at one plan or one stack.
PATIENCE: Final = 120.0
#: Seconds at the end of the function's time to read the ledger, to report, and to queue repairs.
CLOSING_TIME: Final = 60.0
#: Seconds for which CloudFormation may wait for an answer: a resource touched since then has no drift.
RECENT: Final = LONGEST_SERVICE_TIMEOUT + MOST_SKEW
#: Repairs of one run: they take the workers three minutes. More would delay stacks and raise an alarm.
MOST_REPAIRS: Final = 500


class Missing(NamedTuple):
    """An association that resources count on, and whose key is not in its plan.

    Attributes:
        association: The association.
        holders: The resources that have an answer saying that it is attached, except those of gone stacks.
        plan_is_gone: There is no such plan.
        why_not: Why no repair may touch it; empty if one may.
        asker: The resource in whose name a repair attaches it; None if no repair can.
    """

    association: Association
    holders: list[Holder]
    plan_is_gone: bool
    why_not: str
    asker: Holder | None


class Seen(NamedTuple):
    """The findings of a run.

    Attributes:
        missing: Associations that resources count on, and whose keys are not there.
        unheld: Associations whose keys are there, and that nobody holds.
        gone: The records of resources whose stacks are gone.
        unread: A sentence about each page of the ledger that it could not read.
        counts: The run's summary, before its repairs.
    """

    missing: list[Missing]
    unheld: set[Association]
    gone: dict[Holder, ResourceRecord]
    unread: list[str]
    counts: dict[str, int]


@dataclass(kw_only=True)
class Pace:
    """Lets no call begin sooner than `seconds` after the last one began."""

    seconds: float
    clock: Clock
    opens: float = 0.0

    def __call__(self) -> None:
        """Wait until the next call may begin."""
        self.clock.sleep(max(0.0, self.opens - self.clock.time()))
        self.opens = self.clock.time() + self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The watch, with all that it talks to.

    Attributes:
        api: API Gateway.
        table: The ledger.
        queue: The queue that takes repairs; None if repairs are off.
        cloudformation: Makes a client.
        clock: Tells the time.
        sample: Draws the order of plans and stacks, so that two runs cut short leave out different ones.
    """

    api: ApiGateway
    table: Table
    queue: Queue | None = None
    cloudformation: Callable[[], Any]
    clock: Clock = time
    sample: Callable[[list[str], int], list[str]] = random.sample

    def run(self, event: object, context: Context) -> dict[str, Any]:
        """Look into every plan that the ledger knows, and report.

        Args:
            event: EventBridge's, or an operator's (see the top of this module).
            context: Lambda's.

        Raises:
            EventError: The event asks for something unknown.
            FailedError: The ledger cannot be read.
            IncompleteError: The watch could not see everything.
        """
        about.set({"function_request_id": context.aws_request_id})
        began = self.clock.time()
        ends = began + context.get_remaining_time_in_millis() / 1000
        only, repairs = self._asked(event)
        seen = self._seen(only, ends, context.invoked_function_arn)
        _tell(seen, context.function_name.removesuffix("-watch"), repairs=repairs)
        queued = self._ask_for(seen.missing, self.queue, ends, context) if repairs and self.queue else 0
        unseen = seen.counts["not_looked_at"] + (queued is None)
        summary = seen.counts | {"repairs": queued or 0, "not_looked_at": unseen}
        summary["seconds"] = round(self.clock.time() - began)
        logger.info("Watched: %s", json.dumps(summary), extra=summary)
        # A run that has not seen everything cannot say that all is well, so the alarm stays as it is.
        if only is None and (seen.missing or not unseen):
            metrics.drift(len(seen.missing))
        if unseen:
            raise IncompleteError(
                f"The watch did not see everything; the log says why: {json.dumps(summary)}"
            )
        return summary

    def _seen(self, only: str | None, ends: float, function_arn: str) -> Seen:
        """Look, and compare."""
        known = self.table.associations(self._by(ends))
        plans = {association.plan_id for association in known} if only is None else {only}
        inside = self._look_into(plans, ends - CLOSING_TIME)
        # Read the pages after the plans: a page untouched for an hour was the same when we listed its plan.
        pages = self.table.pages(self._by(ends))
        since = self.clock.time() - RECENT
        looked_at = {held for held in pages.entries if held.plan_id in inside}
        listed = {Association(key, plan) for plan, keys in inside.items() for key in keys or ()}
        absent = {
            held: counting for held in looked_at - listed if (counting := _counting(held, pages, since))
        }
        holders = {one for one, record in pages.records.items() if not looked_at.isdisjoint(record.holds)}
        first = {holder.stack_id for counting in absent.values() for holder in counting}
        stacks = {holder.stack_id for holder in holders}
        is_gone, refused = self._gone(first, stacks - first, ends - CLOSING_TIME, function_arn)
        each = (_missing(*one, pages, inside, is_gone) for one in sorted(absent.items()))
        missing = [one for one in each if one.holders]
        unheld = listed - (known - pages.entries.keys()) - _held(pages, since)
        gone = {holder: pages.records[holder] for holder in sorted(holders) if is_gone.get(holder.stack_id)}
        counts = {
            "plans": len(inside),
            "associations": len(looked_at),
            "missing": len(missing),
            "unheld": len(unheld),
            "gone": len(gone),
            "repairs": 0,
            "stacks_not_asked": len(stacks) - len(is_gone),
            "not_looked_at": len(plans) - len(inside) + len(pages.unread) + refused,
        }
        return Seen(missing, unheld, gone, pages.unread, counts)

    def _asked(self, event: object) -> tuple[str | None, bool]:
        """Read the event: the only plan to look into, and whether to queue repairs."""
        asked = event if isinstance(event, Mapping) and "detail-type" not in event else {}
        only, repairs = asked.get("UsagePlanId"), asked.get("Repair", self.queue is not None)
        known = not asked.keys() - {"UsagePlanId", "Repair"}
        if not (known and isinstance(repairs, bool) and (only is None or well_formed(only))):
            raise EventError('the watch takes {"Repair": true or false, "UsagePlanId": "..."}, both optional')
        if repairs and self.queue is None:
            raise EventError("repairs are off: deploy the function with WatchRepairs=true first")
        return only, repairs

    def _by(self, ends: float, patience: float = math.inf) -> Deadline:
        return Deadline.by(min(self.clock.time() + patience, ends), self.clock)

    def _has_time(self, pace: Pace, ends: float) -> bool:
        return self.clock.time() + pace.seconds + BEFORE_CALL <= ends

    def _shuffled(self, these: Iterable[str]) -> list[str]:
        ordered = sorted(these)
        return self.sample(ordered, len(ordered))

    def _look_into(self, plans: Iterable[str], ends: float) -> dict[str, set[str] | None]:
        """List the keys of each plan, or None if there is no such plan; leave out plans it cannot see."""
        inside: dict[str, set[str] | None] = {}
        pace = Pace(seconds=PLAN_PACE, clock=self.clock)
        for plan in self._shuffled(plans):
            if not self._has_time(pace, ends):
                logger.error("Not looked at: the function's time is nearly up, after %d plans", len(inside))
                break
            try:
                inside[plan] = self.api.keys_in(plan, self._by(ends, PATIENCE), pace)
            except MissingError:
                inside[plan] = None
            except FailedError as failed:
                logger.error("Not looked at: %s", failed)  # noqa: TRY400  # the sentence says it all
        return inside

    def _gone(
        self, first: set[str], others: set[str], ends: float, function_arn: str
    ) -> tuple[dict[str, bool], bool]:
        """Ask CloudFormation whether each stack of this account is gone, while there is time.

        Gives back the answers, and whether CloudFormation has refused one; then it asks no more.
        """
        client, pace = self.cloudformation(), Pace(seconds=STACK_PACE, clock=self.clock)
        is_gone: dict[str, bool] = {}
        for stack in self._shuffled(first) + self._shuffled(others):
            if not is_of(stack, function_arn) or not self._has_time(pace, ends):
                continue
            pace()
            try:
                is_gone[stack] = stack_is_gone(client, stack, function_arn, self._by(ends, PATIENCE))
            except FailedError as error:
                logger.error("Asked about no more stacks: %s", error)  # noqa: TRY400  # the sentence says it all
                return is_gone, True
        return is_gone, False

    def _ask_for(self, missing: list[Missing], queue: Queue, ends: float, context: Context) -> int | None:
        """Queue repairs, in order with their stacks' requests; give back how many, or None on failure."""
        asked = [(one.association, one.asker) for one in missing if one.asker]
        for association, _ in asked[MOST_REPAIRS:]:
            logger.warning(
                "A later run has %s repaired: one run queues at most %d repairs", association.id, MOST_REPAIRS
            )
        for association, asker in asked[:MOST_REPAIRS]:
            # Another run's repair has another id, and finds the key there.
            event = repair_event(f"{context.aws_request_id}/{association.id}", asker, association)
            try:
                queue.put(event, self.clock.time(), self._by(ends))
            except (FailedError, UnclearError) as error:
                logger.error("Queued no more repairs: %s", error)  # noqa: TRY400  # the sentence says it all
                return None
        return len(asked[:MOST_REPAIRS])


def _held(pages: Pages, since: float) -> set[Association]:
    """Name the associations that resources hold, or have let go of within the last hour."""
    return {held for held, entry in pages.entries.items() if entry.holders or entry.detached > since}


def _counting(association: Association, pages: Pages, since: float) -> list[Holder]:
    """Name the resources that count on an association; none while a request is under way."""
    entry = pages.entries[association]
    records = {holder: pages.records.get(holder, ResourceRecord()) for holder in sorted(entry.holders)}
    notes = [note for record in records.values() for note in record.notes]
    touched = any(max(note.issued, note.answer.at if note.answer else 0) > since for note in notes)
    if touched or entry.detaching is not None:
        return []
    # A resource still counts on an association that it moved away from if moving back failed or was LOST.
    return [holder for holder, record in records.items() if counts_on(record, association)]


def _missing(
    association: Association,
    counting: list[Holder],
    pages: Pages,
    inside: Mapping[str, set[str] | None],
    is_gone: Mapping[str, bool],
) -> Missing:
    """Describe a missing association. Only a resource at rest, whose stack is there, asks for a repair."""
    holders = [one for one in counting if not is_gone.get(one.stack_id)]
    at_rest = [one for one in holders if not is_pending(pages.records[one])]
    asker = next((one for one in at_rest if is_gone.get(one.stack_id) is False), None)
    why_not = barred(pages.entries[association])
    if not (why_not or at_rest):
        why_not = "the last request of its resource never got an answer"
    elif not (why_not or asker):
        why_not = "CloudFormation has not said whether its stack is there"
    plan_is_gone = inside[association.plan_id] is None
    return Missing(association, holders, plan_is_gone, why_not, None if why_not or plan_is_gone else asker)


def _tell(seen: Seen, function: str, *, repairs: bool) -> None:
    """Log a line for each finding; `function` is the serving function's name."""
    for text in seen.unread:
        logger.error("Not looked at: page %s", text)
    for held in sorted(seen.unheld):
        logger.info("Held by nobody: %s in usage plan %s", held.key_id, held.plan_id)
    for holder, record in seen.gone.items():
        _tell_gone(holder, record, function)
    for missing in seen.missing:
        _tell_missing(missing, repairs=repairs)


def _tell_gone(holder: Holder, record: ResourceRecord, function: str) -> None:
    logger.warning(
        "Gone: stack %s does not exist any more, and its %s still holds %s. "
        "To let go of it and detach nothing: aws lambda invoke --function-name %s "
        "--cli-binary-format raw-in-base64-out --payload '%s' /dev/stdout",
        holder.stack_id,
        holder.logical_id,
        ", ".join(association.id for association in record.holds),
        function,
        json.dumps({"LetGo": {"StackId": holder.stack_id, "LogicalResourceId": holder.logical_id}}),
    )


def _tell_missing(missing: Missing, *, repairs: bool) -> None:
    key, plan = missing.association
    why = f"API key {key} is not in usage plan {plan}: somebody has removed it, or the key is deleted"
    todo = "deploy the stack with another VerifyTrigger"
    if missing.plan_is_gone:
        why = f"there is no usage plan {plan}"
        todo = "give the resource another UsagePlanId, or remove it, and deploy"
    elif missing.why_not:
        why += f". No repair touches it: {missing.why_not}"
    elif repairs:
        todo = "wait for its repair, which is queued"
    else:
        todo += ", or have it repaired (WatchRepairs)"
    logger.warning(
        "Missing: %s, held by %s: %s. What to do: %s",
        missing.association.id,
        ", ".join(map(str, missing.holders)),
        why,
        todo,
        extra={
            "association": missing.association.id,
            "holders": [holder._asdict() for holder in missing.holders],
        },
    )


def handler(event: object, context: Any) -> dict[str, Any]:
    """The Lambda entry. `app` has the wiring, and makes its clients when Python imports it."""
    from .app import provider as wired  # noqa: PLC0415  # the tests import this module without a region

    if wired.table is None or wired.cloudformation is None:
        raise EventError("the watch needs a ledger")
    watch = Watch(api=wired.api, table=wired.table, queue=wired.queue, cloudformation=wired.cloudformation)
    return watch.run(event, context)
