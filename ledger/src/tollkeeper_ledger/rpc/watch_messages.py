"""Convert WatchLimits' messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import limits_pb2

from tollkeeper_ledger.rpc.limit_rules import rule_to_message
from tollkeeper_ledger.services.watch import (
    HEARTBEAT_S,
    Beat,
    CacheOrder,
    Clock,
    Confirmed,
    Keys,
    Meters,
    Settlements,
    Tenant,
    Units,
    Unknown,
    Witnessed,
)

if TYPE_CHECKING:
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.watch import Event
    from tollkeeper_ledger.store.clock import ClockReading
    from tollkeeper_ledger.store.installation import Installation
    from tollkeeper_ledger.store.tenants import TenantView

PROTOCOL_VERSION = 1
_ACTIONS = {"warm": limits_pb2.CACHE_ACTION_WARM, "invalidate": limits_pb2.CACHE_ACTION_INVALIDATE}
_STATES = {"active": limits_pb2.TENANT_STATE_ACTIVE, "suspended": limits_pb2.TENANT_STATE_SUSPENDED}


def welcome_message(
    installation: Installation, witness: tuple[int, bytes], clock: ClockReading
) -> limits_pb2.WatchLimitsResponse:
    """Introduce the ledger, with timeline and value of its newest witness. Holds secrets: never logged."""
    return limits_pb2.WatchLimitsResponse(
        welcome=limits_pb2.WatchWelcome(
            protocol_version=PROTOCOL_VERSION,
            installation_id=installation.installation_id,
            timeline=witness[0],
            witness=witness[1],
            clock=_clock(clock),
            heartbeat_interval_ms=round(HEARTBEAT_S * 1000),
            token_keys=[limits_pb2.TokenKey(key_id=key.key_id, secret=key.secret) for key in installation.token_keys],
        )
    )


def _clock(reading: ClockReading) -> limits_pb2.ClockState:
    return limits_pb2.ClockState(now_us=reading.now_us, speed_milli=reading.speed_milli, version=reading.version)


def event_to_message(event: Event, clock: LedgerClock) -> limits_pb2.WatchLimitsResponse:  # noqa: C901, PLR0911, PLR0912 - one per kind
    """Give an event as a message; times are read now, so that they are true when it is sent."""
    match event:
        case Beat(change=change):
            beat = limits_pb2.Heartbeat(now_us=clock.reading().now_us, change=change)
            return limits_pb2.WatchLimitsResponse(heartbeat=beat)
        case Witnessed(timeline=timeline, value=value):
            return limits_pb2.WatchLimitsResponse(witness=limits_pb2.Witness(timeline=timeline, value=value))
        case CacheOrder(order_id=order_id, action=action, tenant=tenant):
            order = limits_pb2.CacheOrder(order_id=order_id, action=_ACTIONS[action], tenant=tenant)
            return limits_pb2.WatchLimitsResponse(cache_order=order)
        case Clock():
            return limits_pb2.WatchLimitsResponse(clock=_clock(clock.reading()))
        case Tenant(view=view):
            return limits_pb2.WatchLimitsResponse(tenant=_tenant(view))
        case Keys(keys=keys):
            told = [limits_pb2.PseudonymKey(tenant=name, version=key.version, secret=key.secret) for name, key in keys]
            return limits_pb2.WatchLimitsResponse(pseudonym_keys=limits_pb2.PseudonymKeyList(keys=told))
        case Confirmed(wire_ids=wire_ids):
            return limits_pb2.WatchLimitsResponse(confirmed=limits_pb2.WatchTenants(tenants=wire_ids))
        case Unknown(wire_id=wire_id):
            return limits_pb2.WatchLimitsResponse(unknown=limits_pb2.TenantUnknown(tenant=wire_id))
        case Meters(meters=meters):
            return limits_pb2.WatchLimitsResponse(
                meters=limits_pb2.MeterList(
                    meters=[
                        limits_pb2.MeterInfo(
                            name=meter.name,
                            unit=meter.unit,
                            scale=meter.scale,
                            attributes=meter.attributes,
                            pseudonymised=meter.pseudonymised,
                            value_attribute=meter.value_attribute,
                            late_max_s=meter.late_max_s,
                            early_max_s=meter.early_max_s,
                        )
                        for meter in meters
                    ]
                )
            )
        case Settlements(settled=settled):
            outcomes = [limits_pb2.Settlement(reservation_id=one.reservation_id, units=one.units) for one in settled]
            return limits_pb2.WatchLimitsResponse(settlements=limits_pb2.SettlementList(settlements=outcomes))
        case Units(tenant=tenant, notice=notice):
            if notice.replaced:
                replaced = limits_pb2.WindowReplaced(
                    tenant=tenant, limit=notice.limit, key_hash=notice.key_hash, window_id=notice.replaced
                )
                return limits_pb2.WatchLimitsResponse(replaced=replaced)
            if notice.recall:
                recall = limits_pb2.Recall(
                    tenant=tenant, limit=notice.limit, key_hash=notice.key_hash, units=notice.units
                )
                return limits_pb2.WatchLimitsResponse(recall=recall)
            units = limits_pb2.UnitsNotice(tenant=tenant, limit=notice.limit, key_hash=notice.key_hash)
            return limits_pb2.WatchLimitsResponse(units=units)


def _tenant(view: TenantView) -> limits_pb2.TenantSnapshot:
    return limits_pb2.TenantSnapshot(
        tenant=view.wire_id,
        tenant_id=view.tenant_id.bytes,
        state=_STATES[view.state],
        parent=view.parent,
        plan=view.plan,
        features=view.features,
        limits=[rule_to_message(limit) for limit in view.limits],
        change=view.change,
    )
