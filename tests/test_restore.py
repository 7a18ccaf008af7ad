"""After a loss of the ledger: docs/operate.md, played for each kind of what has happened since."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .story import play, played, staged, told
from .test_docs import BLOCKS, OPERATE, run, table
from .test_template import RESOURCES

#: What has happened before and after the backup; then what the templates declare.
KINDS = {
    "not touched": ("create A free; create B gold; backup", "A free, B gold"),
    "created": ("backup; create A free", "A free"),
    "joined": ("create A free; backup; create Z free Adopt = JOINED", "Z free, A free"),
    "adopted": ("backup; hand+ free; create A free Adopt", "A free Adopt"),
    "taken": ("hand+ free; create A free Take; backup; update A free free Take P1 = TAKEN", "A free"),
    "repaired": (
        "hand+ free; create A free Adopt; backup; hand- free; update A free free Adopt P1 = REPAIRED",
        "A free",
    ),
    "deleted": ("create A free; backup; delete A free; create Z free", "Z free"),
    "moved": ("create A free; backup; update A free pro = MOVED; delete A free", "A pro"),
    "replaced": (
        "create A free; backup; update A free gold; delete A free; create Z free",
        "A gold, Z free",
    ),
    "swapped": (
        "create A free; create B bob:free; backup; update A free bob:free; update B bob:free free",
        "B free, A bob:free",
    ),
}
#: A restored ledger with a hold that has ended does harm, so the manual says to begin with an empty one.
HARM = """
deleted: a repair attaches a key that nobody declares
    queue; create A free; backup; delete A free; restore; watch missing=free; repair A free; held free=A
    -> attached free
moved: the hold stays, and nothing tells
    create A free; update A free free; backup; update A free pro = MOVED; delete A free; restore; update A
    pro pro Take = ADOPTED; update A pro pro Take P1 = TAKEN; watch nothing; delete A pro Take; held
    free=A -> attached nothing
replaced: an Update detaches another stack's customer
    create A free; backup; update A free gold; delete A free; create Z free; restore; update A gold gold
    Take = ADOPTED; calls delete=1 get=1; held gold=A!before -> attached gold
swapped: one customer is without a key until the other resource is deployed
    create A free; create B bob:free; backup; update A free bob:free = JOINED; update B bob:free free =
    JOINED; delete A free; delete B bob:free; restore; update B free free = JOINED; attached free; update
    A bob:free bob:free = ATTACHED -> attached free bob:free
"""
HARMED = {name.partition(":")[0] for name in told(HARM)}
test_a_hold_that_has_ended_does_harm = played(HARM)


@pytest.mark.parametrize("request_", ["create A free", "update A free free P1"])
def test_a_resource_whose_page_somebody_has_deleted_holds_its_key_again(request_: str) -> None:
    with staged() as story:
        story.play("create A free")
        del story.db.items[next(pk for pk in story.db.items if pk.startswith("holder"))]
        story.play(f"{request_} = ATTACHED; held free=A; delete A free")
        assert not story.api.attached


def test_the_manual_sends_each_kind_to_the_ledger_that_is_right_for_it() -> None:
    rows = [(row[0].split(", "), "empty" in row[-1]) for row in table(OPERATE, "Since then a resource was")]
    sent = {kind: to_an_empty_one for kinds, to_an_empty_one in rows for kind in kinds}
    assert sent == {kind: kind in HARMED for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "ledger"),
    [(kind, "restore nothing") for kind in KINDS]
    + [(kind, "restore") for kind in KINDS if kind not in HARMED],
)
def test_all_resources_mend_a_ledger(kind: str, ledger: str) -> None:
    """Two deploys with `Take` mend each. Then its Delete detaches its key, if no other one needs it."""
    since, declared = KINDS[kind]
    each = [[*resource.split(), "Take"][:3] for resource in declared.split(", ")]
    mends = [
        f"update {who} {one} {one} {how} {trigger}" for trigger in ("P2", "P3") for who, one, how in each
    ]
    attached = " ".join({one for _, one, _ in each})
    deletes = [f"delete {who} {one} {how}" for who, one, how in each]
    left = " ".join([one for _, one, how in each if how == "Adopt"] or ["nothing"])
    steps = [since, ledger, *mends, "watch nothing", f"attached {attached}", *deletes, "held nothing"]
    play(f"{'; '.join(steps)} -> attached {left}")


test_before_and_after_the_mend = played("""
joined, and the other holder is deleted before the mend: the key is detached, and the mend attaches it
    create A free; backup; create Z free Adopt = JOINED; restore; delete A free; attached nothing; update
    Z free free Take = ATTACHED; delete Z free Take -> attached nothing
