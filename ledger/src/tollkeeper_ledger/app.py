"""The ledger's composition root: everything is wired here and nowhere else."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from tollkeeper_ledger.commands import archiver_of, move_month, rebuild
from tollkeeper_ledger.config import ConfigurationError, Settings
from tollkeeper_ledger.jobs.loops import every
from tollkeeper_ledger.payments.smtp import SmtpServer
from tollkeeper_ledger.payments.webhook_http import WebhookHttp
from tollkeeper_ledger.rpc.registry import described_services
from tollkeeper_ledger.rpc.server import channel_to, start_server
from tollkeeper_ledger.services.alerting import Alerter
from tollkeeper_ledger.services.billing_processes import billing_processes_of
from tollkeeper_ledger.services.card_warnings import warn_of_cards
from tollkeeper_ledger.services.chain_slot import ChainSlot
from tollkeeper_ledger.services.clock import LedgerClock
from tollkeeper_ledger.services.invoice_run import bill_thresholds
from tollkeeper_ledger.services.invoice_schedule import run_due_invoices
from tollkeeper_ledger.services.invoices import warm_preview
from tollkeeper_ledger.services.limits import open_limits
from tollkeeper_ledger.services.mailing import Mailer
from tollkeeper_ledger.services.producer_watch import ProducerWatch
from tollkeeper_ledger.services.provider import open_provider
from tollkeeper_ledger.services.receivables import mark_all_past_due
from tollkeeper_ledger.services.reconciling import Nightly
from tollkeeper_ledger.services.resources import Resources
from tollkeeper_ledger.services.sealing import webhook_sealer
from tollkeeper_ledger.services.subscription_changes import follow_due_phases
from tollkeeper_ledger.services.trials import follow_astray, tell_of_ends
from tollkeeper_ledger.services.usage_roots import RootSigner
from tollkeeper_ledger.services.webhooks import WebhookSender
from tollkeeper_ledger.store.clock import start_clock
from tollkeeper_ledger.store.listener import Listener
from tollkeeper_ledger.store.migrations import migrate
from tollkeeper_ledger.store.pool import open_pool, open_pools
from tollkeeper_ledger.store.redis_servers import open_redis
from tollkeeper_ledger.web.app import http_app
from tollkeeper_ledger.web.listener import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import date

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.limits import Limits

_STOP_GRACE_S = 2.0
_SIGN_EVERY_S = 60.0
_WATCH_EVERY_S = 60.0
_BILLING_TICK_S = 30.0
_JOB_CONNECTIONS = 4
_YOUNG_OBJECTS, _COLLECTIONS = 50_000, 20


def open_log(level: str) -> FilteringBoundLogger:
    """Give a logger that writes one JSON object a line to standard error."""
    number: int = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
    )
    return log


def _boottime_ns() -> int:
    """Read a clock that goes on while the machine sleeps, so that waking up is no jump of Postgres' clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _now() -> datetime:
    """Read real time: providers' keys and signatures age by it."""
    return datetime.now(UTC)


@asynccontextmanager
async def open_resources(settings: Settings, log: FilteringBoundLogger) -> AsyncIterator[Resources]:
    """Open what the process has one of, and close it at the end."""
    redis = open_redis(settings.redis_url, log)
    try:
        await redis.start()
        async with open_pools(settings, warm_billing=warm_preview) as pools:
            clock = LedgerClock(pools.ingest, log, embedded=settings.embedded, monotonic_ns=_boottime_ns)
            await clock.refresh()
            listener, chain = Listener(settings.database_url, role="tollkeeper_ingest", log=log), ChainSlot()
            listener.on_session(chain.take)
            provider = open_provider(settings, pools.billing, now=_now, log=log)
            try:
                yield Resources(
                    settings=settings,
                    pools=pools,
                    redis=redis,
                    clock=clock,
                    listener=listener,
                    chain=chain,
                    log=log,
                    provider=provider,
                )
            finally:
                if provider is not None:
                    await provider.stripe.aclose()
    finally:
        await redis.aclose()


@dataclass(frozen=True, slots=True)
class Running:
    """A ledger that serves."""

    resources: Resources
    port: int
    http_port: int


