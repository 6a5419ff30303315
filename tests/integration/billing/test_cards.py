# ruff: noqa: SIM300 - expected first, then actual
"""Cards go forward only: what is charged is the customer's default at the provider, whatever events say and when."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
import pytest_asyncio
from stripe_shop import Shop, open_shop
from tollkeeper_ledger.payments.stripe_http import UnreadableError
from waiting import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

MINUTE = timedelta(minutes=1)


@pytest_asyncio.fixture
async def shop(bench: BillingBench) -> AsyncIterator[Shop]:
    """Give a shop whose one invoice waits for a card."""
    async with open_shop(bench) as opened:
        await opened.bill(1, "code")
        await opened.work()
        yield opened


async def payer(shop: Shop) -> UUID:
    """Give who pays."""
    (row,) = await shop.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    found: UUID = row["tenant_id"]
    return found


async def enter(shop: Shop, request_id: str, *, declined: bool = False) -> str:
    """Enter a card on a page of ours, a minute after what was before."""
    shop.clock.pass_(MINUTE)
    page = await shop.pages.card_page(
        await payer(shop), name="Code", kind="checkout", return_url="https://example.com/", request_id=request_id
    )
    return shop.fake.complete(page.rpartition("/")[2], declined=declined)


async def tell(shop: Shop, *events: dict[str, Any]) -> None:
    """Send events, each under an id of its own, so that a repeat counts as a new one."""
    for event in events:
        shop.clock.pass_(timedelta(seconds=1))
        header, body = shop.fake.signed({**event, "id": f"{event['id']}-{shop.clock()}"})
        await shop.events.receive(header=header, body=body)


async def charged(shop: Shop) -> str:
    """Give the card that the ledger charges."""
    (row,) = await shop.bench.rows("SELECT method FROM provider_account")
    return str(row["method"])


def default(shop: Shop) -> str | None:
    """Give the card that the provider charges."""
    (customer,) = shop.fake.all("customers")
    name: str | None = customer["invoice_settings"].get("default_payment_method")
    return name


def entered(shop: Shop, place: int) -> dict[str, Any]:
    """Give the event of a page that was completed."""
    return [one for one in shop.fake.events if one["type"] == "checkout.session.completed"][place]


def paying(shop: Shop) -> list[list[str]]:
    """Give which cards were named to be charged, in order."""
    sent = [body for _, target, body, _ in shop.fake.log if target.endswith("/pay")]
    return [parse_qs(body.decode()).get("payment_method", []) for body in sent]


async def test_a_card_entered_on_our_page_is_charged_and_stays(shop: Shop) -> None:
    """It becomes the customer's default and is named in the charge; an event about the name takes nothing away."""
    card = await enter(shop, "1")
    assert default(shop) is None
    await shop.hear()
    assert (card, card) == (default(shop), await charged(shop))
    await shop.work()
    assert [("paid", 0)] == await shop.standing()
    assert [[card]] == paying(shop)
    (customer,) = shop.fake.all("customers")
    await tell(shop, {"id": "evt_name", "type": "customer.updated", "livemode": False, "data": {"object": customer}})
    assert card == await charged(shop)


async def test_a_late_event_puts_no_older_card_back(shop: Shop) -> None:
    """The first page's event comes after the second's: the newer card stays, here and there; so does a portal's."""
    await enter(shop, "1")
    newer = await enter(shop, "2")
    await tell(shop, entered(shop, 1), entered(shop, 0))
    assert (newer, newer) == (default(shop), await charged(shop))
    shop.clock.pass_(MINUTE)
    (customer,) = shop.fake.all("customers")
    chosen = shop.fake.give_card(customer["id"])
    await tell(shop, entered(shop, 1), entered(shop, 0))
    assert (chosen, chosen) == (default(shop), await charged(shop))


async def test_a_removed_card_never_comes_back(shop: Shop) -> None:
    """Removed in the portal, which tells of the card alone, or by us with all others: late events bring none back."""
    card = await enter(shop, "1")
    await tell(shop, entered(shop, 0))
    shop.fake.detach(card)
    assert "payment_method.detached" == shop.fake.events[-1]["type"]
    for event in (shop.fake.events[-1], entered(shop, 0)):
        await tell(shop, event)
        assert (None, "") == (default(shop), await charged(shop))
    await enter(shop, "2")
    await enter(shop, "3")
    await tell(shop, entered(shop, 2))
    await shop.pages.remove_method(await payer(shop), request_id="x")
    await tell(shop, entered(shop, 1), entered(shop, 2), entered(shop, 0))
    assert (None, "") == (default(shop), await charged(shop))


