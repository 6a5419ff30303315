"""What the journey came to: for people, and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tollkeeper_cli.output import money

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from tollkeeper_cli.demo.probe import Measured
    from tollkeeper_cli.demo.verify import Stored, Verdict
    from tollkeeper_cli.replay.tally import Tally
    from tollkeeper_cli.stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceSummary:
    """One invoice."""

    tenant: str
    number: str
    currency: str
    total_minor: int
    pdf: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything that the journey measured."""

    speed: str
    unlimited: bool
    tally: Tally
    trace: Mapping[str, Mapping[str, int]]
    """The recording's own totals per tenant: requests, context_tokens, generated_tokens."""
    stored: Mapping[str, Stored]
    verdicts: Mapping[str, Verdict]
    measured: Measured
    usage_lag_ms: int
    quarantined: int
    invoices: list[InvoiceSummary]
    addresses: Addresses
    data_directory: str
    replay_seconds: float
    seconds: float
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        tenants = {name: self._tenant_json(name) for name in sorted(self.trace)}
        keys = ("ledger_context_tokens", "ledger_generated_tokens", "ledger_records", "duplicates", "lost")
        return {
            "requests": self.tally.requests,
            "admitted": self.tally.admitted,
            "denied": self.tally.denied,
            "context_tokens": self.tally.units("context_tokens"),
            "generated_tokens": self.tally.units("generated_tokens"),
            **{key: sum(tenant[key] for tenant in tenants.values()) for key in keys},
            "check_p50_us": self.measured.paced.p50_us,
            "check_p99_us": self.measured.paced.p99_us,
            "check_max_us": self.measured.paced.max_us,
            "check_method": "unary, native client, Unix socket, from when each was due",
            "paced_checks": self.measured.paced.checks,
            "python_check_p50_us": self.measured.python.p50_us,
            "python_check_p99_us": self.measured.python.p99_us,
            "checks_per_second": self.measured.burst.checks_per_second,
            "checks_per_second_method": "StreamQuota, one stream of the native client",
            "invoices": [
                {
                    "tenant": invoice.tenant,
                    "number": invoice.number,
                    "currency": invoice.currency,
                    "total_minor": invoice.total_minor,
                    "pdf": invoice.pdf,
                }
                for invoice in self.invoices
            ],
            "seconds": round(self.seconds, 3),
            "replay_seconds": round(self.replay_seconds, 3),
            "speed": self.speed,
            "unlimited": self.unlimited,
            "tenants": tenants,
            "denied_by": [
                {"tenant": tenant, "limit": limit, "reason": reason, "count": count}
                for (tenant, limit, reason), count in self.tally.denials().items()
            ],
            "usage_lag_ms": self.usage_lag_ms,
            "quarantined": self.quarantined,
            "retries": self.tally.retries,
            "late_max_us": self.tally.late_max_us,
            "braked_seconds": round(self.tally.braked_s, 3),
            "addresses": {
                "sidecar": self.addresses.sidecar_listen,
                "sidecar_socket": self.addresses.sidecar_socket,
                "sidecar_http": self.addresses.sidecar_http,
                "ledger": self.addresses.ledger_listen,
                "ledger_http": self.addresses.ledger_http,
            },
            "problems": self.problems,
        }

    def _tenant_json(self, name: str) -> dict[str, Any]:
        """Return one tenant's figures."""
        counts, stored, verdict = self.tally.of(name), self.stored[name], self.verdicts[name]
        return {
            "requests": counts.requests,
            "admitted": counts.admitted,
            "denied": counts.denied,
            "context_tokens": counts.units["context_tokens"],
            "generated_tokens": counts.units["generated_tokens"],
            "ledger_context_tokens": stored.sums.get("context_tokens", (0, 0))[0],
            "ledger_generated_tokens": stored.sums.get("generated_tokens", (0, 0))[0],
            "ledger_records": stored.records,
            "duplicates": verdict.duplicates,
            "lost": verdict.lost,
            "unexpected": verdict.unexpected,
            "refunded": dict(sorted(counts.refunded.items())),
            "expired": counts.expired,
            "trace": dict(self.trace[name]),
        }


def print_summary(console: Console, summary: Summary) -> None:
    """Print the summary to read."""
    console.print(_usage_table(summary))
    console.print(_denial_table(summary))
    console.print(_figures(summary))
    console.print(_invoice_table(summary))
    for problem in summary.problems:
        console.print(Text.assemble(("FAILED ", "bold red"), problem))
    if not summary.problems:
        console.print(Text.assemble(("OK ", "bold green"), "every acknowledged record is stored once and billed once."))


