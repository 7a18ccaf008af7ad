"""Shows the life of Custom::UsagePlanKey on this machine: python -m examples, from the repository's root.

Starts MiniStack with API Gateway's own rules before it, deploys template.yaml and then customers.yaml, and
changes customers.yaml step by step. For each step it shows and checks CloudFormation's requests, the answers,
and the keys of each plan. If anything is not as promised, it says which step and why, and ends with 1.
"""

import copy
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import Aws, Deployment, Request, StartError, Template, packaged, running

ROOT = Path(__file__).parent.parent
PROVIDER, CUSTOMERS = "usage-plan-key", "customers"
FUNCTION = "UsagePlanKeyFunction"
WIDTH = 80
BOLD, RED, GREEN = 1, 31, 32

Line = tuple[str, str, str, str, str, str]
"""A request as the demo shows it: type, logical id, association; then status, association, outcome."""


class WrongError(Exception):
    """Raised when something is not as promised."""


# --- The example's later states ---


def example() -> Template:
    """Read the template as it is."""
    template: Template = yaml_parse((ROOT / "examples/customers.yaml").read_text())
    return template


def moved(template: Template) -> Template:
    """Move Alice from Free to Pro."""
    changed = copy.deepcopy(template)
    changed["Resources"]["Alice"]["Properties"]["UsagePlanId"] = {"Ref": "ProPlan"}
    return changed


def kept_as_secret(template: Template) -> Template:
    """Put the value of Alice's key into a secret that she can fetch."""
    changed = copy.deepcopy(template)
    changed["Resources"]["Alice"]["Properties"]["IncludeValue"] = True
    value = {
        "Type": "AWS::SecretsManager::Secret",
        "Properties": {"SecretString": {"Fn::GetAtt": ["Alice", "Value"]}},
    }
    changed["Resources"]["AliceSecret"] = value
    return changed


def renamed(template: Template) -> Template:
    """Rename Carol's logical id to CarolInc."""
    changed = copy.deepcopy(template)
    changed["Resources"]["CarolInc"] = changed["Resources"].pop("Carol")
    return changed


def shifted(template: Template) -> Template:
    """Insert Frank in front of the list, so Dora and Erin get their successors' logical ids."""
    changed = copy.deepcopy(template)
    resources = changed["Resources"]
    resources["FrankKey"] = copy.deepcopy(resources["ErinKey"])
    resources["Listed2"] = copy.deepcopy(resources["Listed1"])
    resources["Listed1"]["Properties"]["KeyId"] = {"Ref": "DoraKey"}
    resources["Listed0"]["Properties"]["KeyId"] = {"Ref": "FrankKey"}
    return changed


def failing(template: Template) -> Template:
    """Grace is new, Bob is to be verified, and then Bob is declared to be in Pro as well: that cannot be."""
    changed = copy.deepcopy(template)
    resources = changed["Resources"]
    resources["GraceKey"] = copy.deepcopy(resources["BobKey"])
    resources["Grace"] = copy.deepcopy(resources["Bob"])
    resources["Grace"]["Properties"]["KeyId"] = {"Ref": "GraceKey"}
    resources["BobInPro"] = copy.deepcopy(resources["Bob"]) | {"DependsOn": ["Bob", "Grace"]}
    resources["BobInPro"]["Properties"]["UsagePlanId"] = {"Ref": "ProPlan"}
    resources["Bob"]["Properties"]["VerifyTrigger"] = "a deploy that fails"
    return changed


# --- Watching ---


