"""Read the fields of a worked case, refusing what is not there, not a number, or not known."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_DECIMAL = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?")


class CaseError(ValueError):
    """A case that can't be rated, with field, problem and remedy."""

    def __init__(self, field: str, problem: str, *, remedy: str, case: str = "") -> None:
        self.field, self.problem, self.remedy, self.case = field, problem, remedy, case
        place = f"case {case}: " if case else ""
        super().__init__(f"{place}{field} {problem}; {remedy}")


class Fields:
    """Give the fields of one object by type, and remember which were read."""

    def __init__(self, values: Mapping[str, Any], *, path: str) -> None:
        self._values, self._path = values, path
        self._read: set[str] = set()
        self._within: list[Fields] = []

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Give the names of all fields."""
        return tuple(self._values)

    def text(self, name: str, *, default: str | None = None) -> str:
        """Give a string."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self._fault(name, f"must be a string, not {value!r}", remedy="give one")
        return value

    def decimal(self, name: str, *, default: Decimal | None = None) -> Decimal:
        """Give an exact decimal from a string or a whole number; floats are refused."""
        value = self.optional_decimal(name)
        if value is None:
            value = default
        if value is None:
            raise self._fault(name, "is missing", remedy='give a decimal string such as "2.50"')
        return value

    def optional_decimal(self, name: str) -> Decimal | None:
        """Give an exact decimal, None where it is absent or null."""
        value = self._get(name)
        return None if value is None else self._decimal_of(name, value)

    def whole(self, name: str, *, default: int | None = None) -> int:
        """Give a whole number, for example of minor units."""
        value = self.decimal(name, default=None if default is None else Decimal(default))
        if value != value.to_integral_value():
            raise self._fault(name, f"must be a whole number, not {value}", remedy="round it")
        return int(value)

    def decimals(self, name: str) -> tuple[Decimal, ...]:
        """Give a list of decimals, empty where it is absent."""
        return tuple(self._decimal_of(f"{name}[{place}]", value) for place, value in enumerate(self._list(name)))

    def rows(self, name: str, width: int) -> tuple[tuple[Decimal, ...], ...]:
        """Give a list of lists of `width` decimals."""
        rows = []
        for place, row in enumerate(self._list(name)):
            if not isinstance(row, list) or len(row) != width:
                raise self._fault(f"{name}[{place}]", f"must be a list of {width}, not {row!r}", remedy="complete it")
            rows.append(tuple(self._decimal_of(f"{name}[{place}]", value) for value in row))
        return tuple(rows)

    def inner(self, name: str) -> Fields:
        """Give an object's fields."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._fault(name, f"must be an object, not {value!r}", remedy="give one")
        return self._inner(value, name)

    def inners(self, name: str) -> tuple[Fields, ...]:
        """Give a list of objects' fields."""
        found = []
        for place, value in enumerate(self._list(name)):
            if not isinstance(value, dict):
                raise self._fault(f"{name}[{place}]", f"must be an object, not {value!r}", remedy="give one")
            found.append(self._inner(value, f"{name}[{place}]"))
        return tuple(found)

    def check_all_read(self) -> None:
        """Raise CaseError for a field that nobody read, here or further in: it would be left out silently."""
        unknown = sorted(set(self._values) - self._read)
        if unknown:
            raise self._fault(unknown[0], "is not known for this model", remedy="remove it or choose another model")
        for fields in self._within:
            fields.check_all_read()

    def _inner(self, value: Mapping[str, Any], name: str) -> Fields:
        fields = Fields(value, path=f"{self._path}{name}.")
        self._within.append(fields)
        return fields

    def _get(self, name: str) -> Any:
        self._read.add(name)
        return self._values.get(name)

    def _list(self, name: str) -> list[Any]:
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._fault(name, f"must be a list, not {value!r}", remedy="give one")
        return value

    def _decimal_of(self, name: str, value: object) -> Decimal:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, str) and _DECIMAL.fullmatch(value)):
            raise self._fault(name, f"must be a decimal string, not {value!r}", remedy='for example "2.50"')
        return Decimal(str(value))

    def _fault(self, name: str, problem: str, *, remedy: str) -> CaseError:
        return CaseError(f"{self._path}{name}", problem, remedy=remedy)
