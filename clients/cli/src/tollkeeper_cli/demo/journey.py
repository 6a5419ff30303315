"""The journey, step by step."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_cli.commands.replay import progress_bar, seldom
from tollkeeper_cli.demo.probe import PROBE_METER, PROBE_TENANT, BurstResult, Measured, PacedResult
from tollkeeper_cli.demo.summary import InvoiceSummary, Summary
from tollkeeper_cli.demo.verify import TOKEN_METERS, Stored, collect, judge, judge_invoice
from tollkeeper_cli.errors import FoundProblemsError, UsageError
from tollkeeper_cli.ledger_calls import LedgerCalls, ledger_at
from tollkeeper_cli.replay.formats import Format, ReadOptions, read_requests, stop_at_malformed
from tollkeeper_cli.replay.pace import merged
from tollkeeper_cli.replay.session import LEAD_US, Speed, Timing, plan_timing, replay, shifted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from tollkeeper.ledger.v1 import billing_pb2

    from tollkeeper_cli.replay.model import ReplayRequest
    from tollkeeper_cli.replay.tally import Tally
    from tollkeeper_cli.stack import Stack

TENANTS = ("code", "conv")
GRACE_US = 3_600_000_000
PACED_SECONDS = 10
PACED_RATE = 1_000
PYTHON_SECONDS = 5
BURST_SECONDS = 3

_MINUTE_US = 60_000_000
_POLL_S = 0.02
_SHIPPED_TIMEOUT_S = 60.0
_BILLED_TIMEOUT_S = 60.0
_WATCH_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class JourneyOptions:
    """What the command line chose."""

    examples: Path
    speed: Speed
    unlimited: bool
    fresh: bool
    run_name: str
    """First part of the request ids: another one for every run that keeps the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replayed:
    """What the replay left behind."""

    tally: Tally
    stored: Mapping[str, Stored]
    lag_ms: int
    quarantined: int
    seconds: float


def read_trace(options: JourneyOptions) -> list[ReplayRequest]:
    """Read the example trace: both tenants' requests in order of arrival."""
    return merged(
        *(
            read_requests(
                options.examples / "data" / f"AzureLLMInferenceTrace_{tenant}.csv.gz",
                Format.AZURE_LLM,
                ReadOptions(tenant=tenant, id_prefix=options.run_name),
                on_malformed=stop_at_malformed,
            )
            for tenant in TENANTS
        )
    )


def trace_totals(requests: Sequence[ReplayRequest]) -> dict[str, dict[str, int]]:
    """Sum the recording itself."""
    totals: dict[str, Counter[str]] = {tenant: Counter() for tenant in TENANTS}
    for request in requests:
        totals[request.tenant].update(request.settle)
    return {
        tenant: {meter: counts[meter] for meter in ("requests", *TOKEN_METERS)} for tenant, counts in totals.items()
    }


async def travel(stack: Stack, trace: Sequence[ReplayRequest], options: JourneyOptions, console: Console) -> Summary:
    """Go the whole way on a running stack and return what it came to.

    Raises ProcessError as soon as one of the stack's processes dies.
    """
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(stack))
        summary = await _travel(stack, trace, options, console)
        watch.cancel()
    return summary


