"""Migrates from AWS::ApiGateway::UsagePlanKey to Custom::UsagePlanKey: rewrites a template for three deploys.

    pip install PyYAML
    python migrate.py retain template.yaml --in-place                              # then deploy
    aws cloudformation get-template --stack-name STACK --template-stage Original > deployed.json
    python migrate.py replace template.yaml --deployed deployed.json --in-place    # then deploy
    aws cloudformation get-template --stack-name STACK --template-stage Original > deployed.json
    python migrate.py take template.yaml --deployed deployed.json --in-place       # then deploy

The keys stay attached all the time. Without --in-place the command writes the new template to the standard
output. It writes notes to the standard error. The template is JSON or YAML with CloudFormation's tags. The
command changes only the lines that it has to. It reads what it wrote again: if anything else has changed, a
comment too, or if it does not understand a line, it names the line, writes nothing and ends with 1.

retain   gives each native resource DeletionPolicy: Retain. It also adds an entry to Metadata, because
         CloudFormation may see no change in a policy. It refuses now what replace would refuse later.
replace  turns each into a Custom::UsagePlanKey with OnExisting: Take, under a new logical id: the key's, and
         InPlan. --ids shows the new ids, --ids=FILE chooses them. References follow: Ref, Fn::GetAtt,
         Fn::Sub, DependsOn. The function's ARN comes from --import, --parameter, --ssm or --arn.
take     sets VerifyTrigger, so that CloudFormation sends an Update and the resources own their keys. From
         then on Delete detaches them.

replace and take refuse if the deployed template shows that the step before is not in force.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

NATIVE: Final = "AWS::ApiGateway::UsagePlanKey"
CUSTOM: Final = "Custom::UsagePlanKey"
NESTED: Final = ("AWS::CloudFormation::Stack", "AWS::Serverless::Application")
MARK: Final = "UsagePlanKeyMigration"
"""The entry in a resource's Metadata: `retain`, and the policies that the owner had before."""
POLICIES: Final = ("DeletionPolicy", "UpdateReplacePolicy")
RETAINING: Final = ("Retain", "RetainExceptOnCreate")
IDS: Final = ("KeyId", "UsagePlanId")
PROPERTIES: Final = {*IDS, "KeyType"}
ATTRIBUTES: Final = {"Type", "Properties", "DependsOn", "Condition", "Metadata", *POLICIES}
# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MOST_RESOURCES: Final = 500
MOST_DYNAMIC_REFERENCES: Final = 60
LARGEST_BODY: Final = 51_200
LARGEST_IN_S3: Final = 1_000_000  # the page says 1 MB
LONGEST_LOGICAL_ID: Final = 255
IN_SUB: Final = re.compile(r"\$\{(\s*)([A-Za-z0-9]+)((?:\.[^}]*)?\s*)\}")
TEXT: Final = "tag:yaml.org,2002:str"
SHOW: Final = "show"
UNREADABLE: Final = {
    "expected a single document": "CloudFormation takes one document, so split the file",
    r"'\t'": "YAML takes no tabs between words, so use spaces",
}
# The stage is named because the documents do not agree which one comes without it.
# https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_GetTemplate.html
GET_TEMPLATE: Final = (
    "aws cloudformation wait stack-update-complete --stack-name STACK && "
    "aws cloudformation get-template --stack-name STACK --template-stage Original > deployed.json"
)
WRITE_OUT: Final = "write it out first (docs/migrate.md, Made by a loop or by SAM)"


class MigrationError(Exception):
    """Raised when the command cannot or must not go on; its text is one sentence for the user."""


def refuse(node: Node, text: str) -> NoReturn:
    """Say what is wrong in which line, and what to do."""
    raise MigrationError(f"Line {line_of(node)}: {text}")


def line_of(node: Node) -> int:
    """Find the line in which a node begins."""
    return int(node.start_mark.line) + 1


# --- Reading ---


class _Loader(yaml.SafeLoader):
    """Makes a node of its own of an alias, where the alias stands: an edit has to know the place."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if alias is None or node is None:
            return node
        if node.end_mark is None:
            raise MigrationError(f"Line {alias.start_mark.line + 1}: *{alias.anchor} stands within itself")
        node = copy.copy(node)
        node.start_mark, node.end_mark = alias.start_mark, alias.end_mark
        return node


def is_alias(node: Node) -> bool:
    """Tell an alias by its text: nothing else begins with an asterisk."""
    mark = node.start_mark
    return mark.buffer is not None and mark.buffer[mark.pointer] == "*"


def entries(node: Node | None) -> list[tuple[str, Node, Node]]:
    """Read a mapping's entries: the key, its node, the value's node. Anything but a mapping has none."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return [(key.value, key, value) for key, value in pairs]


def entry(node: Node | None, *path: str) -> Node | None:
    """Find a value by its keys."""
    for name in path:
        node = next((value for key, _, value in entries(node) if key == name), None)
    return node


def merged(node: Node | None) -> dict[str, Node]:
    """Read a mapping's values by key, with those that YAML's `<<` brings."""
    found: dict[str, Node] = {}
    for key, _, value in entries(node):
        if key == "<<":
            for each in value.value if isinstance(value, SequenceNode) else [value]:
                found = merged(each) | found
    return found | {key: value for key, _, value in entries(node) if key != "<<"}


