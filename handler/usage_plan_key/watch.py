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
from .model import Association, AssociationRecord, Holder, ResourceRecord, well_formed
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
        holders: The resources that have an answer saying that it is attached.
        plan_is_gone: There is no such plan.
        barred: Why no repair may touch it, whoever asks; empty if one may.
        askers: The resources in whose name a repair may attach it.
    """

    association: Association
    holders: list[Holder]
    plan_is_gone: bool
    barred: str
    askers: list[Holder]

    def judged(self, is_gone: Mapping[str, bool]) -> Missing:
        """Leave out resources of stacks that are gone; only a stack that is there asks for a repair."""
        holders = [one for one in self.holders if not is_gone.get(one.stack_id)]
        askers = [one for one in self.askers if is_gone.get(one.stack_id) is False]
        if self.askers and not askers:
            unknown = "CloudFormation has not said whether its stack is there"
            return self._replace(holders=holders, askers=askers, barred=unknown)
        return self._replace(holders=holders, askers=askers)


class Seen(NamedTuple):
    """The findings of a run.

    Attributes:
        plans: How many plans it has looked into.
        associations: How many associations of these plans resources hold.
        missing: Associations that resources count on, and whose keys are not there.
        unheld: Associations whose keys are there, and that nobody holds.
        gone: The records of resources whose stacks are gone.
        unread: A sentence about each page of the ledger that it could not read.
        stacks_not_asked: How many stacks it did not ask about: other accounts', or for lack of time.
        unseen: How many plans and pages it could not see, and 1 more if CloudFormation refused.
    """

    plans: int
    associations: int
    missing: list[Missing]
    unheld: set[Association]
    gone: dict[Holder, ResourceRecord]
    unread: list[str]
    stacks_not_asked: int
    unseen: int


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
        may_be_repaired = [one for one in seen.missing if one.askers]
        queued = self._ask_for(may_be_repaired, self.queue, ends, context) if repairs and self.queue else 0
        unseen = seen.unseen + (queued is None)
        summary = {
            "plans": seen.plans,
            "associations": seen.associations,
            "missing": len(seen.missing),
            "unheld": len(seen.unheld),
            "gone": len(seen.gone),
            "repairs": queued or 0,
            "stacks_not_asked": seen.stacks_not_asked,
            "not_looked_at": unseen,
            "seconds": round(self.clock.time() - began),
        }
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
        known = self.table.associations(self._until(ends))
        plans = {association.plan_id for association in known} if only is None else {only}
        inside = self._look_into(plans, ends - CLOSING_TIME)
        # Read the pages after the plans: a page untouched for an hour was the same when we listed its plan.
        pages = self.table.pages(self._until(ends))
        looked_at = {held: entry for held, entry in pages.entries.items() if held.plan_id in inside}
        each = (self._missing(held, entry, pages, inside) for held, entry in looked_at.items())
        found = list(filter(None, each))
        holders = _holding(pages, looked_at)
        first = {holder.stack_id for one in found for holder in one.holders}
        is_gone, stacks_not_asked, refused = self._gone(holders, first, ends - CLOSING_TIME, function_arn)
        gone = {holder for holder in holders if is_gone.get(holder.stack_id)}
        return Seen(
            plans=len(inside),
            associations=len(looked_at),
            missing=_judged(found, is_gone),
            unheld=_listed(inside) - (known - pages.entries.keys()) - self._held(pages),
            gone={holder: pages.records[holder] for holder in sorted(gone)},
            unread=pages.unread,
            stacks_not_asked=stacks_not_asked,
            unseen=len(plans) - len(inside) + len(pages.unread) + refused,
        )

    def _held(self, pages: Pages) -> set[Association]:
        """Name the associations that resources hold, or have let go of within the last hour."""
        since = self.clock.time() - RECENT
        return {held for held, entry in pages.entries.items() if entry.holders or entry.detached > since}

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

    def _until(self, ends: float) -> Deadline:
        return Deadline.by(ends, self.clock)

    def _patience(self, ends: float) -> Deadline:
        return Deadline.by(min(self.clock.time() + PATIENCE, ends), self.clock)

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
                inside[plan] = self.api.keys_in(plan, self._patience(ends), pace)
            except MissingError:
                inside[plan] = None
            except FailedError as failed:
                logger.error("Not looked at: %s", failed)  # noqa: TRY400  # the sentence says it all
        return inside

    def _missing(
        self,
        association: Association,
        entry: AssociationRecord,
        pages: Pages,
        inside: Mapping[str, set[str] | None],
    ) -> Missing | None:
        """Describe a missing association; None if its key is there, or if a request is under way."""
        if _is_there(association, inside):
            return None
        records = {holder: pages.records.get(holder, ResourceRecord()) for holder in sorted(entry.holders)}
        # A resource still counts on an association that it moved away from if moving back failed or was LOST.
        holders = [holder for holder, record in records.items() if counts_on(record, association)]
        touched = max(map(_touched, records.values()), default=0.0)
        if not holders or entry.detaching is not None or touched > self.clock.time() - RECENT:
            return None
        why_not = barred(entry)
        rest = [holder for holder in holders if not is_pending(records[holder])]
        plan_is_gone = inside[association.plan_id] is None
        return Missing(association, holders, plan_is_gone, why_not, [] if plan_is_gone or why_not else rest)

    def _gone(
        self, holders: Iterable[Holder], first: set[str], ends: float, function_arn: str
    ) -> tuple[dict[str, bool], int, int]:
        """Ask CloudFormation about each stack.

        Gives back whether each stack is gone, how many stacks it did not ask about (other accounts', or for
        lack of time), and 1 if CloudFormation has refused.
        """
        stacks = self._shuffled(first) + self._shuffled({holder.stack_id for holder in holders} - first)
        client = self.cloudformation()
        pace = Pace(seconds=STACK_PACE, clock=self.clock)
        is_gone: dict[str, bool] = {}
        failed = 0
        for stack in stacks:
            if failed or not is_of(stack, function_arn) or not self._has_time(pace, ends):
                continue
            pace()
            try:
                is_gone[stack] = stack_is_gone(client, stack, function_arn, self._patience(ends))
            except FailedError as error:
                logger.error("Asked about no more stacks: %s", error)  # noqa: TRY400  # the sentence says it all
                failed = 1
        return is_gone, len(stacks) - len(is_gone), failed

    def _ask_for(self, missing: list[Missing], queue: Queue, ends: float, context: Context) -> int | None:
        """Queue repairs, in order with their stacks' requests; give back how many, or None on failure."""
        for one in missing[MOST_REPAIRS:]:
            logger.warning(
                "A later run has %s repaired: one run queues at most %d repairs",
                one.association.id,
                MOST_REPAIRS,
            )
        for one in missing[:MOST_REPAIRS]:
            # Another run's repair has another id, and finds the key there.
            event = repair_event(
                f"{context.aws_request_id}/{one.association.id}", one.askers[0], one.association
            )
            try:
                queue.put(event, self.clock.time(), self._until(ends))
            except (FailedError, UnclearError) as error:
                logger.error("Queued no more repairs: %s", error)  # noqa: TRY400  # the sentence says it all
                return None
        return min(len(missing), MOST_REPAIRS)