async def _travel(
    stack: Stack, recorded: Sequence[ReplayRequest], options: JourneyOptions, console: Console
) -> Summary:
    """Do every step in order."""
    started_s = time.monotonic()
    async with ledger_at(stack.addresses.ledger_listen) as ledger:
        timing = await plan_timing(ledger, recorded[0].at_us, fresh=options.fresh)
        if not timing.scaled:
            raise UsageError("the demo needs an embedded setup: its ledger has no clock that can be set")
        await ledger.set_clock(now_us=timing.first_us - LEAD_US, speed=0)
        await _declare(ledger, options, console)
        period_end_us = await _period_end(ledger, timing)
        requests = shifted(recorded, timing.shift_us)
        replayed = await _replay(ledger, stack, requests, timing=timing, speed=options.speed, console=console)
        measured = await _measure(stack.addresses.sidecar_target, console)
        invoices = await _bill(ledger, period_end_us, console)
        summaries = await _save(ledger, invoices, stack.directory)
    verdicts = {tenant: judge(tenant, replayed.tally.of(tenant), replayed.stored[tenant]) for tenant in TENANTS}
    problems = [problem for verdict in verdicts.values() for problem in verdict.problems]
    problems += [problem for one in invoices for problem in judge_invoice(one, replayed.tally.of(one.tenant))]
    summary = Summary(
        speed=options.speed.value,
        unlimited=options.unlimited,
        tally=replayed.tally,
        trace=trace_totals(recorded),
        stored=replayed.stored,
        verdicts=verdicts,
        measured=measured,
        usage_lag_ms=replayed.lag_ms,
        quarantined=replayed.quarantined,
        invoices=summaries,
        addresses=stack.addresses,
        data_directory=str(stack.directory),
        replay_seconds=replayed.seconds,
        seconds=time.monotonic() - started_s,
        problems=problems,
    )
    summary.problems.extend(_other_problems(summary))
    return summary


def _other_problems(summary: Summary) -> list[str]:
    """Find what is wrong beside the totals."""
    problems: list[str] = []
    if summary.quarantined:
        problems.append(f"{summary.quarantined:,} records are in quarantine")
    if summary.unlimited and summary.tally.denied:
        problems.append(f"{summary.tally.denied:,} requests were denied although there were no limits")
    measured = summary.measured
    for what, denied in (
        ("paced", measured.paced.denied + measured.python.denied),
        ("burst", measured.burst.denied),
    ):
        if denied:
            problems.append(f"{denied:,} checks of the {what} phase were denied")
    billed = Counter(invoice.tenant for invoice in summary.invoices)
    problems += [f"{tenant}: {billed[tenant]} invoices, expected 1" for tenant in TENANTS if billed[tenant] != 1]
    return problems


async def _watch(stack: Stack) -> None:
    """Fail as soon as a process has died."""
    while True:
        stack.check()
        await asyncio.sleep(_WATCH_INTERVAL_S)


async def _declare(ledger: LedgerCalls, options: JourneyOptions, console: Console) -> None:
    """Apply the example catalogue."""
    path = options.examples / "catalogues" / "llm.yaml"
    changed = await ledger.apply(path.read_text(encoding="utf-8"), source_name=path.name)
    console.print(f"applied {path}: {changed} changes", markup=False, soft_wrap=True)
    if options.unlimited:
        for tenant in TENANTS:
            await ledger.lift_limits(tenant)
        console.print("lifted every limit of " + " and ".join(TENANTS))


async def _replay(
    ledger: LedgerCalls,
    stack: Stack,
    requests: Sequence[ReplayRequest],
    *,
    timing: Timing,
    speed: Speed,
    console: Console,
) -> _Replayed:
    """Replay the trace, wait until the ledger has all of it, and read it back."""
    before, _ = await ledger.records_stored()
    started_s = time.monotonic()
    with progress_bar(console) as bar:
        task = bar.add_task(f"replaying at speed {speed.value}", total=len(requests), note="")

        def moved(tally: Tally) -> None:
            bar.update(task, completed=tally.admitted + tally.denied, note=f"{tally.denied:,} denied")

        tally = await replay(
            requests,
            ledger=ledger,
            sidecar=stack.addresses.sidecar_target,
            speed=speed,
            timing=timing,
            on_progress=seldom(moved),
        )
        moved(tally)
    ended_s = time.monotonic()
    quarantined = await _wait_shipped(ledger, before + tally.admitted)
    lag_ms = round((time.monotonic() - ended_s) * 1_000)
    from_us = timing.first_us // _MINUTE_US * _MINUTE_US
    stored = {
        tenant: collect(
            [record async for record in ledger.records(tenant, from_us=from_us)],
            await ledger.usage(tenant, from_us=from_us),
        )
        for tenant in TENANTS
    }
    return _Replayed(tally=tally, stored=stored, lag_ms=lag_ms, quarantined=quarantined, seconds=ended_s - started_s)