def text_of(node: Node | None) -> str | None:
    """Read a literal; None for everything else, an intrinsic function too."""
    literal = isinstance(node, ScalarNode) and not node.tag.startswith("!")
    return str(node.value) if literal and node is not None else None


def short_function(node: Node) -> str:
    """Read the long name of a function in its short form; nothing for other nodes."""
    _, tag, name = node.tag.rpartition("!")
    return (name if name in ("Ref", "Condition") else f"Fn::{name}") if tag else ""


def functions_of(node: Node) -> Iterator[tuple[str, Node]]:
    """Read the intrinsic functions here: long name and argument. `!Base64 {Fn::Sub: …}` is two."""
    if short := short_function(node):
        yield short, node
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
    return {short: _argument(short, value)} if (short := short_function(node)) else value


def _argument(function: str, value: Any) -> Any:
    return value.split(".", 1) if function == "Fn::GetAtt" and isinstance(value, str) else value


def references(root: Node) -> Iterator[tuple[str, Node, frozenset[str]]]:
    """Find all that can name a resource: the kind, the node with the name, and Fn::Sub's local variables."""
    for function in (each for node in every(root) for each in functions_of(node)):
        match function:
            case ("Fn::GetAtt", SequenceNode(value=[argument, *_])):
                yield "Ref", argument, frozenset()
            case ("Ref" | "Fn::GetAtt" as kind, argument):
                yield kind, argument, frozenset()
            case ("Fn::Sub", ScalarNode() as argument):
                yield "Fn::Sub", argument, frozenset()
            case ("Fn::Sub", SequenceNode(value=[ScalarNode() as argument, *rest])):
                yield "Fn::Sub", argument, frozenset(key for each in rest for key, _, _ in entries(each))
    for resource in every(root):
        depends = entry(resource, "DependsOn") if "::" in (text_of(entry(resource, "Type")) or "") else None
        is_list = isinstance(depends, SequenceNode) and not depends.tag.startswith("!")
        for named in depends.value if is_list and depends is not None else [depends]:
            if named is not None:
                yield "Ref", named, frozenset()


# --- Writing ---


