"""What a run costs at most, in us-east-1 and without the free tier.

The prices are those of docs/deploy.md, which links AWS's pages; they are of 25 November 2026.
"""

from __future__ import annotations

from typing import Final

from .world import ROOT, template_of

HOURS: Final = 3
"""No run takes longer: it takes an hour if all is well."""
REQUESTS: Final = 2000
"""More than a run sends."""
MONTH: Final = 30 * 24
ALARM, METRIC, SQS, THOUSAND = 0.10, 0.30, 0.50 / 1_000_000, 0.014
"""Dollars: an alarm a month, a metric a month, a request of SQS, a thousand requests in all."""
SENDS: Final = 3000
"""More messages than questions.py sends in its two seconds."""
METRICS: Final = 30
"""More than the function has."""
POLLS: Final = 5 * 180
"""What Lambda polls an idle queue in an hour."""
ALARMS: Final[int] = sum(
    resource["Type"] == "AWS::CloudWatch::Alarm"
    for resource in template_of(ROOT / "template.yaml")["Resources"].values()
)

PROBE_A_DAY: Final = f"${24 * POLLS * SQS:.2f}"
FUNCTION_A_DAY: Final = f"${24 * (ALARMS * ALARM / MONTH + POLLS * SQS):.2f}"


def at_most() -> float:
    """Add up what a run takes, in dollars."""
    an_hour = (ALARMS * ALARM + METRICS * METRIC) / MONTH + 2 * POLLS * SQS
    return HOURS * an_hour + REQUESTS / 1000 * THOUSAND + SENDS * SQS
