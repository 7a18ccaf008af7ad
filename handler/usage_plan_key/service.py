"""Serves one request, however it came: asks the rules (`rules`), writes them down (`ledger`), does them (`api_gateway`).

The order of the steps is what makes a death between any two of them harmless: hold, then attach; mark,
detach, then let go; write the answer down, then send it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from . import rules
from .api_gateway import ApiGateway, InPlan, Key, Rival
from .errors import FailedError, MissingError, TurnOverError
from .ledger import Ledger, Rule
from .model import (
    NOBODY,
    Association,
    AssociationRecord,
    Holder,
    Outcome,
    ResourceRecord,
    Response,
    Snapshot,
    Standing,
)
from .request import MOST_SKEW, Create, CreateOrUpdate, Delete, Invalid, Repair, Request, Update
from .retry import CONNECT_TIMEOUT, READ_TIMEOUT, Again, Deadline
from .rules import MOST_DEATHS

logger = logging.getLogger(__name__)

#: Seconds for what has to be written down when the time is up.
RESTING_TIME: Final = 6.0
#: What the Reason of every Delete that fails says.
STAYS: Final = "What stays attached"
#: Characters of a Reason that are written down: no answer takes more.
MOST_REASON: Final = 4096


class _AnsweredError(Exception):
    """Raised when another delivery of the request has answered it."""

    def __init__(self, given: Response) -> None:
        super().__init__()
        self.given = given


class _UnmarkedError(Exception):
    """Raised when somebody else has finished a detaching meanwhile."""


def _as_is(state: Snapshot) -> Snapshot:
    return state


def _recorded(state: Snapshot, change: Callable[[ResourceRecord], ResourceRecord]) -> Snapshot:
    return state._replace(record=change(state.record))


class Service:
    """Serves one request."""

    def __init__(
        self,
        request: Request,
        ledger: Ledger,
        api: ApiGateway,
        deadline: Deadline,
        *,
        fenced: bool = True,
        again: bool = False,
    ) -> None:
        """Prepare.

        Args:
            request: What is to be served.
            ledger: Where it is written down.
            api: Where it is done.
            deadline: Until when.
            fenced: `arrive` was called when the request arrived.
            again: The request was received before: a function may have died at it.
        """
        self._request = request
        self._fenced = fenced
        self._received_before = again
        self._has_begun = False
        self._seen: Snapshot | None = None
        self._holder = request.holder
        self._ledger = ledger
        self._api = api
        self.deadline = deadline
        self._ledgers = deadline.short()
        self._watched = deadline.watched(self._check_superseded)
        # Two machines' clocks may differ.
        self._until = int(deadline.dies) + MOST_SKEW

    def fence(self) -> None:
        """Fence: write down that the request is here, before it waits for its turn."""
        rule = partial(
            _recorded, change=partial(rules.fence, request=self._request, is_over=self.deadline.is_over)
        )
        self._change([], rule, answered=True)

    def died(self) -> bool | None:
        """Tell whether a function has died at this request: its mark is found standing.

        False where one has begun it and has not; None where nobody knows, for none was marked. One that was
        answered is over.
        """
        record = self._change([], _as_is, answered=True).record
        if self._request.id in record.answers:
            return False
        return record.begun == self._request.id if record.died == self._request.id else None

    def create(self) -> Response:
        """Serve a Create, unless it was served before: then the same answer is given again.

        Raises:
            TurnOverError: The function had no time left for it, and CloudFormation has: it is to be served
                again.
        """
        return self._handled(self._want)

    update = create

    def delete(self) -> Response:
        """Serve a Delete; else like `create`."""
        return self._handled(self._delete)

    def _handled(self, step: Callable[[Any, Snapshot], Response]) -> Response:
        try:
            return step(self._request, self._begin())
        except _AnsweredError as answered:
            return self._give_again(answered.given)
        except TurnOverError:
            self._rest()
            raise
        except FailedError as failed:
            return self.fail(str(failed))
        except Exception as error:
            logger.exception("An internal error")
            return self.fail(f"An internal error, please report it: {type(error).__name__}: {error}")

    def _begin(self) -> Snapshot:
        """Fence the request if that is still to be done, mark it as begun, and give back what the ledger says."""
        request = self._request
        # Nobody waits any more for a request whose time is over. It touches nothing: it may have been told
        # that it failed.
        is_over = self.deadline.is_over
        if not is_over:
            self.deadline.allow_turn(f"Could not serve {type(request).__name__}")
        if not self._fenced and (not is_over or request.physical_id is None):
            self.fence()
        begins = self._received_before and not is_over
        begin = partial(_recorded, change=partial(rules.begin, request=request))
        state = self._change(rules.looked_at(request), begin if begins else _as_is)
        self._has_begun = begins
        if is_over:
            raise FailedError(
                "CloudFormation's time for this request (ServiceTimeout) was over before its turn came"
            )
        if state.record.begun == request.id and state.record.deaths >= MOST_DEATHS:
            raise FailedError(
                f"{state.record.deaths} invocations died at this request. Look into the function's log"
            )
        if isinstance(request, Invalid):
            raise FailedError(f"The properties are not usable: {'; '.join(request.faults)}")
        return state

    def _rest(self) -> None:
        """Take off the mark: the request goes back into the queue, and nothing has died of it."""
        if self._has_begun:
            rule = partial(_recorded, change=partial(rules.rest, request=self._request))
            with contextlib.suppress(FailedError):
                self._ledger.change(self._holder, [], rule, self._at_last())

    def _at_last(self) -> Deadline:
        """What has to be written down when the time is up."""
        return Deadline(RESTING_TIME, self.deadline.clock).last()

    def fail(self, reason: str) -> Response:
        """Write down a FAILED answer; if another has been given meanwhile, that one stands."""
        if isinstance(self._request, Delete) and STAYS not in reason:
            reason = f"{reason}. {STAYS}: {self._request.shown_id}, if it was"
        answer = Response(
            success=False, id=self._request.answer_id, reason=reason[:MOST_REASON], at=self._now()
        )
        try:
            return self._answer(answer)
        except FailedError as failed:
            # Nobody is left hanging for it: what is held is still held, and what CloudFormation sends next
            # finds it.
            logger.error("The answer could not be written down: %s", failed)  # noqa: TRY400  # the Reason says it all
            return answer

    # --- Create, Update ---

    def _want(self, request: CreateOrUpdate, state: Snapshot) -> Response:
        rules.check_superseded(state.record, request)
        self._finish_marks(state, but=[request.wanted])
        # Until it is known that the key is not in the plan, an earlier delivery of ours may have attached it.
        absent = False
        try:
            earlier = self._hold(request)
            stands = rules.standing(earlier, self._holder)
            absent = stands is not Standing.THIS
            key = None if stands is Standing.NOBODY else self._api.look(request.wanted, self._watched)
            absent = absent or key is None
            attached = False
            if key is not None:
                result = self._outcome_where_present(request, stands, earlier)
            else:
                key, result, attached = self._attach(request, stands, earlier)
        except FailedError as failed:
            lost = self._lost(request, failed) if isinstance(failed, MissingError) else None
            if lost is None:
                self._undo(request, failed, absent=absent)
                raise
            key, result, attached = lost, Outcome.LOST, False
        if attached and any(entry.moved_by == request.id for entry in state.entries.values()):
            result = Outcome.MOVED  # An earlier delivery has detached the old one, and died.
        for leftover in rules.leftovers(state.record, request):
            self._release(leftover, take=False)
        key = self._with_value(request, key)
        answer = Response(
            success=True, id=request.wanted.id, outcome=result, key_name=key.name, at=self._now()
        )
        given = self._answer(answer, held=None if result is Outcome.LOST else request.wanted)
        return given._replace(value=key.value) if given.success and request.include_value else given

    def _with_value(self, request: CreateOrUpdate, key: Key) -> Key:
        """Look for the value that is asked for where API Gateway's reply had none."""
        if not request.include_value or key.value is not None:
            return key
        seen = self._api.look(request.wanted, self._watched)
        if seen is None or seen.value is None:
            # No reason to take back what is attached: where Fn::GetAtt asks for Value, CloudFormation does.
            logger.error(
                "API Gateway does not return the value of API key %s, so the answer has none",
                request.wanted.key_id,
            )
            return key
        return seen

    def _undo(self, request: CreateOrUpdate, failed: FailedError, *, absent: bool) -> None:
        """After a failure: attach again what was moved away for it, and take back what it took hold of and has not attached."""
        if not failed.nothing_changed:
            return
        try:
            if isinstance(request, Update):
                self._move_back(request, failed)
        finally:  # Moving back may fail too, and what was not attached is let go of all the same.
            if absent:
                self._take_back(request)

    def _take_back(self, request: CreateOrUpdate) -> None:
        try:
            self._change([request.wanted], lambda state: rules.take_back(state, request))
        except FailedError:
            self._take_back_unseen(request)
            raise

    def _lost(self, request: CreateOrUpdate, missing: MissingError) -> Key | None:
        """Let a rollback succeed though its key or its plan is gone; None where this is none."""
        record = self._look_up([]).record
        if not rules.may_be_lost(record, request, self._now()):
            return None
        logger.error(
            "LOST: %s. CloudFormation goes on as if the key were attached. The resource's next Update fails",
            missing,
        )
        hold = record.holds.get(request.wanted)
        return Key(hold.key_name if hold else "", "")

    def _hold(self, request: CreateOrUpdate) -> AssociationRecord:
        """Hold what is wanted; gives back the page as it stood before. Waits for one who is detaching it."""
        attempt = 0
        while True:
            seen = AssociationRecord()

            def rule(state: Snapshot) -> Snapshot:
                nonlocal seen
                seen = state.entry(request.wanted)
                return state if seen.detaching is not None else rules.take_hold(state, request)

            try:
                self._change([request.wanted], rule)
            except FailedError as failed:
                if not failed.nothing_changed and self._holder not in seen.holders:
                    self._take_back_unseen(request)
                raise
            if seen.detaching is None:
                return seen
            (marker,) = seen.holders  # The mark is set by the last holder, and keeps others from joining.
            if marker == self._holder or seen.detaching <= self._now():
                self._finish(marker, request.wanted, seen.detaching)
                continue
            attempt += 1
            what = rules.attaching(request.wanted)
            self._watched.pause(attempt, what, f"it is being detached for {marker}", Again(after=1.0))

    def _take_back_unseen(self, request: CreateOrUpdate) -> None:
        """The hold may be written, though its reply was lost: read back, or what comes next takes what is there for its own."""
        rule = partial(rules.take_back, request=request)
        with contextlib.suppress(FailedError):
            self._ledger.change(self._holder, [request.wanted], rule, self._at_last())

    def _attach(
        self, request: CreateOrUpdate, stands: Standing, earlier: AssociationRecord
    ) -> tuple[Key, Outcome, bool]:
        """Attach what is held and not in the plan, moving the key away from its plans for the same stage if it may.

        Gives back the key, the outcome, and whether it was this request that has attached it.
        """
        cleared = self._reattach(request, request.wanted) if stands is not Standing.NOBODY else None
        result = rules.outcome(request, stands, earlier, present=False)
        attempt = 0
        try:
            if self._is_known_move(request):
                result = Outcome.MOVED
            while True:
                # Once something is detached for it, there has to be time to undo that.
                deadline = self._watched.moving() if result is Outcome.MOVED else self._watched
                match self._api.attach(request.wanted, deadline):
                    case InPlan(key, by_us=True):
                        return key, result, True
                    case InPlan(key):
                        # Where it was held and not there when we looked, somebody has just put it back.
                        if cleared is None:
                            return key, self._outcome_where_found(request), False
                        self._not_reattached(request, request.wanted, cleared)
                        return key, self._outcome_where_present(request, stands, earlier), False
                    case rivals:
                        if self._move_away(request, rivals):
                            result = Outcome.MOVED
                        else:  # DeleteUsagePlanKey answers 202: what it was asked to detach goes a moment later.
                            attempt += 1
                            what = rules.attaching(request.wanted)
                            deadline.pause(attempt, what, f"{rivals[0]} still blocks it")
        except FailedError as failed:
            if failed.nothing_changed and cleared is not None:
                self._not_reattached(request, request.wanted, cleared)
            raise

    def _reattach(self, request: CreateOrUpdate, association: Association) -> AssociationRecord:
        """Write down that what is held is attached again; gives back the page as it stood before."""
        cleared = AssociationRecord()

        def rule(state: Snapshot) -> Snapshot:
            nonlocal cleared
            cleared = state.entry(association)
            return rules.reattaching(state, request, association)

        self._change([association], rule)
        return cleared

    def _not_reattached(
        self, request: CreateOrUpdate, association: Association, cleared: AssociationRecord
    ) -> None:
        self._change([association], lambda state: rules.not_reattached(state, request, association, cleared))

    def _outcome_where_present(
        self, request: CreateOrUpdate, stands: Standing, earlier: AssociationRecord
    ) -> Outcome:
        """It was seen in the plan, and others or this resource held it before."""
        seen = AssociationRecord()

        def rule(state: Snapshot) -> Snapshot:
            nonlocal seen
            seen = state.entry(request.wanted)
            return rules.present(state, request)

        state = self._change([request.wanted], rule)
        if seen.begun_by == NOBODY and state.record.holds[request.wanted].request == request.id:
            rules.check_existing(request)
            return Outcome.ADOPTED
        return rules.outcome(request, stands, earlier, present=True)

    def _outcome_where_found(self, request: CreateOrUpdate) -> Outcome:
        """Attaching was refused, for it is in the plan, where nobody held it: whose it is the ledger says, read again."""
        state = self._change([request.wanted], lambda state: rules.found_attached(state, request))
        if not state.entry(request.wanted).preexisting:
            return Outcome.JOINED
        rules.check_existing(request)
        return Outcome.ADOPTED

    def _is_known_move(self, request: CreateOrUpdate) -> bool:
        """Move away at once from what the id names, where it was lately seen to keep the key from what is wanted."""
        held = request.identified
        rival = self._api.known_rival(held, request.wanted, self.deadline) if held else None
        if rival is None or not rules.may_move(
            self._look_up([rival.association]), request, rival.association
        ):
            return False
        return self._move_away(request, [rival])

    def _move_away(self, request: CreateOrUpdate, rivals: list[Rival]) -> bool:
        """Detach the key from each rival; False when that has been done before, and has yet to come into force.

        Raises:
            FailedError: One of them is not for this resource to detach; then none is.
        """
        state = self._look_up([rival.association for rival in rivals])
        waiting = [rival for rival in rivals if state.entry(rival.association).moved_by == request.id]
        rest = [rival for rival in rivals if rival not in waiting]
        for rival in rest:
            if not rules.may_move(state, request, rival.association):
                raise FailedError(
                    f"{rules.attaching(request.wanted)}: the key is in {rival} already, and API Gateway takes a key "
                    f"once for each stage. {rules.left_alone(state.entry(rival.association), request)}"
                )
        self._watched.moving().allow(rules.attaching(request.wanted), ahead=CONNECT_TIMEOUT + READ_TIMEOUT)
        for rival in rest:
            association = rival.association
            mark = partial(rules.move_away, request=request, association=association, until=self._until)
            state = self._change([association], mark)
            if state.entry(association).detaching is not None:
                self._detach(self._holder, association)
        return bool(rest)

    def _move_back(self, request: CreateOrUpdate, failed: FailedError) -> None:
        """Attaching has come to nothing: attach again what was detached for it.

        Raises:
            FailedError: That was not to be either.
        """
        held = self._change([], _as_is).record.holds
        moved = self._change(held, _as_is).entries
        for association in [held for held, entry in moved.items() if entry.moved_by == request.id]:
            cleared = self._reattach(request, association)
            try:
                rivals = self._api.attach(association, self.deadline)
                if isinstance(rivals, list):
                    raise FailedError(f"{rivals[0]} blocks it")
            except FailedError as again:
                if again.nothing_changed:
                    self._not_reattached(request, association, cleared)
                logger.error("Not attached again: %s", association.id)  # noqa: TRY400  # no traceback: the Reason says it all
                if isinstance(failed, TurnOverError):
                    continue
                raise FailedError(
                    f"{failed}. And what was detached for it could not be attached again: {again}"
                ) from again

    # --- The watch ---

    def repair(self, request: Repair) -> None:
        """Attach again what the watch found missing, if that may be; else drop it for the next watch to see.

        Raises:
            TurnOverError: It waits for API Gateway, and comes again in its place.
        """
        what = f"{request.wanted.id} for {request.holder}"
        try:
            self._repair(request, self._begin())
        except TurnOverError:
            self._rest()
            raise
        except FailedError as failed:
            logger.warning("Not repaired: %s: %s", what, failed)
        except Exception:
            # Nobody waits for it, and its stack's requests wait behind it.
            logger.exception("Not repaired: %s: an internal error, please report it", what)
        self._rest()

    def _repair(self, request: Repair, state: Snapshot) -> None:
        """The steps of a REPAIRED: `reattaching` and every pause look whether it is still in order."""
        wanted = request.wanted
        rules.check_repairable(state, request)
        by_us = self._api.look(wanted, self._watched) is None and self._attach_missing(request)
        self._change([wanted], lambda state: rules.attached(state, request, wanted))
        logger.info("%s: %s for %s", Outcome.REPAIRED if by_us else "There again", wanted.id, self._holder)

    def _attach_missing(self, request: Repair) -> bool:
        """Attach what is held and not in the plan; False where somebody else did. No other plan makes way."""
        cleared = self._reattach(request, request.wanted)
        try:
            found = self._api.attach(request.wanted, self._watched)
            if isinstance(found, list):
                raise FailedError(f"{rules.attaching(request.wanted)}: {found[0]} blocks it")
        except FailedError as failed:
            if failed.nothing_changed:
                self._not_reattached(request, request.wanted, cleared)
            raise
        if not found.by_us:
            self._not_reattached(request, request.wanted, cleared)
        return found.by_us

    # --- Delete ---

    def _delete(self, request: Delete, state: Snapshot) -> Response:
        released = rules.releases(state.record, request)
        if not released:
            logger.info("This resource does not hold %s: nothing is touched", request.shown_id)
        self._finish_marks(state, but=released)
        if request.identified in released:
            self._let_go_of_moved(request)
        answer = Response(success=True, id=request.physical_id, at=self._now())
        for association in released:
            try:
                # The last one's page changes together with the answer's: one write less.
                last = partial(self._with_answer, answer=answer) if association == released[-1] else _as_is
                self._release(association, take=request.take, then=last)
            except TurnOverError:
                raise
            except FailedError as failed:
                left = ", ".join(
                    f"API key {rest.key_id} in usage plan {rest.plan_id}"
                    for rest in released[released.index(association) :]
                )
                reason = f"{failed}. {STAYS}: {left}"
                logger.error(reason)  # noqa: TRY400  # CloudFormation skips a failing clean-up in silence; this does not
                raise FailedError(reason) from failed
        return self._seen_answer() or self._answer(answer)

    def _let_go_of_moved(self, request: Delete) -> None:
        """With the present association goes what was moved away from: under UpdateReplacePolicy Retain no Delete comes for it."""
        held = [*self._look_up([]).record.holds]
        if len(held) > 1:
            self._change(held, partial(rules.let_go_of_moved, request=request))

    def _release(self, association: Association, *, take: bool, then: Rule = _as_is) -> None:
        """Let go of an association; detach it first if this is its last holder and it is ours."""

        def rule(state: Snapshot) -> Snapshot:
            after = rules.release(state, self._holder, association, take=take, until=self._until)
            return after if self._marked(after, association) else then(after)

        state = self._change([association], rule)
        if self._marked(state, association):
            moved = state.entry(association).moved_by is not None
            self._detach(self._holder, association, _as_is if moved else then)
            if moved:  # It was for a move that it was marked: that took off the mark alone.
                self._release(association, take=take, then=then)

    def _marked(self, state: Snapshot, association: Association) -> bool:
        entry = state.entry(association)
        return self._holder in entry.holders and entry.detaching is not None

    def _detach(self, marker: Holder, association: Association, then: Rule = _as_is) -> None:
        """Detach what `marker` has marked, then let go of it for it."""

        def check() -> None:
            # While this one paused, somebody else may have finished it, and another one may have attached the
            # key since.
            entry = self._ledger.change(marker, [association], _as_is, self._ledgers).entry(association)
            if entry.detaching is None or marker not in entry.holders:
                raise _UnmarkedError

        try:
            self._api.detach(association, self.deadline.watched(check))
        except _UnmarkedError:
            self._seen = None
            return
        except FailedError as failed:
            if failed.nothing_changed:
                self._change([association], lambda state: rules.still_attached(state, association), marker)
            raise
        self._change([association], lambda state: then(rules.detached(state, marker, association)), marker)

    def _finish_marks(self, state: Snapshot, but: Iterable[Association]) -> None:
        """Finish the detachings that a death of an earlier request of this resource has left."""
        others = [held for held in state.record.holds if held not in but]
        entries = self._look_up(others).entries if others else {}
        for association in others:
            if (until := entries[association].detaching) is not None:
                self._finish(self._holder, association, until)

    def _finish(self, marker: Holder, association: Association, until: int) -> None:
        """Finish a detaching that was marked `until`, if nobody else has taken it up by now."""
        taken_up = False

        def rule(state: Snapshot) -> Snapshot:
            nonlocal taken_up
            taken_up = (
                state.entry(association).detaching == until and marker in state.entry(association).holders
            )
            return rules.renewed(state, association, self._until) if taken_up else state

        self._change([association], rule, marker)
        if taken_up:
            self._detach(marker, association)

    # --- Both ---

    def _answer(self, answer: Response, held: Association | None = None) -> Response:
        """Write an answer down before it is sent, and give back the one that stands."""

        def rule(state: Snapshot) -> Snapshot:
            if held is not None and self._request.id not in state.record.answers:
                state = rules.attached(state, self._request, held)
            return self._with_answer(state, answer)

        return self._given(self._change([held] if held else [], rule, answered=True).record) or answer

    def _with_answer(self, state: Snapshot, answer: Response) -> Snapshot:
        return state._replace(record=rules.answered(state.record, self._request, answer))

    def _seen_answer(self) -> Response | None:
        return self._given(self._seen.record) if self._seen else None

    def _given(self, record: ResourceRecord) -> Response | None:
        given = record.answers.get(self._request.id)
        return given and given._replace(id=given.id or self._request.answer_id)

    def _give_again(self, given: Response) -> Response:
        """Give an answer again. The value is not written down, so it is looked up; what has gone meanwhile is left out."""
        logger.info("This request was answered before; the same answer goes out again")
        if not (isinstance(self._request, Create | Update) and self._request.include_value and given.success):
            return given
        if given.outcome == Outcome.LOST:
            return given._replace(value="")
        try:
            key = self._api.look(self._request.wanted, self.deadline.looking())
        except TurnOverError:
            raise
        except FailedError:
            return given
        return given._replace(value=key.value) if key else given

    def _look_up(self, associations: Sequence[Association]) -> Snapshot:
        """Give back what was seen last, or read: for what a write will rest on, whose conditions tell whether it still stands."""
        seen = self._seen
        covered = seen is not None and seen.entries.keys() >= set(associations)
        return seen if seen is not None and covered else self._change(associations, _as_is)

    def _check_superseded(self) -> None:
        def rule(state: Snapshot) -> Snapshot:
            rules.check_superseded(state.record, self._request)
            return state

        self._seen = None
        self._change([], rule)

    def _change(
        self,
        associations: Iterable[Association],
        rule: Rule,
        holder: Holder | None = None,
        *,
        answered: bool = False,
    ) -> Snapshot:
        """Change the ledger. Once the request is `answered`, by another delivery, nothing else is changed for it."""
        if holder not in (None, self._holder):
            return self._ledger.change(holder, associations, rule, self._ledgers)

        def checked(state: Snapshot) -> Snapshot:
            given = self._given(state.record)
            if given is not None and not answered:
                raise _AnsweredError(given)
            return rule(state)

        self._seen = self._ledger.change(self._holder, associations, checked, self._ledgers, self._seen)
        return self._seen

    def _now(self) -> int:
        return int(self.deadline.clock.time())