@dataclass
class Template:
    """A template's text and its nodes, and each change twice: in the text, and in what it says.

    `finished` makes the changes in both and compares. So nothing else can have changed.
    """

    text: str
    root: Node
    is_json: bool = False
    edits: dict[tuple[int, int], str] = field(default_factory=dict)
    values: dict[int, str] = field(default_factory=dict)
    """What a scalar says now, by the node's identity."""
    added: dict[int, dict[str, Any]] = field(default_factory=dict)
    removed: dict[int, set[str]] = field(default_factory=dict)
    """The entries that a mapping has got and has lost, by the node's identity."""

    @classmethod
    def read(cls, text: str, what: str) -> Template:
        """Parse YAML or JSON.

        Raises:
            MigrationError: It is neither, or no template, or it says one thing twice.
        """
        is_json = _is_json(text)
        try:
            # YAML's parser refuses tabs. JSON may be indented by tabs, and has none in its strings.
            root = yaml.compose(text.replace("\t", " ") if is_json else text, Loader=_Loader)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
            help_ = next((text for sign, text in UNREADABLE.items() if sign in reason), "mend it first")
            raise MigrationError(f"{what} is no YAML or JSON that can be read: {reason}: {help_}") from error
        if root is not None:
            _check_keys(root)
        if root is None or not isinstance(entry(root, "Resources"), MappingNode):
            raise MigrationError(
                f"{what} is no template: it has no Resources. Name the template that your tool makes"
            )
        return cls(text, root, is_json)

    def again(self) -> Template:
        """Begin anew with the same text."""
        return Template(self.text, self.root, self.is_json)

    def resources(self, *types: str) -> dict[str, tuple[Node, MappingNode]]:
        """Find the resources of these types, or all: key and declaration by logical id."""
        return {
            name: (key, value)
            for name, key, value in entries(entry(self.root, "Resources"))
            if isinstance(value, MappingNode) and (not types or text_of(entry(value, "Type")) in types)
        }

    def rename(self, node: Node, new: str) -> None:
        """Change a scalar in its own text, and nothing of its tag or its quotes."""
        start, end = node.start_mark.index, node.end_mark.index
        before, found, after = self.text[start:end].rpartition(node.value)
        self._rewrite(node, new, f"{before}{new}{after}" if found else "")

    def rename_in_sub(self, node: Node, names: Mapping[str, str], local: frozenset[str]) -> None:
        """Change `${Name}` and `${Name.Attribute}`; a literal `${!Name}` and a local variable stay."""

        def renamed(match: re.Match[str]) -> str:
            before, name, after = match.groups()
            stays = name in local or (name + after).strip() in local
            return match[0] if stays else f"${{{before}{names.get(name, name)}{after}}}"

        text = self.text[node.start_mark.index : node.end_mark.index]
        if (new := IN_SUB.sub(renamed, node.value)) != node.value:
            self._rewrite(node, new, written if (written := IN_SUB.sub(renamed, text)) != text else "")

    def _rewrite(self, node: Node, new: str, written: str) -> None:
        if not written:
            refuse(
                node, f"{node.value!r} has to change, and is written with escapes or an alias: write it out"
            )
        self.edits[node.start_mark.index, node.end_mark.index] = written
        self.values[id(node)] = new

    def put(
        self, mapping: MappingNode, name: str, value: Any, where: str, *, after: str | None = None
    ) -> None:
        """Set an entry: change its literal, or add a line, after another entry or as the first."""
        old = entry(mapping, name)
        if old is None:
            self._insert(mapping, name, value, after)
            self.added.setdefault(id(mapping), {})[name] = _said(value)
        elif not isinstance(old, ScalarNode) or not text_of(old) or is_alias(old):
            refuse(old, f"{name} of {where} is no literal, so it cannot be set to {value}: write a literal")
        else:
            written = json.dumps(value) if old.style == '"' else _scalar(value)
            self.edits[old.start_mark.index, old.end_mark.index] = written
            self.values[id(old)] = value

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
            line = re.compile(r"\r?$", re.MULTILINE).search(self.text, _end(behind))
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
        self.edits[place, place] = self.edits.get((place, place), "") + text

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
                return f"{name}: !ImportValue {_scalar(argument)}"
            case {"Ref": argument}:
                return f"{name}: !Ref {argument}"
            case {**inner} if inner:
                return f"{name}: {{{', '.join(f'{key}: {_scalar(each)}' for key, each in inner.items())}}}"
        return f"{name}: {_scalar(value)}"

    def remove(self, mapping: MappingNode, names: set[str]) -> None:
        """Take entries out, with their lines or with their commas."""
        pairs = mapping.value
        gone = [position for position, (key, _) in enumerate(pairs) if key.value in names]
        self.removed.setdefault(id(mapping), set()).update(names)
        for position in gone:
            key, value = pairs[position]
            start, end = key.start_mark.index, _end(value)
            if not mapping.flow_style:
                start = self.text.rfind("\n", 0, start) + 1
                end = self.text.find("\n", end) + 1 or len(self.text)
            elif any(before not in gone for before in range(position)):
                start = pairs[position - 1][1].end_mark.index  # with the comma before it
            elif position + 1 < len(pairs):
                end = pairs[position + 1][0].start_mark.index
            self.edits[start, end] = ""

    # --- Checking ---

    def finished(self) -> Template:
        """Make the changes, and read the new text.

        Raises:
            MigrationError: It is not what was read, but for the changes.
        """
        text = self._edited()
        try:
            new = Template.read(text, "the new template")
        except MigrationError as error:
            first = min(self.edits, default=(0, 0))[0]
            raise MigrationError(
                f"Nothing is written, because the new template would not be one ({error}): lay out the"
                f" resources from line {self.text.count(chr(10), 0, first) + 1} on in plain YAML or JSON"
            ) from error
        if (path := difference(self.says(self.root), new.says(new.root))) is not None:
            self._refuse_at(path)
        elif new.is_json != self.is_json:
            raise MigrationError(
                "Nothing is written, because the new template would be no JSON any more: lay it out anew, say"
                " with python -m json.tool"
            )
        kept = [comment for _, comment in new.comments()]
        for line, comment in self.comments():
            if comment not in kept:
                raise MigrationError(
                    f"Line {line}: the comment would be lost: put it on a line of its own above the resource"
                )
            kept.remove(comment)
        return new

    def _edited(self) -> str:
        pieces, place = [], 0
        for (start, end), new in sorted(self.edits.items()):
            pieces += [self.text[place:start], new]
            place = end
        return "".join([*pieces, self.text[place:]])

    def says(self, node: Node) -> Any:
        """Read all that a node says, with the changes; short functions as long ones."""
        value: Any
        if isinstance(node, MappingNode):
            gone = self.removed.get(id(node), set())
            value = {
                self.values.get(id(key), name): self.says(each)
                for name, key, each in entries(node)
                if name not in gone
            } | self.added.get(id(node), {})
        elif isinstance(node, SequenceNode):
            value = [self.says(each) for each in node.value]
        else:
            value = self.values.get(id(node), node.value)
            if node.tag != TEXT and not node.tag.startswith("!"):
                value = {node.tag: value}  # a number is no text
        return {short: value} if (short := short_function(node)) else value

    def comments(self) -> list[tuple[int, str]]:
        """Find the comments and their lines: what begins with # outside of every scalar."""
        spans = {
            (each.start_mark.index, each.end_mark.index)
            for node in every(self.root)
            for each in (node, *(key for _, key, _ in entries(node)))
            if isinstance(each, ScalarNode)
        }
        pieces, place = [], 0
        for start, end in sorted(spans):
            if start >= place:
                scalar = "\n" * self.text.count("\n", start, end)
                pieces += [self.text[place:start], scalar]
                place = end
        rest = "".join([*pieces, self.text[place:]])
        return [
            (number, line[line.index("#") :].strip())
            for number, line in enumerate(rest.split("\n"), 1)
            if "#" in line
        ]

    def _refuse_at(self, path: list[Any]) -> NoReturn:
        node = self.root
        for step in path:
            inner: dict[Any, Node] = {self.values.get(id(key), name): it for name, key, it in entries(node)}
            inner |= enumerate(node.value) if isinstance(node, SequenceNode) else {}
            if step not in inner:
                break
            node = inner[step]
        refuse(
            node,
            f"this ({'.'.join(map(str, path))}) would change in another way than it should, so nothing is"
            " written: write it out in plain YAML or JSON, without anchors and aliases",
        )


