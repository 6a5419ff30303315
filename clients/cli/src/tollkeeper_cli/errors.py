"""What can go wrong in a command, and the exit code that says so.

CommandError
├── FoundProblemsError  1  denied, or something is not as it must be
├── UsageError          2  the command line or a file is wrong
└── UnreachableError    3  the sidecar or the ledger doesn't answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from typing import Any

_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_USAGE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
)


class CommandError(Exception):
    """Ends the command with a message and an exit code."""

    exit_code = 1


class FoundProblemsError(CommandError):
    """Something was denied, or is not as it must be."""

    exit_code = 1


class UsageError(CommandError):
    """The command line or a file is wrong."""

    exit_code = 2


class UnreachableError(CommandError):
    """A server doesn't answer."""

    exit_code = 3


def error_info(error: grpc.RpcError) -> dict[str, str]:
    """Return the reason and the metadata of an error's ErrorInfo; empty where there is none."""
    if not hasattr(error, "code"):  # raised before there was a call
        return {}
    try:
        status: Any = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status line
        return {}
    for detail in [] if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return {"reason": info.reason, **info.metadata}
    return {}


def from_rpc_error(error: grpc.RpcError, *, server: str) -> CommandError:
    """Turn a failed call into the error that ends the command, with the reason and the remedy that came along."""
    if not hasattr(error, "code"):  # raised before there was a call
        return UnreachableError(f"{server}: {error}")
    code = error.code()
    info = error_info(error)
    text = error.details() or code.name
    reason = f" ({info['reason']})" if "reason" in info else ""
    told = "; ".join(
        f"{words} {info[name]}"
        for name, words in (("value", "it is"), ("bound", "allowed:"))
        if info.get(name) and info[name] not in text
    )
    remedy = f"\n{info['remedy']}" if info.get("remedy") and info["remedy"] not in text else ""
    message = f"{text}{reason}" + (f"\n{told}" if told else "") + remedy
    if code in _UNREACHABLE:
        return UnreachableError(f"{server} doesn't answer: {message}")
    if code in _USAGE:
        return UsageError(message)
    return FoundProblemsError(f"{code.name}: {message}")
