"""The response to CloudFormation: what its body holds, where it may go, and its delivery."""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from crhelper import FAILED, SUCCESS
from urllib3.util import Url, parse_url

from . import metrics
from .errors import EventError, FailedError, OutOfTimeError, UndeliveredError
from .model import Response
from .request import Create, Request, Update
from .retry import SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT, Again, Deadline, retry

logger = logging.getLogger(__name__)

#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html
LONGEST_RESPONSE: Final = 4096
#: How many redirects in a row one PUT follows.
MOST_REDIRECTS: Final = 5
_PUT_TIMEOUT: Final = urllib3.Timeout(connect=SHORT_CONNECT_TIMEOUT, read=SHORT_READ_TIMEOUT)


def where(context: object) -> str:
    """Say where the log is: whoever reads a Reason may be in another team. Leaves out what a stand-in for the context lacks."""
    names = {"function": "function_name", "log group": "log_group_name", "log stream": "log_stream_name"}
    found = ((name, getattr(context, attribute, None)) for name, attribute in names.items())
    return ", ".join(f"{name} {value}" for name, value in found if value)


def body(request: Request, answer: Response, where: str) -> bytes:
    """Put an answer together, in at most 4,096 bytes: Reason and KeyName are cut at their ends."""
    fields: dict[str, Any] = {
        "Status": SUCCESS if answer.success else FAILED,
        "PhysicalResourceId": answer.id,
        "StackId": request.holder.stack_id,
        "RequestId": request.id,
        "LogicalResourceId": request.holder.logical_id,
        "NoEcho": False,
    }
    if answer.success and isinstance(request, Create | Update):
        # Defect: NoEcho survives from one invocation into the next. Here it is part of each answer.
        fields |= {"NoEcho": request.include_value, "Data": _data(request, answer)}
        fields["Data"]["KeyName"] = _cut(
            answer.key_name, LONGEST_RESPONSE - len(_json(fields)) - len(',"KeyName":""')
        )
    if not answer.success:
        room = LONGEST_RESPONSE - len(_json({**fields, "Reason": ""}))
        # Where ids are so long that the room is short, what matters keeps half of it.
        end = _cut(f" ({where})" if where else "", room // 2)
        fields["Reason"] = _cut(answer.reason, room - _size(end)) + end
    made = _json(fields)
    if len(made) > LONGEST_RESPONSE:
        logger.error(
            "The answer has %d bytes for its ids, and CloudFormation takes %d", len(made), LONGEST_RESPONSE
        )
    return made


def _data(request: Create | Update, answer: Response) -> dict[str, str]:
    """Give what Fn::GetAtt reads, but for KeyName."""
    data = {
        "Id": request.wanted.id,
        "KeyId": request.wanted.key_id,
        "KeyType": "API_KEY",
        "UsagePlanId": request.wanted.plan_id,
        "Outcome": answer.outcome,
    }
    value = {} if answer.value is None or not request.include_value else {"Value": answer.value}
    return data | value


def redacted(body: bytes) -> str:
    """Give back an answer's body as a text that may be printed."""
    fields = json.loads(body)
    if "Value" in fields.get("Data", {}):
        fields["Data"]["Value"] = "(not shown)"
    return _encoded(json.dumps(fields, ensure_ascii=False, indent=2)).decode()


def destination(url: str, *, local: bool = False, base: str = "") -> Url:
    """Read where an answer goes, with the parser of urllib3, which connects there.

    Args:
        url: A ResponseURL, or where one redirects to.
        local: Under sam local the function sends nothing, so any URL will do.
        base: What redirects there.

    Raises:
        EventError: It is not https, or not every parser reads the same host and port there. Says nothing of
            what it holds.
    """
    if local:
        return Url()
    name = "the redirect" if base else "the ResponseURL"
    if any(character in "\\ " or not character.isprintable() for character in url):
        raise EventError(f"{name} has a backslash, white space or a control character")
    try:
        url = urljoin(base, url)
        read, other = parse_url(url), urlsplit(url)
        same = (read.host or "").strip("[]") == (other.hostname or "") and read.port == other.port
    except ValueError:  # Without its cause: urllib3's names the URL.
        raise EventError(f"{name} cannot be read") from None
    if not read.scheme == other.scheme == "https":
        raise EventError(f"{name} is not https")
    if "@" in other.netloc or read.auth is not None:
        raise EventError(f"{name} has user info")
    if not read.host:
        raise EventError(f"{name} has no host")
    if not same:
        raise EventError(f"two parsers read different hosts in {name}")
    return read


def check_value_host(url: Url, *, region: str, suffix: str | None, emulator: str | None = None) -> None:
    """Check that a host is CloudFormation's own: whoever may invoke the function could name another one for a key's value.

    Args:
        url: From `destination`.
        region: The function's. CloudFormation invokes no function of another one.
        suffix: The partition's DNS suffix; without one nothing is checked.
        emulator: A host that may have the value too, with its port.

    Raises:
        FailedError: It is another host.
    """
    if not suffix or (emulator and url.netloc == emulator.lower()):
        return
    bucket = f"cloudformation-custom-resource-response-{region.replace('-', '')}"
    # Anybody can register a bucket whose name begins alike. A name is unique in its partition, so all three
    # lead to one bucket.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
    hosts = [f"{bucket}.{s3}.{suffix}".lower() for s3 in (f"s3.{region}", f"s3-{region}", "s3")]
    if url.host not in hosts or url.port not in (None, 443):
        raise FailedError(
            f"IncludeValue is true, and the function sends a key's value to no host but {hosts[0]}, which is CloudFormation's. "
            f"ResponseURL leads to {url.netloc}. Remove IncludeValue, or name an emulator's host in the parameter ResponseHost"
        )


class Sender:
    """Delivers answers. One TLS context serves all invocations, as one costs 40 ms of a processor."""

    def __init__(self, check_host: Callable[[Url], None] = lambda _: None) -> None:
        """Prepare; `check_host` raises FailedError where a key's value must not go, see `check_value_host`."""
        self._check_host = check_host
        self._tls: Future[ssl.SSLContext] | None = None
        #: By the URL of the proxy; None for none.
        self._managers: dict[str | None, urllib3.PoolManager] = {}

    def prepare(self) -> Future[ssl.SSLContext]:
        """Begin to make the TLS context, in a thread, while API Gateway is waited for; who only queues has no use for it."""
        # One that could not be made is made anew, or no later request of this process would be answered.
        if self._tls is None or (self._tls.done() and self._tls.exception()):
            thread = ThreadPoolExecutor(1)
            self._tls = thread.submit(_tls)
            thread.shutdown(wait=False)
        return self._tls

    def check(self, request: Request) -> None:
        """Check that a request's ResponseURL may have its answer.

        Raises:
            FailedError: A key's value is asked for, and must not go there.
        """
        if isinstance(request, Create | Update) and request.include_value:
            self._check_host(destination(request.response_url))

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        """PUT an answer to its ResponseURL.

        5xx, network errors and what S3 asks to send again are tried again. Any other refusal is final: the
        URL has expired, or somebody has answered, so nobody listens any more.

        Raises:
            UndeliveredError: It could not be delivered in time.
        """
        tls, last = self.prepare().result(), deadline.last()
        what = "Could not deliver the answer"
        try:
            status = retry(
                lambda: self._put(request.response_url, body, tls, last), what, last, _is_transient
            )
        except OutOfTimeError:
            metrics.answer_undelivered()
            # No cause: urllib3's errors name the URL, which is pre-signed.
            raise UndeliveredError(
                f"{what} to {urlsplit(request.response_url).hostname}: no time is left"
            ) from None
        except (EventError, FailedError) as refused:
            logger.error("The answer was not sent: %s", refused)  # noqa: TRY400  # the sentence says it all
        else:
            if 200 <= status < 300:
                logger.debug("CloudFormation has the answer: status %d", status)
                return
            logger.error(
                "CloudFormation refused the answer with status %d: it waits for it no longer", status
            )
        metrics.answer_refused()

    def _put(
        self,
        url: str,
        body: bytes,
        tls: ssl.SSLContext,
        deadline: Deadline,
        base: str = "",
        follow: int = MOST_REDIRECTS,
    ) -> int:
        """PUT once, follow at most so many redirects, and give back the status.

        Raises:
            EventError: The answer must not go there.
            FailedError: The key's value must not go there, or no time is left.
            _BusyError: It is to be tried again.
        """
        target = destination(url, base=base)
        if "Value" in json.loads(body).get("Data", {}):
            self._check_host(target)
        deadline.allow("Could not PUT")
        reply = self._manager(target.url, tls).urlopen(
            "PUT",
            target.url,
            body=body,
            headers={"content-type": ""},  # CloudFormation's pre-signed URLs want it empty.
            timeout=_PUT_TIMEOUT,
            redirect=False,
            preload_content=False,  # A reply that breaks off after its status has that status all the same.
        )
        # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
        again = reply.status == 400 and re.search(
            rb"<Code>(RequestTimeout|IncompleteBody)</Code>", reply.data
        )
        reply.drain_conn()
        if again or reply.status in (408, 409, 429) or reply.status >= 500:
            raise _BusyError(f"status {reply.status}")
        # S3 sends on so what has come to the wrong one of its endpoints.
        # https://docs.aws.amazon.com/AmazonS3/latest/API/UsingRouting.html
        if reply.status in (307, 308) and follow and (location := reply.headers.get("location")):
            return self._put(location, body, tls, deadline, target.url, follow - 1)
        return reply.status

    def _manager(self, url: str, tls: ssl.SSLContext) -> urllib3.PoolManager:
        """Find the connections that lead to a URL: by the proxy that boto3 would use for it."""
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
    """Trust whom boto3 is told to trust (see botocore.endpoint.EndpointCreator), else whom the system trusts."""
    return ssl.create_default_context(
        cafile=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    )


class _BusyError(Exception):
    """Raised when a PUT is to be tried again."""


def _is_transient(error: Exception) -> Again | None:
    match error:
        case _BusyError():
            logger.warning("The answer's PUT failed, trying again: %s", error)
        case urllib3.exceptions.HTTPError():
            # Its text may name the URL.
            logger.warning("The answer's PUT failed, trying again: %s", type(error).__name__)
        case _:
            return None
    return Again()


def _json(fields: object) -> bytes:
    return _encoded(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def _encoded(text: str) -> bytes:
    """Encode JSON. A lone surrogate has no bytes; backslashreplace writes it as JSON's own escape."""
    return text.encode(errors="backslashreplace")


def _size(text: str) -> int:
    """Count the bytes that a text takes in JSON, without its quotation marks."""
    return len(_json(text)) - 2


def _cut(text: str, most: int) -> str:
    """Cut a text at its end, between two characters, so that its JSON takes at most so many bytes."""
    if _size(text) <= most:
        return text
    low, high = -1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(text[:middle] + "…") <= most else (low, middle - 1)
    return text[:low] + "…" if low >= 0 else ""
