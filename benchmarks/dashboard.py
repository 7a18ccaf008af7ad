"""Draws template.yaml's dashboard with the model's figures: python -m benchmarks.dashboard, from the root.

It reads the widgets from the template, plays an hour in virtual time, and sorts what the function, the queue
and Lambda would report into them. `make benchmark` draws it too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from math import ceil
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, TypeVar
from unittest import mock

from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import metrics

from .model import Account
from .waits import REFUSALS
from .waves import furnish, name
from .world import Process

TEMPLATE: Final = Path(__file__).parents[1] / "template.yaml"
PICTURE: Final = Path(__file__).with_name("dashboard.svg")
#: The hour: what CloudFormation sends in it.
HOUR: Final = 3600.0
#: API Gateway throttles every call from the one second to the other.
THROTTLED: Final = 1800.0, 2400.0
#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
#: Units of one column and one row of CloudWatch's grid, and of a widget's margins.
WIDE, HIGH, LEFT, TOP, BOTTOM, FONT = 40, 34, 38, 26, 58, 11
HEAD: Final = 34

T = TypeVar("T")
Points = list[tuple[float, float]]
"""Seconds, and a value."""
Series = Mapping[tuple[str, str, str], Points]
"""By namespace, metric, and its dimension's value."""


class Hour(Account):
    """An account in which somebody watches the function."""

    def __init__(self, seed: int) -> None:
        """Watch it from the beginning."""
        super().__init__(seed)
        self.series: dict[tuple[str, str, str], Points] = defaultdict(list)

    def play(self) -> Series:
        """Deploy, verify, move, wait for API Gateway, and delete: an hour."""
        furnish(self.gateway, 400)
        self.gateway.stuck["key399"] = REFUSALS["503"]
        for second in range(0, int(HOUR), 30):
            self.world.at(second, self._look)
        ways = {"Create": (None, "free"), "Verify": ("free", "free"), "Move": ("free", "pro")}
        for at, what, first, last in (
            (60, "Create", 0, 260),
            (900, "Verify", 0, 120),
            (1300, "Move", 0, 60),
            (THROTTLED[0] + 60, "Create", 260, 320),
            (2500, "Create", 398, 402),  # one that API Gateway refuses for an hour, and two that do not exist
        ):
            for number in range(first, last):
                self.world.at(at + self.world.dice.uniform(0, 2), partial(self._send, number, *ways[what]))
        for number in range(200, 260):
            self.world.at(3000.0, partial(self._send, number, "free", None))
        self.world.at(THROTTLED[0], self._shut)
        with mock.patch.object(metrics, "_emit", self._emit):
            self.run()
        return self.series

    def _send(self, number: int, before: str | None, after: str | None) -> None:
        key, kind = name(number), "Update" if before and after else "Create" if after else "Delete"
        self.send(kind, f"stack{number % 4}", key, key, after or before or "", before and f"{key}:{before}")

    def _shut(self) -> None:
        self.gateway.shut = THROTTLED[1], None

    def _emit(self, values: Mapping[str, float]) -> None:
        for metric, value in values.items():
            self.series[metrics.NAMESPACE, metric, "usage-plan-key"].append((self.world.now, value))

    def _look(self) -> None:
        flying, waiting, oldest = self.fifo.depth()
        for metric, value in (
            ("ApproximateNumberOfMessagesVisible", waiting),
            ("ApproximateNumberOfMessagesNotVisible", flying),
            ("ApproximateAgeOfOldestMessage", oldest),
        ):
            self.series["AWS/SQS", metric, "${Requests.QueueName}"].append((self.world.now, value))
        self._count("AWS/SQS", "ApproximateNumberOfMessagesVisible", "${Undelivered.QueueName}", 0)
        self._count("AWS/SQS", "ApproximateNumberOfMessagesVisible", "${Unanswered.QueueName}", 0)
        self._count("AWS/Lambda", "Errors", "${UsagePlanKeyFunction}", 0)
        self._count("AWS/Lambda", "Throttles", "${UsagePlanKeyFunction}", 0)

    def _count(self, namespace: str, metric: str, of: str, value: float) -> None:
        self.series[namespace, metric, of].append((self.world.now, value))

    def _invoke(self, process: Process, call: Callable[[], T]) -> T:
        began = self.world.now
        try:
            return super()._invoke(process, call)
        finally:
            self._count("AWS/Lambda", "Invocations", "${UsagePlanKeyFunction}", 1)
            self._count("AWS/Lambda", "Duration", "${UsagePlanKeyFunction}", 1000 * (self.world.now - began))


def widgets() -> list[dict[str, Any]]:
    """Read the widgets of the template's dashboard."""
    resources = yaml_parse(TEMPLATE.read_text())["Resources"].values()
    (board,) = (each for each in resources if each["Type"] == "AWS::CloudWatch::Dashboard")
    found: list[dict[str, Any]] = json.loads(board["Properties"]["DashboardBody"]["Fn::Sub"])["widgets"]
    return found


