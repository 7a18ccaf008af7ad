"""Serves one request: asks `decide`, writes the pages (`ledger`), does the act (`api_gateway`), asks again.

Nothing outlives a step but the ledger, so a death between any two of them is harmless.
"""

from __future__ import annotations

import contextlib
import logging
import math
from functools import partial
from typing import Final

from . import rules
from .api_gateway import BEFORE_MOVE, ApiGateway, InPlan
from .decide import (
    MOST_REASON,
    STAYS,
    Act,
    Answer,
    Attach,
    Back,
    Detach,
    Facts,
    Finish,
    Kind,
    Look,
    Repeat,
    Result,
    Step,
    Wait,
    next_step,
)
from .errors import Again, FailedError, NotSentError, TurnOverError, UnreadError
from .ledger import NEEDS, Table
from .model import Association, Holder, Outcome, Response, Snapshot
from .redaction import shown
from .request import MOST_SKEW, Create, CreateOrUpdate, Delete, Invalid, Repair, Request, Update
from .retry import BEFORE_CALL, BEFORE_DELIVERY, BEFORE_LOOK, ONE_CALL, Deadline

logger = logging.getLogger(__name__)

#: Seconds for the last write to the ledger when the time is up.
LAST_WRITE: Final = 6.0
#: Seconds for which a request may wait where it is, before it goes back into the queue.
IN_PLACE: Final = 2.5
#: Seconds for which a request makes way for others, for each time that API Gateway has refused it, but twelve
#: times at most. SQS takes a message away after 1,000 receives, so the longest waits may not be shorter.
MAKE_WAY: Final = (1.0, 1.5)
#: Seconds in which the last try falls, and seconds that are left after them: the message has to be received
#: in time, and other requests of its batch come first.
LAST_TRY: Final = 60.0
SPARE: Final = 10.0