def difference(one: Any, other: Any) -> list[Any] | None:
    """Find where two values differ first; None if they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(place, *both) for place, both in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else []
    for key, here, there in pairs:
        if (path := difference(here, there)) is not None:
            return [key, *path]
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _check_keys(root: Node) -> None:
    """Refuse keys that are no text, and those that a mapping has twice: YAML and JSON take one of the two.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/template-formats.html calls what then
    happens undefined.
    """
    for node in every(root):
        seen: dict[str, Node] = {}
        for key in (pair[0] for pair in node.value) if isinstance(node, MappingNode) else ():
            if not isinstance(key, ScalarNode):
                refuse(key, "a key that is no text is nothing that CloudFormation knows: take it out")
            if key.value in seen:
                refuse(
                    key,
                    f"{key.value} stands in line {line_of(seen[key.value])} too, and only one of the two"
                    " counts: take one out, or rename it",
                )
            seen[key.value] = key


def _end(node: Node) -> int:
    """Find where the last thing in a scalar or a mapping ends: a block's own end is where the next begins."""
    in_block = isinstance(node, MappingNode) and not node.flow_style
    return _end(node.value[-1][1]) if in_block else int(node.end_mark.index)


def _scalar(value: Any) -> str:
    """Write a value in YAML: with quotes where it needs them."""
    simple = not isinstance(value, str) or re.fullmatch(r"[A-Za-z][\w/. =-]*", value)
    return str(value) if simple and f"{value}".lower() not in RESERVED else json.dumps(value)


