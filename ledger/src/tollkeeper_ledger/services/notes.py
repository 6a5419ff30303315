"""Why an operator did something, as the audit log keeps it."""

from __future__ import annotations

from tollkeeper_ledger.domain.errors import InvalidFieldError

NOTE_BYTES_MAX = 500


def check_note(note: str) -> None:
    """Refuse a note that is longer than the audit log keeps. Raises InvalidFieldError."""
    if len(note.encode()) > NOTE_BYTES_MAX:
        raise InvalidFieldError("note", "is too long", reason="FIELD_TOO_LONG", bound=f"up to {NOTE_BYTES_MAX} bytes")


def need_note(note: str) -> None:
    """Refuse what is done without saying why, and what `check_note` refuses. Raises InvalidFieldError."""
    check_note(note)
    if not note:
        raise InvalidFieldError("note", "is required", reason="FIELD_REQUIRED", bound=f"1 to {NOTE_BYTES_MAX} bytes")
