"""The response to CloudFormation: its body, its permitted destinations and its delivery."""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from crhelper import FAILED, SUCCESS
from urllib3.util import Url, parse_url

from . import metrics
from .errors import Again, EventError, FailedError, OutOfTimeError, UndeliveredError
from .model import Response
from .request import Create, Request, Update
from .retry import BEFORE_DELIVERY, SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT, Deadline, retry

logger = logging.getLogger(__name__)

#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html
LONGEST_RESPONSE: Final = 4096
#: How many redirects in a row one PUT follows.
MOST_REDIRECTS: Final = 5
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_SEND_AGAIN: Final = re.compile(rb"<Code>(RequestTimeout|IncompleteBody)</Code>")
#: What the function was doing, as an error says it.
_DELIVERING: Final = "Could not deliver the answer"
_PUT_TIMEOUT: Final = urllib3.Timeout(connect=SHORT_CONNECT_TIMEOUT, read=SHORT_READ_TIMEOUT)


def where(context: object) -> str:
    """Say where the log is, because the reader of a Reason may be in another team.

    Leaves out the names that a stand-in for the context lacks.
    """
    names = {"function": "function_name", "log group": "log_group_name", "log stream": "log_stream_name"}
    found = ((name, getattr(context, attribute, None)) for name, attribute in names.items())
    return ", ".join(f"{name} {value}" for name, value in found if value)