RESERVED: Final = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""What YAML 1.1 reads as something else than text."""


def _said(value: Any) -> Any:
    """Make of a new value what `says` makes of it when it is read."""
    if isinstance(value, dict):
        return {key: _said(each) for key, each in value.items()}
    return {"tag:yaml.org,2002:int": str(value)} if isinstance(value, int) else value


# --- What there is to migrate ---


def natives_of(template: Template) -> dict[str, tuple[Node, MappingNode]]:
    """Find the native resources.

    Raises:
        MigrationError: There are none, or one that the command does not understand.
    """
    found = {}
    for name, key, resource in entries(entry(template.root, "Resources")):
        if name.startswith(("Fn::ForEach", "Fn::Transform")):
            continue
        type_ = merged(resource).get("Type")
        if type_ is not None and text_of(type_) is None:
            refuse(type_, f"Type of {name} is no literal: write it out")
        if text_of(type_) == NATIVE:
            found[name] = key, _understood(name, key, resource, ("Type", "Properties", "Metadata", *POLICIES))
            _check_properties(name, key, found[name][1])
    for resource, place in _elsewhere(template, NATIVE):
        refuse(resource, f"{place} makes {NATIVE}, and this command does not change it there: {WRITE_OUT}")
    if not found:
        made = [
            f"SAM makes one of {name} (Auth: UsagePlan in line {line_of(node)}): {WRITE_OUT}"
            for name, node in made_by_sam(template)
        ]
        unseen = "; ".join(made or [note.rstrip(".") for note in warnings(template)])
        raise MigrationError(
            f"The template declares no {NATIVE}, so there is nothing to migrate{unseen and f'; {unseen}'}"
        )
    return found


def _understood(name: str, key: Node, resource: Node, changed: Iterable[str]) -> MappingNode:
    if not re.fullmatch("[A-Za-z0-9]+", name):
        refuse(key, f"{name!r} is no logical id: letters and digits alone")
    for each, place, _ in entries(resource):
        if each not in ATTRIBUTES:
            refuse(place, f"{each} of {name} is not understood: write out what it stands for, or take it out")
    for node in (key, resource, *(entry(resource, each) for each in changed)):
        if node is not None and is_alias(node):
            refuse(node, f"{name} has an alias here, which the command cannot change: write it out")
    if not isinstance(resource, MappingNode):
        refuse(resource, f"{name} is no mapping")
    return resource


def _check_properties(name: str, key: Node, resource: MappingNode) -> None:
    properties = entry(resource, "Properties")
    for each, place, _ in entries(properties):
        if each not in PROPERTIES:
            refuse(place, f"{each} of {name} is no property of {NATIVE}: write it out, or take it out")
    if not isinstance(properties, MappingNode) or any(entry(properties, id_) is None for id_ in IDS):
        refuse(key, f"{name} has no KeyId or no UsagePlanId that can be seen: write both out")


def _elsewhere(template: Template, type_: str) -> Iterator[tuple[Node, str]]:
    """Find what says that it is of a type, and is no resource by itself: the mapping, and what it is in."""
    known = {id(value) for _, _, value in entries(entry(template.root, "Resources"))}

    def within(node: Node, place: str) -> Iterator[tuple[Node, str]]:
        if text_of(entry(node, "Type")) == type_ and id(node) not in known:
            yield node, place
        for name, key, value in entries(node):
            outer = name.startswith(("Fn::ForEach", "Fn::Transform")) or not place
            yield from within(value, f"{name} in line {line_of(key)}" if outer else place)
        for each in node.value if isinstance(node, SequenceNode) else ():
            yield from within(each, place)

    return within(template.root, "")


def made_by_sam(template: Template) -> Iterator[tuple[str, Node]]:
    """Find the APIs for which SAM makes a key, a plan and the association of both.

    https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/sam-property-api-apiusageplan.html
    """
    apis = {name: entry(api, "Properties") for name, (_, api) in template.resources(SAM_API).items()}
    for name, properties in {**apis, "Globals": entry(template.root, "Globals", "Api")}.items():
        plan = entry(properties, "Auth", "UsagePlan")
        if plan is not None and text_of(entry(plan, "CreateUsagePlan")) != "NONE":
            yield name, plan


SAM_API: Final = "AWS::Serverless::Api"


# --- The three steps ---


def retain(template: Template) -> list[str]:
    """Give each native resource the policies; return notes for the user."""
    natives, changed = natives_of(template), 0
    for name, (_, resource) in natives.items():
        if text_of(entry(resource, "DeletionPolicy")) in RETAINING:
            continue
        changed += 1
        was = [f"{each}={old.value}" for each in POLICIES if (old := entry(resource, each)) is not None]
        for each in POLICIES:
            template.put(resource, each, "Retain", name, after="Type")
        metadata, mark = entry(resource, "Metadata"), " ".join(["retain", *was])
        if isinstance(metadata, MappingNode) and metadata.value:
            template.put(metadata, MARK, mark, f"the Metadata of {name}")
        elif metadata is None:
            template.put(resource, "Metadata", {MARK: mark}, name, after="Type")
        else:
            refuse(metadata, f"Metadata of {name} is empty or no mapping: take it out, or add an entry")
    left = _counted(changed, {"retained before": len(natives) - changed} | _sam_count(template))
    if not changed:
        deployed = "If this template is deployed, go on with replace."
        return [left, f"{deployed} If CloudFormation sees no change in it, add an entry to each Metadata."]
    return [
        left,
        "Deploy this template, and nothing else with it.",
        f"Then run: {GET_TEMPLATE}",
        "Then: migrate.py replace --deployed deployed.json",
        "If the deploy fails: nothing has changed for the keys. Mend the cause, and deploy again.",
    ]


def _counted(changed: int, left: Mapping[str, int]) -> str:
    """Say how many resources the command changed and left."""
    reasons = ", ".join(f"{count} {why}" for why, count in left.items() if count)
    return f"{changed} changed, {sum(left.values())} left{reasons and f' ({reasons})'}."


def _sam_count(template: Template) -> dict[str, int]:
    return {f"made by SAM of {name} in line {line_of(node)}": 1 for name, node in made_by_sam(template)}


def rehearse(template: Template, retained: Template, token: Any, naming: Naming) -> list[Template]:
    """Play the steps that follow `retain`, so that they refuse now what they would refuse after a deploy."""
    replaced = retained
    for start in (template.again(), retained.again()):  # the first for the lines in what it refuses
        try:
            rewrite(start, token, naming)
            replaced = start.finished()
        except MigrationError as error:
            later = "" if start.text == template.text else "replace would refuse what retain makes of this: "
            raise MigrationError(f"{later}{error}") from error
    taken = replaced.again()
    take(taken, replaced)
    return [replaced, taken.finished()]


def replace(template: Template, deployed: Template, token: Any, naming: Naming) -> list[str]:
    """Turn each native resource into a custom one with a new logical id; return notes for the user."""
    natives = natives_of(template)
    _check_retained(natives, deployed)
    names = rewrite(template, token, naming)
    notes = [*naming_notes(natives, names), *_kept(template, natives, names)]
    if unseen := sorted(deployed.resources(NATIVE).keys() - natives.keys()):
        notes.append(
            f"Warning: {', '.join(unseen)} is deployed and not here:"
            " a transform makes it, or this deploy deletes it."
        )
    return [
        *notes,
        _counted(len(names), _sam_count(template)),
        "Deploy this template: each ends with the outcome ADOPTED.",
        f"Then run: {GET_TEMPLATE}",
        "Then: migrate.py take --deployed deployed.json",
        "If the deploy fails: CloudFormation rolls back to the native resources, and all keys stay attached.",
    ]


def rewrite(template: Template, token: Any, naming: Naming) -> dict[str, str]:
    """Make the changes of `replace`; return the new logical ids by the old ones."""
    natives = natives_of(template)
    names = naming.names(template, natives)
    wanted = {"ServiceToken": token, "ServiceTimeout": service_timeout(len(natives)), "OnExisting": "Take"}
    for name, (key, resource) in natives.items():
        template.rename(key, names[name])
        _make_custom(template, name, resource, wanted)
    _follow(template, names)
    return names


def _make_custom(template: Template, name: str, resource: MappingNode, wanted: Mapping[str, Any]) -> None:
    """Change the type, add the properties, and take back what `retain` did."""
    type_, properties, metadata = (entry(resource, each) for each in ("Type", "Properties", "Metadata"))
    if type_ is None or not isinstance(properties, MappingNode):
        raise TypeError(name)  # natives_of has seen both
    template.rename(type_, CUSTOM)
    for each, value in wanted.items():
        template.put(properties, each, value, name)
    if (was := _before(resource)) is None or not isinstance(metadata, MappingNode):
        return
    gone = {"Metadata"} if len(metadata.value) == 1 else set()
    if not gone:
        template.remove(metadata, {MARK})
    for each in POLICIES:
        if each in was:
            template.put(resource, each, was[each], name)
        elif text_of(entry(resource, each)) == "Retain":
            gone.add(each)
    template.remove(resource, gone)


def _before(resource: MappingNode) -> dict[str, str] | None:
    """Read the policies that the owner had; None if `retain` has not touched the resource."""
    mark = entry(resource, "Metadata", MARK)
    if mark is None:
        return None
    first, *was = (text_of(mark) or "").split(" ")
    if first != "retain" or not all(each.partition("=")[0] in POLICIES for each in was):
        refuse(mark, f"{MARK} is not what retain writes: take it out, and run retain")
    return {policy: value for policy, _, value in (each.partition("=") for each in was)}


def _kept(
    template: Template, natives: Mapping[str, tuple[Node, MappingNode]], names: Mapping[str, str]
) -> Iterator[str]:
    """Warn of what the owner's own policies do to a custom resource."""
    effects = ("its key stays attached when the resource goes", "its key stays in the old plan when it moves")
    for policy, effect in zip(POLICIES, effects, strict=True):
        owners = [
            names[name]
            for name, (_, resource) in natives.items()
            if (node := entry(resource, policy)) is not None
            and policy not in template.removed.get(id(resource), ())
            and template.values.get(id(node), text_of(node)) in RETAINING
        ]
        if owners:
            yield f"Warning: your {policy} stays on {', '.join(owners)}: {effect}."


