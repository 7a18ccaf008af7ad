"""Takes secrets out of texts that are not our own, before one reaches a Reason or a log line.

A proxy's error page may repeat the request that it refused, and botocore and urllib3 quote what they got. So
every such text passes `shown`, and the log's tracebacks pass `traceback`.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final
from urllib.parse import quote

#: The ResponseURL of the request under way.
response_url: ContextVar[str] = ContextVar("response_url", default="")

#: A URL with a query, whole or without its host, plain or percent-encoded; then a part of a signed one.
_SIGNED: Final = re.compile(
    r"""[^\s"'<>]*(?:\?|%3f)[^\s"'<>]*(?:=|%3d)[^\s"'<>]*
    |(?:x-amz-[a-z-]+|signature|awsaccesskeyid|expires)(?:=|%3d)[^\s"'<>]*""",
    re.IGNORECASE | re.VERBOSE,
)
#: A key's value has 20 to 128 characters. An ARN, a request's id, and the name of an error or of SQS's call
#: are no values.
#: https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-api-usage-plans.html
_VALUE: Final = re.compile(
    r"""(arn:aws[a-z-]*:[^\s"'<>]* | \b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b
    | \b(?:[A-Z][A-Za-z]+)(?:Exception|Error|Exceeded|Complete|Batch)\b) | [A-Za-z0-9_-]{20,}""",
    re.VERBOSE,
)


def shown(error: object) -> str:
    """Give an error as one line without secrets. Our own errors' texts, and our sentences, hold none."""
    own = isinstance(error, str) or type(error).__module__.startswith(f"{__package__}.")
    return str(error) if own else one_line(str(error))


def one_line(text: str) -> str:
    """Give somebody else's text as one line without secrets."""
    return without_secrets(" ".join(text.split()))


def without_secrets(text: str) -> str:
    """Take out the ResponseURL, pre-signed URLs and their parts, and what may be a key's value."""
    return _VALUE.sub(
        lambda found: found[1] or f"(not shown: {len(found[0])} characters)", without_urls(text)
    )


def without_urls(text: str) -> str:
    """Take out the ResponseURL, pre-signed URLs and their parts."""
    if url := response_url.get():
        text = text.replace(url, "(a URL)").replace(quote(url, safe=""), "(a URL)")
    return _SIGNED.sub("(a URL)", text)


def traceback(text: str) -> str:
    """Take the secrets out of a traceback's errors; its frames show our own lines only."""
    lines, in_frames = [], False
    for line in text.split("\n"):
        if not line.startswith(" "):
            in_frames = line.startswith("Traceback (")
        lines.append(line if in_frames else without_secrets(line))
    return "\n".join(lines)