class Service:
    """Serves one request."""

    def __init__(
        self,
        request: Request,
        ledger: Table,
        api: ApiGateway,
        deadline: Deadline,
        *,
        fenced: bool = True,
        redelivered: bool = False,
        seen: Snapshot | None = None,
    ) -> None:
        """Prepare.

        Args:
            request: The request to serve.
            ledger: The ledger that records it.
            api: API Gateway.
            deadline: Until when.
            fenced: The invocation that took the request has called `fence`.
            redelivered: The queue has delivered the request before: a function may have died at it.
            seen: Pages of the ledger, read before.
        """
        self._request = request
        self._fenced = fenced
        self._redelivered = redelivered
        self._seen = seen
        self._act: Act | None = None
        self._ledger = ledger
        self._api = api
        self.deadline = deadline
        self._ledgers = deadline.but(patience=math.inf)

    def fence(self) -> None:
        """Write down that the request is here, before it waits for its turn."""
        request, now = self._request, self._now()

        def rule(state: Snapshot) -> Snapshot:
            record = rules.fence(state.record, request, now, is_over=self.deadline.is_over)
            return state.with_record(record)

        # Its turn reads the other pages, when the rule asks for them.
        _, self._seen = self._ledger.change(request.holder, [], rule, self._ledgers)

    def serve(self) -> Response:
        """Serve the request; give the earlier answer again if the function has answered it before.

        Raises:
            TurnOverError: The request waits in the queue, and a later turn serves it.
            NotSentError: Functions have died at the delivery of its answer.
        """
        try:
            return self._served()
        except (TurnOverError, NotSentError):
            raise
        except FailedError as failed:
            return self.fail(str(failed))
        except Exception as error:
            logger.exception("An internal error")
            return self.fail(f"An internal error, please report it: {type(error).__name__}: {shown(error)}")

    def repair(self, request: Repair) -> None:
        """Attach again a key that the watch found missing; if rules forbid it, leave it to the next watch.

        Raises:
            TurnOverError: The repair waits for API Gateway, and comes again in its place.
        """
        what = f"{request.wanted.id} for {request.holder}"
        try:
            response = self._served()
        except TurnOverError:
            raise
        except Exception:
            # Nobody waits for a repair, but its stack's requests wait behind it.
            logger.exception("Not repaired: %s: an internal error, please report it", what)
            return
        if response.success:
            logger.info("Repaired: %s", what)
        else:
            logger.warning("Not repaired: %s: %s", what, response.reason)

    def rest(self) -> None:
        """Note that the answer was not delivered, and that no function has died at it."""
        with contextlib.suppress(FailedError):
            self._give_back()

    def fail(self, reason: str) -> Response:
        """Write down a FAILED answer; if the request has another one by now, that one stands."""
        request, answer = self._request, self._failed(reason)

        def rule(state: Snapshot) -> Snapshot:
            record = state.record
            if request.physical_id is None:  # Its fence may have failed, and its Delete comes next.
                record = rules.fence(record, request, self._now(), is_over=self.deadline.is_over)
            return state.with_record(rules.answered(record, request, answer))

        try:
            _, after = self._ledger.change(request.holder, [], rule, self._at_last())
        except FailedError as failed:
            return self._unwritten(answer, failed)
        note = after.record.note(request.id)
        return note.answer if note and note.answer else answer

    def _failed(self, reason: str) -> Response:
        request = self._request
        if isinstance(request, Delete) and STAYS not in reason:
            reason = f"{reason}. {STAYS}: {request.shown_id}, if it was"
        return Response(success=False, reason=reason[:MOST_REASON], at=self._now())

    def _unwritten(self, answer: Response, failed: FailedError) -> Response:
        # The answer goes out all the same: the holds stand, and CloudFormation's next request finds them.
        logger.error("Could not write the answer down: %s", failed)
        return answer

    def _served(self) -> Response:
        """Ask, write, act, and ask again, until the request has its answer."""
        request = self._request
        # Nobody waits for a request whose time is over, so it changes nothing; but a Create fences: it marks
        # the retained associations, and its Delete may come next.
        if not self._fenced and (not self.deadline.is_over or request.physical_id is None):
            self.fence()
        facts, deadline = self._facts(), self._ledgers
        self._make_way(facts)
        while True:
            try:
                step = self._asked(facts, deadline)
            except FailedError as failed:
                if deadline is not self._ledgers:
                    why = facts.failure or failed
                    if isinstance(why, TurnOverError):
                        raise why from failed
                    return self._unwritten(self._failed(str(why)), failed)
                # What was written or not, the pages tell; the results of the acts so far still count.
                facts = facts._replace(
                    failure=facts.failure or failed, touched=True, results=(*facts.results, *self._in_vain())
                )
                self._seen, deadline = None, self._at_last()
                continue
            facts = step.facts
            match step.act:
                case Answer(response):
                    self._tell(step, response)
                    return response
                case Repeat(given, is_deadly):
                    if is_deadly:
                        dead = "functions have died at its delivery, so the answer is not sent again"
                        raise NotSentError(dead)
                    logger.info("The function answered this request before; the same answer goes out again")
                    return self._with_value(given)
                case Back(why):
                    raise why
                case _:
                    facts = self._done(step, facts)

    def _make_way(self, facts: Facts) -> None:
        """Go back at once if the next step calls API Gateway while that is busy with other requests.

        This is no refusal of the request, so nothing counts it. The last try does not make way.
        """
        opens, seen = self._api.opens, self._seen
        if facts.last is None or seen is None or not facts.now < math.floor(opens) < facts.last[0]:
            return
        with contextlib.suppress(UnreadError):
            if isinstance(next_step(seen, self._request, facts).act, Look | Attach | Detach | Finish):
                note = seen.record.note(self._request.id)
                # Those that it has refused let the others ask first.
                later = facts.now + self.deadline.roll(*MAKE_WAY) * min(note.refusals if note else 0, 12)
                until = math.ceil(max(opens, later))
                raise TurnOverError("API Gateway", "it is busy with other requests", until=until)

    @property
    def _is_queued(self) -> bool:
        return self.deadline.patience < math.inf

    def _facts(self) -> Facts:
        request, deadline = self._request, self.deadline
        known = None
        if isinstance(request, Update) and request.identified and not isinstance(request, Repair):
            known = self._api.known_rival(request.identified, request.wanted, deadline)
        last = None
        if self._is_queued:
            latest = deadline.ends - BEFORE_CALL - SPARE
            last = latest - min(LAST_TRY, (latest - deadline.began) / 2), latest
        return Facts(
            now=self._now(),
            # Two machines' clocks may differ.
            dies=int(deadline.dies) + MOST_SKEW,
            last=last,
            began=deadline.began,
            begins=self._redelivered,
            is_over=deadline.is_over,
            known=known,
        )

    def _asked(self, facts: Facts, deadline: Deadline) -> Step:
        """Ask for the next step, and write its pages."""
        request = self._request
        facts = facts._replace(now=self._now(), roll=self.deadline.roll(0, 1))
        self._act = None

        def rule(state: Snapshot) -> Step:
            step = next_step(state, request, facts)
            self._act = step.act
            return step

        step, self._seen = self._ledger.change(request.holder, looked_at(request), rule, deadline, self._seen)
        note = self._seen.record.note(request.id)
        if note and note.refusals and self._is_queued:
            self.deadline = self.deadline.but(patience=0.0)  # From now on each refusal sends it back.
        return step

    def _in_vain(self) -> list[Result]:
        """Tell what the act of a step has not done whose write failed: its mark may stand all the same."""
        match self._act:
            case Attach(association, may_be_there=False):
                return [Result(Kind.REFUSED, association)]
        return []

    def _done(self, step: Step, facts: Facts) -> Facts:
        """Do a step's act, and note the result, or why there is none."""
        try:
            match step.act:
                case Look(association):
                    return self._looked(association, facts)
                case Attach() as act:
                    return self._attached(act, facts)
                case Detach(association, moving):
                    self._detach(association, moving=moving)
                    return facts._replace(results=(Result(Kind.DETACHED, association),))
                case Finish(marker, association):
                    self._finish(marker, association)
                case Wait(association, why):
                    self.deadline.pause(1, association.attaching, why, BEFORE_CALL, Again(busy=True))
                    self._seen = None  # Others have had the time to change the pages.
        except FailedError as failed:
            return self._not_done(step, facts, failed)
        return facts

    def _looked(self, association: Association, facts: Facts) -> Facts:
        key = self._api.look(association, self.deadline)
        if facts.value_sought:
            return facts._replace(key=key or facts.key)
        if key is None:
            return facts._replace(there=False, results=(Result(Kind.ABSENT, association),))
        return facts._replace(there=True, key=key)

    def _attached(self, act: Attach, facts: Facts) -> Facts:
        one = act.association
        needs = BEFORE_MOVE if act.moving else BEFORE_CALL
        found = self._api.attach(one, self.deadline, may_be_there=act.may_be_there, needs=needs)
        is_wanted = isinstance(self._request, CreateOrUpdate) and one == self._request.wanted
        match found:
            case InPlan(key, True, is_sure=False) if self._leaves(one):
                # That an attempt may have attached it proves nothing: it may be the key that leaves.
                return facts._replace(there=True, key=key) if is_wanted else facts._replace(found_back=one)
            case InPlan(key, by_us):
                facts = facts._replace(results=(Result(Kind.ATTACHED if by_us else Kind.FOUND, one),))
                if is_wanted:
                    return facts._replace(there=True, key=key, by_us=by_us)
                return facts if by_us else facts._replace(found_back=one)
            case rivals:
                facts = facts._replace(results=(Result(Kind.REFUSED, one),))
                if is_wanted:
                    return facts._replace(rivals=tuple(rivals))
                blocked = FailedError(f"{rivals[0]} blocks it")
                return self._not_put_back(one, facts, blocked)

    def _leaves(self, association: Association) -> bool:
        return self._seen is not None and self._seen.entry(association).leaves(self._now())

    def _detach(self, association: Association, *, moving: bool = False) -> None:
        if moving:  # It is begun only while there is time to undo it.
            self.deadline.allow(looked_at(self._request)[0].attaching, ONE_CALL + BEFORE_MOVE)
        self._api.detach(association, self.deadline)

    def _not_done(self, step: Step, facts: Facts, failed: FailedError) -> Facts:
        """Note why an act failed, and what it has surely not done."""
        match step.act:
            case Attach(association) if failed.nothing_changed:
                facts = facts._replace(results=(Result(Kind.REFUSED, association),))
            case Detach(association) if failed.nothing_changed:
                facts = facts._replace(results=(Result(Kind.STAYED, association),))
        if facts.failure is not None and isinstance(step.act, Attach | Wait):
            return self._not_put_back(step.act.association, facts, failed)
        return facts._replace(failure=facts.failure or failed)

    def _not_put_back(self, association: Association, facts: Facts, second: FailedError) -> Facts:
        """Note that a move could not be undone."""
        logger.error("Not attached again: %s", association.id)
        failure = facts.failure
        if not isinstance(failure, TurnOverError):
            told = f"{failure}. And the function could not attach the detached key again: {second}"
            # A later turn fails again, and has another try at it.
            failure = second if isinstance(second, TurnOverError) else FailedError(told)
        return facts._replace(failure=failure, tried=facts.tried | {association})

    def _finish(self, marker: Holder, association: Association) -> None:
        """Finish a detaching in its marker's name."""

        def change(rule: partial[Snapshot]) -> None:
            self._ledger.change(marker, [association], rule, self._ledgers)

        self._seen = None
        try:
            self._detach(association)
        except FailedError as failed:
            rule = rules.still_attached if failed.nothing_changed else rules.given_up
            change(partial(rule, association=association))
            raise
        change(partial(rules.detached, holder=marker, association=association, now=self._now()))

    def _tell(self, step: Step, response: Response) -> None:
        """Log what an operator has to hear of, and what no answer says."""
        facts = step.facts
        match self._request:
            case _ if response.outcome == Outcome.LOST:
                logger.error(
                    "LOST: %s. CloudFormation goes on as if the key were attached. "
                    "The resource's next Update fails",
                    facts.lost,
                )
            case Delete(shown_id=shown_id) if response.success and not facts.touched:
                logger.info("This resource does not hold %s, so Delete changes nothing", shown_id)
            case Repair(wanted=wanted) if facts.by_us and wanted not in step.pages.record.holds:
                # An operator's LetGo came in between.
                logger.error(
                    "Attached, and the resource does not hold it any more: detach %s by hand", wanted.id
                )
            case Create(include_value=True) | Update(include_value=True) as request:
                if response.success and response.value is None:
                    # The key stays attached. If Fn::GetAtt asks for Value, CloudFormation rolls back.
                    logger.error(
                        "API Gateway does not return the value of API key %s, so the answer has none",
                        request.wanted.key_id,
                    )

    def _with_value(self, given: Response) -> Response:
        """Add the value to an earlier answer, because the ledger lacks it; leave it out if it is gone."""
        request = self._request
        if not (isinstance(request, Create | Update) and request.include_value and given.success):
            return given
        if given.outcome == Outcome.LOST:
            return given._replace(value="")
        try:
            key = self._api.look(request.wanted, self.deadline, BEFORE_LOOK)
        except TurnOverError:
            raise
        except FailedError:
            return given
        return given._replace(value=key.value) if key else given

    def _give_back(self) -> None:
        def rule(state: Snapshot) -> Snapshot:
            return state.with_record(rules.gone_back(state.record, self._request))

        self._ledger.change(self._request.holder, [], rule, self._at_last())

    def _at_last(self) -> Deadline:
        """Until when the ledger takes the last write when the time is up."""
        clock = self.deadline.clock
        # With less time left, the answer goes out without it.
        ends = min(clock.time() + LAST_WRITE + NEEDS - BEFORE_DELIVERY, self.deadline.dies)
        return Deadline.by(ends, clock)

    def _now(self) -> int:
        return int(self.deadline.clock.time())


def looked_at(request: Request) -> list[Association]:
    """Name the associations that a request looks at first."""
    wanted = None if isinstance(request, Delete | Invalid) else request.wanted
    return [found for found in (wanted, request.identified) if found is not None]