def body(request: Request, answer: Response, where: str) -> bytes:
    """Put an answer together, in at most 4,096 bytes: cut Reason and KeyName at their ends."""
    fields: dict[str, Any] = {
        "Status": SUCCESS if answer.success else FAILED,
        "PhysicalResourceId": request.answer_id(success=answer.success),
        "StackId": request.holder.stack_id,
        "RequestId": request.id,
        "LogicalResourceId": request.holder.logical_id,
        "NoEcho": False,
    }
    if answer.success and isinstance(request, Create | Update):
        data = {
            "Id": request.wanted.id,
            "KeyId": request.wanted.key_id,
            "KeyType": "API_KEY",
            "UsagePlanId": request.wanted.plan_id,
            "Outcome": answer.outcome,
        }
        if request.include_value and answer.value is not None:
            data["Value"] = answer.value
        # Defect: crhelper's NoEcho survives from one invocation into the next. Here each answer has its own.
        fields |= {"NoEcho": request.include_value, "Data": data}
        room = LONGEST_RESPONSE - len(_json(fields)) - len(',"KeyName":""')
        data["KeyName"] = _cut(answer.key_name, room)
    if not answer.success:
        room = LONGEST_RESPONSE - len(_json({**fields, "Reason": ""}))
        # If long ids leave little room, the reason keeps at least half of it.
        end = _cut(f" ({where})" if where else "", room // 2)
        fields["Reason"] = _cut(answer.reason, room - _size(end)) + end
    made = _json(fields)
    if len(made) > LONGEST_RESPONSE:
        logger.error(
            "The answer has %d bytes for its ids, and CloudFormation takes %d", len(made), LONGEST_RESPONSE
        )
    return made


def redacted(body: bytes) -> str:
    """Give back an answer's body as text without the key's value."""
    fields = json.loads(body)
    if "Value" in fields.get("Data", {}):
        fields["Data"]["Value"] = "(not shown)"
    return _encoded(json.dumps(fields, ensure_ascii=False, indent=2)).decode()


def destination(url: str, *, local: bool = False, base: str = "") -> Url:
    """Read where an answer goes, with the parser of urllib3, because urllib3 connects there.

    Args:
        url: A ResponseURL, or the target of a redirect.
        local: Under sam local the function sends nothing, so any URL will do.
        base: The URL that redirects.

    Raises:
        EventError: The URL is not https, or has user info, no host, or a character that parsers read in
            different ways. Shows no part of it.
    """
    if local:
        return Url()
    name = "the redirect" if base else "the ResponseURL"
    if any(character in "\\ " or not character.isprintable() for character in url):
        raise EventError(f"{name} has a backslash, white space or a control character")
    try:
        read = parse_url(urljoin(base, url))
    except ValueError:  # The cause is left out: urllib3's text names the URL.
        raise EventError(f"{name} cannot be read") from None
    if read.scheme != "https":
        raise EventError(f"{name} is not https")
    if read.auth is not None:
        raise EventError(f"{name} has user info")
    if not read.host:
        raise EventError(f"{name} has no host")
    return read


def check_value_host(url: Url, *, region: str, suffix: str | None, emulator: str | None = None) -> None:
    """Check that a host is CloudFormation's own, because an invoker could name another for a key's value.

    Args:
        url: From `destination`.
        region: The function's region. CloudFormation invokes no function in another one.
        suffix: The partition's DNS suffix; without one every host may have the value.
        emulator: A host that may have the value too, with its port.

    Raises:
        FailedError: It is another host.
    """
    if not suffix or (emulator and url.netloc == emulator.lower()):
        return
    bucket = f"cloudformation-custom-resource-response-{region.replace('-', '')}"
    # Anybody can register a bucket whose name begins like this one, so compare whole hosts. A name is unique
    # in its partition, so all three lead to one bucket.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
    hosts = [f"{bucket}.{s3}.{suffix}".lower() for s3 in (f"s3.{region}", f"s3-{region}", "s3")]
    if url.host not in hosts or url.port not in (None, 443):
        raise FailedError(
            "IncludeValue is true, and the function sends a key's value to no host but "
            f"{hosts[0]}, which is CloudFormation's. ResponseURL leads to {url.netloc}. "
            "Remove IncludeValue, or name an emulator's host in the parameter ResponseHost"
        )


class Sender:
    """Delivers answers. One TLS context serves all invocations, because it costs 40 ms of CPU time."""

    def __init__(self, check_host: Callable[[Url], None] = lambda _: None) -> None:
        """Prepare; `check_host` raises FailedError if a key's value must not go to a host."""
        self._check_host = check_host
        self._tls: Future[ssl.SSLContext] | None = None
        #: By the URL of the proxy; None for none.
        self._managers: dict[str | None, urllib3.PoolManager] = {}

    def prepare(self) -> Future[ssl.SSLContext]:
        """Begin to make the TLS context in a thread, while this one waits for API Gateway.

        An invocation that only queues its request sends no answer, so it skips this.
        """
        # After a failure make it again, or this process would never answer another request.
        if self._tls is None or (self._tls.done() and self._tls.exception()):
            thread = ThreadPoolExecutor(1)
            self._tls = thread.submit(_tls)
            thread.shutdown(wait=False)
        return self._tls

    def check(self, request: Request) -> None:
        """Check that a request's ResponseURL may have its answer.

        Raises:
            FailedError: The request asks for a key's value, which must not go there.
        """
        if isinstance(request, Create | Update) and request.include_value:
            self._check_host(destination(request.response_url))

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        """PUT an answer to its ResponseURL.

        Try again after a 5xx, after a network error, and when S3 asks to. Any other refusal is final: the URL
        has expired, or somebody has answered, so nobody listens any more.

        Raises:
            UndeliveredError: No attempt succeeded in time.
        """
        tls = self.prepare().result()
        put = partial(self._put, request.response_url, body, tls, deadline)
        try:
            status = retry(put, _DELIVERING, deadline, _is_transient, BEFORE_DELIVERY)
        except OutOfTimeError:
            metrics.answer_undelivered()
            # The cause is left out: urllib3's errors name the pre-signed URL.
            raise UndeliveredError(
                f"{_DELIVERING} to {urlsplit(request.response_url).hostname}: no time is left"
            ) from None
        except (EventError, FailedError) as refused:
            logger.error("Did not send the answer: %s", refused)  # noqa: TRY400  # the sentence says it all
        else:
            if 200 <= status < 300:
                return
            logger.error(
                "CloudFormation refused the answer with status %d: it no longer waits for it", status
            )
        metrics.answer_refused()

    def _put(self, url: str, body: bytes, tls: ssl.SSLContext, deadline: Deadline) -> int:
        """PUT once, follow the redirects, and give back the status.

        Raises:
            EventError: The answer must not go there.
            FailedError: The key's value must not go there, or no time is left.
            _BusyError: The caller has to try again.
        """
        target, follow = destination(url), MOST_REDIRECTS
        while True:
            if "Value" in json.loads(body).get("Data", {}):
                self._check_host(target)
            deadline.allow(_DELIVERING, BEFORE_DELIVERY)
            reply = self._manager(target.url, tls).urlopen(
                "PUT",
                target.url,
                body=body,
                headers={"content-type": ""},  # CloudFormation's pre-signed URLs want it empty.
                timeout=_PUT_TIMEOUT,
                redirect=False,
                preload_content=False,  # A reply that breaks off after its status has that status.
            )
            asks_again = reply.status == 400 and _SEND_AGAIN.search(reply.data)
            reply.drain_conn()
            if asks_again or reply.status in (408, 409, 429) or reply.status >= 500:
                raise _BusyError(f"status {reply.status}")
            # S3 redirects a request that has come to the wrong one of its endpoints.
            # https://docs.aws.amazon.com/AmazonS3/latest/API/UsingRouting.html
            if not (reply.status in (307, 308) and follow and (to := reply.headers.get("location"))):
                return reply.status
            target, follow = destination(to, base=target.url), follow - 1

    def _manager(self, url: str, tls: ssl.SSLContext) -> urllib3.PoolManager:
        """Find the connections for a URL, through the proxy that boto3 would use."""
        proxies = ProxyConfiguration(get_environ_proxies(url))
        proxy = proxies.proxy_url_for(url)
        if proxy not in self._managers:
            kept: dict[str, Any] = {"maxsize": 10, "ssl_context": tls, "retries": False}
            self._managers[proxy] = (
                urllib3.ProxyManager(
                    proxy, proxy_headers=proxies.proxy_headers_for(proxy), proxy_ssl_context=tls, **kept
                )
                if proxy
                else urllib3.PoolManager(**kept)
            )
        return self._managers[proxy]


def _tls() -> ssl.SSLContext:
    """Trust the certificates that boto3 would (botocore.endpoint.EndpointCreator), else the system's."""
    return ssl.create_default_context(
        cafile=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    )


class _BusyError(Exception):
    """Raised when the function has to try a PUT again."""


def _is_transient(error: Exception) -> Again | None:
    if not isinstance(error, _BusyError | urllib3.exceptions.HTTPError):
        return None
    # urllib3's text may name the URL.
    told = error if isinstance(error, _BusyError) else type(error).__name__
    logger.warning("The answer's PUT failed, trying again: %s", told)
    return Again()


def _json(fields: object) -> bytes:
    return _encoded(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def _encoded(text: str) -> bytes:
    """Encode JSON. UTF-8 has no lone surrogate; backslashreplace writes it as JSON's own escape."""
    return text.encode(errors="backslashreplace")


def _size(text: str) -> int:
    """Count a text's bytes in JSON, without its quotation marks."""
    return len(_json(text)) - 2


def _cut(text: str, most: int) -> str:
    """Cut a text at its end, between two characters, so that its JSON takes at most `most` bytes."""
    if _size(text) <= most:
        return text
    fitting = bisect_right(range(len(text)), most, key=lambda end: _size(text[:end] + "…"))
    return text[: fitting - 1] + "…" if fitting else ""
