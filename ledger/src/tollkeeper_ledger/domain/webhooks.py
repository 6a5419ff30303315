"""Outgoing webhooks as Standard Webhooks has them: what is signed how, when it is sent again. Pure.

Source: https://www.standardwebhooks.com, symmetric signatures `v1`: base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

WAITS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Real seconds before each try after the first: a little over three days."""

SECRET_BYTES = 32
URL_CHARS_MAX = 2_000
_SECRET_PREFIX = "whsec_"  # noqa: S105 - how secrets begin, no secret
_URL = re.compile(r"[\x21-\x7e]+")
_PORT_MAX = 65_535
_WRAPPED = tuple(ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
"""IPv6 addresses that lead to an IPv4 address."""


def is_public(address: str) -> bool:
    """Whether an address is everybody's: neither private, link-local, this machine's nor one that leads to such."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    if isinstance(found, IPv6Address) and any(found in network for network in _WRAPPED):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def secret_text(random: bytes) -> str:
    """Give a secret as receivers' libraries take it."""
    return _SECRET_PREFIX + base64.b64encode(random).decode()


def signatures(secrets: Sequence[str], *, message_id: str, at_s: int, body: bytes) -> str:
    """Sign a message with each secret: while one is rotated, receivers accept either."""
    signed = f"{message_id}.{at_s}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix(_SECRET_PREFIX)) for secret in secrets]
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)


def wait_s(tries: int) -> int | None:
    """Give how long to wait after so many tries; None: given up."""
    return WAITS_S[tries - 1] if tries <= len(WAITS_S) else None


def url_fault(url: str, *, private: bool) -> str:
    """Say what is wrong with a receiver's URL; empty: nothing. Where its name leads is seen when it is sent to."""
    if len(url) > URL_CHARS_MAX or not _URL.fullmatch(url):
        return "is empty, too long or has characters that URLs don't have"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        return "is not https"
    if not parts.hostname or parts.username is not None or parts.fragment or not 0 < (port or 443) <= _PORT_MAX:
        return "needs a host, and no user, password or fragment"
    return "" if private or _may_be_public(parts.hostname) else "leads to an address that is not public"


def _may_be_public(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:
        # A name: where it leads is judged at each try.
        return True