def _follow(template: Template, names: Mapping[str, str]) -> None:
    """Change every reference to an old logical id."""
    loops = _loops(template.root)
    for identifier, (node, _) in loops.items():
        if identifier in names:
            refuse(node, f"{identifier} is a loop's identifier and a resource: rename the identifier")
    for kind, node, local in references(template.root):
        if kind == "Fn::Sub":
            template.rename_in_sub(node, names, local)
            continue
        name = str(node.value) if isinstance(node, ScalarNode) else "{"
        if "{" in name and (isinstance(node, ScalarNode) or any(functions_of(node))):
            pattern = _pattern(node, loops)
            if lost := [old for old in names if re.fullmatch(pattern, old)]:
                refuse(node, f"this builds a name that may be {lost[0]}: write the name out")
        elif (old := name.split(".")[0] if kind == "Fn::GetAtt" else name) in names:
            template.rename(node, names[old] + name.removeprefix(old))


def _loops(root: Node) -> dict[str, tuple[Node, set[str] | None]]:
    """Find the identifiers of Fn::ForEach, and their values where the template has them."""
    found: dict[str, tuple[Node, set[str] | None]] = {}
    for key, value in ((key, value) for node in every(root) for key, _, value in entries(node)):
        match value:
            case SequenceNode(value=[ScalarNode(value=str(name)) as identifier, collection, _]) if (
                key.startswith("Fn::ForEach")
            ):
                items = collection.value if isinstance(collection, SequenceNode) else [None]
                texts = {text for item in items if (text := text_of(item)) is not None}
                _, others = found.get(name, (identifier, set()))
                known = others is not None and len(texts) == len(items)
                found[name] = identifier, texts | (others or set()) if known else None
    return found


def _pattern(node: Node, loops: Mapping[str, tuple[Node, set[str] | None]]) -> str:
    """Make a pattern of every name that a text or a function can build in a loop."""

    def values(identifier: str) -> str:
        _, known = loops.get(identifier, (node, None))
        return ".*" if known is None else f"(?:{'|'.join(re.escape(each) for each in sorted(known))})"

    text = node.value if isinstance(node, ScalarNode) else None
    for function, argument in functions_of(node):
        if function == "Fn::Sub" and isinstance(argument, ScalarNode):
            text = argument.value
        elif function == "Ref" and argument is not node and isinstance(argument, ScalarNode):
            text = f"${{{argument.value}}}"
    if text is None:
        return ".*"
    pieces = re.split(r"[$&]\{([^}]*)\}", str(text).split(".")[0])
    return "".join(values(piece) if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))


