"""Ids for requests: UUID version 7, so that they sort by time and never collide."""

from __future__ import annotations

import secrets
import time
import uuid


def uuid7(*, now_ms: int | None = None, random_bits: int | None = None) -> str:
    """Return a new UUIDv7. Time and randomness can be given, else they are the system's. Source: RFC 9562, 5.7."""
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = secrets.randbits(74) if random_bits is None else random_bits
    high, low = bits >> 62, bits & ((1 << 62) - 1)
    return str(uuid.UUID(int=(milliseconds & ((1 << 48) - 1)) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))
