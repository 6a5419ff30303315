"""Where the sidecar is, and how a channel to it is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_VARIABLE: Final = "TOLLKEEPER_SIDECAR_SOCKET"
ADDRESS_VARIABLE: Final = "TOLLKEEPER_SIDECAR_LISTEN"
DEFAULT_ADDRESS: Final = "127.0.0.1:8601"


def find(target: str | None, environment: Mapping[str, str] | None = None) -> str:
    """Return the gRPC target: as given (`host:port`, `unix:PATH` or an absolute path), else from the environment.

    The environment's Unix socket comes first, then its address, then 127.0.0.1:8601.
    """
    known = os.environ if environment is None else environment
    chosen = target or known.get(SOCKET_VARIABLE) or known.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    return f"unix:{chosen}" if chosen.startswith("/") else chosen


def options(target: str) -> tuple[tuple[str, Any], ...]:
    """Return the channel's options.

    On a Unix socket gRPC would send the escaped path as `:authority`, which HTTP/2 servers refuse as malformed.
    A sidecar that was restarted is found again within a quarter of a second.
    """
    authority = (("grpc.default_authority", "localhost"),) if target.startswith("unix:") else ()
    return (
        *authority,
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 250),
        ("grpc.enable_retries", 0),
    )
