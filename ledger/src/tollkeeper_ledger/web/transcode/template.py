"""Path templates: `/v1/tenants/{tenant}/invoices/{invoice_id}:void`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?:=([^{}]+))?\}")
_SEGMENTS = {"*": "[^/]+", "**": ".+"}


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A compiled template."""

    text: str
    fields: tuple[str, ...]
    """Field paths that the path gives, in order."""
    _pattern: re.Pattern[str]

    @classmethod
    def from_text(cls, text: str) -> PathTemplate:
        """Compile a template. Raises ValueError where it isn't one."""
        if not text.startswith("/"):
            raise ValueError(f"a path template begins with a slash: {text!r}")
        pattern, fields, end = "", [], 0
        for variable in _VARIABLE.finditer(text):
            pattern += re.escape(text[end : variable.start()])
            inner = "/".join(
                _SEGMENTS.get(segment, re.escape(segment)) for segment in (variable.group(2) or "*").split("/")
            )
            pattern += f"({inner})"
            fields.append(variable.group(1))
            end = variable.end()
        pattern += re.escape(text[end:])
        if "{" in text[end:] or len(set(fields)) != len(fields):
            raise ValueError(f"not a path template: {text!r}")
        return cls(text=text, fields=tuple(fields), _pattern=re.compile(pattern))

    def match(self, raw_path: str) -> Mapping[str, str] | None:
        """Give the values of the fields, percent-decoded; None where the path is another. An encoded slash is data."""
        found = self._pattern.fullmatch(raw_path)
        if found is None:
            return None
        return {
            field: unquote(value, errors="strict") for field, value in zip(self.fields, found.groups(), strict=True)
        }
