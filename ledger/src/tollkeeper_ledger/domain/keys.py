"""Name the keys that split limits, as sidecars do."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_HASH_BYTES = 16


def key_hash(values: Sequence[str]) -> bytes:
    """Give the first 16 bytes of SHA-256 over the length-prefixed values in the rule's order; empty without values."""
    if not values:
        return b""
    encoded = [value.encode() for value in values]
    return sha256(b"".join(len(value).to_bytes(4, "big") + value for value in encoded)).digest()[:KEY_HASH_BYTES]
