"""Connect to the sidecar and the ledger."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from tollkeeper_cli.errors import from_rpc_error
from tollkeeper_cli.stack import CHANNEL_OPTIONS, Addresses, running_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

DATA_DIRECTORY = Path(".run")
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Where commands find their servers."""

    ledger: str
    sidecar: str


def find_targets(environment: Mapping[str, str], *, ledger: str = "", sidecar: str = "") -> Targets:
    """Choose the servers: as given, else from the environment, else the stack of `.run`, else the defaults."""
    running = running_addresses(DATA_DIRECTORY)
    default = running or Addresses()
    socket_path = environment.get("TOLLKEEPER_SIDECAR_SOCKET") or default.sidecar_socket
    by_socket = f"unix:{socket_path}" if socket_path else ""
    by_tcp = environment.get("TOLLKEEPER_SIDECAR_LISTEN") or default.sidecar_listen
    return Targets(
        ledger=ledger or environment.get("TOLLKEEPER_LEDGER_ADDRESS") or default.ledger_listen,
        sidecar=sidecar or by_socket or by_tcp,
    )


@contextmanager
def channel_to(target: str, *, server: str) -> Iterator[grpc.Channel]:
    """Give a channel; a call that fails inside the block ends the command with what went wrong."""
    options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", -1))
    try:
        with grpc.insecure_channel(target, options=options if target.startswith("unix:") else options[1:]) as channel:
            yield channel
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
