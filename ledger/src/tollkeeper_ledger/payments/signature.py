"""Trust an event only with its signature. Source: the provider's scheme v1, HMAC-SHA256 over `timestamp.body`."""

from __future__ import annotations

import hashlib
import hmac

TOLERANCE_S = 300
"""How old, or how far ahead, a signed timestamp may be."""

_HEADER_BYTES_MAX = 4096


class UntrustedError(Exception):
    """Say why an event is not trusted."""


def check_signature(header: str, body: bytes, *, secret: str, now_s: int) -> None:
    """Raise UntrustedError unless one `v1` of the header signs these raw bytes, at about this time.

    Every `v1` is compared, each in constant time: while a secret is rolled there are two.
    """
    if len(header) > _HEADER_BYTES_MAX:
        raise UntrustedError("the signature header is too long")
    pairs = [pair.strip().partition("=") for pair in header.split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    signatures = [value for name, _, value in pairs if name == "v1"]
    if len(times) != 1 or not times[0].isascii() or not times[0].isdigit() or not signatures:
        raise UntrustedError("the signature header is malformed")
    expected = hmac.new(secret.encode(), times[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    matches = [hmac.compare_digest(expected.encode(), one.encode("utf-8", "replace")) for one in signatures]
    if not any(matches):
        raise UntrustedError("no signature matches")
    if abs(now_s - int(times[0])) > TOLERANCE_S:
        raise UntrustedError("the signature is too old, or of the future")
