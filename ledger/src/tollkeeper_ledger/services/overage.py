"""Tell what tenants use beyond what their plans include, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import check_billable, digests_of, inputs_to_json
from tollkeeper_ledger.domain.overage import overs, paces, projected
from tollkeeper_ledger.services.close_inputs import running_inputs, unbillable
from tollkeeper_ledger.store.billing_closes import read_definitions_by_digest, read_subscriptions_to_bill
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.invoice import CloseInputs
    from tollkeeper_ledger.domain.overage import Over
    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.charges import Charges
    from tollkeeper_ledger.store.pool import Connection, Pool


@dataclass(frozen=True, slots=True)
class Overage:
    """What one tenant is over, in the running period."""

    tenant: str
    plan: str
    currency: str
    period: Period
    lines: Sequence[Over]

    @property
    def amount_minor(self) -> int:
        """Give what it costs so far."""
        return sum(line.amount_minor for line in self.lines)

    @property
    def projected_amount_minor(self) -> int:
        """Give what it will cost at this pace."""
        return sum(line.projected_amount_minor for line in self.lines)


async def overage_of(pool: Pool, tenant_id: UUID, *, wire_id: str) -> Overage:
    """Rate the running period as it stands and as it will at its end; changes nothing.

    Raises UnknownNameError: no subscription; PreconditionError: no invoice can carry the figures.
    """
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        found = await _overage(conn, tenant_id, wire_id)
    if found is None:
        raise UnknownNameError("subscription", wire_id, remedy="give the tenant a plan in the catalogue")
    return found


async def report_overage(pool: Pool) -> AsyncIterator[tuple[str, Overage | PreconditionError]]:
    """Give every tenant that is over or will be, or whose usage can't be rated, in order of wire id.

    Each is of a moment of its own.
    """
    async with connection(pool) as conn, conn.transaction(readonly=True):
        tenants = {wire_id: tenant_id for tenant_id, _, wire_id in await read_subscriptions_to_bill(conn, only=None)}
    for wire_id, tenant_id in sorted(tenants.items()):
        async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            try:
                found = await _overage(conn, tenant_id, wire_id)
            except PreconditionError as error:
                yield wire_id, error
                continue
        if found is not None and found.lines:
            yield wire_id, found


async def _overage(conn: Connection, tenant_id: UUID, wire_id: str) -> Overage | None:
    now = await ledger_now(conn)
    inputs = await running_inputs(conn, tenant_id, wire_id=wire_id, now=now)
    if inputs is None:
        return None
    later = replace(inputs, segments=projected(inputs.segments, paces(inputs.facts.stretches, now=now)))
    definitions = await read_definitions_by_digest(conn, digests_of(inputs))
    try:
        charges = _rated(inputs, definitions)
        lines = overs(charges, _rated(later, definitions))
    except ValueError as error:
        raise unbillable(wire_id, error) from error
    return Overage(
        tenant=wire_id, plan=inputs.plan.name, currency=charges.currency.code, period=inputs.period, lines=lines
    )


def _rated(inputs: CloseInputs, definitions: Mapping[str, bytes]) -> Charges:
    """Rate inputs. Raises ValueError where an invoice can't carry the figures."""
    return check_billable(inputs_to_json(inputs), definitions).rated.charges
