"""After a loss of the ledger: docs/operate.md, played for each kind of what has happened since."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .story import play, stories, told
from .test_docs import OPERATE, fences, section, table, template

# Two deploys mend a resource: `Take`, then another VerifyTrigger. A Delete then detaches its key, and the
# last holder's only.
LACKS = """
not touched: the pages are those of now
    create A free; hand+ gold; create B gold Adopt; backup; restore; update A free free P1 = VERIFIED;
    delete A free; delete B gold Adopt; held nothing -> attached gold
created
    backup; create A free; restore; update A free free = FAILED not through this stack; update A free free
    Take = ADOPTED; update A free free Take P1 = TAKEN; watch nothing; delete A free Take; held nothing ->
    attached nothing
created, and deleted again: there is nothing to mend
    backup; create A free; delete A free; restore; held nothing -> attached nothing
created, and deleted before the mend: it stays, and the watch says so
    create B bob:free; backup; create A free; restore; delete A free; watch unheld=free; hand- free;
    attached bob:free -> watch nothing
joined, by another stack: nobody is cut off
    create A free; backup; create Z free Adopt = JOINED; restore; update Z free free Take = JOINED; update
    Z free free Take P1 = VERIFIED; delete A free; attached free; delete Z free Take -> attached nothing
joined, and the other holder is deleted before the mend: the key is detached, and the mend attaches it
    create A free; backup; create Z free Adopt = JOINED; restore; delete A free; attached nothing; update
    Z free free Take = ATTACHED; delete Z free Take -> attached nothing
joined, by the same stack
    create A free; backup; create B free = JOINED; restore; update B free free Take = JOINED; delete A
    free; attached free; delete B free Take -> attached nothing
adopted: it is somebody else's, and Adopt stays
    backup; hand+ free; create A free Adopt; restore; update A free free Adopt P1 = ADOPTED; delete A free
    Adopt -> attached free
taken
    hand+ free; create A free Take; backup; update A free free Take P1 = TAKEN; restore; update A free
    free Take P2 = TAKEN; delete A free Take -> attached nothing
repaired, so that it is ours
    hand+ free; create A free Adopt; backup; hand- free; update A free free Adopt P1 = REPAIRED; restore;
    update A free free Take = TAKEN; delete A free Take -> attached nothing
"""
HOLDS_TOO_MUCH = """
deleted: the old hold keeps another stack's key attached when that goes
    create A free; backup; delete A free; create Z free; restore; update Z free free Take = JOINED; update
    Z free free Take P1 = VERIFIED; delete Z free Take; held free=A -> attached free
deleted: a repair attaches a key that nobody declares
    queue; create A free; backup; delete A free; restore; watch missing=free; repair A free; held free=A
    -> attached free
moved: the old hold that an event has named stays, and nothing tells
    create A free; update A free free; backup; update A free pro = MOVED; delete A free; restore; update A
    pro pro Take = ADOPTED; update A pro pro Take P1 = TAKEN; watch nothing; delete A pro Take; held
    free=A -> attached nothing
replaced: the old hold that no event has named is detached under another stack's customer
    create A free; backup; update A free gold; delete A free; create Z free; restore; update A gold gold
    Take = ADOPTED; calls create=1 delete=1 get=1; held gold=A!before -> attached gold
swapped: one customer is without a key until the other resource is deployed
    create A free; create B bob:free; backup; update A free bob:free = JOINED; update B bob:free free =
    JOINED; delete A free; delete B bob:free; restore; update B free free = JOINED; attached free; update
    A bob:free bob:free = ATTACHED -> attached free bob:free
"""
EMPTY = """
created
    create A free; restore nothing; update A free free Take = ADOPTED; update A free free Take P1 = TAKEN;
    delete A free Take; held nothing -> attached nothing
deleted
    create A free; delete A free; restore nothing; watch nothing; held nothing -> attached nothing
deleted, and another stack has it since
    create A free; delete A free; create Z free; restore nothing; update Z free free Take = ADOPTED;
    update Z free free Take P1 = TAKEN; delete Z free Take; held nothing -> attached nothing
moved
    create A free; update A free free; update A free pro = MOVED; delete A free; restore nothing; update A
    pro pro Take = ADOPTED; update A pro pro Take P1 = TAKEN; held pro=A!taken; delete A pro Take; held
    nothing -> attached nothing
