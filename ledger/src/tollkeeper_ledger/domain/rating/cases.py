"""Rate worked cases: a price, an input, and what comes out, as a price list's author writes them down.

A case has `id`, `model`, `params`, `input`, and may have `expect`, whose keys then choose what is answered. Decimals
are strings, `*_cents` are minor units, `amount` is in major units and exact unless the case names a currency.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.rating.case_fields import CaseError, Fields
from tollkeeper_ledger.domain.rating.case_money import MONEY_MODELS
from tollkeeper_ledger.domain.rating.case_usage import USAGE_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Answer: TypeAlias = dict[str, Any]
"""Names of results, as in `expect`: decimals as strings, counts as numbers, or lists of decimals."""

MODELS: Mapping[str, Callable[[Fields, Fields], Answer]] = MappingProxyType({**USAGE_MODELS, **MONEY_MODELS})
"""Every model that a case may name."""


@dataclass(frozen=True, slots=True)
class RatedCase:
    """One case's answer beside what its author expects."""

    id: str
    group: str
    answer: Answer
    expected: Answer | None

    @property
    def differences(self) -> tuple[str, ...]:
        """Name what differs, key by key; decimals are compared by value."""
        if self.expected is None:
            return ()
        return tuple(
            f"{key}: expected {value!r}, rated {self.answer.get(key)!r}"
            for key, value in self.expected.items()
            if not _is_same(value, self.answer.get(key))
        )


def rate_case(case: Mapping[str, Any]) -> RatedCase:
    """Rate one case. Raises CaseError naming the case, the field and the remedy."""
    fields = Fields(case, path="")
    name = fields.text("id")
    try:
        params, given = fields.inner("params"), fields.inner("input")
        answer = _model(fields.text("model"))(params, given)
        params.check_all_read()
        given.check_all_read()
    except CaseError as fault:
        raise CaseError(fault.field, fault.problem, remedy=fault.remedy, case=name) from fault
    except ValueError as error:
        raise CaseError("params", str(error), remedy="correct the case", case=name) from error
    except ArithmeticError as error:
        problem = "divide by zero, or have more digits than are calculated with"
        raise CaseError("params and input", problem, remedy="correct the case", case=name) from error
    expected = case.get("expect")
    if expected is not None:
        answer = {key: answer.get(key) for key in expected}
    return RatedCase(id=name, group=str(case.get("group", "")), answer=answer, expected=expected)


def _model(name: str) -> Callable[[Fields, Fields], Answer]:
    if name not in MODELS:
        raise CaseError("model", f"{name!r} is not known", remedy=f"choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name]


def _is_same(expected: object, answered: object) -> bool:
    if isinstance(expected, list) and isinstance(answered, list):
        return len(expected) == len(answered) and all(map(_is_same, expected, answered))
    if expected is None or answered is None:
        return expected is answered
    return Fields({"value": expected}, path="").decimal("value") == Fields({"value": answered}, path="").decimal(
        "value"
    )
