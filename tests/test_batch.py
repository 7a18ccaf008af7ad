"""The function serves a batch: each stack in order, none for long, a death only at its stack's cost.

What becomes of one request that waits or dies is told in test_deaths.py.
"""

import json
import re
import threading
from dataclasses import replace
from unittest import mock

import pytest

from usage_plan_key.provider import GIVING_TIME, _threads
from usage_plan_key.queue import Queue
from usage_plan_key.request import Request
from usage_plan_key.retry import BEFORE_DELIVERY, Deadline

from .function import Death, Message, refusal
from .story import REFUSALS, Story, _same, played, staged

REFUSALS["quota"] = refusal(429, "LimitExceededException", "Limit exceeded")


class Batches(Story):
    """A story with batches of messages, and these steps.

    arrivals              Creates one and three of stack one, and two of stack two, arrive in their order.
    batch one two         The queue delivers the messages one and two together.
    back one=7 two        Of this batch come again one after 7 seconds, two when its visibility time-out is
                          over, and no others; `at once`: by one call. `back dies`: the function has died.
    served one two=FAILED Of this batch one and two were answered, in this order.
    received one=11@180   The next batch delivers one for the eleventh time, 180 seconds after the first time.
    """

    failed: list[str] | None

    def __init__(self) -> None:
        super().__init__()
        self._step("queue")

    def _arrivals(self, _: list[str]) -> None:
        self._steps("one: arrive create A free; two: arrive create Z gold; three: arrive create B bob:free")

    def _batch(self, names: list[str]) -> None:
        self.put, self.failed = [], None
        self.calls.clear()
        try:
            self.failed = self._hand_out(names)
        except Death:
            self.failed = ["dies"]
            self._function()
        else:
            assert self.now < self.ends, "Lambda has the result in time"
        for answer in self.put:
            self._answered(answer["RequestId"], answer)

    def _back(self, words: list[str]) -> None:
        hidden = {
            name: f"{name}={int(self.messages[name].visible - self.now)}"
            for name, message in self.handed.items()
            if self.messages[name].visible != message.visible
        }
        came = hidden if self.failed is None else self.failed
        _same({hidden.get(name, name) for name in came}, {*words} - {"nothing", "at", "once"})
        assert "once" not in words or self.calls["hide"] == 1

    def _served(self, words: list[str]) -> None:
        told = [one["RequestId"] + "=FAILED" * (one["Status"] == "FAILED") for one in self.put]
        assert told == [word for word in words if word != "nothing"]

    def _received(self, words: list[str]) -> None:
        for name, count, ago in (re.split("[=@]", word) for word in words):
            first = self.now - int(ago)
            self.messages[name] = self.messages[name]._replace(receives=int(count) - 1, first=first)


test_a_batch = played(
    """
all stacks are served, each in its order
    arrivals; batch one two three; served one two three; back nothing -> attached free gold bob:free
a stack's order holds though an operator has sent a request in another message group
    one: arrive create A free; two: issue create B bob:free; put two; at create busy*; batch one two; back
    one=2 two=0; served nothing -> attached nothing
a request that API Gateway refuses waits in place for a moment, and only until it has gone back once
    at create busy*; create A free = waits 1-2; calls create=2; log INFO Create alice:free, OnExisting
    Fail waits: Could not attach API key alice; time 2; again = waits 2-4; calls create=1 -> attached
    nothing
its stack's later ones wait behind it, and others are served after it has gone back
    arrivals; four: arrive delete Y #other; at create throttled=7; at put {back one=7 three=0}ok; batch
    one four three; back one=7 three=0 at once; served four -> attached nothing
a look reads the pages of a batch in one call, and asks nobody
    arrivals; at create throttled=25; batch one two; back one=20 two=20; time 20; batch one two; calls
    none; ledger 1R 0W; back one=5 two=5 -> attached nothing
a quota is tried for half a minute, and fails with its text; refusals of another kind do not count
    at create throttled=600 quota*; create A free = waits 20; time 600; again = waits 1-2; time 2; again =
    waits 2-4; time 4; again = waits 4-8; time 8; again = waits 8-16; time 16; again = FAILED
    LimitExceededException: Limit exceeded (function; held nothing -> attached nothing
what has no time in this turn begins nothing, and is not hidden; a mark of its death stands
    arrivals; at create dies*2; batch one; back dies; batch one; back dies; seconds 30; batch one two;
    back one=0 two=0; calls none; log INFO Create alice:free, OnExisting Fail waits: Could not serve
    Create: the function's time is nearly up; seconds 90; batch one two; back two=0; served one ->
    attached free
what has no time in this turn goes back at once
    arrivals; seconds 30; batch one two; back one=0 two=0 at once; calls none -> attached nothing
what SQS does not take back comes again
    at create cut*; at hide denied; create A free = fails; log WARNING 1 messages come again when their
    visibility time-out is over: An error occurred (AccessDeniedException) -> attached nothing
what SQS does not take back costs time, and the function returns in time
    arrivals; at create busy*; at hide {time 3}cut*; batch one two; back one two; log 1 messages come
    again when their visibility time-out is over: Could not give messages back: gave up -> attached
    nothing
behind a call that has hung a request goes back and is not answered
    arrivals; at create {time 79}ok; batch one two; back one=0 two=0; served nothing; batch one; served
    one -> attached free
a request at which functions die is served alone, and at last answered FAILED
    arrivals; at create:free dies*4; batch one two three; back dies; time 180; batch one two three; back
    dies; time 180; batch one two three; back dies; batch two; served two; time 180; batch one three; back
    dies; batch one three; served one=FAILED; back three=0; log 3 invocations died; batch three; served
    three; excuse free -> attached gold bob:free
after a death the log names each request before the function begins it
    at create dies; create A free = dies; time 180; again = ATTACHED; log INFO Its turn has come: Create
    alice:free, OnExisting Fail -> attached free
nobody knows yet at which request the function has died: another stack's goes back at once
    arrivals; received one=2@180 two=2@180; batch one two three; served one three; back two=0 -> attached
    free bob:free
others were served apart meanwhile
    arrivals; received one=11@180 two=11@180; batch one two three; served one three; back two=0 ->
    attached free bob:free
it was received too often for that: it has waited
    arrivals; received one=20@180 two=20@180; batch one two three; served one two three -> attached free
    gold bob:free
it went back in time
    arrivals; received one=7@179 two=7@179; batch one two three; served one two three -> attached free
    gold bob:free
only the first of a stack counts
    arrivals; received three=2@180; batch one two three; served one two three -> attached free gold
    bob:free
an error of one request costs its own stack only; it does not come again at once, and again and again
    arrivals; at check crash; batch one two three; back one three; served two; log Not answered, so it comes
    again when its visibility time-out is over; log DEBUG Its turn has come: Create alice:free, OnExisting
    Fail -> attached gold
an error after another stack has gone back: both come again, each in its time
    arrivals; at check ok crash; at create throttled=7; batch one two three; back one=7 three=0 two ->
    attached nothing
giving a suspect back first leaves time to serve the others
    arrivals; received one=2@180 two=2@180; at hide {time 3}cut*; batch one two; served one; back two ->
    attached free
a request that only waited does not count as in a death
    arrivals; at create busy*2; batch one; back one=2; time 180; batch one two; served one two -> attached
    free gold
where nobody can see whether a function has died, all are served
    arrivals; received one=2@180; at read denied; batch one two; served one two; log WARNING Could not
    look up a batch's requests together: Could not read the ledger -> attached free gold
nobody can see it for long: the function returns in time
    arrivals; at read slow*; batch one two; back one=0 two=0; at read -> attached nothing
a mark says until when this function can run
    create B free; at delete dies; delete B free = dies; time 146; create A free = waits 1-2; time 3;
    again = ATTACHED -> attached free
""",
    Batches,
)