def _mailing(resources: Resources) -> list[Coroutine[Any, Any, None]]:
    """Give the loop that sends mails, where a mail server is configured."""
    url = resources.settings.smtp_url
    if url is None:
        return []
    try:
        server = SmtpServer.from_url(url.get_secret_value())
    except ValueError as error:
        raise ConfigurationError(f"TOLLKEEPER_SMTP_URL: {error}") from error
    settings = resources.settings
    mailer = Mailer(
        resources.pools.billing,
        server,
        settings.mail_from,
        _now,
        resources.log,
        fonts=settings.font_dir,
        cards_at=settings.stripe_portal_url,
    )
    return [every(1.0, mailer.run_all, log=resources.log)]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Serve until the block ends; calls in flight get two seconds to finish."""
    log = open_log(settings.log_level)
    async with open_resources(settings, log) as resources, asyncio.TaskGroup() as tasks:
        limits = await open_limits(resources)
        server, port = await start_server(resources, limits)
        provider = resources.provider
        sealer = webhook_sealer(settings)
        webhooks = WebhookHttp.connect(private=settings.webhook_private)
        channel = channel_to(settings.ledger_listen, port)
        http = await listen(http_app(resources, channel, described_services()), settings.ledger_http, log)
        loops = [
            tasks.create_task(resources.listener.run()),
            *(tasks.create_task(loop) for loop in limits.loops()),
            tasks.create_task(resources.redis.run()),
            tasks.create_task(every(1.0, resources.clock.tick, log=log)),
            tasks.create_task(every(1.0, limits.restores.tick, log=log)),
            tasks.create_task(every(1.0, limits.learning.tick, log=log)),
            tasks.create_task(every(0.25, partial(follow_due_phases, resources.pools.billing), log=log)),
            tasks.create_task(every(1.0, partial(follow_astray, resources.pools.billing), log=log)),
            tasks.create_task(every(1.0, partial(tell_of_ends, resources.pools.billing), log=log)),
            *(tasks.create_task(loop) for loop in _signing(resources, limits)),
            *(tasks.create_task(loop) for loop in _watching(resources)),
            tasks.create_task(every(_BILLING_TICK_S, partial(mark_all_past_due, resources.pools.billing), log=log)),
            *([tasks.create_task(every(1.0, provider.collector.run_all, log=log))] if provider is not None else []),
            *(tasks.create_task(loop) for loop in _mailing(resources)),
            tasks.create_task(WebhookSender(resources.pools.billing, webhooks, _now, log, sealer).run()),
            tasks.create_task(every(1.0, Alerter(resources.pools.billing, log).run_all, log=log)),
        ]
        try:
            yield Running(resources=resources, port=port, http_port=http.port)
        finally:
            await http.stop(_STOP_GRACE_S)
            await channel.close()
            limits.hub.close_all()
            await server.stop(_STOP_GRACE_S)
            for loop in loops:
                loop.cancel()
            await webhooks.aclose()


def _watching(resources: Resources) -> list[Coroutine[Any, Any, None]]:
    """Give the loop that tells of producers that are behind; ledger time that is scaled says nothing of that."""
    if resources.settings.embedded:
        return []
    return [every(_WATCH_EVERY_S, ProducerWatch(resources.pools, resources.log).tick, log=resources.log)]


def _signing(resources: Resources, limits: Limits) -> list[Coroutine[Any, Any, None]]:
    """Give the loop that signs roots of the usage chain, where there is a directory for them."""
    directory = resources.settings.audit_dir
    if directory is None:
        return []
    installation_id = limits.installation.installation_id
    signer = RootSigner(resources.pools.billing, directory, installation_id=installation_id)
    return [every(_SIGN_EVERY_S, signer.tick, log=resources.log)]


async def run_jobs(settings: Settings) -> None:
    """Do what is done by the clock until SIGTERM or SIGINT. Any number of such processes may run."""
    from tollkeeper_ledger.jobs import runner  # noqa: PLC0415 - slow to load, and `serve` needs none of it
    from tollkeeper_ledger.jobs.upkeep import Upkeep  # noqa: PLC0415 - likewise

    log = open_log(settings.log_level)
    try:
        schedules = runner.schedules_with(settings.invoice_schedule)
    except ValueError as error:
        raise ConfigurationError(f"TOLLKEEPER_INVOICE_SCHEDULE: {error}") from error
    stop = stop_by_signals()
    pool = await open_pool(settings.database_url, role="tollkeeper_ingest", size=_JOB_CONNECTIONS)
    billing = await open_pool(settings.database_url, role="tollkeeper_billing", size=_JOB_CONNECTIONS)
    provider = open_provider(settings, billing, now=_now, log=log)
    money: dict[str, Callable[[], Awaitable[object]]] = {
        "warn_cards": lambda: warn_of_cards(billing, now=_now()),
        "expire_messages": Upkeep(billing, log).expire_messages,
        "bill_thresholds": lambda: bill_thresholds(billing, actor="jobs"),
        "run_invoices": lambda: run_due_invoices(billing, log, processes=billing_processes_of(settings)),
    }
    if provider is not None:
        money["reconcile"] = Nightly(billing, provider.stripe, _now, log).reconcile
    try:
        archiver = archiver_of(settings, pool, log)
        async with runner.running_jobs(pool, log, archiver=archiver, money=money, schedules=schedules):
            log.info("jobs run")
            await stop.wait()
    finally:
        if provider is not None:
            await provider.stripe.aclose()
        billing.terminate()
        pool.terminate()


def stop_by_signals() -> asyncio.Event:
    """Give what is set when SIGTERM or SIGINT comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def collect_rarely() -> None:
    """Leave what there is at start out of garbage collection, and collect a seventieth as often.

    A batch makes thousands of objects that live until its answer and then go by themselves: the usual 700 made a
    collection of everything out of many batches, which cost a fifth of the time that openings of pools take.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _COLLECTIONS, _COLLECTIONS)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Migrates first in an embedded setup."""
    if settings.embedded:
        await migrate(settings.database_url)
    stop = stop_by_signals()
    async with running(settings) as ledger:
        collect_rarely()
        ledger.resources.log.info(
            "ledger serves", grpc=settings.ledger_listen, port=ledger.port, http_port=ledger.http_port
        )
        await stop.wait()


