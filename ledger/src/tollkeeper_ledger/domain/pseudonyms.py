"""Make pseudonyms of attributes that the catalogue hides, and compare those of turned keys. Pure.

Source: the comment of PseudonymKey in proto/tollkeeper/ledger/v1/limits.proto; proto/vectors/pseudonym.json has cases.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_hash import string_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SHOWN_BYTES = 16
_FORM = re.compile(r"p([1-9][0-9]{0,9})\.[A-Za-z0-9_-]{22}\Z")


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The key of one tenant's pseudonyms. Never logged, and stored in its own row alone."""

    version: int
    """From 1 on."""
    secret: bytes = field(repr=False)
    """32 random bytes."""

    def pseudonym(self, name: str, value: str) -> str:
        """Give the pseudonym of an attribute's value; sidecars give the same."""
        code = hmac.digest(self.secret, string_bytes(name) + string_bytes(value), "sha256")
        return f"p{self.version}.{urlsafe_b64encode(code[:_SHOWN_BYTES]).decode().rstrip('=')}"


def version_of(text: str) -> int | None:
    """Give the version of the key that a pseudonym was made with; None for what has another form."""
    found = _FORM.match(text)
    return int(found[1]) if found else None


def at_its_time(
    attributes: Mapping[str, str], stored: Mapping[str, str], hidden: Collection[str], key: PseudonymKey | None
) -> dict[str, str] | None:
    """Give a record's attributes with what a stored one has from other times in their place; None where it has nothing.

    That is pseudonyms of other keys, and values that were stored before they were hidden. Of two keys of which one is
    destroyed nobody can say whether two pseudonyms mean the same: they are taken to. Of one key they are compared as
    they are, and so is a value with a pseudonym of `key`, the tenant's own; None: nothing is stored plainly.
    """
    both = [name for name in hidden if name in attributes and name in stored]
    turned = {name: stored[name] for name in both if _may_be_same(name, attributes[name], stored[name], key)}
    return {**attributes, **turned} if turned else None


def _may_be_same(name: str, text: str, stored: str, key: PseudonymKey | None) -> bool:
    """Say whether a pseudonym stands for what is stored in another form."""
    now, before = version_of(text), version_of(stored)
    if now is None or before is not None:
        return now is not None and before != now
    return key is not None and (now != key.version or text == key.pseudonym(name, stored))
