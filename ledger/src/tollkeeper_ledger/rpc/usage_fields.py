"""Read the fields that every message about usage has, each refused with field, bound and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import ATTRIBUTES_MAX, NAME_BYTES_MAX, QUANTITIES_MAX, UNITS_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper.quota.v1 import usage_pb2


def checked_quantities(quantities: Sequence[usage_pb2.Quantity]) -> tuple[tuple[str, int], ...]:
    """Give units per meter, each meter once. Raises InvalidFieldError."""
    if len(quantities) > QUANTITIES_MAX:
        raise _too_many("quantities", len(quantities), QUANTITIES_MAX)
    seen: set[str] = set()
    for index, quantity in enumerate(quantities):
        field = f"quantities[{index}]"
        check_text(f"{field}.meter", quantity.meter)
        if quantity.meter in seen:
            raise InvalidFieldError(
                f"{field}.meter", "stands twice", reason="FIELD_REPEATED", value=quantity.meter, bound="named once"
            )
        seen.add(quantity.meter)
        if not 0 <= quantity.units <= UNITS_MAX:
            raise InvalidFieldError(
                f"{field}.units",
                "is out of range",
                reason="FIELD_OUT_OF_RANGE",
                value=quantity.units,
                bound=f"0 to {UNITS_MAX}",
                remedy="send a whole number of the meter's unit within the bound",
            )
    return tuple((quantity.meter, quantity.units) for quantity in quantities)


def checked_attributes(attributes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Give names and values. Raises InvalidFieldError."""
    if len(attributes) > ATTRIBUTES_MAX:
        raise _too_many("attributes", len(attributes), ATTRIBUTES_MAX)
    for name, value in attributes.items():
        check_text("attributes.key", name)
        check_text("attributes", value, empty=True)
    return tuple(attributes.items())


def check_text(field: str, text: str, *, empty: bool = False) -> None:
    """Refuse what is no name. Raises InvalidFieldError."""
    if not text and not empty:
        raise InvalidFieldError(field, "is empty", reason="FIELD_REQUIRED", bound="1 to 128 bytes")
    if len(text.encode()) > NAME_BYTES_MAX:
        raise InvalidFieldError(
            field, "is too long", reason="FIELD_TOO_LONG", value=text, bound="at most 128 bytes", remedy="shorten it"
        )
    if not text.isprintable():
        raise InvalidFieldError(
            field, "has characters that can't be shown", bound="free of control characters", remedy="leave them out"
        )


def _too_many(field: str, count: int, bound: int) -> InvalidFieldError:
    return InvalidFieldError(
        field, "has too many entries", reason="FIELD_TOO_LONG", value=count, bound=f"at most {bound}"
    )
