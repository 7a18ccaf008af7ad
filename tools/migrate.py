"""Migrates from AWS::ApiGateway::UsagePlanKey to Custom::UsagePlanKey: rewrites a template for three deploys.

    pip install PyYAML
    python migrate.py retain template.yaml --in-place                              # then deploy
    aws cloudformation get-template --stack-name STACK > deployed.json
    python migrate.py replace template.yaml --deployed deployed.json --in-place    # then deploy
    aws cloudformation get-template --stack-name STACK > deployed.json
    python migrate.py take template.yaml --deployed deployed.json --in-place       # then deploy

The keys stay attached all the time. Without --in-place the command writes the new template to the standard
output. It writes notes to the standard error. The template is JSON or YAML with CloudFormation's tags. The
command changes only the lines that it has to.

retain   gives each native resource DeletionPolicy: Retain. It also adds an entry to Metadata, because
         CloudFormation may see no change in a policy.
replace  turns each into a Custom::UsagePlanKey with OnExisting: Take, under a new logical id. References
         follow: Ref, Fn::GetAtt, Fn::Sub, DependsOn. The function's ARN comes from --import, --parameter,
         --ssm or --arn.
take     sets VerifyTrigger, so that CloudFormation sends an Update and the resources own their keys. From
         then on Delete detaches them.

replace and take refuse if the deployed template shows that the step before is not in force.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

NATIVE: Final = "AWS::ApiGateway::UsagePlanKey"
CUSTOM: Final = "Custom::UsagePlanKey"
NESTED: Final = ("AWS::CloudFormation::Stack", "AWS::Serverless::Application")
MARK: Final = "UsagePlanKeyMigration"
"""The entry in a resource's Metadata that tells the policies of `retain` from the owner's."""
RETAINING: Final = ("Retain", "RetainExceptOnCreate")
IDS: Final = ("KeyId", "UsagePlanId")
# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MOST_RESOURCES: Final = 500
MOST_DYNAMIC_REFERENCES: Final = 60
LARGEST_BODY: Final = 51_200
LARGEST_IN_S3: Final = 1_000_000  # the page says 1 MB
LONGEST_LOGICAL_ID: Final = 255
IN_SUB: Final = re.compile(r"\$\{(\s*)([A-Za-z0-9]+)((?:\.[^}]*)?\s*)\}")
GET_TEMPLATE: Final = (
    "aws cloudformation wait stack-update-complete --stack-name STACK && "
    "aws cloudformation get-template --stack-name STACK > deployed.json"
)


class MigrationError(Exception):
    """Raised when the command cannot or must not go on; its text is one sentence for the user."""


# --- Reading ---


def entries(node: Node | None) -> list[tuple[str, Node, Node]]:
    """Read a mapping's entries: the key, its node, the value's node. Anything but a mapping has none."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return [(key.value, key, value) for key, value in pairs if isinstance(key, ScalarNode)]


def entry(node: Node | None, name: str) -> Node | None:
    """Find one entry's value."""
    return next((value for key, _, value in entries(node) if key == name), None)


def text_of(node: Node | None) -> str | None:
    """Read a literal; None for everything else, an intrinsic function too."""
    literal = isinstance(node, ScalarNode) and not node.tag.startswith("!")
    return str(node.value) if literal and node is not None else None


def functions_of(node: Node) -> Iterator[tuple[str, Node]]:
    """Read the intrinsic functions here: long name and argument. `!Base64 {Fn::Sub: …}` is two."""
    if node.tag.startswith("!"):
        name = node.tag.removeprefix("!")
        yield (name if name in ("Ref", "Condition") else f"Fn::{name}"), node
    pairs = entries(node)
    if len(pairs) == 1 and (pairs[0][0] == "Ref" or pairs[0][0].startswith("Fn::")):
        yield pairs[0][0], pairs[0][2]


def every(node: Node) -> Iterator[Node]:
    """Walk through a node and everything in it."""
    yield node
    for child in node.value if isinstance(node, SequenceNode) else [value for _, _, value in entries(node)]:
        yield from every(child)


def plain(node: Node | None) -> Any:
    """Make a value that equals another one if CloudFormation takes them for the same."""
    if node is None:
        return None
    value: Any = node.value
    if isinstance(node, SequenceNode):
        value = [plain(item) for item in node.value]
    elif isinstance(node, MappingNode):
        value = {key: _argument(key, plain(item)) for key, _, item in entries(node)}
    short = next((name for name, argument in functions_of(node) if argument is node), None)
    return {short: _argument(short, value)} if short else value