def _month(text: str) -> date:
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()


def main() -> None:
    """Run `tollkeeper-ledger` with one of its commands."""
    parser = argparse.ArgumentParser(prog="tollkeeper-ledger", description="Tollkeeper's ledger.")
    parser.add_argument(
        "command", choices=["serve", "jobs", "migrate", "rebuild-rollups", "archive-month", "restore-month"]
    )
    parser.add_argument("--month", type=_month, help="archive-month, restore-month: YYYY-MM")
    parser.add_argument(
        "--check", action="store_true", help="rebuild-rollups: only compare; exit code 1 on a difference"
    )
    arguments = parser.parse_args()
    command: str = arguments.command
    settings = Settings()
    if command == "migrate":
        for name in asyncio.run(migrate(settings.database_url)):
            sys.stdout.write(f"applied {name}\n")
        if settings.embedded and settings.clock_start is not None:
            asyncio.run(start_clock(settings.database_url, settings.clock_start))
    elif command == "rebuild-rollups":
        differed = asyncio.run(rebuild(settings, check_only=arguments.check))
        sys.exit(1 if differed and arguments.check else 0)
    elif command in ("archive-month", "restore-month"):
        if arguments.month is None:
            parser.error("--month YYYY-MM is needed")
        try:
            log = open_log(settings.log_level)
            sys.stdout.write(asyncio.run(move_month(settings, log, command, arguments.month)) + "\n")
        except ConfigurationError as error:
            sys.exit(f"tollkeeper-ledger: {error}")
    else:
        problems: list[str] = []
        try:
            asyncio.run(run_jobs(settings) if command == "jobs" else serve(settings))
        except* ConfigurationError as found:
            problems = [str(error) for error in found.exceptions]
        if problems:
            sys.exit(f"tollkeeper-ledger: {'; '.join(problems)}")
