"""What the control plane needs of a data plane: the native one in life, a fake in tests."""

from __future__ import annotations

from typing import Protocol


class DataPlane(Protocol):
    """A running data plane. The meaning of each method stands in `_native.pyi`."""

    def fd(self) -> int:
        """Return the descriptor that becomes readable when commands wait."""

    def take_commands(self) -> bytes:
        """Take every waiting command, an encoded CommandBatch."""

    def give_answers(self, batch: bytes) -> None:
        """Hand over an encoded AnswerBatch."""

    def addresses(self) -> str:
        """Return where it listens, as JSON."""

    def stats(self) -> str:
        """Return its counters, as JSON."""

    def begin_drain(self) -> None:
        """Begin a clean stop."""

    def drained(self) -> bool:
        """Return whether the clean stop has come to its end."""

    def stop(self) -> None:
        """Stop at once."""