moved, and moved on after the mend
    create A free; update A free pro; delete A free; restore nothing; update A pro pro Take = ADOPTED;
    update A pro pro Take P1 old=Take = TAKEN; update A pro free Take old=Take = MOVED; delete A pro Take;
    attached free; delete A free Take -> attached nothing
replaced, and another stack has the old one since
    create A free; update A free gold; delete A free; create Z free; restore nothing; update A gold gold
    Take = ADOPTED; update Z free free Take = ADOPTED; update A gold gold Take P1 = TAKEN; update Z free
    free Take P1 = TAKEN; attached free gold; delete A gold Take; attached free; delete Z free Take; held
    nothing -> attached nothing
swapped
    create A free; create B bob:free; update A free bob:free = JOINED; update B bob:free free = JOINED;
    delete A free; delete B bob:free; restore nothing; update B free free Take = ADOPTED; update A
    bob:free bob:free Take = ADOPTED; update A bob:free bob:free Take P1 = TAKEN; update B free free Take
    P1 = TAKEN; attached free bob:free; delete A bob:free Take; attached free; delete B free Take; held
    nothing -> attached nothing
joined
    create A free; create Z free Adopt = JOINED; restore nothing; update Z free free Take = ADOPTED;
    update A free free Take = JOINED; update Z free free Take P1 = TAKEN; update A free free Take P1 =
    VERIFIED; delete Z free Take; attached free; delete A free Take; held nothing -> attached nothing
joined, and another holder is deleted before the mend: the key is detached, and the mend attaches it
    create A free; create Z free Adopt = JOINED; restore nothing; update A free free Take = ADOPTED;
    update A free free Take P1 = TAKEN; delete A free Take; attached nothing; update Z free free Take =
    ATTACHED; delete Z free Take -> attached nothing
repaired
    hand+ free; create A free Adopt; hand- free; update A free free Adopt P1 = REPAIRED; restore nothing;
    update A free free Take = ADOPTED; update A free free Take P2 = TAKEN; delete A free Take; held
    nothing -> attached nothing
retained: nobody holds it, so the watch reports it
    create A free; create B bob:free; restore nothing; update B bob:free bob:free Take = ADOPTED; watch
    unheld=free -> attached free bob:free
created, and deployed without Take: the rollback fails too, is skipped, and the mend goes on
    create A free; restore nothing; update A free free P1 = FAILED not through this stack; update A free
    free = FAILED not through this stack; held nothing; update A free free Take = ADOPTED; update A free
    free Take P2 = TAKEN; delete A free Take; held nothing -> attached nothing
adopted: Adopt stays, and so does the key
    hand+ free; create A free Adopt; restore nothing; update A free free Adopt P1 = ADOPTED; delete A free
    Adopt; held nothing -> attached free
taken
    hand+ free; create A free Take; update A free free Take P1 = TAKEN; restore nothing; update A free
    free Take P2 = ADOPTED; update A free free Take P3 = TAKEN; delete A free Take; held nothing ->
    attached nothing
created, and deleted before the mend: it stays, and the watch says so as soon as it knows the plan
    create A free; create B bob:free; restore nothing; delete A free; update B bob:free bob:free Take =
    ADOPTED; watch unheld=free; hand- free -> attached bob:free
"""


@stories(LACKS)
def test_a_restored_ledger_that_lacks_something_is_mended_by_the_resources_it_lacks(line: str) -> None:
    play(line)


@stories(HOLDS_TOO_MUCH)
def test_a_restored_ledger_that_holds_too_much_does_harm(line: str) -> None:
    """So the manual says to begin with an empty one."""
    play(line)


@stories(EMPTY)
def test_an_empty_ledger_is_mended_by_all_resources(line: str) -> None:
    play(line)


def kinds(text: str) -> set[str]:
    """What has happened since, in each story of a table: the words before a comma or a colon."""
    return {name.replace(":", ",").partition(",")[0] for name in told(text)}


def test_the_manual_sends_each_kind_to_the_ledger_that_is_right_for_it() -> None:
    rows = [(row[0].split(", "), row[-1]) for row in table(OPERATE, "Since then a resource was")]
    mended = {kind for names, what in rows for kind in names if "empty" not in what}
    anew = {kind for names, what in rows for kind in names if "empty" in what}
    assert (mended, anew) == (kinds(LACKS), kinds(HOLDS_TOO_MUCH))
    assert mended | anew == kinds(EMPTY) - {"retained"} | {"not touched"}


@stories("""
a Delete failed, and the operator detaches by hand: nothing is missing, and nothing is repaired
    queue; create A free; at delete denied; delete A free = FAILED Still attached: API key alice in usage
    plan free; beliefs A free=going; hand- free; watch nothing; repair A free = not the resource does not
    hold it any more -> attached nothing