def test_an_answer_that_hangs_holds_up_none_of_the_nine_others() -> None:
    """Lambda hands over ten messages at most. Here each delivery waits until all ten are under way."""
    names = [f"r{number}" for number in range(10)]
    with staged(Batches) as story:
        story.function = replace(story.function, background=_threads)
        together, put = threading.Barrier(10), story.deliver

        def deliver(request: Request, deadline: Deadline, body: bytes) -> None:
            together.wait(5)
            put(request, deadline, body)

        story.deliver = deliver  # type: ignore[method-assign]  # it hangs
        story.play("; ".join(f"{name}: arrive delete {name} #other" for name in names))
        story.play(f"batch {' '.join(names)}; back nothing")
        assert {answer["RequestId"] for answer in story.put} == {*names}


@pytest.mark.parametrize(
    "body",
    [
        *("", "hello", "7", "null", "[]", "{}", '{"event": null, "arrived": 1}', '{"requestPayload": 7}'),
        '{"event": {"RequestType": "Create"}, "arrived": 1}',
        pytest.param(f'{{"arrived": {10**400}}}', id="arrived at no time that a float holds"),
        pytest.param("[" * 200_000, id="nested too deep"),
    ],
)
def test_a_stray_comes_again_without_a_dead_letter_queue_and_the_rest_is_served(body: str) -> None:
    """SQS itself puts it aside in the end."""
    with staged(Batches) as story:
        story.play("arrivals")
        story.messages["stray"] = Message("stray", "group", body, story.now)
        story.play("batch one stray two; served one two; back stray -> attached free gold")
        story.play("log ERROR Message stray is no request: ")


@pytest.mark.parametrize(
    ("fate", "seconds", "back", "taken"),
    [
        ("ok", 90, "nothing", 0),
        ("limit*", 90, "stray", GIVING_TIME - BEFORE_DELIVERY),
        ("limit*", 6, "stray", 1),
    ],
)
def test_a_stray_goes_to_the_dead_letter_queue_and_takes_little_of_the_others_time(
    fate: str, seconds: int, back: str, taken: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with staged(Batches) as story:
        story.send_message = send = mock.Mock(return_value={"MessageId": "1"})  # type: ignore[method-assign]  # it tells
        queue, began = Queue(story.line(story), "queue", "aside"), story.now
        story.function = replace(story.function, queue=queue)
        story.messages["stray"] = Message("stray", "group", "no request", story.now)
        story.play(f"seconds {seconds}; at send {fate}; batch stray; back {back}")
        assert story.now - began == taken
        if back == "stray":
            story.play("log WARNING Message stray stays in the queue: Could not put a message aside: gave up")
        else:
            assert send.call_args.kwargs.items() >= {"QueueUrl": "aside", "MessageBody": "no request"}.items()
    assert json.loads(capsys.readouterr().out)["NoRequest"] == [1]