def _judged(found: list[Missing], is_gone: Mapping[str, bool]) -> list[Missing]:
    """Leave out associations that only resources of gone stacks hold."""
    return [judged for one in found if (judged := one.judged(is_gone)).holders]


def _is_there(association: Association, inside: Mapping[str, set[str] | None]) -> bool:
    return association.key_id in (inside[association.plan_id] or ())


def _holding(pages: Pages, looked_at: Mapping[Association, AssociationRecord]) -> set[Holder]:
    return {one for one, record in pages.records.items() if not looked_at.keys().isdisjoint(record.holds)}


def _listed(inside: Mapping[str, set[str] | None]) -> set[Association]:
    return {Association(key, plan) for plan, keys in inside.items() for key in keys or ()}


def _touched(record: ResourceRecord) -> float:
    """Tell when the function last got or answered a request of a resource, in epoch seconds."""
    return max((max(note.issued, note.answer.at if note.answer else 0) for note in record.notes), default=0)


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
    why, todo = _advice(missing, repairs=repairs)
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


def _advice(missing: Missing, *, repairs: bool) -> tuple[str, str]:
    """Say why an association is missing, and what to do."""
    key, plan = missing.association
    if missing.plan_is_gone:
        todo = "give the resource another UsagePlanId, or remove it, and deploy"
        return f"there is no usage plan {plan}", todo
    why = f"API key {key} is not in usage plan {plan}: somebody has removed it, or the key is deleted"
    todo = "deploy the stack with another VerifyTrigger"
    if not missing.askers:
        why_not = missing.barred or "the last request of its resource never got an answer"
        return f"{why}. No repair touches it: {why_not}", todo
    if repairs:
        return why, "wait for its repair, which is queued"
    return why, f"{todo}, or have it repaired (WatchRepairs)"


def handler(event: object, context: Any) -> dict[str, Any]:
    """The Lambda entry. `app` has the wiring, and makes its clients when Python imports it."""
    from .app import provider as wired  # noqa: PLC0415  # the tests import this module without a region

    if wired.table is None or wired.cloudformation is None:
        raise EventError("the watch needs a ledger")
    watch = Watch(api=wired.api, table=wired.table, queue=wired.queue, cloudformation=wired.cloudformation)
    return watch.run(event, context)