the same, and the stack is deleted again: the hold goes
    queue; create A free; at delete denied; delete A free = FAILED; hand- free; delete A free; held
    nothing -> attached nothing
the same, and the resource is gone: it is declared again and removed
    queue; create A free; at delete denied; delete A free = FAILED; hand- free; create A free = ATTACHED;
    delete A free; held nothing -> attached nothing
the same, and another stack has the key by now: it keeps it
    queue; create A free; at delete denied; delete A free = FAILED; hand- free; create Z free Take =
    REPAIRED; create A free = ATTACHED; delete A free; held free=Z -> attached free
a retained association that somebody detaches by hand is missing, and repaired
    queue; create A free; hand- free; watch missing=free; repair A free; watch nothing -> attached free
the same, declared again and removed for good
    queue; create A free; hand- free; create A free = ATTACHED; delete A free; watch nothing; held nothing
    -> attached nothing
""")
def test_a_key_that_an_operator_detaches_by_hand(line: str) -> None:
    play(line)


# --- The commands ---

BLOCKS = [each for each in fences("sh") if "wait table-exists" in each.values[0]]


def run(block: str, place: Path, *, waits: int = 0, fails: str = "") -> list[str]:
    """Run commands with an `aws` and a `sam` that write down how they are called.

    The first `waits` waits give up, and a call with the words `fails` in it fails.
    """
    calls = place / "calls"
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> '{calls}'
case "$*" in
    *'{fails or "no such word"}'*) exit 1 ;;
    *list-backups*) echo arn:of-the-backup ;;
    *wait*) test "$(grep -c ' wait ' '{calls}')" -gt {waits} ;;
esac
"""
    for name, text in (("aws", script), ("sam", script), ("sleep", "#!/bin/sh\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    surroundings = {"PATH": f"{place}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", block], env=surroundings, check=False, timeout=60)
    return calls.read_text().splitlines()


def test_there_are_three_ways_to_a_ledger() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_wait_for_the_table_then_make_it_as_the_template_does(
    block: str, tmp_path: Path
) -> None:
    calls = run(block, tmp_path, waits=2)
    verbs = [call.split()[2 if call.startswith("aws") else 1] for call in calls]
    made = template()["Resources"]["Ledger"]["Properties"]
    (key,) = made["KeySchema"]
    beginning, deploys = {
        "create-table": (["create-table"], ["deploy"]),
        "restore-table-to-point-in-time": (["restore-table-to-point-in-time"], ["deploy"]),
        "list-backups": (["list-backups", "restore-table-from-backup"], []),  # Under its own name.
    }[verbs[0]]
    settings = ["update-time-to-live", *deploys, "update-continuous-backups"]
    assert verbs == [*beginning, "wait", "wait", "wait", *settings]
    said = " ".join(calls)
    assert f"AttributeName={made['TimeToLiveSpecification']['AttributeName']} " in f"{said} "
    assert "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true" in said
    if "create-table" in verbs:
        assert f"--billing-mode {made['BillingMode']}" in said
        assert f"--key-schema AttributeName={key['AttributeName']},KeyType={key['KeyType']}" in said
    if "list-backups" in verbs:
        assert "--backup-arn arn:of-the-backup" in said
    (name,) = {call.split("table-name ")[1].split()[0] for call in calls if "wait" in call}
    assert (
        not deploys or f"sam deploy --region eu-central-1 --parameter-overrides ExistingLedger={name}" in said
    )


@pytest.mark.parametrize("fails", ["list-backups", "restore-table", "create-table", "update-time-to-live"])
@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_follows_a_command_that_has_failed(block: str, fails: str, tmp_path: Path) -> None:
    if fails in block:
        assert fails in run(block, tmp_path, fails=fails)[-1]


def test_an_empty_existing_ledger_makes_no_second_table() -> None:
    """The stack's own table depends on the parameter only, and its name on the function's."""
    assert template()["Conditions"]["MakesLedger"] == {"Fn::Equals": [{"Ref": "ExistingLedger"}, ""]}
    assert "does not make a table" in section(OPERATE, "Begin with an empty ledger")