def service_timeout(keys: int) -> int:
    """Allow a minute, and a second for every two keys; between two minutes and CloudFormation's hour."""
    return min(3600, max(120, 60 + keys // 2))


def take(template: Template, deployed: Template) -> list[str]:
    """Set VerifyTrigger of each custom resource that says Take; return notes for the user."""
    notes, known = [], deployed.resources(CUSTOM)
    changed, left = 0, dict.fromkeys(("changed by you", "with a function", "without Take", "in a loop"), 0)
    for name, key, resource in entries(entry(template.root, "Resources")):
        values = merged(resource)
        on_existing = merged(values.get("Properties")).get("OnExisting")
        if text_of(values.get("Type")) != CUSTOM:
            continue
        if text_of(on_existing) != "Take":
            left["without Take" if on_existing is None or text_of(on_existing) else "with a function"] += 1
            continue
        properties = entry(_understood(name, key, resource, ("Type", "Properties")), "Properties")
        if not isinstance(properties, MappingNode) or entry(properties, "OnExisting") is None:
            refuse(key, f"Properties of {name} are merged from elsewhere: write them out")
        trigger, before = entry(properties, "VerifyTrigger"), _deployed_trigger(name, properties, known)
        if trigger is not None and text_of(trigger) is None:
            left["with a function"] += 1
            notes.append(
                f"Warning: VerifyTrigger of {name} in line {line_of(trigger)} is a function, so it is left:"
                " change what it refers to."
            )
        elif plain(trigger) == before:
            new = "taken" if before != "taken" else "taken again"
            template.put(properties, "VerifyTrigger", new, name, after="OnExisting")
            changed += 1
        else:
            left["changed by you"] += 1
    for resource, place in _elsewhere(template, CUSTOM):
        if text_of(entry(resource, "Properties", "OnExisting")) == "Take":
            left["in a loop"] += 1
            notes.append(
                f"Warning: {place} makes {CUSTOM} with OnExisting: Take (line {line_of(resource)}), and is"
                " left: change VerifyTrigger there by hand."
            )
    if not changed and not left["changed by you"] and not notes:
        raise MigrationError(
            f"No {CUSTOM} in the template says OnExisting: Take, so there is nothing to take over"
        )
    if natives := sorted(deployed.resources(NATIVE)):
        notes.append(f"Warning: {', '.join(natives)} is still deployed as {NATIVE}.")
    return [
        *notes,
        _counted(changed, left),
        "Deploy this template: each ends with the outcome TAKEN.",
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


# --- The new logical ids ---


@dataclass
class Naming:
    """Names the new resources after their keys: a customer who changes plans keeps the key, so the id stays.

    An id that names the plan would change with it. CloudFormation would then create the new resource before
    it deletes the old one, and the function refuses that.
    """

    suffix: str = "InPlan"
    chosen: Mapping[str, str] = field(default_factory=dict)

    def names(self, template: Template, natives: Mapping[str, tuple[Node, MappingNode]]) -> dict[str, str]:
        """Make logical ids that nothing in the template has: alphanumeric, and 255 characters at most."""
        if not re.fullmatch("[A-Za-z0-9]{1,100}", self.suffix):
            raise MigrationError(
                f"The suffix {self.suffix} is no part of a logical id: letters and digits, 100 at most"
            )
        sections = ("Resources", "Parameters", "Mappings", "Conditions")
        taken = {name for section in sections for name, _, _ in entries(entry(template.root, section))}
        for old, new in self.chosen.items():
            if old not in natives:
                raise MigrationError(f"--ids: the template declares no {NATIVE} {old}")
            if not re.fullmatch(f"[A-Za-z0-9]{{1,{LONGEST_LOGICAL_ID}}}", new) or new in taken:
                raise MigrationError(
                    f"--ids: {new} for {old} is no new logical id: letters and digits, and nothing in the"
                    " template or in the file may have it"
                )
            taken.add(new)
        names = dict(self.chosen)
        for old, (_, resource) in natives.items():
            if old not in names:
                names[old] = self._new(_after_key(old, resource), taken)
                taken.add(names[old])
        return {old: names[old] for old in natives}

    def _new(self, base: str, taken: set[str]) -> str:
        endings = (f"{self.suffix}{number if number > 1 else ''}" for number in count(1))
        names = (base[: LONGEST_LOGICAL_ID - len(ending)] + ending for ending in endings)
        return next(name for name in names if name not in taken)


def naming_notes(natives: Mapping[str, tuple[Node, MappingNode]], names: Mapping[str, str]) -> Iterator[str]:
    """Say which old ids name their plan, and why they are not kept."""
    plans = {name: _called(entry(it, "Properties", "UsagePlanId")) for name, (_, it) in natives.items()}
    if old := [f"{name} becomes {names[name]}" for name, plan in plans.items() if _names(name, plan)]:
        yield (
            f"{', '.join(old)}: the old id names its plan, so it is not kept. If an id changes with the"
            " plan, the move is a new resource, created before the old one is deleted, and fails."
        )
    if new := [f"{names[name]} ({plan})" for name, plan in plans.items() if _names(names[name], plan)]:
        yield f"Warning: {', '.join(new)} names its plan: choose another id with --ids=FILE."


def _after_key(old: str, resource: MappingNode) -> str:
    key, plan = (_called(entry(resource, "Properties", each)) for each in IDS)
    if isinstance(literal := text_of(entry(resource, "Properties", "KeyId")), str):
        key = f"Key{literal}" if _names(old, plan) else old
    words = re.findall("[A-Za-z0-9]+", key)
    return "".join(word[0].upper() + word[1:] for word in words) if words[1:] else key or old


def _called(node: Node | None) -> str:
    """Read what a reference names: a logical id, an export. Nothing for other functions."""
    match plain(node):
        case {"Ref": str(name)} | {"Fn::ImportValue": str(name)} | {"Fn::GetAtt": [str(name), *_]}:
            return name
        case str(literal):
            return literal
    return ""


def _names(logical_id: str, plan: str) -> bool:
    """Tell if an id has the words of its plan: FreeAlice those of FreePlan; InPlan has those of none."""
    words, tier = (
        [
            word.lower()
            for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", re.sub("[0-9A-F]{8}$", "", text))
            if word.lower() not in ("usage", "plan", "id")
        ]
        for text in (logical_id, plan)
    )
    return bool(tier) and any(words[at : at + len(tier)] == tier for at in range(len(words)))


# --- Warnings ---


def warnings(template: Template, gone: Iterable[str] = ()) -> Iterator[str]:
    """Name the text that the command left: what it cannot follow, and logical ids that are gone."""
    gone = set(gone)
    types = {id(entry(resource, "Type")) for _, resource in template.resources().values()}
    for node in every(template.root):
        if node.tag == "!Transform":
            yield f"Fn::Transform in line {line_of(node)} is not followed: look into what it includes."
        if isinstance(node, ScalarNode) and NATIVE in node.value and id(node) not in types:
            yield f"A text in line {line_of(node)} has {NATIVE} in it, and is left."
        if isinstance(node, ScalarNode) and node.value in gone:
            yield f"{node.value} in line {line_of(node)} is left: it is no reference that this command knows."
        for key, place, _ in entries(node):
            if key == "Fn::Transform" or key.startswith("Fn::ForEach"):
                yield f"{key} in line {line_of(place)} is not followed: look into what it makes and names."
    transforms = plain(entry(template.root, "Transform")) or []
    for name in transforms if isinstance(transforms, list) else [transforms]:
        shown = name if isinstance(name, str) else "AWS::Include"
        yield f"The transform {shown} may make resources that cannot be seen here."
    for name in template.resources(*NESTED):
        yield f"{name} is a nested stack: migrate its own template too, if it has {NATIVE}."
    if (count := len(template.resources())) > MOST_RESOURCES:
        yield f"The template has {count} resources, and CloudFormation takes {MOST_RESOURCES}."


def sizes(step: str, old: Template, new: Template, later: Iterable[Template]) -> Iterator[str]:
    """Say how large the template was, is and will be.

    Raises:
        MigrationError: CloudFormation would not take it.
    """
    all_steps = ("retain", "replace", "take")
    after = dict(zip(all_steps[all_steps.index(step) :], [new, *later], strict=False))
    bytes_of = {each: len(template.text.encode()) for each, template in after.items()}
    shown = "".join(f", {size:,} after {each}" for each, size in bytes_of.items())
    largest = max(bytes_of.values())
    if largest > LARGEST_IN_S3:
        raise MigrationError(
            f"The template would have {largest:,} bytes, and CloudFormation takes 1 MB: split the stack"
        )
    yield f"Bytes: {len(old.text.encode()):,} before{shown}."
    if largest > LARGEST_BODY:
        yield f"Warning: above {LARGEST_BODY:,} bytes a template has to come from S3 (deploy --s3-bucket)."


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


def read_ids(path: str) -> dict[str, str]:
    """Read the logical ids that the user has chosen: `Old: New`, a line each.

    Raises:
        MigrationError: The file has something else.
    """
    chosen: dict[str, str] = {}
    try:
        root = yaml.compose(_read(Path(path)), Loader=_Loader)
    except yaml.YAMLError:
        root = None
    for old, _, node in entries(root):
        if (new := text_of(node)) is None or old in chosen:
            refuse(node, f"{path} has no logical id here, or one for the second time: write Old: New")
        chosen[old] = new
    if not chosen:
        raise MigrationError(f"{path} has no logical ids: write what --ids shows into it")
    return chosen


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
    try:
        return Template.read(
            body if isinstance(body, str) else json.dumps(body, ensure_ascii=False), f"{path}"
        )
    except MigrationError as error:
        raise MigrationError(f"The deployed template in {path} cannot be read: {error}") from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # the line ends stay as they are
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise MigrationError(f"{path} cannot be read as a text in UTF-8: {error}") from error


def _write(path: Path, text: str) -> None:
    """Write a new file and put it in the place of the old one, so that a failure leaves the old one whole."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        shutil.copymode(path, name)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink()
        raise


def _put_out(text: str) -> None:
    """Write the text byte by byte: the line ends stay as they are on Windows too."""
    if (raw := getattr(sys.stdout, "buffer", None)) is None:
        sys.stdout.write(text)
    else:
        raw.write(text.encode())


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
    parser.add_argument(
        "--ids", nargs="?", const=SHOW, metavar="=FILE", help="show the new logical ids, or take them from it"
    )
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
    if arguments.ids and arguments.step == "take":
        raise MigrationError("--ids is for retain and replace: take changes no logical id")
    if arguments.ids == SHOW:
        return _show_ids(template, Naming(arguments.suffix))
    later: list[Template] = []
    naming = Naming(arguments.suffix, read_ids(arguments.ids) if arguments.ids else {})
    if arguments.step == "retain":
        notes = retain(template)
        new = template.finished()
        later = rehearse(template, new, service_token(arguments, template), naming)
    elif arguments.step == "replace":
        deployed = read_deployed(arguments.deployed, "replace")
        notes = replace(template, deployed, service_token(arguments, template), naming)
        new = template.finished()
    else:
        notes = take(template, read_deployed(arguments.deployed, "take"))
        new = template.finished()
    size = sizes(arguments.step, template, new, later)
    gone = template.resources(NATIVE) if arguments.step == "replace" else ()
    return new.text, [*(f"Warning: {warning}" for warning in warnings(new, gone)), *size, *notes]


def _show_ids(template: Template, naming: Naming) -> tuple[str, list[str]]:
    natives = natives_of(template)
    names = naming.names(template, natives)
    shown = "".join(f"{old}: {new}\n" for old, new in names.items())
    return shown, [
        *naming_notes(natives, names),
        "To choose: edit these lines, and use --ids=FILE.",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    given = _arguments(arguments)
    try:
        text, notes = migrate(given)
        if given.in_place and given.ids != SHOW:
            _write(given.template, text)
        else:
            _put_out(text)
    except (MigrationError, OSError) as error:
        print(f"migrate.py: {error}", file=sys.stderr)
        return 1
    except RecursionError:
        print("migrate.py: The template is nested too deeply to be read: flatten it", file=sys.stderr)
        return 1
    for note in notes:
        print(note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
