"""What can go wrong while a command of the data plane is carried out.

CommandFailed        a command ended without its answer
├── NotSent          nothing left this process
├── OutcomeUnknown   it was sent, or may have been; nobody knows what came of it
└── Refused          the other side said no; nothing was done

Settings that are wrong are `config.ConfigurationError`, so that a start need not load messages before it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tollkeeper.bridge.v1 import bridge_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping


class CommandFailed(Exception):  # noqa: N818 - the glossary's word; its children name states, not errors
    """Carries why a command failed to the data plane. Raised only as one of its children."""

    kind: ClassVar[bridge_pb2.FailureKind.ValueType] = bridge_pb2.FAILURE_KIND_DEADLINE

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.reason, self.metadata = message, reason, dict(metadata or {})

    def to_failure(self) -> bridge_pb2.Failure:
        """Encode for the bridge."""
        return bridge_pb2.Failure(kind=self.kind, message=self.message, reason=self.reason, metadata=self.metadata)


class NotSent(CommandFailed):
    """Raised only where nothing can have been sent, so that asking elsewhere is safe."""

    kind = bridge_pb2.FAILURE_KIND_UNREACHABLE


class OutcomeUnknown(CommandFailed):
    """Raised where an answer is missing: the other side may have acted."""


class Refused(CommandFailed):
    """Raised where the other side said no before it did anything."""

    kind = bridge_pb2.FAILURE_KIND_REFUSED
