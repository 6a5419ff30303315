"""The report: `report.json` for machines, a table for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.frame import Outcome

REPORT_VERSION = 1
_DIGITS = 4
_WHOLE_FROM = 1_000
_STOLEN_TOLD = 1.0
"""Percent from which on it is said."""


def report_of(
    outcomes: Mapping[str, Outcome], *, machine: Mapping[str, Any], missing: Sequence[str], is_quick: bool, repeats: int
) -> dict[str, Any]:
    """Give everything that was measured, with the goals and whether each was met.

    `met` is null where the figure was not measured, or where the run was a quick one, which decides nothing.
    """
    return {
        "version": REPORT_VERSION,
        "quick": is_quick,
        "repeats": repeats,
        "machine": dict(machine),
        "missing": list(missing),
        "benches": [_entry(name, outcome, is_quick=is_quick) for name, outcome in outcomes.items()],
    }


def _entry(name: str, outcome: Outcome, *, is_quick: bool) -> dict[str, Any]:
    goals = []
    for goal in outcome.bench.goals:
        value = outcome.value(goal.figure)
        goals.append(
            {
                "figure": goal.figure,
                "bound": goal.bound,
                "at_least": goal.is_at_least,
                "value": None if value is None else _rounded(value),
                "met": None if value is None or is_quick else goal.is_met(value),
            }
        )
    return {
        "name": name,
        "unit": outcome.bench.unit,
        "floor_is": outcome.bench.floor_is,
        "ours": {figure: _rounded(value) for figure, value in outcome.ours.items()},
        "floor": {figure: _rounded(value) for figure, value in outcome.floor.items()},
        "ratio": {figure: _rounded(value) for figure, value in outcome.ratio.items()},
        "beside": {
            who: {
                "figures": {figure: _rounded(value) for figure, value in beside.figures.items()},
                "ratio": {figure: _rounded(value) for figure, value in beside.ratio.items()},
            }
            for who, beside in outcome.beside.items()
        },
        "goals": goals,
        "stolen_percent": _rounded(outcome.stolen_percent),
    }


def _rounded(value: float) -> float:
    """Keep the digits that mean something."""
    return float(f"{value:.{_DIGITS}g}")


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def table_of(report: Mapping[str, Any]) -> str:
    """Give the report as a table of fixed width, one line per bench and one per goal below it."""
    lines = [f"{'bench':<28}{'unit':<12}{'per s':>12}{'of floor':>10}{'CPU us':>10}{'of floor':>10}{'p99 ms':>9}"]
    for entry in report["benches"]:
        ours, ratio = entry["ours"], entry["ratio"]
        lines.append(
            f"{entry['name']:<28}{entry['unit']:<12}{_shown(ours.get('per_s')):>12}{_shown(ratio.get('per_s')):>10}"
            f"{_shown(ours.get('cpu_us')):>10}{_shown(ratio.get('cpu_us')):>10}{_shown(ours.get('p99_ms')):>9}"
        )
        lines.append(f"    floor: {entry['floor_is']}")
        lines.extend(_line_beside(who, found) for who, found in entry["beside"].items())
        for goal in entry["goals"]:
            sign = ">=" if goal["at_least"] else "<="
            met = {True: "met", False: "NOT MET", None: "not judged"}[goal["met"]]
            lines.append(f"    goal: {goal['figure']} {sign} {goal['bound']:,}: {_shown(goal['value'])}, {met}")
        if entry["stolen_percent"] >= _STOLEN_TOLD:
            lines.append(
                f"    stolen: others on this hardware took up to {_shown(entry['stolen_percent'])} % of the cores"
                " meanwhile: figures by the clock say little, and CPU time is dearer than it is alone"
            )
    lines.extend(f"missing: {name}" for name in report["missing"])
    return "\n".join(lines)


def _line_beside(who: str, found: Mapping[str, Any]) -> str:
    """Give those who were measured beside, and what ours is of theirs."""
    figures, ratio = found["figures"], found["ratio"]
    shown = [
        f"{figure} {_shown(figures[figure])} ({_shown(ratio.get(figure))})"
        for figure in ("per_s", "cpu_us", "p50_ms", "p99_ms")
        if figures.get(figure)
    ]
    return f"    beside: {who}: {', '.join(shown)}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < _WHOLE_FROM else f"{value:,.0f}"
