"""Serves one request: asks the rules (`rules`), records them (`ledger`), carries them out (`api_gateway`).

The order of the steps makes a death between any two of them harmless: hold, then attach; mark, detach, then
let go; write the answer down, then send it.
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
from .ledger import Ledger, Rule, at_once
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

#: Seconds for the last writes to the ledger when the time is up.
RESTING_TIME: Final = 6.0
#: The Reason of every failed Delete has this label before the associations.
STAYS: Final = "Still attached"
#: Characters of a Reason that the ledger keeps: no answer takes more.
MOST_REASON: Final = 4096


class _AnsweredError(Exception):
    """Raised when another delivery of the request has answered it."""

    def __init__(self, given: Response) -> None:
        super().__init__()
        self.given = given


class _UnmarkedError(Exception):
    """Raised when somebody else has finished a detaching in the meantime."""


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
        redelivered: bool = False,
    ) -> None:
        """Prepare.

        Args:
            request: The request to serve.
            ledger: The ledger that records it.
            api: API Gateway.
            deadline: Until when.
            fenced: The invocation that took the request has called `fence`.
            redelivered: The queue has delivered the request before: a function may have died at it.
        """
        self._request = request
        self._fenced = fenced
        self._redelivered = redelivered
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
        """Write down that the request is here, before it waits for its turn."""
        rule = partial(
            _recorded, change=partial(rules.fence, request=self._request, is_over=self.deadline.is_over)
        )
        self._change([], rule, answered=True)

    def died(self) -> bool | None:
        """Tell whether a function has died at this request: it has left its mark.

        False if a function has begun or answered the request and has not died. None if no function has
        marked it, so nobody knows.
        """
        record = self._change([], _as_is, answered=True).record
        if self._request.id in record.answers:
            return False
        return record.begun == self._request.id if record.died == self._request.id else None

    def create(self) -> Response:
        """Serve a Create; give the earlier answer again if the function has answered it before.

        Raises:
            TurnOverError: The function has no time left for it, and CloudFormation has: a later turn serves
                it.
        """
        return self._handled(self._want)

    update = create

    def delete(self) -> Response:
        """Serve a Delete, like `create`."""
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
        """Fence the request if nobody has yet, mark it as begun, and give back the ledger's state."""
        request = self._request
        # Nobody waits for a request whose time is over. It changes nothing: CloudFormation may have counted
        # it as failed.
        is_over = self.deadline.is_over
        if not self._fenced and (not is_over or request.physical_id is None):
            self.fence()
        begins = self._redelivered and not is_over
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
        """Take off the mark: the request goes back into the queue, and no function has died at it."""
        if self._has_begun:
            rule = partial(_recorded, change=partial(rules.rest, request=self._request))
            with contextlib.suppress(FailedError):
                self._ledger.change(self._holder, [], rule, self._at_last())

    def _at_last(self) -> Deadline:
        """Until when the ledger takes the last writes when the time is up."""
        return Deadline(RESTING_TIME, self.deadline.clock).last()

    def fail(self, reason: str) -> Response:
        """Write down a FAILED answer; if the request has another one by now, that one stands."""
        if isinstance(self._request, Delete) and STAYS not in reason:
            reason = f"{reason}. {STAYS}: {self._request.shown_id}, if it was"
        answer = Response(
            success=False, id=self._request.answer_id, reason=reason[:MOST_REASON], at=self._now()
        )
        try:
            return self._answer(answer)
        except FailedError as failed:
            # The answer goes out all the same: the holds stand, and CloudFormation's next request finds them.
            logger.error("Could not write the answer down: %s", failed)  # noqa: TRY400  # the Reason says it all
            return answer

    # --- Create, Update ---

    def _want(self, request: CreateOrUpdate, state: Snapshot) -> Response:
        rules.check_superseded(state.record, request)
        self._finish_marks(state, but=[request.wanted])
        # Until we have seen that the key is not in the plan, an earlier delivery may have attached it.
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
            result = Outcome.MOVED  # An earlier delivery detached the key from the old plan, and died.
        for leftover in rules.leftovers(state.record, request):
            self._release(leftover, take=False)
        return self._succeeded(request, key, result)

    def _succeeded(self, request: CreateOrUpdate, key: Key, result: Outcome) -> Response:
        """Write down SUCCESS; the response has the key's value if the request asks for it."""
        key = self._with_value(request, key)
        answer = Response(
            success=True, id=request.wanted.id, outcome=result, key_name=key.name, at=self._now()
        )
        given = self._answer(answer, held=None if result is Outcome.LOST else request.wanted)
        return given._replace(value=key.value) if given.success and request.include_value else given

    def _with_value(self, request: CreateOrUpdate, key: Key) -> Key:
        """Look the value up if the request asks for it and API Gateway's reply had none."""
        if not request.include_value or key.value is not None:
            return key
        seen = self._api.look(request.wanted, self._watched)
        if seen is None or seen.value is None:
            # The key stays attached: if Fn::GetAtt asks for Value, CloudFormation fails and rolls back.
            logger.error(
                "API Gateway does not return the value of API key %s, so the answer has none",
                request.wanted.key_id,
            )
            return key
        return seen

    def _undo(self, request: CreateOrUpdate, failed: FailedError, *, absent: bool) -> None:
        """After a failure attach the moved keys again, and take back the hold if it attached nothing."""
        if not failed.nothing_changed:
            return
        try:
            if isinstance(request, Update):
                self._move_back(request, failed)
        finally:  # Moving back may fail too, and then the hold goes all the same.
            if absent:
                self._take_back(request)

    def _take_back(self, request: CreateOrUpdate) -> None:
        try:
            self._change([request.wanted], lambda state: rules.take_back(state, request))
        except FailedError:
            self._take_back_unseen(request)
            raise

    def _lost(self, request: CreateOrUpdate, missing: MissingError) -> Key | None:
        """Let a rollback succeed though its key or its plan is gone; None if this is no rollback."""
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
        """Hold the association, and give back its earlier page; wait while somebody detaches it."""
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
            (marker,) = seen.holders  # The last holder sets the mark, which keeps others from joining.
            if marker == self._holder or seen.detaching <= self._now():
                self._finish(marker, request.wanted, seen.detaching)
                continue
            attempt += 1
            what = request.wanted.attaching
            self._watched.pause(attempt, what, f"{marker} is detaching it", Again(after=1.0))

    def _take_back_unseen(self, request: CreateOrUpdate) -> None:
        """Take back a hold whose write had no reply.

        If the write was done, the next request would take an association that is there for its own.
        """
        rule = partial(rules.take_back, request=request)
        with contextlib.suppress(FailedError):
            self._ledger.change(self._holder, [request.wanted], rule, self._at_last())

    def _attach(
        self, request: CreateOrUpdate, stands: Standing, earlier: AssociationRecord
    ) -> tuple[Key, Outcome, bool]:
        """Attach a held association that is not in the plan; move the key from rival plans if it may.

        Gives back the key, the outcome, and whether this request has attached the key.
        """
        cleared = self._reattach(request, request.wanted) if stands is not Standing.NOBODY else None
        result = rules.outcome(request, stands, earlier, present=False)
        attempt = 0
        try:
            if self._is_known_move(request):
                result = Outcome.MOVED
            while True:
                # Once the move has detached the key, it needs time to undo that.
                deadline = self._watched.moving() if result is Outcome.MOVED else self._watched
                match self._api.attach(request.wanted, deadline):
                    case InPlan(key, by_us=True):
                        return key, result, True
                    case InPlan(key):
                        # If it was held and we did not see it there, somebody has just put it back.
                        if cleared is None:
                            return key, self._outcome_where_found(request), False
                        self._not_reattached(request, request.wanted, cleared)
                        return key, self._outcome_where_present(request, stands, earlier), False
                    case rivals:
                        if self._move_away(request, rivals):
                            result = Outcome.MOVED
                        else:  # DeleteUsagePlanKey answers 202: the key leaves the plan a moment later.
                            attempt += 1
                            what = request.wanted.attaching
                            deadline.pause(attempt, what, f"{rivals[0]} still blocks it")
        except FailedError as failed:
            if failed.nothing_changed and cleared is not None:
                self._not_reattached(request, request.wanted, cleared)
            raise

    def _reattach(self, request: CreateOrUpdate, association: Association) -> AssociationRecord:
        """Write down that this request attaches a held association again; give back its earlier page."""
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
        """Tell the outcome of a key seen in the plan whose association this resource or others held."""
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
        """Tell the outcome of a key that nobody held and that API Gateway says is in the plan.

        The ledger, read again, says whose it is.
        """
        state = self._change([request.wanted], lambda state: rules.found_attached(state, request))
        if not state.entry(request.wanted).preexisting:
            return Outcome.JOINED
        rules.check_existing(request)
        return Outcome.ADOPTED

    def _is_known_move(self, request: CreateOrUpdate) -> bool:
        """Move the key at once from the plan that the id names, if that plan was a rival lately."""
        held = request.identified
        rival = self._api.known_rival(held, request.wanted, self.deadline) if held else None
        if rival is None or not rules.may_move(
            self._look_up([rival.association]), request, rival.association
        ):
            return False
        return self._move_away(request, [rival])

    def _move_away(self, request: CreateOrUpdate, rivals: list[Rival]) -> bool:
        """Detach the key from each rival; False if the request has done so and it has yet to take effect.

        Raises:
            FailedError: This resource may not detach one of them, so it detaches none.
        """
        state = self._look_up([rival.association for rival in rivals])
        waiting = [rival for rival in rivals if state.entry(rival.association).moved_by == request.id]
        rest = [rival for rival in rivals if rival not in waiting]
        for rival in rest:
            if not rules.may_move(state, request, rival.association):
                raise FailedError(
                    f"{request.wanted.attaching}: the key is in {rival} already, "
                    "and API Gateway takes a key once for each stage. "
                    f"{rules.left_alone(state.entry(rival.association), request)}"
                )
        self._watched.moving().allow(request.wanted.attaching, ahead=CONNECT_TIMEOUT + READ_TIMEOUT)
        for rival in rest:
            association = rival.association
            mark = partial(rules.move_away, request=request, association=association, until=self._until)
            state = self._change([association], mark)
            if state.entry(association).detaching is not None:
                self._detach(self._holder, association)
        return bool(rest)

    def _move_back(self, request: CreateOrUpdate, failed: FailedError) -> None:
        """After a failed move attach again what the move has detached.

        Raises:
            FailedError: That failed too.
        """
        held = self._change([], _as_is).record.holds
        entries = [one for part in at_once(held) for one in self._change(part, _as_is).entries.items()]
        for association in [held for held, entry in entries if entry.moved_by == request.id]:
            cleared = self._reattach(request, association)
            try:
                rivals = self._api.attach(association, self.deadline)
                if isinstance(rivals, list):
                    raise FailedError(f"{rivals[0]} blocks it")
            except FailedError as second:
                if second.nothing_changed:
                    self._not_reattached(request, association, cleared)
                logger.error("Not attached again: %s", association.id)  # noqa: TRY400  # no traceback: the Reason says it all
                if isinstance(failed, TurnOverError):
                    continue
                raise FailedError(
                    f"{failed}. And the function could not attach the detached key again: {second}"
                ) from second

    # --- The watch ---

    def repair(self, request: Repair) -> None:
        """Attach again a key that the watch found missing; if rules forbid it, leave it to the next watch.

        Raises:
            TurnOverError: The repair waits for API Gateway, and comes again in its place.
        """
        what = f"{request.wanted.id} for {request.holder}"
        try:
            self._repair(request, self._begin())
        except TurnOverError:
            self._rest()
            raise
        except _AnsweredError:
            logger.warning("Not repaired: %s: its RequestId is one that the function has answered", what)
        except FailedError as failed:
            logger.warning("Not repaired: %s: %s", what, failed)
        except Exception:
            # Nobody waits for a repair, but its stack's requests wait behind it.
            logger.exception("Not repaired: %s: an internal error, please report it", what)
        self._rest()

    def _repair(self, request: Repair, state: Snapshot) -> None:
        """Do a repair's steps; `reattaching` and every pause check that it is still in order."""
        wanted = request.wanted
        rules.check_repairable(state, request)
        by_us = self._api.look(wanted, self._watched) is None and self._attach_missing(request)
        state = self._change([wanted], lambda state: rules.attached(state, request, wanted))
        if by_us and wanted not in state.record.holds:
            # An operator's LetGo came in between.
            logger.error("Attached, and the resource does not hold it any more: detach %s by hand", wanted.id)
        logger.info("%s: %s for %s", Outcome.REPAIRED if by_us else "There again", wanted.id, self._holder)

    def _attach_missing(self, request: Repair) -> bool:
        """Attach a missing key; False if somebody else did. Detach it from no other plan."""
        cleared = self._reattach(request, request.wanted)
        try:
            found = self._api.attach(request.wanted, self._watched)
            if isinstance(found, list):
                raise FailedError(f"{request.wanted.attaching}: {found[0]} blocks it")
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
            logger.info("This resource does not hold %s, so Delete changes nothing", request.shown_id)
        self._finish_marks(state, but=released)
        if request.identified in released:
            self._let_go_of_moved(request)
        answer = Response(success=True, id=request.physical_id, at=self._now())
        for association in released:
            try:
                # The last page changes together with the answer's: one write less.
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
                logger.error(reason)  # noqa: TRY400  # CloudFormation skips a failing clean-up in silence
                raise FailedError(reason) from failed
        return self._seen_answer() or self._answer(answer)

    def _let_go_of_moved(self, request: Delete) -> None:
        """Let go of the associations that moves have left, together with the present one.

        Under UpdateReplacePolicy Retain no Delete comes for them.
        """
        held = [*self._look_up([]).record.holds]
        for part in at_once(held) if len(held) > 1 else ():
            both = filter(None, [request.identified, *part])
            self._change(both, partial(rules.let_go_of_moved, request=request))

    def _release(self, association: Association, *, take: bool, then: Rule = _as_is) -> None:
        """Let go of an association; first detach it if it is ours and this is its last holder."""

        def rule(state: Snapshot) -> Snapshot:
            after = rules.release(state, self._holder, association, take=take, until=self._until)
            return after if self._marked(after, association) else then(after)

        state = self._change([association], rule)
        if self._marked(state, association):
            moved = state.entry(association).moved_by is not None
            self._detach(self._holder, association, _as_is if moved else then)
            if moved:  # A move had marked it, so detaching took off the mark only.
                self._release(association, take=take, then=then)

    def _marked(self, state: Snapshot, association: Association) -> bool:
        entry = state.entry(association)
        return self._holder in entry.holders and entry.detaching is not None

    def _detach(self, marker: Holder, association: Association, then: Rule = _as_is) -> None:
        """Detach an association that `marker` has marked, then let go of it in `marker`'s name."""

        def check() -> None:
            # During a pause somebody else may have finished it, and another one may have attached the key.
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
        """Finish the detachings that earlier requests of this resource left when a function died."""
        for others in at_once(held for held in state.record.holds if held not in but):
            entries = self._look_up(others).entries
            for association in others:
                if (until := entries[association].detaching) is not None:
                    self._finish(self._holder, association, until)

    def _finish(self, marker: Holder, association: Association, until: int) -> None:
        """Finish a detaching with the mark `until`, unless somebody else has taken it up."""
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
        """Write an answer down before the function sends it, and give back the one that stands."""

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
        """Give an answer again; look up the value, which the ledger lacks, or leave it out if it is gone."""
        logger.info("The function answered this request before; the same answer goes out again")
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
        """Give back the state seen last, or read it.

        Only for a state that a later write rests on: the write's conditions tell whether it still stands.
        """
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
        """Change the ledger; if another delivery has answered the request, only if `answered` is true."""
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
