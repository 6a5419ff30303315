"""What a job at a payment provider is about, and in which steps it is done. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "collect": ("customer", "draft", "lines", "check", "finalise", "pay"),
        "void": ("void",),
        "credit": ("credit",),
        "refund": ("refund",),
    }
)
"""Steps of each kind of job, in order."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job with everything that its requests are made of."""

    payer_id: str
    payer_name: str
    email: str
    kind: str
    invoice_id: str
    number: str
    issue: int
    currency: str
    amount_minor: int
    """What the provider is to collect, credit or send back."""
    subject_id: str
    """Credit note or refund; empty for an invoice."""
    lines: tuple[tuple[str, int], ...]
    """Few final lines: description and minor units; they sum to amount_minor."""
    method: str = ""
    """The provider's id of what the payer is charged by; empty = nothing."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The provider's ids: customer, invoice, payment, pay_url."""


def next_step(kind: str, step: str) -> str:
    """Give the step after one; empty after the last."""
    steps = STEPS[kind]
    place = steps.index(step) + 1
    return steps[place] if place < len(steps) else ""


def final_lines(
    *, number: str, subtotal_minor: int, tax_minor: int, balance_minor: int, tax_name: str
) -> tuple[tuple[str, int], ...]:
    """Give what an invoice comes to in at most three lines: net, tax, and what the payer's balance covers."""
    lines = [
        (f"Invoice {number}", subtotal_minor),
        (tax_name or "Tax", tax_minor),
        ("From your balance", -balance_minor),
    ]
    return tuple((description, amount) for description, amount in lines if amount)
