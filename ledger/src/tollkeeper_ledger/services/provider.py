"""What a process has of Stripe: one client, and what uses it; None where no key is set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.payments.stripe_http import REQUESTS_PER_S_LIVE, REQUESTS_PER_S_TEST, StripeHttp
from tollkeeper_ledger.services.collecting import Collector
from tollkeeper_ledger.services.provider_cards import Cards
from tollkeeper_ledger.services.provider_events import Events
from tollkeeper_ledger.services.provider_pages import Pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.store.pool import Pool


@dataclass(frozen=True, slots=True)
class Provider:
    """Hold everything that speaks to Stripe."""

    stripe: StripeHttp
    collector: Collector
    events: Events | None
    pages: Pages


def open_provider(
    settings: Settings, pool: Pool, *, now: Callable[[], datetime], log: FilteringBoundLogger
) -> Provider | None:
    """Give what speaks to Stripe; nothing is sent yet. Without a signing secret events are refused."""
    if settings.stripe_key is None:
        return None
    usual = REQUESTS_PER_S_LIVE if settings.stripe_live else REQUESTS_PER_S_TEST
    stripe = StripeHttp.connect(
        settings.stripe_url,
        api_key=settings.stripe_key.get_secret_value(),
        requests_per_s=settings.stripe_requests_per_s or usual,
    )
    account = settings.stripe_account
    secret = settings.stripe_webhook_secret
    cards = Cards(pool, stripe, now)
    events = None
    if secret is not None:
        signed_by = secret.get_secret_value()
        events = Events(pool, stripe, cards, signed_by, is_live=settings.stripe_live, account=account, now=now, log=log)
    return Provider(
        stripe=stripe,
        collector=Collector(pool, stripe, cards, account or "own", now, log, at_once=settings.stripe_at_once),
        events=events,
        pages=Pages(pool, stripe, cards, account or "own", now),
    )