moved on after the mend
    create A pro; restore nothing; update A pro pro Take = ADOPTED; update A pro pro Take P1 old=Take =
    TAKEN; held pro=A!taken; update A pro free Take old=Take = MOVED; delete A pro Take; attached free;
    delete A free Take -> attached nothing
retained, or deleted before the mend: nobody holds it, so the watch reports it once it knows the plan
    create A free; create B bob:free; restore nothing; watch nothing; delete A free; update B bob:free
    bob:free Take = ADOPTED; watch unheld=free; hand- free; watch nothing -> attached bob:free
deployed without Take: the rollback fails too, is skipped, and the mend goes on
    create A free; restore nothing; update A free free P1 = FAILED not through this stack; update A free
    free = FAILED not through this stack; held nothing; update A free free Take = ADOPTED; update A free
    free Take P2 = TAKEN; delete A free Take; held nothing -> attached nothing
""")


test_a_key_that_an_operator_detaches_by_hand = played("""
a Delete failed: nothing is missing, nothing is repaired, and the stack's next Delete ends the hold
    queue; create A free; at delete denied; delete A free = FAILED Still attached: API key alice in usage
    plan free; beliefs A free=going; hand- free; watch repairs nothing; repair A free = not the resource
    does not hold it any more; delete A free; held nothing -> attached nothing
a Delete failed, and the resource is gone: it is declared again and removed
    queue; create A free; at delete denied; delete A free = FAILED; hand- free; create A free = ATTACHED;
    delete A free; held nothing -> attached nothing
a Delete failed, and another stack has the key by now: it keeps it
    queue; create A free; at delete denied; delete A free = FAILED; hand- free; create Z free Take =
    REPAIRED; create A free = ATTACHED; delete A free; held free=Z -> attached free
retained: it is missing, and repaired, until it is declared again and removed for good
    queue; create A free; hand- free; watch missing=free; repair A free; attached free; hand- free; create
    A free = ATTACHED; delete A free; watch nothing; held nothing -> attached nothing
""")


# --- The commands ---

WAITING = [text for *_, text in BLOCKS if "wait table-exists" in text]
MADE = RESOURCES["Ledger"]["Properties"]
WAITS = ["wait table-exists --table-name LEDGER$"] * 3
EXPIRES = f"update-time-to-live .*LEDGER .*AttributeName={MADE['TimeToLiveSpecification']['AttributeName']}$"
BACKUPS = "update-continuous-backups .*LEDGER .*PointInTimeRecoveryEnabled=true$"
DEPLOY = "^sam deploy --region eu-central-1 --parameter-overrides ExistingLedger=LEDGER$"
KEY = "AttributeName={AttributeName},KeyType={KeyType}".format(**MADE["KeySchema"][0])
#: What the manual's commands do, one after the other. A deleted table comes back under its own name.
DONE = [
    ["list-backups", "restore-table-from-backup .*arn:of-the-backup$", *WAITS, EXPIRES, BACKUPS],
    ["restore-table-to-point-in-time", *WAITS, EXPIRES, DEPLOY, BACKUPS],
    [f"create-table .*{MADE['BillingMode']} .*{KEY}", *WAITS, EXPIRES, DEPLOY, BACKUPS],
]


@pytest.mark.parametrize(("block", "done"), list(zip(WAITING, DONE, strict=True)))
def test_the_commands_wait_for_the_table_then_make_it_as_the_template_does(
    block: str, done: list[str], tmp_path: Path
) -> None:
    calls = run(block, tmp_path, waits=2)
    (name,) = {call.split("table-name ")[1].split()[0] for call in calls if "wait" in call}
    assert len(calls) == len(done)
    assert all(re.search(does, call.replace(name, "LEDGER")) for does, call in zip(done, calls, strict=True))


@pytest.mark.parametrize("fails", ["list-backups", "restore-table", "create-table", "update-time-to-live"])
def test_nothing_follows_a_command_that_has_failed(fails: str, tmp_path: Path) -> None:
    blocks = [block for block in WAITING if fails in block]
    assert blocks
    assert all(fails in run(block, tmp_path, fails=fails)[-1] for block in blocks)