def _usage_table(summary: Summary) -> Table:
    """Show what each tenant asked for, got, and what the ledger has."""
    table = Table(title="Usage", title_justify="left", header_style="bold")
    table.add_column("")
    names = sorted(summary.trace)
    for name in (*names, "all"):
        table.add_column(name, justify="right")
    counts = [summary.tally.of(name) for name in names]

    def row(label: str, values: list[int], *, style: str = "") -> None:
        table.add_row(label, *(f"{value:,}" for value in (*values, sum(values))), style=style)

    row("requests", [tenant.requests for tenant in counts])
    row("admitted", [tenant.admitted for tenant in counts])
    row("denied", [tenant.denied for tenant in counts])
    for meter in ("context_tokens", "generated_tokens"):
        label = meter.replace("_", " ")
        row(f"{label} in the trace", [summary.trace[name][meter] for name in names], style="dim")
        row(f"{label} admitted", [tenant.units[meter] for tenant in counts])
        row(f"{label} in the ledger", [summary.stored[name].sums.get(meter, (0, 0))[0] for name in names])
    row("generated tokens reserved and refunded", [tenant.refunded["generated_tokens"] for tenant in counts])
    row("records in the ledger", [summary.stored[name].records for name in names])
    row("stored more than once", [summary.verdicts[name].duplicates for name in names])
    row("acknowledged but lost", [summary.verdicts[name].lost for name in names])
    return table


def _denial_table(summary: Summary) -> Table:
    """Show who was denied by which limit."""
    table = Table(title="Denied", title_justify="left", header_style="bold")
    for name in ("tenant", "limit", "reason"):
        table.add_column(name)
    table.add_column("requests", justify="right")
    table.add_column("share of all", justify="right")
    total = max(summary.tally.requests, 1)
    for (tenant, limit, reason), count in summary.tally.denials().items():
        table.add_row(tenant, limit, reason, f"{count:,}", f"{100 * count / total:.2f} %")
    table.add_row("all", "", "", f"{summary.tally.denied:,}", f"{100 * summary.tally.denied / total:.2f} %")
    return table


def _figures(summary: Summary) -> Table:
    """Show measurements and addresses."""
    paced, python, burst = summary.measured.paced, summary.measured.python, summary.measured.burst
    addresses = summary.addresses
    table = Table.grid(padding=(0, 2))
    for label, value in (
        ("check latency", (f"p50 {paced.p50_us:,} µs, p99 {paced.p99_us:,} µs, most {paced.max_us:,} µs "
                          f"({paced.checks:,} checks at 1,000/s, native client, Unix socket, from when each was due)")),
        ("check from Python", (f"p50 {python.p50_us:,} µs, p99 {python.p99_us:,} µs "
                              f"({python.checks:,} likewise, with the Python client)")),
        ("checks per second", (f"{burst.checks_per_second:,} (StreamQuota, one stream of the native client, "
                              f"{burst.checks:,} checks)")),
        ("usage lag", f"{summary.usage_lag_ms:,} ms from the last acknowledgement to the ledger's commit"),
        ("replay", (f"{summary.replay_seconds:,.1f} s at speed {summary.speed}, {summary.tally.retries:,} retries, "
                   f"at most {summary.tally.late_max_us / 1000:,.0f} ms late{_braked(summary)}")),
        ("whole journey", f"{summary.seconds:,.1f} s"),
        ("sidecar", f"{addresses.sidecar_listen}  unix:{addresses.sidecar_socket}"),
        ("ledger", addresses.ledger_listen),
        ("health", f"http://{addresses.sidecar_http}/health  http://{addresses.ledger_http}/health"),
        ("data and logs", summary.data_directory),
    ):  # fmt: skip
        table.add_row(Text(label, style="bold"), Text(value))
    return table


def _braked(summary: Summary) -> str:
    """Say how long the replay ran slower than asked for."""
    braked_s = summary.tally.braked_s
    return f"; slower for {braked_s:,.1f} s, because the machine was busy" if braked_s else ""


def _invoice_table(summary: Summary) -> Table:
    """Show the invoices."""
    table = Table(title="Invoices", title_justify="left", header_style="bold")
    table.add_column("tenant")
    table.add_column("number")
    table.add_column("total", justify="right")
    table.add_column("PDF", overflow="fold")
    for invoice in summary.invoices:
        table.add_row(invoice.tenant, invoice.number, money(invoice.total_minor, invoice.currency), invoice.pdf)
    return table
