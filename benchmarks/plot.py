"""The plot: how many keys are attached over time, by each policy. An SVG, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from math import ceil

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 820, 360, 52, 40, 230, 44
COLOURS = ("#0b6e4f", "#4c9f70", "#7a5195", "#d45087", "#f2994a")
POINTS = 120


def svg(title: str, lines: Mapping[str, Sequence[tuple[float, int]]], seconds: float, most: int) -> str:
    """Draw steps, one line for each name; `seconds` and `most` are the axes' ends."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(second: float) -> float:
        return LEFT + wide * min(second, seconds) / seconds

    def y(keys: float) -> float:
        return TOP + high * (1 - keys / most)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for keys in range(0, most + 1, _step(most)):
        parts.append(f'<path d="M{LEFT} {y(keys):.1f}H{LEFT + wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(keys) + 4:.1f}" text-anchor="end">{keys}</text>')
    for second in range(0, ceil(seconds) + 1, _step(seconds)):
        text = f'<text x="{x(second):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{second}</text>'
        parts.append(text)
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle">seconds (virtual)</text>')
    taken: list[float] = []
    for (name, history), colour in zip(lines.items(), COLOURS, strict=False):
        shown = _thinned([point for point in history if point[0] <= seconds])
        path = "".join(f"{'L' if number else 'M'}{x(at):.1f} {y(keys):.1f}" for number, (at, keys) in enumerate(shown))
        end = y(shown[-1][1])
        parts.append(f'<path d="{path}H{LEFT + wide}" fill="none" stroke="{colour}" stroke-width="2"/>')
        places = (end + 15 * number for number in count())
        label = next(place for place in places if all(abs(place - other) > 13 for other in taken))
        taken.append(label)
        told = f"{name}: {history[-1][1]} in {history[-1][0]:.0f} s"
        parts.append(f'<text x="{LEFT + wide + 8}" y="{label + 4:.1f}" fill="{colour}">{escape(told)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _thinned(history: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    every = max(1, len(history) // POINTS)
    return [*history[::every], history[-1]]


def _step(most: float) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if most / step <= 8)
