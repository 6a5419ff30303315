# ruff: noqa: SIM300 - expected first, then actual
"""Limits tell of their thresholds once per window, from what sidecars report."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
import pytest_asyncio
from limits_support import CATALOGUE, apply_catalogue, kind, new_key
from rpc_support import error_info
from set_back_support import serving_on
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, limits_pb2, reports_pb2, reports_pb2_grpc
from tollkeeper_ledger.store.pool import transaction
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from limits_support import Serving, Sidecar
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

OWN = """
      - {name: whole, meter: tokens, kind: window, amount: 100, window: day}
      - {name: said, meter: tokens, kind: window, amount: 100, window: minute, key: [user], alerts: [50%, 150%, "7"]}
      - {name: soft, meter: tokens, kind: window, amount: 100, window: day, enforcement: soft}
      - {name: silent, meter: tokens, kind: window, amount: 100, window: day, alerts: []}
"""


@pytest_asyncio.fixture
async def alerting(settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger on a database of its own, with limits that say what they tell of."""
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel, CATALOGUE.replace("    limits:\n", f"    limits:{OWN}", 1))
        yield served


class Window:
    """One window of a limit, of which holders report."""

    def __init__(self, serving: Serving, window_id: bytes) -> None:
        self.serving, self.window_id = serving, window_id

    async def report(self, sidecar: Sidecar, consumed: int, *, over: int = 0, back: int = 0) -> None:
        """Report what a holder consumed so far, and wait until somebody has looked at it."""
        entry = limits_pb2.ConsumptionEntry(
            window_id=self.window_id, consumed_cum=consumed, over_cum=over, given_back_cum=back
        )
        await sidecar.stub.ReportConsumption(
            limits_pb2.ReportConsumptionRequest(holder=sidecar.holder, entries=[entry])
        )
        await wait_until(self.looked)

    async def looked(self) -> bool:
        """Whether every note was taken."""
        async with transaction(self.serving.ledger.resources.pools.billing) as conn:
            return not await conn.fetchval("SELECT count(*) FROM alert_window_hint")


async def opened(serving: Serving, limit: str) -> tuple[Sidecar, Window]:
    """Give a holder with a lease of a new key's window."""
    sidecar = serving.sidecar()
    answer = await sidecar.ask(limit, b"" if limit in ("whole", "silent", "soft") else new_key())
    assert "lease" == kind(answer)
    return sidecar, Window(serving, answer.window.window_id)


async def told(serving: Serving, limit: str) -> list[tuple[str, str]]:
    """Give threshold and figure of a limit's alerts, oldest first."""
    stub = reports_pb2_grpc.ReportServiceStub(serving.channel)
    found: list[Any] = []
    request = reports_pb2.ListAlertsRequest(tenant="acme", page_size=2)
    while True:
        page = await stub.ListAlerts(request)
        found += [json.loads(one) for one in page.alerts]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    own = [one for one in reversed(found) if one["subject"] == limit]
    return sorted(((one["threshold"], one["value"]) for one in own), key=lambda one: (len(one[0]), one))


async def test_a_limit_tells_of_75_90_and_100_percent_once(alerting: Serving) -> None:
    """Over two holders together, exactly at each; repeats, returns and later use tell nothing more."""
    first, window = await opened(alerting, "whole")
    second = alerting.sidecar()
    await window.report(first, 74)
    assert [] == await told(alerting, "whole")
    await window.report(second, 1)
    assert [("75%", "75")] == await told(alerting, "whole")
    await window.report(second, 26)
    expected = [("75%", "75"), ("90%", "100"), ("100%", "100")]
    assert expected == await told(alerting, "whole")
    await window.report(second, 26)
    await window.report(first, 74, back=70)
    await window.report(first, 140, back=70)
    assert expected == await told(alerting, "whole")


