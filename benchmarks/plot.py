"""Draws how many keys each policy attaches over time, as an SVG that phones and printers show too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil
from typing import Final

from .model import SERIAL_CALL

History = Sequence[tuple[float, int]]
"""Seconds, and the keys that are attached by then."""

#: A phone shows 640 units in 360 points, so letters of 20 are eleven points high.
WIDTH, LEFT, TOP, RIGHT, HIGH, LINE, FONT = 640, 70, 44, 22, 300, 28, 20
#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/). Where a printer has none, the dashes differ.
STYLES: Final = (("#0072b2", ""), ("#d55e00", "12 5"), ("#000000", "3 4"), ("#009e73", "16 4 3 4"))
LIMIT: Final = ("#777777", "2 5")
POINTS = 120


def svg(title: str, lines: Mapping[str, History], seconds: float, most: int) -> str:
    """Draw one line for each name, and the serial limit: no policy can attach more keys in the same time.

    The axes end at `most` keys, and at `seconds` or where the last line ends.
    """
    longest = max([seconds, *(history[-1][0] for history in lines.values())])
    step = _step(longest)
    ends, wide, bottom = ceil(longest / step) * step, WIDTH - LEFT - RIGHT, TOP + HIGH
    height = bottom + 74 + LINE * (len(lines) + 1)

    def x(second: float) -> float:
        return LEFT + wide * second / ends

    def y(keys: float) -> float:
        return TOP + HIGH * (1 - keys / most)

    def path(history: History) -> str:
        return "M" + "L".join(f"{x(at):.1f} {y(keys):.1f}" for at, keys in history)

    def text(at: float, high: float, anchor: str, told: object) -> str:
        return f'<text x="{at:.1f}" y="{high:.1f}" text-anchor="{anchor}">{escape(str(told))}</text>'

    head = f'xmlns="http://www.w3.org/2000/svg" width="480" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg {head} font-family="sans-serif" font-size="{FONT}">',
        f"<title>{escape(title)} (model)</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        text(12, 26, "start", f"{title} (model)"),
        (
            f'<g transform="translate(20 {TOP + HIGH / 2}) rotate(-90)">'
            f"{text(0, 0, 'middle', 'keys attached')}</g>"
        ),
        text(LEFT + wide / 2, bottom + 50, "middle", "seconds since the deploy began (virtual time)"),
    ]
    for keys in range(0, most + 1, _step(most)):
        parts.append(f'<path d="M{LEFT} {y(keys):.1f}H{LEFT + wide}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, y(keys) + 7, "end", keys))
    parts += [text(x(second), bottom + 24, "middle", second) for second in range(0, ends + 1, step)]
    limit = most * SERIAL_CALL
    told = f"serial limit, a key in {SERIAL_CALL} s: {most} keys in {limit:.0f} s"
    drawn: list[tuple[str, History, tuple[str, str]]] = [(told, [(0.0, 0), (limit, most)], LIMIT)]
    for (name, history), style in zip(lines.items(), STYLES, strict=True):
        at, keys = history[-1]
        told = f"{keys} keys in {at:.0f} s" if keys == most else f"stops at {keys} keys after {at:.0f} s"
        thinned = [*history[:: max(1, len(history) // POINTS)], history[-1], (float(ends), keys)]
        drawn.append((f"{name}: {told}", thinned, style))
    for number, (told, history, (colour, dashes)) in enumerate(drawn):
        stroke = f'fill="none" stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"'
        legend = bottom + 78 + LINE * number
        parts.append(f'<path d="{path(history)}" {stroke}/><path d="M12 {legend}H{LEFT - 8}" {stroke}/>')
        parts.append(text(LEFT, legend + 7, "start", told))
    return "\n".join([*parts, "</svg>", ""])


def _step(most: float) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if most / step <= 8)