def lines(properties: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """Name a widget's metrics, each with its options; CloudWatch takes "." and "..." for what stood before.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    before: list[str] = []
    for row in properties["metrics"]:
        names = [each for each in row if isinstance(each, str)]
        if names[:1] == ["..."]:
            names = [*before[: 5 - len(names)], *names[1:]]
        before = [before[at] if each == "." else each for at, each in enumerate(names)]
        options = {**properties, **next((each for each in row if isinstance(each, dict)), {})}
        yield (before[0], before[1], before[3]), {"label": before[1], **options}


def binned(points: Sequence[tuple[float, float]], stat: str, period: int) -> Points:
    """Sum a metric up by its periods; CloudWatch shows no point where nothing was reported."""
    by: dict[int, list[float]] = defaultdict(list)
    for at, value in points:
        if at < HOUR:
            by[int(at // period)].append(value)
    return [((number + 0.5) * period, _statistic(by[number], stat)) for number in sorted(by)]


def _statistic(values: Sequence[float], stat: str) -> float:
    if stat.startswith("p"):
        return quantiles([*values, *values], n=100)[int(stat[1:]) - 1]
    return sum(values) if stat == "Sum" else max(values)


def svg(series: Series) -> str:
    """Draw all widgets."""
    found = widgets()
    width, height = 24 * WIDE, HEAD + HIGH * max(one["y"] + one["height"] for one in found)
    title = "The dashboard, with the model's figures for an hour: no figure is of a real account"
    head = f'xmlns="http://www.w3.org/2000/svg" width="{width}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg {head} font-family="sans-serif" font-size="{FONT}">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#f2f3f3"/>',
        f'<text x="10" y="22" font-size="15">{title}</text>',
    ]
    for one in found:
        parts += [
            f'<g transform="translate({one["x"] * WIDE + 4} {HEAD + one["y"] * HIGH + 4})">',
            *_widget(one, series),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def _widget(one: Mapping[str, Any], series: Series) -> Iterator[str]:
    width, height, of = one["width"] * WIDE - 8, one["height"] * HIGH - 8, one["properties"]
    drawn = [
        (options, binned(series.get(metric, []), options["stat"], options["period"]))
        for metric, options in lines(of)
    ]
    yield f'<rect width="{width}" height="{height}" fill="#fff" stroke="#d5dbdb"/>'
    yield f'<text x="10" y="17" font-weight="bold">{escape(of["title"])}</text>'
    wide, bottom = width - 2 * LEFT, height - BOTTOM
    scales = {
        side: _nice(
            max(
                (value for options, points in drawn if _side(options) == side for _, value in points),
                default=0,
            )
        )
        for side in ("left", "right")
    }
    if of.get("stacked"):
        scales["left"] = _nice(max(_stacks(points for _, points in drawn).values(), default=0))
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - TOP)
        yield f'<path d="M{LEFT} {y:.1f}H{width - LEFT}" stroke="#e3e6e6"/>'
        yield _text(LEFT - 4, y + 4, "end", f"{scales['left'] * part:g}")
        if any(_side(options) == "right" for options, _ in drawn):
            yield _text(width - LEFT + 4, y + 4, "start", f"{scales['right'] * part:g}")
    for minute in (0, 15, 30, 45, 60):
        yield _text(LEFT + wide * minute / 60, bottom + 13, "middle", f"{minute} min")
    floor: dict[float, float] = defaultdict(float)
    at, legend = 10, height - 24
    for (options, points), colour in zip(drawn, COLOURS, strict=False):
        most = scales[_side(options)]

        def place(second: float, value: float, most: float = most) -> str:
            return f"{LEFT + wide * second / HOUR:.1f} {bottom - (bottom - TOP) * value / most:.1f}"

        if of.get("stacked"):
            for second, value in points:
                low, floor[second] = floor[second], floor[second] + value
                half = options["period"] * 0.4
                left, right = second - half, second + half
                corners = [(left, low), (left, floor[second]), (right, floor[second]), (right, low)]
                yield f'<path d="M{"L".join(place(*corner) for corner in corners)}Z" fill="{colour}"/>'
        elif len(points) == 1:
            x, y = place(*points[0]).split()
            yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
        elif points:
            path = "L".join(place(*point) for point in points)
            yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        label = str(options["label"]).removeprefix("ApproximateNumberOf").removeprefix("Approximate")
        space = 20 + ceil(5.8 * len(label))
        if at + space > width:
            at, legend = 10, height - 8
        yield f'<path d="M{at} {legend - 4}h10" stroke="{colour}" stroke-width="5"/>'
        yield _text(at + 13, legend, "start", label)
        at += space


def _stacks(all_: Iterable[Points]) -> dict[float, float]:
    heights: dict[float, float] = defaultdict(float)
    for points in all_:
        for second, value in points:
            heights[second] += value
    return heights


def _side(options: Mapping[str, Any]) -> str:
    return str(options.get("yAxis", "left"))


def _nice(most: float) -> float:
    return next(
        float(step * 10**power) for power in range(7) for step in (1, 2, 5) if step * 10**power >= most
    )


def _text(x: float, y: float, anchor: str, told: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#545b64">{escape(told)}</text>'


def draw() -> None:
    """Play the hour, and draw it."""
    PICTURE.write_text(svg(Hour(1).play()))


if __name__ == "__main__":
    draw()