async def test_the_next_round_is_told_of_anew(alerting: Serving) -> None:
    """After a reset the limit begins again, and so do its thresholds."""
    sidecar, window = await opened(alerting, "whole")
    await window.report(sidecar, 80)
    request = admin_pb2.ResetLimitRequest(request_id=secrets.token_hex(8), tenant="acme", limit="whole")
    await admin_pb2_grpc.AdminServiceStub(alerting.channel).ResetLimit(request)
    again = alerting.sidecar()
    answer = await again.ask("whole", b"")
    assert answer.window.window_id != window.window_id
    await Window(alerting, answer.window.window_id).report(again, 90)
    assert [("75%", "80"), ("75%", "90"), ("90%", "90")] == await told(alerting, "whole")


async def test_a_limits_own_thresholds_stand_instead_of_the_default(alerting: Serving) -> None:
    """Percentages above 100 and amounts too, of short windows of keys as well; an empty list tells nothing."""
    sidecar, window = await opened(alerting, "said")
    await window.report(sidecar, 10)
    assert [("7", "10")] == await told(alerting, "said")
    await window.report(sidecar, 150, over=50)
    assert [("7", "10"), ("50%", "150"), ("150%", "150")] == await told(alerting, "said")
    sidecar, window = await opened(alerting, "silent")
    await window.report(sidecar, 100)
    assert [] == await told(alerting, "silent")


async def test_short_windows_of_keys_tell_nothing_unless_they_say_so(alerting: Serving) -> None:
    """Each user's minute would be told of again and again; each user's day is told of, without a mail."""
    for limit in ("minute", "small"):
        sidecar, window = await opened(alerting, limit)
        await window.report(sidecar, 75)
    assert [] == await told(alerting, "minute")
    assert [("75%", "75")] == await told(alerting, "small")


async def violations(serving: Serving, **fields: Any) -> list[dict[str, Any]]:
    """Give violations, page by page."""
    stub = reports_pb2_grpc.ReportServiceStub(serving.channel)
    request = reports_pb2.ListViolationsRequest(page_size=1, **fields)
    found: list[dict[str, Any]] = []
    while True:
        page = await stub.ListViolations(request)
        found += [json.loads(one) for one in page.violations]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_what_is_used_beyond_a_limit_is_kept_with_by_how_much(alerting: Serving) -> None:
    """Per window, over all holders; repeats change nothing, more use raises it, what fits its limit is none."""
    sidecar, window = await opened(alerting, "soft")
    await window.report(sidecar, 100)
    assert [] == await violations(alerting)
    await window.report(sidecar, 130, over=30)
    await window.report(sidecar, 130, over=30)
    await window.report(alerting.sidecar(), 5, over=5)
    (one,) = await violations(alerting, tenant="acme")
    assert ("acme", "soft", "soft", 100, 135, 35) == tuple(
        one[name] for name in ("tenant", "limit", "enforcement", "amount", "consumed", "over")
    )
    assert one["starts_at"] < one["first_at"] <= one["last_at"] < one["ends_at"]
    sidecar, window = await opened(alerting, "said")
    await window.report(sidecar, 101, over=1)
    found = [(one["limit"], one["enforcement"], one["over"]) for one in await violations(alerting)]
    assert [("said", "hard", 1), ("soft", "soft", 35)] == found
    assert [] == await violations(alerting, tenant="other")


async def test_a_check_names_every_open_window(alerting: Serving) -> None:
    """With its figure, what is reached, and what was told of; a tenant that nobody knows is refused."""
    sidecar, window = await opened(alerting, "whole")
    await window.report(sidecar, 91)
    stub = reports_pb2_grpc.ReportServiceStub(alerting.channel)
    (state,) = (await stub.CheckAlerts(reports_pb2.CheckAlertsRequest(tenant="acme"))).states
    assert ("limit", "whole", "100", "91") == (state.kind, state.subject, state.base, state.value)
    assert (["75%", "90%", "100%"], ["75%", "90%"]) == (list(state.at), list(state.reached))
    assert ["75%", "90%"] == list(state.fired)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CheckAlerts(reports_pb2.CheckAlertsRequest(tenant="nobody"))
    assert "TENANT_UNKNOWN" == error_info(caught.value).reason
