"""Signatures of reservation tokens, version 1: base64url over version, key id, content, HMAC-SHA-256; no padding."""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import urlsafe_b64decode
from hashlib import sha256
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION = 1
_HEAD_BYTES = 5
_MAC_BYTES = 32
_TEXT_MAX = 64 << 10
_TEXT = re.compile(r"[A-Za-z0-9_-]+\Z")


def signed_content(token: str, keys: Mapping[int, bytes]) -> bytes:
    """Verify a token in constant time and give its content.

    Raises InvalidFieldError RESERVATION_INVALID for whatever no key of this installation signed.
    """
    if len(token) > _TEXT_MAX:
        raise invalid_token("it is longer than any token")
    if not _TEXT.match(token):
        raise invalid_token("it is not base64url without padding")
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        signed = urlsafe_b64decode(padded)
    except binascii.Error as error:
        raise invalid_token("it is not base64url without padding") from error
    content, signature = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
    if len(content) < _HEAD_BYTES:
        raise invalid_token("it is too short")
    if content[0] != _VERSION:
        raise invalid_token("its version is not 1")
    secret = keys.get(int.from_bytes(content[1:_HEAD_BYTES], "big"))
    if secret is None:
        raise invalid_token("its key is not one of this installation")
    if not hmac.compare_digest(hmac.digest(secret, content, sha256), signature):
        raise invalid_token("its signature is wrong")
    return content[_HEAD_BYTES:]


def invalid_token(why: str) -> InvalidFieldError:
    """Give the error for a token that is none. Never repeats it: whoever reads logs could settle with it."""
    return InvalidFieldError(
        "token",
        f"names no reservation of this installation: {why}",
        reason="RESERVATION_INVALID",
        bound="a token as the reserving check answered it",
        remedy="send the token unchanged, to the same installation",
    )
