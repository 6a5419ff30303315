"""End reservations at the ledger, where no sidecar can be had.

The record goes the way of every other: one id, one transaction with its sum and its link. Its producer is the ledger's
own, so the home hears of the outcome as of any other's and alone gives units back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.model import EARLY_MAX_S, LATE_MAX_S
from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.settlement import end_columns, excess_of, refund_of
from tollkeeper_ledger.domain.usage import ATTRIBUTES_MAX, FLAG_EXPIRED, SECOND_US
from tollkeeper_ledger.services.pseudonyms import hides, stored_pairs, stored_reserved
from tollkeeper_ledger.services.usage import own_producer_id
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.settlements import find_end
from tollkeeper_ledger.store.usage_batches import find_tenants

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.settlement import Actual, Reservation
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.services.usage import UsageIngest
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.settlements import EndRecord


@dataclass(frozen=True, slots=True)
class Ended:
    """Say what the end that stands did. Units per meter."""

    refunded: tuple[tuple[str, int], ...]
    """Home gives them back when it hears of the outcome; none after expiry."""
    excess: tuple[tuple[str, int], ...]
    record_id: str
    expired: bool
    repeated: bool


class ReservationEnds:
    """Settle and release by token. Any number of calls at once; the first that commits stands."""

    def __init__(self, ingest: UsageIngest, tenants: TenantDirectory, *, installation_id: bytes) -> None:
        self._ingest = ingest
        self._tenants = tenants
        self._producer_id = own_producer_id(installation_id)

    async def end(self, reservation: Reservation, actual: Actual | None) -> Ended:
        """Commit the end of a reservation; `actual` is None for a release. A repeat gets the outcome that stands.

        Raises InvalidFieldError for a time or attributes out of bounds, UnknownNameError for a tenant or meter,
        PreconditionError RESERVATION_RELEASED for use of a reservation that ended at zero, LedgerError
        LEDGER_UNREACHABLE.
        """
        attributes = await self._attributes(reservation, actual)

        async def commit(conn: Connection) -> Ended:
            now = await ledger_now(conn)
            now_us = to_us(now)
            self._check_time(reservation, actual, now_us)
            columns = end_columns(reservation, actual, attributes, now_us=now_us)
            await self._ingest.need_months(conn, columns.event_time_us, now)
            async with conn.transaction():
                tenants = await find_tenants(conn, [reservation.tenant])
                tenant_id = tenants.get(reservation.tenant)
                if tenant_id is None:
                    raise UnknownNameError("tenant", reservation.tenant)
                before = await find_end(conn, tenant_id, reservation.record_id)
                if before is not None:
                    return _told(reservation, actual, before, repeated=True)
                outcome = await self._ingest.append_own(conn, self._producer_id, columns, now=now)
                stored = await find_end(conn, tenant_id, reservation.record_id)
                if stored is None:
                    # Rolls back; the record broke a rule that was checked above.
                    raise LedgerError("the record of the end was refused", reason="INTERNAL")
                return _told(reservation, actual, stored, repeated=outcome.stored == 0)

        return await self._ingest.attempted(commit)

    async def _attributes(self, reservation: Reservation, actual: Actual | None) -> list[tuple[str, str]]:
        """Give the record's attributes: of the settlement the declared ones, of the reservation all.

        Hidden ones are pseudonyms. Raises UnknownNameError METER_UNKNOWN or TENANT_UNKNOWN, InvalidFieldError
        FIELD_TOO_LONG.
        """
        meters = {meter.name: meter for meter in self._tenants.meters}
        names = [meter for meter, _ in actual.quantities] if actual is not None else []
        for meter in names:
            if meter not in meters:
                raise UnknownNameError("meter", meter)
        used = [meters[meter] for meter in names]
        key = None
        if hides(used):
            views = await self._tenants.get([reservation.tenant])
            if not views:
                raise UnknownNameError("tenant", reservation.tenant)
            key = (await self._tenants.pseudonym_keys(views.values()))[reservation.tenant]
        named = dict(stored_reserved(reservation.attributes, used, key))
        named.update(stored_pairs(actual.attributes if actual is not None else (), used, key))
        if len(named) > ATTRIBUTES_MAX:
            raise InvalidFieldError(
                "attributes",
                "are too many together with those given when it was reserved",
                reason="FIELD_TOO_LONG",
                value=len(named),
                bound=f"at most {ATTRIBUTES_MAX}",
                remedy="send fewer",
            )
        return sorted(named.items(), key=lambda pair: pair[0].encode())

    def _check_time(self, reservation: Reservation, actual: Actual | None, now_us: int) -> None:
        """Raise InvalidFieldError where the event lies too far from now for a meter of the end's record."""
        event_us = None if actual is None else actual.event_us
        if actual is None or event_us is None:
            return
        named = {meter for meter, _ in actual.quantities or reservation.costs}
        meters = [meter for meter in self._tenants.meters if meter.name in named]
        late_s = min((meter.late_max_s for meter in meters), default=LATE_MAX_S)
        early_s = min((meter.early_max_s for meter in meters), default=EARLY_MAX_S)
        if not now_us - late_s * SECOND_US <= event_us <= now_us + early_s * SECOND_US:
            raise InvalidFieldError(
                "event_time",
                "is too late or too far ahead",
                reason="FIELD_OUT_OF_RANGE",
                value=f"{event_us} us",
                bound=f"{late_s} s back to {early_s} s ahead",
                remedy="send it in time, and set the caller's clock",
            )


def _told(reservation: Reservation, actual: Actual | None, stored: EndRecord, *, repeated: bool) -> Ended:
    asked = actual is not None and any(units for _, units in actual.quantities)
    if asked and repeated and not any(stored.units.values()):
        raise PreconditionError(
            "the reservation was released, so nothing can be settled; record the usage on its own",
            reason="RESERVATION_RELEASED",
            metadata={"field": "token", "remedy": "record the usage with RecordUsage"},
        )
    expired = bool(stored.flags & FLAG_EXPIRED)
    return Ended(
        refunded=() if expired else tuple(refund_of(reservation, stored.units)),
        excess=tuple(excess_of(reservation, stored.units)),
        record_id=reservation.record_id,
        expired=expired,
        repeated=repeated,
    )
