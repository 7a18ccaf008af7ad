"""After a loss of the ledger: docs/operate.md, played for each kind of what has happened since."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

from .story import play, stories, told
from .test_docs import OPERATE, fences, section, table

TEMPLATE = yaml_parse((OPERATE.parents[1] / "template.yaml").read_text())
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


def kinds(text: str) -> set[str]:
    """What has happened since, in each story of a table: the word before a colon."""
    return {name.partition(":")[0] for name in told(text)}


@pytest.mark.parametrize(
    ("kind", "ledger"),
    [(kind, "restore") for kind in KINDS if kind not in kinds(HOLDS_TOO_MUCH)]
    + [(kind, "restore nothing") for kind in KINDS],
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


@stories(HOLDS_TOO_MUCH)
def test_a_restored_ledger_that_holds_too_much_does_harm(line: str) -> None:
    """So the manual says to begin with an empty one."""
    play(line)


def test_the_manual_sends_each_kind_to_the_ledger_that_is_right_for_it() -> None:
    rows = [(row[0].split(", "), row[-1]) for row in table(OPERATE, "Since then a resource was")]
    mended = {kind for names, what in rows for kind in names if "empty" not in what}
    anew = {kind for names, what in rows for kind in names if "empty" in what}
    assert anew == kinds(HOLDS_TOO_MUCH)
    assert mended | anew == {*KINDS}


@stories("""
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
def test_before_and_after_the_mend(line: str) -> None:
    play(line)


@stories("""
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
def test_a_key_that_an_operator_detaches_by_hand(line: str) -> None:
    play(line)


# --- The commands ---

BLOCKS = [block for (block,) in (each.values for each in fences("sh")) if "wait table-exists" in block]


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


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_wait_for_the_table_then_make_it_as_the_template_does(
    block: str, tmp_path: Path
) -> None:
    calls = run(block, tmp_path, waits=2)
    verbs = [call.split()[2 if call.startswith("aws") else 1] for call in calls]
    made = TEMPLATE["Resources"]["Ledger"]["Properties"]
    (key,) = made["KeySchema"]
    beginning, deploys = {
        "create-table": (["create-table"], ["deploy"]),
        "restore-table-to-point-in-time": (["restore-table-to-point-in-time"], ["deploy"]),
        "list-backups": (["list-backups", "restore-table-from-backup"], []),  # Under its own name.
    }[verbs[0]]
    ending = ["update-time-to-live", *deploys, "update-continuous-backups"]
    assert verbs == [*beginning, "wait", "wait", "wait", *ending]
    (name,) = {call.split("table-name ")[1].split()[0] for call in calls if "wait" in call}
    settings = {
        "update-time-to-live": f"AttributeName={made['TimeToLiveSpecification']['AttributeName']}",
        "create-table": f"AttributeName={key['AttributeName']},KeyType={key['KeyType']}",
        "restore-table-from-backup": "--backup-arn arn:of-the-backup",
        "deploy": f"sam deploy --region eu-central-1 --parameter-overrides ExistingLedger={name}",
        "update-continuous-backups": "PointInTimeRecoveryEnabled=true",
    }
    assert all(settings.get(verb, "") in call for verb, call in zip(verbs, calls, strict=True))
    assert f"--billing-mode {made['BillingMode']}" in calls[0] or verbs[0] != "create-table"


@pytest.mark.parametrize("fails", ["list-backups", "restore-table", "create-table", "update-time-to-live"])
def test_nothing_follows_a_command_that_has_failed(fails: str, tmp_path: Path) -> None:
    blocks = [block for block in BLOCKS if fails in block]
    assert blocks
    for number, block in enumerate(blocks):
        (place := tmp_path / str(number)).mkdir()
        assert fails in run(block, place, fails=fails)[-1]


def test_an_empty_existing_ledger_makes_no_second_table() -> None:
    """The stack's own table depends on the parameter only, and its name on the function's."""
    assert TEMPLATE["Conditions"]["MakesLedger"] == {"Fn::Equals": [{"Ref": "ExistingLedger"}, ""]}
    assert "does not make a table" in section(OPERATE, "Begin with an empty ledger")
