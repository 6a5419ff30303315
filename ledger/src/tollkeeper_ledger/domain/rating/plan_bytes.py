"""Plan versions' bytes as JSON, read once however many tenants they rate."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.rating.charges import PriceJson

PLANS_KEPT_MAX = 512
"""Plan versions that are kept as JSON; one takes some ten kilobytes."""


@lru_cache(maxsize=PLANS_KEPT_MAX)
def plan_of(definition: bytes) -> PriceJson:
    """Give a plan version's definition as JSON. Read only: equal bytes give the same object."""
    plan: PriceJson = json.loads(definition)
    return plan


@lru_cache(maxsize=PLANS_KEPT_MAX)
def is_named_by(definition: bytes, digest: str) -> bool:
    """Whether a plan version's bytes have this SHA-256, in hex; looked at once however many tenants they rate."""
    return hashlib.sha256(definition).hexdigest() == digest