async def _wait_shipped(ledger: LedgerCalls, expected: int) -> int:
    """Wait until the ledger has so many records, or none came for long; return how many are in quarantine."""
    deadline_s = time.monotonic() + _SHIPPED_TIMEOUT_S
    while True:
        records, quarantined = await ledger.records_stored()
        if records + quarantined >= expected or time.monotonic() > deadline_s:
            return quarantined
        await asyncio.sleep(_POLL_S)


async def _measure(target: str, console: Console) -> Measured:
    """Measure latency with the native client and with Python's, then throughput, from processes of their own."""
    console.print(f"measuring latency: {PACED_RATE:,} checks/s for {PACED_SECONDS} s")
    probe = (target, PROBE_TENANT, PROBE_METER)
    paced = await _probe("tollkeeper_sidecar.probe", "paced", *probe, PACED_RATE * PACED_SECONDS, PACED_RATE)
    python = await _probe("tollkeeper_cli.demo.probe", target, PYTHON_SECONDS, PACED_RATE)
    console.print(f"measuring throughput for {BURST_SECONDS} s")
    burst = await _probe("tollkeeper_sidecar.probe", "burst", *probe, BURST_SECONDS)
    return Measured(paced=PacedResult(**paced), python=PacedResult(**python), burst=BurstResult(**burst))


async def _probe(module: str, *arguments: object) -> dict[str, int]:
    """Run one measurement."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode != 0:
        raise FoundProblemsError(f"{module} failed:\n{err.decode(errors='replace')[-2_000:]}")
    found: dict[str, int] = json.loads(out)
    return found


async def _period_end(ledger: LedgerCalls, timing: Timing) -> int:
    """Return the end of the billing period that the trace begins in."""
    ends = {await ledger.period_end_us(tenant) for tenant in TENANTS}
    if len(ends) != 1 or min(ends) <= timing.first_us:
        raise FoundProblemsError(f"the tenants' running billing periods end at {sorted(ends)}, expected one common end")
    return ends.pop()


async def _bill(ledger: LedgerCalls, period_end_us: int, console: Console) -> list[billing_pb2.Invoice]:
    """Let the period and its grace pass, and bill it."""
    console.print("closing the billing period")
    await ledger.set_clock(now_us=period_end_us + GRACE_US + _MINUTE_US)
    deadline_s = time.monotonic() + _BILLED_TIMEOUT_S
    while True:
        held = await ledger.run_invoices()
        invoices = await ledger.invoices(TENANTS, ended_by_us=period_end_us)
        if len(invoices) >= len(TENANTS) and not held:
            return invoices
        if time.monotonic() > deadline_s:
            for tenant, reason in held.items():
                console.print(f"held: {tenant}: {reason}", markup=False)
            return invoices
        await asyncio.sleep(_POLL_S * 10)


async def _save(ledger: LedgerCalls, invoices: Sequence[billing_pb2.Invoice], directory: Path) -> list[InvoiceSummary]:
    """Write the invoices' PDFs."""
    folder = directory / "invoices"
    folder.mkdir(exist_ok=True)
    found: list[InvoiceSummary] = []
    for invoice in invoices:
        path = folder / f"{invoice.number}.pdf"
        path.write_bytes(await ledger.pdf(invoice.invoice_id))
        found.append(
            InvoiceSummary(
                tenant=invoice.tenant,
                number=invoice.number,
                currency=invoice.currency,
                total_minor=invoice.total_minor,
                pdf=str(path),
            )
        )
    return found
