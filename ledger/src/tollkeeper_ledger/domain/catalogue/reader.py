"""Read the fields of one table, each into its type, and collect what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.catalogue.tree import Listing, Node, Scalar, Table
from tollkeeper_ledger.domain.money import CURRENCY_DIGITS, DECIMAL_DIGITS_MAX, parse_decimal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tollkeeper_ledger.domain.catalogue.faults import Faults
    from tollkeeper_ledger.domain.features import FeatureValue

UNITS_MAX = 2**53 - 1
LIST_LENGTH_MAX = 10_000
_FEATURE_CHARS_MAX = 128
NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NAME_BOUND = "1 to 128 of A-Z a-z 0-9 . _ : -"
_WHOLE = re.compile(r"[+-]?[0-9][0-9_]{0,30}")
_UNSAFE = re.compile("[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_YEAR_FIRST, _YEAR_LAST = 2000, 2199


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that must exist: in the catalogue or already stored."""

    kind: str
    name: str
    line: int
    path: str


@dataclass(slots=True)
class Collected:
    """Gather what reading finds besides values: faults, and names that must exist."""

    faults: Faults
    references: list[Reference] = field(default_factory=list)
    currency: str = ""
    """Of the plan that is being read: amounts may be given per currency."""


def is_time_zone(name: str) -> bool:
    """Whether this is a time zone of the IANA list."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


class Fields:
    """Read one table's fields. A fault gives the field's default, so that reading goes on and finds the others."""

    def __init__(
        self,
        node: Node,
        path: str,
        collected: Collected,
        *,
        names: frozenset[str],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.line = node.line
        self.path = path
        self._collected = collected
        self._nodes: dict[str, Node] = {}
        self._lines: dict[str, int] = {}
        if not isinstance(node, Table):
            self.fault("", "is not a table of fields", remedy="write `name: value` lines")
            return
        for entry in node.entries:
            name = (aliases or {}).get(entry.name, entry.name)
            if name not in names:
                near = get_close_matches(name, names, n=1)
                collected.faults.add(
                    entry.line,
                    self._at(entry.name[:128]),
                    "is not a field here",
                    bound=", ".join(sorted(names)),
                    remedy=f"did you mean {near[0]!r}?" if near else "remove it",
                )
            elif name in self._nodes:
                collected.faults.add(entry.line, self._at(name), "stands twice", remedy="keep one of them")
            else:
                self._nodes[name] = entry.value
                self._lines[name] = entry.line

    def _at(self, name: str) -> str:
        return ".".join(part for part in (self.path, name) if part)

    def line_of(self, name: str) -> int:
        """Give the line of a field, or of the table where the field is missing."""
        return self._lines.get(name, self.line)

    def fault(self, name: str, problem: str, *, value: str = "", bound: str = "", remedy: str = "") -> None:
        """Add a fault of a field."""
        self._collected.faults.add(self.line_of(name), self._at(name), problem, value=value, bound=bound, remedy=remedy)

    def has(self, name: str) -> bool:
        """Whether the field stands there and isn't null."""
        node = self._nodes.get(name)
        return node is not None and not (isinstance(node, Scalar) and node.is_null)

    def _scalar(self, name: str, *, required: bool) -> Scalar | None:
        if not self.has(name):
            if required:
                self.fault(name, "is missing", remedy="add it")
            return None
        node = self._nodes[name]
        if not isinstance(node, Scalar):
            self.fault(name, "is not a single value", remedy="write one value")
            return None
        return node

    def text(self, name: str, *, required: bool = False, default: str = "", length_max: int = 200) -> str:
        """Read text for people: no control or direction characters."""
        node = self._scalar(name, required=required)
        if node is None:
            return default
        if required and not node.text.strip():
            self.fault(name, "is empty", remedy="give it a value")
        return self._safe_text(name, node.text, length_max) or default

    def block(self, name: str) -> str:
        """Read text for machines, of many lines; whoever asked for it judges what stands in it."""
        node = self._scalar(name, required=False)
        return "" if node is None else node.text.strip()

    def _safe_text(self, name: str, text: str, length_max: int) -> str:
        if len(text) > length_max:
            self.fault(name, "is too long", value=text, bound=f"up to {length_max} characters")
            return ""
        if _UNSAFE.search(text):
            self.fault(name, "has control or direction characters", value=ascii(text), remedy="remove them")
            return ""
        return text

    def texts(self, name: str, *, length_max: int = 200, count_max: int = 20) -> tuple[str, ...]:
        """Read a list of texts for people; one text is a list of one."""
        return tuple(
            self._safe_text(name, node.text, length_max) for node in self._scalars(name, count_max) if node.text
        )

    def _scalars(self, name: str, count_max: int) -> list[Scalar]:
        if not self.has(name):
            return []
        node = self._nodes[name]
        items = node.items if isinstance(node, Listing) else (node,)
        if len(items) > count_max:
            self.fault(name, "has too many entries", value=str(len(items)), bound=f"up to {count_max}")
            return []
        scalars = [item for item in items if isinstance(item, Scalar) and not item.is_null]
        if len(scalars) != len(items):
            self.fault(name, "has an entry that is not a single value")
        return scalars

    def name(self, name: str, *, required: bool = True, refers_to: str = "") -> str:
        """Read a name; "" where it is missing or malformed. `refers_to` says of what kind it must exist."""
        node = self._scalar(name, required=required)
        if node is None:
            return ""
        return self._checked_name(name, node, refers_to)

    def _checked_name(self, name: str, node: Scalar, refers_to: str) -> str:
        if NAME.fullmatch(node.text) is None:
            self._collected.faults.add(
                node.line, self._at(name), "is not a name", value=ascii(node.text)[:80], bound=_NAME_BOUND
            )
            return ""
        if refers_to:
            self._collected.references.append(Reference(refers_to, node.text, node.line, self._at(name)))
        return node.text

    def names(self, name: str, *, refers_to: str = "", count_max: int = 100) -> tuple[str, ...]:
        """Read a list of names, each once; one name is a list of one."""
        found: list[str] = []
        for node in self._scalars(name, count_max):
            one = self._checked_name(name, node, refers_to)
            if one in found:
                self._collected.faults.add(node.line, self._at(name), "names the same twice", value=one)
            elif one:
                found.append(one)
        return tuple(found)

    def features(self, name: str) -> dict[str, FeatureValue]:
        """Read features: names, names with a value, or a table of both; each must exist."""
        found: dict[str, FeatureValue] = {}
        for named, value in self._named(name):
            one = self._checked_name(name, named, "feature")
            if one in found:
                self._collected.faults.add(named.line, self._at(name), "names the same twice", value=one)
            elif one:
                found[one] = True if value is None else self._feature_value(f"{name}.{one}", value)
        return found

    def _named(self, name: str) -> Iterator[tuple[Scalar, Node | None]]:
        """Give names with values, in a list or a table; None = a name alone."""
        node = self._nodes[name] if self.has(name) else Listing((), self.line)
        for item in node.items if isinstance(node, Listing) else (node,):
            if isinstance(item, Scalar):
                yield item, None
            elif isinstance(item, Table):
                for entry in item.entries:
                    yield Scalar(entry.name, entry.line, plain=True), entry.value
            else:
                self.fault(name, "has a list in its list", remedy="name each feature once")

    def _feature_value(self, name: str, node: Node) -> FeatureValue:
        bound = f"true, false, a whole number up to {UNITS_MAX}, or a text"
        if not isinstance(node, Scalar) or node.is_null or not node.text:
            self._collected.faults.add(node.line, self._at(name), "is not a single value", bound=bound)
            return False
        if node.plain and node.text in {"true", "false"}:
            return node.text == "true"
        if not node.plain or _WHOLE.fullmatch(node.text) is None:
            return self._safe_text(name, node.text, _FEATURE_CHARS_MAX)
        if not 0 <= int(node.text) <= UNITS_MAX:
            self._collected.faults.add(node.line, self._at(name), "is out of range", value=node.text, bound=bound)
        return int(node.text)

    def whole(self, name: str, *, least: int, most: int = UNITS_MAX, required: bool = False, default: int = 0) -> int:
        """Read a whole number within bounds."""
        node = self._scalar(name, required=required)
        if node is None:
            return default
        bound = str(least) if least == most else f"a whole number, {least} to {most}"
        if _WHOLE.fullmatch(node.text) is None:
            self.fault(name, "is not a whole number", value=node.text, bound=bound)
            return default
        value = int(node.text)
        if not least <= value <= most:
            self.fault(name, "is out of range", value=node.text, bound=bound)
            return default
        return value

    def refer(self, kind: str, name: str, field: str) -> None:
        """Say that something of this name must exist."""
        self._collected.references.append(Reference(kind, name, self.line_of(field), self._at(field)))

    def in_currency(self, currency: str) -> None:
        """Read amounts that are given per currency as those of this one from now on."""
        self._collected.currency = currency

    def decimal(self, name: str, *, required: bool = True) -> Decimal:
        """Read an exact decimal of at least 0; one that is given per currency, in the currency that is being read."""
        if isinstance(self._nodes.get(name), Table):
            return self._decimal_in_currency(name)
        node = self._scalar(name, required=required)
        if node is None:
            return Decimal(0)
        bound = f"a decimal like 2.50 of at least 0, up to {DECIMAL_DIGITS_MAX} digits on each side of the point"
        try:
            value = parse_decimal(node.text)
        except ValueError:
            self.fault(name, "is not a decimal", value=node.text, bound=bound, remedy='write it as "2.50"')
            return Decimal(0)
        if value < 0:
            self.fault(name, "is negative", value=node.text, bound=bound)
            return Decimal(0)
        return value

    def payable(self, name: str) -> Decimal:
        """Read an amount that is to be paid as it is: with no more digits than its currency has."""
        amount = self.decimal(name)
        currency = self._collected.currency
        digits = CURRENCY_DIGITS.get(currency, DECIMAL_DIGITS_MAX)
        if amount != amount.quantize(Decimal(1).scaleb(-digits)):
            bound = f"up to {digits} digits after the point in {currency}"
            self.fault(name, "can't be paid", value=f"{amount:f}", bound=bound, remedy="round it")
        return amount

    def _decimal_in_currency(self, name: str) -> Decimal:
        by_currency = Fields(self._nodes[name], self._at(name), self._collected, names=frozenset(CURRENCY_DIGITS))
        currency = self._collected.currency
        if currency and by_currency.has(currency):
            return by_currency.decimal(currency)
        if currency:
            self.fault(name, f"has no amount in {currency}", remedy="add one for each currency")
        else:
            remedy = "name the currency, for example `subscription: {currency: EUR}`"
            self.fault(name, "is given per currency, and nothing says which one is paid", remedy=remedy)
        return Decimal(0)

    def choice(
        self, name: str, options: tuple[str, ...], *, default: str, later: tuple[str, ...] = (), required: bool = False
    ) -> str:
        """Read one of `options`; what is in `later` is refused as not served yet."""
        node = self._scalar(name, required=required)
        if node is None or node.text in options:
            return default if node is None else node.text
        bound = ", ".join(options)
        if node.text in later:
            self.fault(name, "is not served yet", value=node.text, bound=bound, remedy="use one of the served ones")
        else:
            near = get_close_matches(node.text, options, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else ""
            self.fault(name, "is not known", value=node.text, bound=bound, remedy=remedy)
        return default

    def flag(self, name: str) -> bool:
        """Read true or false; missing is false."""
        node = self._scalar(name, required=False)
        if node is None or node.text == "false":
            return False
        if node.text != "true":
            self.fault(name, "is not true or false", value=node.text, bound="true, false")
        return node.text == "true"

    def instant(self, name: str) -> datetime | None:
        """Read an instant with its UTC offset; None where it is missing."""
        node = self._scalar(name, required=False)
        if node is None:
            return None
        bound = f'a time like "2026-01-31T00:00:00Z", years {_YEAR_FIRST} to {_YEAR_LAST}'
        try:
            value = datetime.fromisoformat(node.text)
        except ValueError:
            self.fault(name, "is not a time", value=node.text, bound=bound)
            return None
        if value.tzinfo is None:
            self.fault(name, "has no UTC offset", value=node.text, bound=bound, remedy="end it with Z")
            return None
        if not _YEAR_FIRST <= value.year <= _YEAR_LAST:
            self.fault(name, "is out of range", value=node.text, bound=bound)
            return None
        return value.astimezone(UTC)

    def time_zone(self, name: str, *, default: str) -> str:
        """Read a time zone of the IANA list."""
        node = self._scalar(name, required=False)
        if node is None:
            return default
        if not is_time_zone(node.text):
            self.fault(name, "is not a time zone", value=node.text, bound="IANA names like Europe/Berlin")
            return default
        return node.text

    def scalar_text(self, name: str) -> str | None:
        """Give the text of a field that is a single value, else None."""
        node = self._nodes.get(name)
        return node.text if isinstance(node, Scalar) and not node.is_null else None

    def table(
        self, name: str, *, names: frozenset[str], aliases: Mapping[str, str] | None = None, required: bool = False
    ) -> Fields | None:
        """Open a table in this one; None where it is missing."""
        if not self.has(name):
            if required:
                self.fault(name, "is missing", remedy=f"add it with {', '.join(sorted(names))}")
            return None
        return Fields(self._nodes[name], self._at(name), self._collected, names=names, aliases=aliases)

    def tables(self, name: str, *, names: frozenset[str], aliases: Mapping[str, str] | None = None) -> Iterator[Fields]:
        """Open every table of a list."""
        if not self.has(name):
            return
        node = self._nodes[name]
        if not isinstance(node, Listing):
            self.fault(name, "is not a list", remedy="begin each entry with `- `")
            return
        if len(node.items) > LIST_LENGTH_MAX:
            self.fault(name, "has too many entries", value=str(len(node.items)), bound=f"up to {LIST_LENGTH_MAX}")
            return
        for place, item in enumerate(node.items):
            path = f"{self._at(name)}[{place}]"
            yield Fields(item, path, self._collected, names=names, aliases=aliases)
