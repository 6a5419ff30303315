"""Reads the value of one setting: text of a variable, or what a TOML file holds.

Every reader raises ValueError that says what the value should be. Loaded before the data plane serves: imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_YES = frozenset({"1", "true", "t", "yes", "y", "on"})
_NO = frozenset({"0", "false", "f", "no", "n", "off"})
_PORT_MAX = 65_535


def text(value: object) -> str:
    """Read text as it is."""
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")  # noqa: TRY004 - a wrong setting, whatever its type
    return value


def path(value: object) -> str:
    """Read a path that isn't empty."""
    if not text(value):
        raise ValueError("Value error, the path is empty")
    return text(value)


def address(value: object) -> str:
    """Read host:port."""
    said = text(value)
    host, _, port = said.rpartition(":")
    if not host or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError(f"Value error, {said!r} is not host:port with a port up to {_PORT_MAX}")
    return said


def flag(value: object) -> bool:
    """Read yes or no."""
    said = str(value).lower()
    if said not in _YES | _NO:
        raise ValueError("Input should be a valid boolean, unable to interpret input")
    return said in _YES


def whole(least: int, most: int | None = None) -> Callable[[object], int]:
    """Make a reader of whole numbers within bounds, both included."""

    def read(value: object) -> int:
        found = _whole(value)
        _hold(found, least, most)
        return found

    return read


def number(least: int, most: int) -> Callable[[object], float]:
    """Make a reader of numbers within bounds, both included."""

    def read(value: object) -> float:
        found = _number(value)
        _hold(found, least, most)
        return found

    return read


def one_of(*words: str) -> Callable[[object], str]:
    """Make a reader of one of these words."""

    def read(value: object) -> str:
        if value not in words:
            *first, last = map(repr, words)
            raise ValueError(f"Input should be {', '.join(first)} or {last}")
        return text(value)

    return read


def unless_off(read: Callable[[object], str]) -> Callable[[object], str | None]:
    """Make a reader that takes an empty text and `off` for nothing."""

    def read_unless_off(value: object) -> str | None:
        is_off = value is None or (isinstance(value, str) and value.lower() in {"", "off"})
        return None if is_off else read(value)

    return read_unless_off


def _whole(value: object) -> int:
    if isinstance(value, str):
        digits, _, rest = value.strip().partition(".")
        try:
            return int(_ascii(digits if rest and not rest.strip("0") else value))
        except ValueError:
            raise ValueError("Input should be a valid integer, unable to parse string as an integer") from None
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("Input should be a valid integer, got a number with a fractional part")
    if not isinstance(value, int | float):
        raise ValueError("Input should be a valid integer")  # noqa: TRY004 - a wrong setting, whatever its type
    return int(value)


def _number(value: object) -> float:
    if isinstance(value, str):
        try:
            return float(_ascii(value))
        except ValueError:
            raise ValueError("Input should be a valid number, unable to parse string as a number") from None
    if not isinstance(value, int | float):
        raise ValueError("Input should be a valid number")  # noqa: TRY004 - a wrong setting, whatever its type
    return float(value)


def _ascii(digits: str) -> str:
    """Refuse digits of other scripts, which Python would read."""
    if not digits.isascii():
        raise ValueError
    return digits


def _hold(value: float, least: int, most: int | None) -> None:
    if value < least:
        raise ValueError(f"Input should be greater than or equal to {least}")
    if most is not None and not value <= most:  # also what is no number
        raise ValueError(f"Input should be less than or equal to {most}")
