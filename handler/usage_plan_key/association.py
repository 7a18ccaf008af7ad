"""The nouns: an association of one API key with one usage plan, and a holder of it."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# API Gateway's own ids are 10 and 6 letters and digits. A key's *value* has at least 20 characters
# (https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-setup-api-keys.html), so a secret that was
# pasted where an id belongs is never taken for one, and never becomes a physical id.
LONGEST_ID: Final = 19
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST_ID}}}")


def well_formed(value: object) -> bool:
    """Tell whether `value` can be the id of a key or a plan."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


class Association(NamedTuple):
    """One API key in one usage plan. API Gateway knows at most one such pair, so the two ids are its identity."""

    key_id: str
    plan_id: str

    @property
    def id(self) -> str:
        """The physical id, `<KeyId>:<UsagePlanId>`, as `Ref` gives it and as AWS::ApiGateway::UsagePlanKey has it."""
        return f"{self.key_id}:{self.plan_id}"

    @classmethod
    def parse(cls, physical_id: str) -> Association | None:
        """Read a physical id; None for a foreign one: CloudFormation's invention, or a former provider's."""
        key_id, colon, plan_id = physical_id.partition(":")
        return cls(key_id, plan_id) if colon and well_formed(key_id) and well_formed(plan_id) else None


class Holder(NamedTuple):
    """A resource of a stack, which can hold associations. A stack's ARN ends in a UUID: a namesake is another stack."""

    stack_id: str
    logical_id: str

    @property
    def stack_name(self) -> str:
        """The name inside `arn:PARTITION:cloudformation:REGION:ACCOUNT:stack/NAME/UUID`; the ARN itself if it has none."""
        parts = self.stack_id.split("/")
        return parts[1] if len(parts) > 1 else self.stack_id

    def __str__(self) -> str:
        return f"{self.logical_id} of stack {self.stack_name}"
