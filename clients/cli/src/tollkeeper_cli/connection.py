"""Connect to the sidecar and the ledger."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tollkeeper_cli.errors import UsageError, from_rpc_error
from tollkeeper_cli.stack import CHANNEL_OPTIONS, Addresses, running_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

DATA_DIRECTORY = Path(".run")
CALL_TIMEOUT_S = 30.0
_ACTOR_CHARS_MAX = 128


@dataclass(frozen=True, slots=True)
class Targets:
    """Where commands find their servers."""

    ledger: str
    sidecar: str
    actor: str = ""
    """Who acts, for the audit log; empty = the ledger's default."""


def find_targets(environment: Mapping[str, str], *, ledger: str = "", sidecar: str = "", actor: str = "") -> Targets:
    """Choose the servers: as given, else from the environment, else the stack of `.run`, else the defaults."""
    running = running_addresses(DATA_DIRECTORY)
    default = running or Addresses()
    socket_path = environment.get("TOLLKEEPER_SIDECAR_SOCKET") or default.sidecar_socket
    by_socket = f"unix:{socket_path}" if socket_path else ""
    by_tcp = environment.get("TOLLKEEPER_SIDECAR_LISTEN") or default.sidecar_listen
    return Targets(
        ledger=ledger or environment.get("TOLLKEEPER_LEDGER_ADDRESS") or default.ledger_listen,
        sidecar=sidecar or by_socket or by_tcp,
        actor=actor or environment.get("TOLLKEEPER_ACTOR", ""),
    )


class _ActorInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Say with each call who acts."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Add the actor to the call's metadata."""
        metadata = [*(client_call_details.metadata or ()), ("tollkeeper-actor", self._actor)]
        return continuation(_Details(client_call_details, metadata), request)


class _Details(grpc.ClientCallDetails):
    """A call's details with other metadata."""

    def __init__(self, details: Any, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = tuple(metadata)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


@contextmanager
def channel_to(target: str, *, server: str, actor: str = "") -> Iterator[grpc.Channel]:
    """Give a channel, on which calls say who acts; a call that fails in the block ends the command with what was wrong.

    Raises UsageError for an actor that is no printable ASCII text of up to 128 characters.
    """
    if actor and not (actor.isascii() and actor.isprintable() and len(actor) <= _ACTOR_CHARS_MAX):
        raise UsageError(f"the actor {actor[:32]!r} must be 1 to {_ACTOR_CHARS_MAX} printable ASCII characters")
    options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", -1))
    try:
        with grpc.insecure_channel(target, options=options if target.startswith("unix:") else options[1:]) as channel:
            yield grpc.intercept_channel(channel, _ActorInterceptor(actor)) if actor else channel
    except grpc.RpcError as error:
        raise from_rpc_error(error, server=f"the {server} at {target}") from error


def to_micros(timestamp: Timestamp) -> int:
    """Return microseconds since the epoch."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1_000


def to_text(timestamp: Timestamp) -> str:
    """Return RFC 3339 text in UTC, empty for an absent time."""
    micros = to_micros(timestamp)
    return "" if micros == 0 else micros_text(micros)


def micros_text(micros: int) -> str:
    """Return RFC 3339 text in UTC."""
    at = datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
    return at.isoformat().replace("+00:00", "Z")
