"""What a tenant may do: features by name, some with a number or a text. A metered feature is a limit. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

FeatureValue: TypeAlias = bool | int | str
"""True = there, without a value; False = not there."""


def features_of(plan: Mapping[str, Any], own: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
    """Give a tenant's features in name order: its plan's, its own instead of them or beside; none that is False.

    `plan` is a plan version's definition, empty = no plan: then there are none.
    """
    if not plan:
        return {}
    of_plan = {**dict.fromkeys(plan.get("features", ()), True), **plan.get("feature_values", {})}
    merged = {**of_plan, **own}
    return {name: merged[name] for name in sorted(merged) if merged[name] is not False}


def value_text(value: FeatureValue) -> str:
    """Give a feature's value as text; empty = it has none."""
    return "" if value is True else str(value)