def _argument(function: str, value: Any) -> Any:
    return value.split(".", 1) if function == "Fn::GetAtt" and isinstance(value, str) else value


def references(root: Node) -> Iterator[tuple[str, ScalarNode, frozenset[str]]]:
    """Find all that can name a resource: the kind, the node with the name, and Fn::Sub's local variables."""
    for function in (each for node in every(root) for each in functions_of(node)):
        match function:
            case ("Ref" | "Fn::GetAtt" | "Fn::Sub" as kind, ScalarNode() as argument):
                yield kind, argument, frozenset()
            case ("Fn::GetAtt", SequenceNode(value=[ScalarNode() as argument, *_])):
                yield "Ref", argument, frozenset()
            case ("Fn::Sub", SequenceNode(value=[ScalarNode() as argument, *rest])):
                yield "Fn::Sub", argument, frozenset(key for each in rest for key, _, _ in entries(each))
    for _, _, resource in entries(entry(root, "Resources")):
        depends = entry(resource, "DependsOn")
        for named in depends.value if isinstance(depends, SequenceNode) else [depends]:
            if isinstance(named, ScalarNode):
                yield "Ref", named, frozenset()


# --- Writing ---


@dataclass
class Template:
    """A template's text, its nodes, and the edits to make in the text."""

    text: str
    root: Node
    edits: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, what: str) -> Template:
        """Parse YAML or JSON.

        Raises:
            MigrationError: It is neither, or no template.
        """
        # YAML's parser refuses tabs. JSON may be indented by tabs, and has none in its strings.
        parsed = text.replace("\t", " ") if text.lstrip().startswith("{") else text
        try:
            root = yaml.compose(parsed, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise MigrationError(
                f"{what} is neither YAML nor JSON: {' '.join(str(error).split())}"
            ) from error
        if root is None or not isinstance(entry(root, "Resources"), MappingNode):
            raise MigrationError(f"{what} is no template: it has no Resources")
        return cls(text, root)

    def resources(self, *types: str) -> dict[str, tuple[Node, MappingNode]]:
        """Find the resources of these types, or all: key and declaration by logical id."""
        found = {name: (key, value) for name, key, value in entries(entry(self.root, "Resources"))}
        return {
            name: (key, value)
            for name, (key, value) in found.items()
            if isinstance(value, MappingNode) and (not types or text_of(entry(value, "Type")) in types)
        }

    def replace(self, node: Node, old: str, new: str) -> None:
        """Change the last `old` in the node's own text, and nothing of its tag or its quotes."""
        start, end = node.start_mark.index, node.end_mark.index
        before, _, after = self.text[start:end].rpartition(old)
        self.edits[start, end] = f"{before}{new}{after}"

    def replace_in_sub(self, node: Node, names: Mapping[str, str], local: frozenset[str]) -> None:
        """Change `${Name}` and `${Name.Attribute}`; a literal `${!Name}` and a local variable stay."""

        def renamed(match: re.Match[str]) -> str:
            before, name, after = match.groups()
            stays = name in local or (name + after).strip() in local
            return match[0] if stays else f"${{{before}{names.get(name, name)}{after}}}"

        start, end = node.start_mark.index, node.end_mark.index
        self.edits[start, end] = IN_SUB.sub(renamed, self.text[start:end])

    def put(
        self, mapping: MappingNode, name: str, value: Any, where: str, *, after: str | None = None
    ) -> None:
        """Set an entry: change its literal, or add a line, after another entry or as the first."""
        old = entry(mapping, name)
        if old is None:
            self._insert(mapping, name, value, after)
        elif not isinstance(old, ScalarNode) or text_of(old) is None:
            raise MigrationError(f"{name} of {where} is no literal, so it cannot be set to {value}")
        else:
            self.edits[old.start_mark.index, old.end_mark.index] = (
                json.dumps(value) if old.style == '"' else str(value)
            )

    def _insert(self, mapping: MappingNode, name: str, value: Any, after: str | None) -> None:
        first = mapping.value[0][0]
        written = self._written(mapping, name, value)
        if mapping.flow_style:
            between = f",{self._indent(first) or ' '}"
            place = (
                behind.end_mark.index if (behind := entry(mapping, after or "")) else first.start_mark.index
            )
            self._add(place, f"{between}{written}" if behind else f"{written}{between}")
        elif after and (behind := entry(mapping, after)):
            line = re.compile(r"\r?$", re.MULTILINE).search(self.text, behind.end_mark.index)
            self._add(line.start() if line else len(self.text), f"{self._indent(first)}{written}")
        else:
            self._add(self._above(first), f"{self._indent(first)}{written}")

    def _above(self, node: Node) -> int:
        """Find the end of the last line above that says something: comments stay with the line below them."""
        place = self.text.rfind("\n", 0, node.start_mark.index)
        while (
            line := self.text[self.text.rfind("\n", 0, place) + 1 : place].strip()
        ) == "" or line.startswith("#"):
            place = self.text.rfind("\n", 0, place)
        return place - (self.text[place - 1] == "\r")

    def _add(self, place: int, text: str) -> None:
        before = self.edits.get((place, place), "")
        self.edits[place, place] = (
            before if text in before else before + text
        )  # an alias comes here a second time

    def _indent(self, node: Node) -> str:
        """Find the line break and the white space before a node; nothing if it does not begin its line."""
        start = self.text.rfind("\n", 0, node.start_mark.index)
        before = self.text[start : node.start_mark.index]
        return (
            ("\r" if self.text[start - 1] == "\r" else "") + before
            if start >= 0 and not before.strip()
            else ""
        )

    def _written(self, mapping: MappingNode, name: str, value: Any) -> str:
        if mapping.flow_style and mapping.value[0][0].style == '"':
            return f"{json.dumps(name)}: {json.dumps(value)}"
        match value:
            case {"Fn::ImportValue": argument}:
                return f"{name}: !ImportValue {argument}"
            case {"Ref": argument}:
                return f"{name}: !Ref {argument}"
            case {**inner} if inner:
                return f"{name}: {{{', '.join(f'{key}: {each}' for key, each in inner.items())}}}"
        return f"{name}: {json.dumps(value) if ':' in str(value) else value}"

    def remove(self, mapping: MappingNode, names: set[str]) -> None:
        """Take entries out, with their lines or with their commas."""
        pairs = mapping.value
        gone = [position for position, (key, _) in enumerate(pairs) if key.value in names]
        for position in gone:
            key, value = pairs[position]
            start, end = key.start_mark.index, _end(value)
            if not mapping.flow_style:
                start = self.text.rfind("\n", 0, start) + 1
                end = self.text.find("\n", end) + 1 or len(self.text)
            elif position + 1 < len(pairs):
                end = pairs[position + 1][0].start_mark.index
            elif kept := [each for each in range(position) if each not in gone]:
                # The last ones go with the comma that stands before them, so their own edits join this one.
                start = pairs[kept[-1]][1].end_mark.index
                for each in range(kept[-1] + 1, position):
                    self.edits.pop(
                        (pairs[each][0].start_mark.index, pairs[each + 1][0].start_mark.index), None
                    )
            self.edits[start, end] = ""

    def edited(self) -> str:
        """Make the edits."""
        pieces, place = [], 0
        for (start, end), new in sorted(self.edits.items()):
            pieces += [self.text[place:start], new]
            place = end
        return "".join([*pieces, self.text[place:]])


def _end(node: Node) -> int:
    """Find where the last thing in a node ends: a block's own end is where the next one begins."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)


# --- The three steps ---


def retain(template: Template) -> list[str]:
    """Give each native resource the policies; return notes for the user."""
    for name, (_, resource) in _natives(template).items():
        if text_of(entry(resource, "DeletionPolicy")) in RETAINING:
            continue
        template.put(resource, "DeletionPolicy", "Retain", name, after="Type")
        template.put(resource, "UpdateReplacePolicy", "Retain", name, after="Type")
        metadata = entry(resource, "Metadata")
        if isinstance(metadata, MappingNode) and metadata.value:
            template.put(metadata, MARK, "retain", f"the Metadata of {name}")
        elif metadata is None:
            template.put(resource, "Metadata", {MARK: "retain"}, name, after="Type")
        else:
            raise MigrationError(
                f"Metadata of {name} is empty or no mapping, so no entry can be added: take it out first"
            )
    if not template.edits:
        return [
            f"Every {NATIVE} has DeletionPolicy: Retain. If this template is deployed, go on with replace."
        ]
    return [
        "Deploy this template, and nothing else with it.",
        f"Then run: {GET_TEMPLATE}",
        "Then: migrate.py replace --deployed deployed.json",
        "If the deploy fails: nothing has changed for the keys. Mend the cause, and deploy again.",
    ]


def replace(template: Template, deployed: Template, token: Any, suffix: str) -> list[str]:
    """Turn each native resource into a custom one with a new logical id; return notes for the user."""
    natives = _natives(template)
    _check_retained(natives, deployed)
    names = _new_names(template, natives, suffix)
    wanted = {"ServiceToken": token, "ServiceTimeout": service_timeout(len(natives)), "OnExisting": "Take"}
    for name, (key, resource) in natives.items():
        template.replace(key, name, names[name])
        _make_custom(template, name, resource, wanted)
    _follow(template, names)
    _check_references(Template.read(template.edited(), "the new template"), names)

    notes = [
        f"Warning: {names[name]} keeps its own DeletionPolicy: its key stays attached when the resource goes."
        for name, (_, resource) in natives.items()
        if entry(entry(resource, "Metadata"), MARK) is None
    ]
    if unseen := sorted(deployed.resources(NATIVE).keys() - natives.keys()):
        notes.append(
            f"Warning: {', '.join(unseen)} is deployed and not here:"
            " a transform makes it, or this deploy deletes it."
        )
    return [
        *notes,
        f"{len(names)} resources. Deploy this template: each ends with the outcome ADOPTED.",
        f"Then run: {GET_TEMPLATE}",
        "Then: migrate.py take --deployed deployed.json",
        "If the deploy fails: CloudFormation rolls back to the native resources, and all keys stay attached.",
    ]


def _make_custom(template: Template, name: str, resource: MappingNode, wanted: Mapping[str, Any]) -> None:
    """Change the type, add the properties, and take out the entries that `retain` added."""
    type_, properties, metadata = (entry(resource, each) for each in ("Type", "Properties", "Metadata"))
    if not isinstance(properties, MappingNode) or any(entry(properties, id_) is None for id_ in IDS):
        raise MigrationError(
            f"{name} has no KeyId or no UsagePlanId that can be seen, so it cannot be replaced"
        )
    if type_ is not None:
        template.replace(type_, NATIVE, CUSTOM)
    for each, value in wanted.items():
        template.put(properties, each, value, name)
    if not isinstance(metadata, MappingNode) or entry(metadata, MARK) is None:
        return
    if len(metadata.value) > 1:
        template.remove(metadata, {MARK})
        template.remove(resource, {"DeletionPolicy", "UpdateReplacePolicy"})
    else:
        template.remove(resource, {"DeletionPolicy", "UpdateReplacePolicy", "Metadata"})


def _follow(template: Template, names: Mapping[str, str]) -> None:
    """Change every reference to an old logical id."""
    for kind, node, local in references(template.root):
        if kind == "Fn::Sub":
            template.replace_in_sub(node, names, local)
        elif (old := node.value.split(".")[0] if kind == "Fn::GetAtt" else node.value) in names:
            template.replace(node, node.value, names[old] + node.value.removeprefix(old))


def service_timeout(keys: int) -> int:
    """Allow a minute, and a second for every two keys; between two minutes and CloudFormation's hour."""
    return min(3600, max(120, 60 + keys // 2))


def take(template: Template, deployed: Template) -> list[str]:
    """Set VerifyTrigger of each custom resource that says Take; return notes for the user."""
    notes, count, known = [], 0, deployed.resources(CUSTOM)
    for name, (_, resource) in template.resources(CUSTOM).items():
        properties = entry(resource, "Properties")
        if not isinstance(properties, MappingNode) or text_of(entry(properties, "OnExisting")) != "Take":
            continue
        trigger, before = entry(properties, "VerifyTrigger"), _deployed_trigger(name, properties, known)
        if trigger is not None and text_of(trigger) is None:
            notes.append(
                f"Warning: VerifyTrigger of {name} is a function, so it is left alone:"
                " change what it refers to."
            )
            continue
        if plain(trigger) == before:
            new = "taken" if before != "taken" else "taken again"
            template.put(properties, "VerifyTrigger", new, name, after="OnExisting")
        count += 1
    if not count and not notes:
        raise MigrationError(
            f"No {CUSTOM} in the template says OnExisting: Take, so there is nothing to take over"
        )
    if left := sorted(deployed.resources(NATIVE)):
        notes.append(f"Warning: {', '.join(left)} is still deployed as {NATIVE}.")
    return [
        *notes,
        f"{count} resources. Deploy this template: each ends with the outcome TAKEN.",
        "Leave OnExisting: Take there: without it Delete does not detach the key.",
        "If the deploy fails: all keys stay attached. Mend the cause, and deploy again.",
    ]


def _deployed_trigger(
    name: str, properties: MappingNode, known: Mapping[str, tuple[Node, MappingNode]]
) -> Any:
    """Read the VerifyTrigger that is in force; refuse if the template of `replace` is not."""
    there = entry(known[name][1], "Properties") if name in known else None
    if text_of(entry(there, "OnExisting")) != "Take" or not _same_ids(properties, there):
        raise MigrationError(
            f"{name} is not deployed with OnExisting: Take for this key and plan, so nothing can be"
            f" taken over: deploy what replace made, then run {GET_TEMPLATE}"
        )
    return plain(entry(there, "VerifyTrigger"))


def _natives(template: Template) -> dict[str, tuple[Node, MappingNode]]:
    natives = template.resources(NATIVE)
    if not natives:
        raise MigrationError(f"The template declares no {NATIVE}, so there is nothing to migrate")
    return natives


def _check_retained(natives: Mapping[str, tuple[Node, MappingNode]], deployed: Template) -> None:
    known = deployed.resources(NATIVE)
    for name, (_, resource) in natives.items():
        if name not in known:
            wrong = f"{name} is not deployed as {NATIVE}"
        elif text_of(entry(known[name][1], "DeletionPolicy")) not in RETAINING:
            wrong = f"{name} is deployed without DeletionPolicy: Retain, so replacing it would detach its key"
        elif not _same_ids(entry(resource, "Properties"), entry(known[name][1], "Properties")):
            wrong = f"{name} is deployed with another KeyId or UsagePlanId"
        else:
            continue
        raise MigrationError(f"{wrong}: deploy what retain makes of this template, then run {GET_TEMPLATE}")


def _same_ids(one: Node | None, other: Node | None) -> bool:
    return all(plain(entry(one, id_)) == plain(entry(other, id_)) for id_ in IDS)


def _new_names(template: Template, natives: Mapping[str, object], suffix: str) -> dict[str, str]:
    """Make logical ids that nothing in the template has: alphanumeric, and 255 characters at most."""
    if not re.fullmatch("[A-Za-z0-9]{1,100}", suffix):
        raise MigrationError(
            f"The suffix {suffix} is no part of a logical id: letters and digits, 100 at most"
        )
    sections = ("Resources", "Parameters", "Mappings", "Conditions")
    taken = {name for section in sections for name, _, _ in entries(entry(template.root, section))}
    names: dict[str, str] = {}
    for name in natives:
        number = 1
        while (new := _shortened(name, suffix + ("" if number == 1 else str(number)))) in taken:
            number += 1
        taken.add(new)
        names[name] = new
    return names


def _shortened(name: str, ending: str) -> str:
    return name[: LONGEST_LOGICAL_ID - len(ending)] + ending


def _check_references(new: Template, names: Mapping[str, str]) -> None:
    """Check that nothing in the new text names a resource that is gone, say behind an escape."""
    for kind, node, local in references(new.root):
        mentioned = {node.value.split(".")[0]}
        if kind == "Fn::Sub":
            mentioned = {
                name
                for _, name, after in IN_SUB.findall(node.value)
                if not {name, (name + after).strip()} & local
            }
        if lost := mentioned & names.keys():
            line = node.start_mark.line + 1
            raise MigrationError(
                f"The reference to {lost.pop()} in line {line} cannot be followed: write it without escapes"
            )


# --- Warnings ---


def warnings(template: Template) -> Iterator[str]:
    """Name the text that the command cannot follow, and CloudFormation's limits that the result exceeds."""
    for node in every(template.root):
        if node.tag == "!Transform":
            line = node.start_mark.line + 1
            yield f"Fn::Transform in line {line} is not followed: look into what it includes."
        for key, place, _ in entries(node):
            if key == "Fn::Transform" or key.startswith("Fn::ForEach"):
                line = place.start_mark.line + 1
                yield f"{key} in line {line} is not followed: look into what it makes and names."
    transforms = plain(entry(template.root, "Transform")) or []
    for name in transforms if isinstance(transforms, list) else [transforms]:
        shown = name if isinstance(name, str) else "AWS::Include"
        yield f"The transform {shown} may make resources that cannot be seen here."
    for name in template.resources(*NESTED):
        yield f"{name} is a nested stack: migrate its own template too, if it has {NATIVE}."
    yield from _over_limits(len(template.resources()), len(template.text.encode()))


def _over_limits(count: int, size: int) -> Iterator[str]:
    if count > MOST_RESOURCES:
        yield f"The template has {count} resources, and CloudFormation takes {MOST_RESOURCES}."
    if size > LARGEST_IN_S3:
        yield f"The template has {size:,} bytes, and CloudFormation takes 1 MB: split the stack."
    elif size > LARGEST_BODY:
        yield (
            f"The template has {size:,} bytes:"
            f" above {LARGEST_BODY:,} it has to come from S3 (deploy --s3-bucket)."
        )


def service_token(arguments: argparse.Namespace, template: Template) -> Any:
    """Read where the function's ARN comes from.

    Raises:
        MigrationError: CloudFormation would refuse that.
    """
    if arguments.arn:
        return arguments.arn
    if arguments.parameter:
        if entry(entry(template.root, "Parameters"), arguments.parameter) is None:
            raise MigrationError(
                f"The template declares no parameter {arguments.parameter}: declare it first"
            )
        return {"Ref": arguments.parameter}
    if arguments.ssm:
        count = template.text.count("{{resolve:") + len(template.resources(NATIVE))
        if count > MOST_DYNAMIC_REFERENCES:
            raise MigrationError(
                f"The template would have {count} dynamic references, and CloudFormation takes"
                f" {MOST_DYNAMIC_REFERENCES}: declare a parameter of the type"
                " AWS::SSM::Parameter::Value<String>, and use --parameter"
            )
        return f"{{{{resolve:ssm:{arguments.ssm}}}}}"
    return {"Fn::ImportValue": arguments.export}


def read_deployed(path: Path | None, step: str) -> Template:
    """Read the template out of the output of `get-template`.

    Raises:
        MigrationError: There is none.
    """
    if path is None:
        raise MigrationError(
            f"{step} needs to see that the step before is in force: run {GET_TEMPLATE}, and add --deployed"
        )
    text = _read(path)
    try:
        # The CLI puts out JSON, or YAML with --output yaml; only a JSON parser reads JSON's surrogate pairs.
        shown = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
        body = shown.get("TemplateBody")
    except (ValueError, yaml.YAMLError, AttributeError):
        body = None
    if body is None:
        raise MigrationError(f"{path} is not what get-template puts out: run {GET_TEMPLATE}")
    return Template.read(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False), str(path))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # the line ends stay as they are
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise MigrationError(f"{path} cannot be read: {error}") from error


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="migrate.py", description=__doc__, formatter_class=form)
    parser.add_argument(
        "step", choices=["retain", "replace", "take"], help="in this order, with a deploy after each"
    )
    parser.add_argument("template", type=Path, help="YAML or JSON")
    parser.add_argument(
        "--in-place", action="store_true", help="change the file, instead of writing to the standard output"
    )
    parser.add_argument(
        "--deployed", type=Path, metavar="FILE", help="what aws cloudformation get-template put out"
    )
    parser.add_argument("--suffix", default="InPlan", help="what the new logical ids end with (InPlan)")
    token = parser.add_argument_group("the function's ARN").add_mutually_exclusive_group()
    export = "usage-plan-key-FunctionArn"
    token.add_argument(
        "--import", dest="export", metavar="EXPORT", default=export, help=f"an export holds it ({export})"
    )
    token.add_argument("--parameter", metavar="NAME", help="a parameter of the template holds it")
    token.add_argument("--ssm", metavar="NAME", help="an SSM parameter holds it, for 60 keys at most")
    token.add_argument("--arn", metavar="ARN", help="the function's ARN itself")
    return parser.parse_args(arguments)


def migrate(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Do a step; return the new text, and notes for the user."""
    template = Template.read(_read(arguments.template), str(arguments.template))
    if arguments.step == "retain":
        notes = retain(template)
    elif arguments.step == "replace":
        deployed = read_deployed(arguments.deployed, "replace")
        notes = replace(template, deployed, service_token(arguments, template), arguments.suffix)
    else:
        notes = take(template, read_deployed(arguments.deployed, "take"))
    new = Template.read(template.edited(), "the new template")
    return new.text, [*(f"Warning: {warning}" for warning in warnings(new)), *notes]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    given = _arguments(arguments)
    try:
        text, notes = migrate(given)
        if given.in_place:
            with given.template.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
        else:
            sys.stdout.write(text)
    except (MigrationError, OSError) as error:
        print(f"migrate.py: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
