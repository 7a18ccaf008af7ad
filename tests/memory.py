"""Fakes in memory: a ledger, a clock that only sleeping moves, and an executor that does its work at once."""

from collections.abc import Iterable
from concurrent.futures import Executor, Future
from typing import Any

from usage_plan_key.ledger import Rule
from usage_plan_key.model import Association, AssociationRecord, Holder, ResourceRecord, Snapshot
from usage_plan_key.retry import Deadline


class Clock:
    """Virtual time, in seconds."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


class MemoryLedger:
    """The ledger's pages in memory; `change` behaves as the table's."""

    def __init__(self) -> None:
        self.records: dict[Holder, ResourceRecord] = {}
        self.entries: dict[Association, AssociationRecord] = {}

    def change(
        self,
        holder: Holder,
        associations: Iterable[Association],
        rule: Rule,
        deadline: Deadline,
        seen: Snapshot | None = None,
    ) -> Snapshot:
        deadline.allow("Could not ask the ledger")
        associations = list(dict.fromkeys(associations))
        assert len(associations) < 100, "DynamoDB takes 100 items in a transaction"
        before = Snapshot(
            self.records.get(holder, ResourceRecord()),
            {association: self.entries.get(association, AssociationRecord()) for association in associations},
        )
        after = rule(before)
        if after != before:
            self.written(holder, after)
        return after

    def written(self, holder: Holder, after: Snapshot) -> None:
        """Write one transaction, and drop the pages that hold nothing, as the table does."""
        self.records[holder] = after.record
        self.entries |= after.entries
        self.entries = {association: entry for association, entry in self.entries.items() if entry.holders}


class Inline(Executor):
    """An executor that does its work at once."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future