async def test_events_of_cards_at_once_leave_what_is_true(shop: Shop) -> None:
    """However many events of both pages, of the portal and of a removal are taken in together, both sides agree."""
    for turn in range(3):
        first = await enter(shop, f"{turn}a")
        last = await enter(shop, f"{turn}b")
        events = [entered(shop, -2), entered(shop, -1)] * 3
        await asyncio.gather(*(tell(shop, event) for event in events))
        assert (last, last) == (default(shop), await charged(shop))
        shop.fake.detach(last)
        detached = shop.fake.events[-1]
        await asyncio.gather(*(tell(shop, event) for event in [*events, detached, entered(shop, -1)]))
        assert default(shop) == (await charged(shop) or None)
        assert default(shop) in (None, first)
        await asyncio.gather(shop.pages.remove_method(await payer(shop), request_id=str(turn)), tell(shop, detached))
        assert (None, "") == (default(shop), await charged(shop))


async def test_an_older_reading_never_overwrites_a_newer(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card was read, then removed, and the removal's event comes before the reading is kept: the removal stands."""
    card = await enter(shop, "1")
    await tell(shop, entered(shop, 0))
    read = type(shop.stripe).read
    has_read, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(self: Any, path: str, **fields: object) -> dict[str, Any]:
        said = await read(self, path, **fields)
        if path.endswith(card) and not has_read.is_set():
            said = dict(said)
            has_read.set()
            await goes_on.wait()
        return said

    monkeypatch.setattr(type(shop.stripe), "read", slow)
    (customer,) = shop.fake.all("customers")
    about = {"id": "evt_name", "type": "customer.updated", "livemode": False, "data": {"object": customer}}
    older = asyncio.create_task(tell(shop, about))
    async with asyncio.timeout(PATIENCE_S):
        await has_read.wait()
    shop.fake.detach(card)
    newer = asyncio.create_task(tell(shop, shop.fake.events[-1]))

    async def is_as_far_as_it_comes() -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return newer.done() or len(await shop.bench.rows(waiting)) > 0

    await wait_until(is_as_far_as_it_comes)
    goes_on.set()
    await asyncio.gather(older, newer)
    assert "" == await charged(shop)


async def test_a_card_that_can_not_be_tried_fails_no_job(shop: Shop) -> None:
    """Gone before its charge: without another card the job waits, with one that is charged; no failure is counted."""
    card = await enter(shop, "1")
    await tell(shop, entered(shop, 0))
    shop.fake.detach(card)
    await shop.work()
    assert [("collect", "pay", "waiting")] == await shop.jobs()
    (job,) = await shop.bench.rows("SELECT failures FROM provider_job")
    assert (0, "") == (job["failures"], await charged(shop))
    other = await enter(shop, "2")
    await tell(shop, entered(shop, 1))
    await shop.work()
    assert [[card], [other]] == paying(shop)
    assert [("paid", 0)] == await shop.standing()


async def test_only_another_card_is_tried_after_the_last_failure(shop: Shop) -> None:
    """Events about the same declined card charge nothing more; renewed it is tried once, another one at once."""
    card = await enter(shop, "1", declined=True)
    await tell(shop, entered(shop, 0))
    await shop.work()
    assert [("collect", "pay", "waiting")] == await shop.jobs()
    tries = len(paying(shop))
    assert 5 == tries
    await tell(shop, *[one for one in shop.fake.events if one["type"] == "customer.updated"], entered(shop, 0))
    await shop.work()
    assert tries == len(paying(shop))
    method = shop.fake.objects["payment_methods"][card]
    method["card"]["exp_year"] += 3
    renewed = {"type": "payment_method.automatically_updated", "livemode": False, "data": {"object": method}}
    await tell(shop, {"id": "evt_renewed", **renewed}, {"id": "evt_again", **renewed})
    await shop.work()
    assert tries + 1 == len(paying(shop))
    other = await enter(shop, "2")
    await tell(shop, entered(shop, 1))
    await shop.work()
    assert [other] == paying(shop)[-1]
    assert [("paid", 0)] == await shop.standing()


async def test_a_provider_that_breaks_in_the_middle_is_asked_again(shop: Shop) -> None:
    """Whichever request of an event fails, it is sent again; nothing is kept before it is true at the provider."""
    card = await enter(shop, "1")
    header, body = shop.fake.signed(entered(shop, 0))
    shop.fake.rate, shop.fake.faults = 0.5, ("500-before",)
    requests = ("session", "setup intent", "customer", "card", "default")
    for failing in range(len(requests)):
        drawn = chain([1.0] * failing, [0.0], repeat(1.0))
        shop.fake.chance.random = lambda drawn=drawn: next(drawn)  # type: ignore[method-assign, misc]
        with pytest.raises(UnreadableError):
            await shop.events.receive(header=header, body=body)
        assert (None, "") == (default(shop), await charged(shop)), requests[failing]
    shop.fake.rate = 0.0
    await shop.events.receive(header=header, body=body)
    assert (card, card) == (default(shop), await charged(shop))
