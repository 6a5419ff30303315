"""Writes the data plane's counters as Prometheus text (format 0.0.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GAUGES: Final = {
    "ready": "Whether the data plane knows its limits and serves (1) or not (0).",
    "draining": "Whether a clean stop is under way.",
    "watch_up": "Whether the ledger's watch stream is up.",
    "redis_alive": "Whether notices of pools are heard.",
    "waiting": "Checks that wait for units.",
    "keys": "Keys of limits that are kept in memory.",
    "keys_resting": "Keys that gave way to others and whose counters are kept.",
    "reservations_open": "Reservations neither settled, released nor expired.",
    "log_fill_percent": "How full the usage log is.",
    "log_unshipped_records": "Usage records that the ledger has not yet acknowledged.",
    "log_lag_seconds": "Age of the oldest usage record that the ledger has not yet acknowledged.",
    "log_full_in_seconds": "Time until the usage log is full if it fills as in the last minute; absent if it doesn't.",
    "log_used_bytes": "Bytes of the usage log in use.",
    "log_capacity_bytes": "Bytes that the usage log may use.",
    "log_unchecked_bytes": "Bytes of the usage log that this start has still to check before it ships them.",
    "log_damaged": "Stretches of the usage log that were not as written, found since this start: an alarm above 0.",
    "log_refused_seq": "Sequence number that the ledger refuses even alone and that holds up the rest; 0 = none.",
    "commands_outstanding": "Commands of the data plane that await their answer.",
}
COUNTERS: Final = {
    "checks_total": "Checks decided.",
    "admitted_total": "Checks admitted.",
    "records_total": "Usage records made durable.",
    "log_io_errors_total": "Failed writes and syncs of the usage log: an alarm while it rises.",
    "ship_batches_total": "Batches that the ledger answered.",
    "ship_answers_lost_total": "Batches that had been committed before, by one whose answer was lost.",
    "ship_duplicates_total": "Records that the ledger had already, with the same content.",
    "ship_conflicts_total": "Records whose id the ledger has with other content; they are in quarantine.",
    "ship_quarantined_total": "Records in the ledger's quarantine for another reason: an alarm while it rises.",
    "ship_skipped_total": "Entries that the ledger can't read and that went as a digest: an alarm while it rises.",
    "ship_lost_total": "Entries that the ledger lost and this log has no more: an alarm above 0.",
    "ship_fenced_total": "Times that another process had this producer.",
    "ship_forked_total": "Times that the ledger had another history of this producer: an alarm while it rises.",
    "ship_rewinds_total": "Times that the ledger went back, as after a restore.",
    "keys_refused_total": "Calls that found no room for their key: an alarm while it rises.",
    "uncovered_units_total": "Units that a limit admitted because no authority answered: an alarm while it rises.",
    "decisions_told_total": "Decisions of limits that the ledger has counted.",
    "decisions_left_out_total": "Of these, such that should have been kept one by one and found no room.",
    "decisions_lost_total": "Decisions of limits that the ledger would not count, or that a stop left untold.",
    "late_answers_total": "Answers to commands that were no longer awaited.",
    "bad_messages_total": "Messages of ledger or control plane that could not be used.",
}
BY_REASON: Final = {
    "denied_total": ("denied", "Checks denied, by reason."),
    "errors_total": ("errors", "Calls that failed, by reason."),
}
LIMIT_UNITS: Final = {
    "within": "Units asked of limits that had room for them, by the limit's name over all tenants.",
    "near": "Of the units up to a limit, those above four fifths of it: it is about to bite.",
    "over": "Units asked beyond a limit: denied, or admitted by a soft or shadow one.",
}
LATENCY: Final = "check_latency_seconds"
_PREFIX: Final = "tollkeeper_sidecar_"


def render(stats: Mapping[str, Any]) -> str:
    """Render a snapshot of `DataPlane.stats()`. Figures that the snapshot lacks are left out, never shown as 0."""
    return "\n".join(_lines(stats)) + "\n"


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    flat = _flat(stats)
    for kind, table in (("gauge", GAUGES), ("counter", COUNTERS)):
        for name, text in table.items():
            if name in flat:
                yield from _head(name, kind, text)
                yield f"{_PREFIX}{name} {_number(flat[name])}"
    for name, (key, text) in BY_REASON.items():
        if key in stats:
            yield from _head(name, "counter", text)
            for reason, count in sorted(stats[key].items()):
                yield f'{_PREFIX}{name}{{reason="{_label(reason)}"}} {_number(count)}'
    for state, text in LIMIT_UNITS.items():
        if "limits" in stats:
            name = f"limit_units_{state}_total"
            yield from _head(name, "counter", text)
            for limit, units in sorted(stats["limits"].items()):
                yield f'{_PREFIX}{name}{{limit="{_label(limit)}"}} {_number(units[state])}'
    yield from _latency(stats.get("latency_us", {}).get("buckets", ()))


def _flat(stats: Mapping[str, Any]) -> dict[str, Any]:
    log, commands, shipping = stats.get("log", {}), stats.get("commands", {}), stats.get("shipping", {})
    decisions = stats.get("decisions", {})
    shipped = ("batches", "answers_lost", "duplicates", "conflicts", "quarantined", "skipped", "lost")
    named = {
        **{
            name: stats.get(name)
            for name in ("ready", "draining", "watch_up", "redis_alive", "waiting", "keys", "keys_resting")
        },
        "reservations_open": stats.get("reservations_open"),
        "log_fill_percent": log.get("fill_percent"),
        "log_unshipped_records": log.get("unshipped_records"),
        "log_lag_seconds": _seconds(log.get("lag_ms")),
        "log_full_in_seconds": _seconds(log.get("full_in_ms")),
        "log_used_bytes": log.get("used_bytes"),
        "log_capacity_bytes": log.get("capacity_bytes"),
        "log_unchecked_bytes": log.get("unchecked_bytes"),
        "log_damaged": log.get("damaged"),
        "log_refused_seq": shipping.get("refused_seq"),
        "log_io_errors_total": log.get("io_errors"),
        **{f"ship_{name}_total": shipping.get(name) for name in (*shipped, "fenced", "forked", "rewinds")},
        "commands_outstanding": commands.get("outstanding"),
        "checks_total": stats.get("checks"),
        "admitted_total": stats.get("admitted"),
        "records_total": stats.get("records"),
        "keys_refused_total": stats.get("keys_refused"),
        "uncovered_units_total": stats.get("uncovered_units"),
        **{f"decisions_{name}_total": decisions.get(name) for name in ("told", "left_out", "lost")},
        "late_answers_total": commands.get("late_answers"),
        "bad_messages_total": stats.get("bad_messages"),
    }
    return {name: value for name, value in named.items() if value is not None}


def _seconds(value_ms: int | None) -> float | None:
    return None if value_ms is None else value_ms / 1000


def _latency(buckets: list[int] | tuple[int, ...]) -> Iterator[str]:
    # Bucket i counts what took below 2^i microseconds and not below 2^(i-1); the last one has no upper bound.
    if not buckets:
        return
    yield from _head(LATENCY, "histogram", "Time from a check's arrival to its decision.")
    total = 0
    for index, count in enumerate(buckets[:-1]):
        total += count
        yield f'{_PREFIX}{LATENCY}_bucket{{le="{2**index / 1_000_000:g}"}} {total}'
    total += buckets[-1]
    yield f'{_PREFIX}{LATENCY}_bucket{{le="+Inf"}} {total}'
    yield f"{_PREFIX}{LATENCY}_count {total}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}"
    yield f"# TYPE {_PREFIX}{name} {kind}"


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