class Customers:
    """The customers' stack, and everything that a step checks."""

    def __init__(self, aws: Aws, name: str = CUSTOMERS) -> None:
        """Begin after the function's deployment, before the customers'."""
        self.aws, self.name = aws, name
        self.function = aws.physical_ids(PROVIDER)[FUNCTION]
        self.names: dict[str, str] = {}
        """The demo's names for the ids of keys and plans: alice, Free."""
        self._secrets: set[str] = set()
        self._requests, self._calls = len(aws.requests(self.function)), len(aws.proxy.calls)

    def deploy(self, template: Template, verify_trigger: int = 1) -> Deployment:
        """Deploy the customers' stack."""
        deployment = self.aws.deploy(self.name, template, VerifyTrigger=str(verify_trigger))
        self._learn(deployment)
        return deployment

    def delete(self) -> Deployment:
        """Delete it."""
        return self.aws.delete(self.name)

    def id(self, name: str) -> str:
        """Find the id of a key, a plan (alice, Free) or an association (alice in Free)."""
        ids = {name: id_ for id_, name in self.names.items()}
        return ":".join(ids[part] for part in name.split(" in "))

    def detach_by_hand(self, association: str) -> None:
        """Attach or detach keys as an operator does in the console."""
        key, plan = self.id(association).split(":")
        self.aws.client("apigateway").delete_usage_plan_key(usagePlanId=plan, keyId=key)

    def send(self, kind: str, logical_id: str, association: str, **more: Any) -> dict[str, Any]:
        """Send a request for a resource of the stack to the function; return its answer."""
        key, plan = self.id(association).split(":")
        event = {
            "RequestType": kind,
            "StackId": self.aws.stack_id(self.name),
            "LogicalResourceId": logical_id,
            "ResourceProperties": {"KeyId": key, "UsagePlanId": plan},
        }
        return self.aws.ask(self.function, event | more)

    def requests(self, count: int) -> list[Request]:
        """List the requests since the last time; MiniStack writes a function's log after its answer."""
        deadline = time.monotonic() + 5
        while True:
            found = self.aws.requests(self.function)[self._requests :]
            if len(found) >= count or time.monotonic() > deadline:
                self._requests += len(found)
                return found
            time.sleep(0.05)

    def detached(self) -> list[str]:
        """List the associations that the function has detached since the last time."""
        calls = self.aws.proxy.calls[self._calls :]
        self._calls += len(calls)
        return [
            self.called(f"{call.key}:{call.plan}")
            for call in calls
            if (call.operation, call.status) == ("DeleteUsagePlanKey", 202)
        ]

    def plans(self) -> dict[str, list[str]]:
        """List the keys of each plan."""
        api = self.aws.client("apigateway")
        return {
            self.names[plan["id"]]: sorted(self.names[key["id"]] for key in _keys(api, plan["id"]))
            for plan in api.get_usage_plans(limit=500)["items"]
            if plan["id"] in self.names
        }

    def declared(self) -> list[str]:
        """List the associations that CloudFormation knows."""
        listed = self.aws.client("cloudformation").describe_stack_resources(StackName=self.name)[
            "StackResources"
        ]
        ids = [
            found["PhysicalResourceId"] for found in listed if found["ResourceType"] == "Custom::UsagePlanKey"
        ]
        return sorted(map(self.called, ids))

    def called(self, association: str | None) -> str:
        """Say `alice in Free` for a physical id."""
        if association is None:
            return ""
        return " in ".join(self.names.get(part, part) for part in association.split(":"))

    def line(self, request: Request) -> Line:
        """Show a request with the ids' names."""
        return (
            request.kind,
            request.logical_id,
            self.called(request.asked_id),
            request.status,
            self.called(request.answered_id),
            request.outcome,
        )

    def secret(self, logical_id: str) -> str:
        """Read a secret of the stack."""
        secret = self.aws.physical_ids(self.name)[logical_id]
        return str(self.aws.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"])

    def value(self, key: str) -> str:
        """Read a key's value from API Gateway."""
        return str(self.aws.client("apigateway").get_api_key(apiKey=self.id(key), includeValue=True)["value"])

    def leaked(self) -> list[str]:
        """Find log lines that hold a key's value or a URL for answers."""
        secrets = self._secrets | {"/cfn-response/", "X-Amz-Signature"}
        return [line for line in self.aws.log(self.function) if any(secret in line for secret in secrets)]

    def left_in_ledger(self) -> list[Any]:
        """List the ledger's pages about these keys and plans, without pages that expire."""
        table = self.aws.outputs(PROVIDER)["LedgerTable"]
        pages = self.aws.client("dynamodb").get_paginator("scan").paginate(TableName=table).search("Items[]")
        return [
            page for page in pages if "expires" not in page and any(id_ in str(page) for id_ in self.names)
        ]

    def _learn(self, deployment: Deployment) -> None:
        for event in deployment.events:
            name, id_ = event["LogicalResourceId"], event.get("PhysicalResourceId")
            if id_ and event["ResourceType"] == "AWS::ApiGateway::UsagePlan":
                self.names[id_] = name.removesuffix("Plan")
            elif id_ and event["ResourceType"] == "AWS::ApiGateway::ApiKey":
                self.names[id_] = name.removesuffix("Key").lower()
        keys = self.aws.client("apigateway").get_api_keys(includeValues=True, limit=500)["items"]
        self._secrets |= {key["value"] for key in keys}


def _keys(api: Any, plan: str) -> list[Any]:
    found: list[Any] = api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"]
    return found


# --- Telling ---


class Story:
    """Tells the steps, and checks them."""

    def __init__(self) -> None:
        """Begin before the first step."""
        self._steps = 0
        self.title = "Start"

    def step(
        self,
        stack: Customers,
        title: str,
        act: Callable[[], Deployment],
        status: str,
        asked: list[Line],
        plans: dict[str, str],
        *,
        detached: tuple[str, ...] = (),
        why: tuple[str, ...] = (),
        note: str = "",
    ) -> None:
        """Do a step, show its result, and check it.

        Args:
            stack: The customers' stack.
            title: What this is about.
            act: Does it.
            status: How the stack's operation ends.
            asked: The requests and their answers, in whatever order.
            plans: Which keys are in which plan afterwards.
            detached: What the function detaches. Any other key has been attached all along.
            why: What the Reason of a failure says, among other things.
            note: What the reader should know.
        """
        self._steps += 1
        self.title = title
        print(f"\n{_coloured(fill(f'{self._steps}. {title}', WIDTH, subsequent_indent='   '), BOLD)}")
        if note:
            print(_filled(note, ""))
        with progress("   Deploying"):
            deployment = act()
        requests = stack.requests(len(asked))
        for request in requests:
            print(_shown(stack.line(request)))
            if request.status == "FAILED":
                print(_filled(deployment.reason(request.logical_id) or request.reason, "   Reason: "))
        now = stack.plans()
        print(f"   Stack: {deployment.status}")
        for plan, keys in now.items():
            print(f"   {plan}: {', '.join(keys) or 'nobody'}")

        _check_status(deployment, status)
        _check("the requests and answers", Counter(map(stack.line, requests)), Counter(asked))
        _check("the keys in the plans", now, {plan: keys.split() for plan, keys in plans.items()})
        _check("what the function has detached", Counter(stack.detached()), Counter(detached))
        gone = deployment.status == "DELETE_COMPLETE"
        attached = sorted(f"{key} in {plan}" for plan, keys in now.items() for key in keys)
        _check(
            "what CloudFormation believes to be attached", attached if gone else stack.declared(), attached
        )
        _check("lines of the log with a secret", stack.leaked(), [])
        reasons = [deployment.reason(request.logical_id) for request in requests]
        for text in why:
            if not any(text in reason for reason in reasons):
                raise WrongError(f"no Reason says {text!r}")


def _coloured(text: str, colour: int) -> str:
    """Colour a text if the terminal has colours, by https://no-color.org and https://force-color.org."""
    wanted = (sys.stdout.isatty() and os.environ.get("TERM") != "dumb") or bool(os.environ.get("FORCE_COLOR"))
    return f"\033[{colour}m{text}\033[0m" if wanted and not os.environ.get("NO_COLOR") else text


def _filled(text: str, label: str) -> str:
    indent = "      " if label else "   "
    return fill(text, WIDTH, initial_indent=f"   {label}", subsequent_indent=indent, break_on_hyphens=False)


def _shown(line: Line) -> str:
    kind, logical_id, asked, status, answered, outcome = line
    status = _coloured(f"{status:8}", RED if status == "FAILED" else GREEN)
    return f"   {kind:7}{logical_id:10}{asked:15} -> {status}{answered:15} {outcome}".rstrip()


def _check(what: str, found: object, expected: object) -> None:
    if found == expected:
        return
    if isinstance(found, Counter) and isinstance(expected, Counter):
        raise WrongError(
            f"{what}: missing {list(expected - found)}, and not expected {list(found - expected)}"
        )
    raise WrongError(f"{what}: {found}, and expected was {expected}")


def _check_status(deployment: Deployment, expected: str) -> None:
    if deployment.status != expected:
        raise WrongError(f"the stack is {deployment.status}, and not {expected}. {deployment.failures}")


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Name the work, with a dot for each second, and say how long it took."""
    print(f"{what} ", end="", flush=True)
    began, done = time.monotonic(), threading.Event()

    def tick() -> None:
        with suppress(BrokenPipeError):  # The main thread meets it too.
            while not done.wait(1):
                print(".", end="", flush=True)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        yield
    finally:
        done.set()
        ticking.join()
        print(f" {time.monotonic() - began:.1f} s", flush=True)


# --- The story ---


def tell(story: Story, stack: Customers) -> None:
    """Tell all steps, in order."""
    step = partial(story.step, stack)
    template = example()

    def attached(logical_id: str, association: str) -> Line:
        return ("Create", logical_id, "", "SUCCESS", association, "ATTACHED")

    def verified(logical_id: str, association: str, outcome: str = "VERIFIED") -> Line:
        return ("Update", logical_id, association, "SUCCESS", association, outcome)

    def deleted(logical_id: str, association: str) -> Line:
        return ("Delete", logical_id, association, "SUCCESS", association, "")

    everybody = {
        "Alice": "alice in Free",
        "Bob": "bob in Free",
        "Carol": "carol in Pro",
        "Listed0": "dora in Free",
        "Listed1": "erin in Free",
    }
    step(
        "Create: five customers, each with a key in a plan",
        lambda: stack.deploy(template, 1),
        "CREATE_COMPLETE",
        [attached(*who) for who in everybody.items()],
        {"Free": "alice bob dora erin", "Pro": "carol"},
    )
    step(
        "An Update that verifies: VerifyTrigger is changed, nothing else",
        lambda: stack.deploy(template, 2),
        "UPDATE_COMPLETE",
        [verified(*who) for who in everybody.items()],
        {"Free": "alice bob dora erin", "Pro": "carol"},
    )

    def repair() -> Deployment:
        stack.detach_by_hand("bob in Free")
        return stack.deploy(template, 3)

    step(
        "Repair: somebody has removed bob from Free by hand",
        repair,
        "UPDATE_COMPLETE",
        [verified(*who, "REPAIRED" if who[0] == "Bob" else "VERIFIED") for who in everybody.items()],
        {"Free": "alice bob dora erin", "Pro": "carol"},
    )
    template = kept_as_secret(template)
    step(
        "Value: Alice's IncludeValue is true, and a secret takes the key's value with Fn::GetAtt",
        lambda: stack.deploy(template, 3),
        "UPDATE_COMPLETE",
        [verified("Alice", "alice in Free")],
        {"Free": "alice bob dora erin", "Pro": "carol"},
    )
    _check("the secret", stack.secret("AliceSecret") == stack.value("alice"), True)  # neither is printed
    template = moved(template)
    step(
        "Move: Alice goes from Free to Pro, which share a stage",
        lambda: stack.deploy(template, 3),
        "UPDATE_COMPLETE",
        [
            ("Update", "Alice", "alice in Free", "SUCCESS", "alice in Pro", "MOVED"),
            deleted("Alice", "alice in Free"),
        ],
        {"Free": "bob dora erin", "Pro": "alice carol"},
        detached=("alice in Free",),
    )
    template = renamed(template)
    step(
        "Rename: the logical id Carol becomes CarolInc, and carol stays in Pro all along",
        lambda: stack.deploy(template, 3),
        "UPDATE_COMPLETE",
        [
            ("Create", "CarolInc", "", "SUCCESS", "carol in Pro", "JOINED"),
            deleted("Carol", "carol in Pro"),
        ],
        {"Free": "bob dora erin", "Pro": "alice carol"},
    )
    template = shifted(template)
    step(
        "A shifted list: frank is inserted in front of dora and erin, who stay in Free all along",
        lambda: stack.deploy(template, 3),
        "UPDATE_COMPLETE",
        [
            ("Update", "Listed0", "dora in Free", "SUCCESS", "frank in Free", "ATTACHED"),
            ("Update", "Listed1", "erin in Free", "SUCCESS", "dora in Free", "JOINED"),
            ("Create", "Listed2", "", "SUCCESS", "erin in Free", "JOINED"),
            deleted("Listed0", "dora in Free"),
            deleted("Listed1", "erin in Free"),
        ],
        {"Free": "bob dora erin frank", "Pro": "alice carol"},
    )

    def fail() -> Deployment:
        deployment = stack.deploy(failing(template), 3)
        stack.send("Delete", "BobInPro", "bob in Pro", PhysicalResourceId=stack.id("bob in Pro"))
        return deployment

    step(
        "A deploy that fails and rolls back: bob is also declared in Pro, for the same stage",
        fail,
        "UPDATE_ROLLBACK_COMPLETE",
        [
            attached("Grace", "grace in Free"),
            verified("Bob", "bob in Free"),
            ("Create", "BobInPro", "", "FAILED", "bob in Pro", ""),
            verified("Bob", "bob in Free"),
            deleted("Grace", "grace in Free"),
            deleted("BobInPro", "bob in Pro"),
        ],
        {"Free": "bob dora erin frank", "Pro": "alice carol"},
        detached=("grace in Free",),
        why=(f"{CUSTOMERS}-free", ":prod", f"Bob of stack {CUSTOMERS}", "log stream"),
        note="MiniStack sends no Delete after a failed Create. CloudFormation does,"
        " so the demo sends BobInPro's.",
    )
    step(
        "Delete",
        stack.delete,
        "DELETE_COMPLETE",
        [
            deleted("Alice", "alice in Pro"),
            deleted("Bob", "bob in Free"),
            deleted("CarolInc", "carol in Pro"),
            deleted("Listed0", "frank in Free"),
            deleted("Listed1", "dora in Free"),
            deleted("Listed2", "erin in Free"),
        ],
        {},
        detached=(
            "alice in Pro",
            "bob in Free",
            "carol in Pro",
            "frank in Free",
            "dora in Free",
            "erin in Free",
        ),
    )
    _check("what the ledger still holds", stack.left_in_ledger(), [])


def main() -> int:
    """Return 0 if all is as promised."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    story = Story()
    try:
        with ExitStack() as exits:
            with progress("Starting MiniStack"):
                aws = exits.enter_context(running())
            with progress("Deploying template.yaml"):
                template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
                deployed = aws.deploy(PROVIDER, template, **aws.emulated)
            _check_status(deployed, "CREATE_COMPLETE")
            tell(story, Customers(aws))
    except KeyboardInterrupt:
        _complain("Interrupted. Everything is stopped.")
        return 130
    except BrokenPipeError:  # make demo | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WrongError, StartError, TimeoutError) as error:
        _complain(f"WRONG at {story.title!r}: {error}")
        return 1
    except BaseException:
        _complain(f"FAILED at {story.title!r}:")
        raise
    took = time.monotonic() - began
    print(_coloured(f"\nAll as it should be, in {took:.0f} s. Everything is stopped.", GREEN))
    return 0


def _complain(text: str) -> None:
    sys.stdout.flush()
    print(f"\n{text}", file=sys.stderr)
