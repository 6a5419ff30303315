"""Plan versions' bytes as JSON, read once however many tenants they rate."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.rating.terms import PlanTerms

PLANS_KEPT_MAX = 512
"""Plan versions that are kept as JSON; one takes some ten kilobytes."""


class Definition(dict[str, Any]):
    """A plan version's definition as JSON. Nobody changes it, so what was read of it stays true."""

    __slots__ = ("terms",)

    terms: PlanTerms | None
    """What rating read of it; None as long as it has rated nothing."""

    def __init__(self, read: PriceJson) -> None:
        super().__init__(read)
        self.terms = None


@lru_cache(maxsize=PLANS_KEPT_MAX)
def plan_of(definition: bytes) -> Definition:
    """Give a plan version's definition as JSON. Read only: equal bytes give the same object."""
    return Definition(json.loads(definition))


@lru_cache(maxsize=PLANS_KEPT_MAX)
def is_named_by(definition: bytes, digest: str) -> bool:
    """Whether a plan version's bytes have this SHA-256, in hex; looked at once however many tenants they rate."""
    return hashlib.sha256(definition).hexdigest() == digest
