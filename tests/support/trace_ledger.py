"""Replays simulator traces through the ledger's services on a real Postgres, and compares answers and rows.

Traces don't touch each other's tenants, so the next step of every trace goes into one transaction. A trace's own times
and windows are kept; window ids are the real ledger's, matched at first sight.
"""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import structlog
from tollkeeper_ledger.domain.limits import EffectiveLimit, LimitKind, LimitRule, Source
from tollkeeper_ledger.domain.window_state import Ask, Denied, Leased, Pooled, PoolFault, Refused
from tollkeeper_ledger.domain.windows import Alignment, Span, WindowRule, WindowUnit
from tollkeeper_ledger.services.allot_batch import AllotBatch, BatchContext
from tollkeeper_ledger.services.allot_buckets import BucketShards
from tollkeeper_ledger.services.amounts import AmountFollower
from tollkeeper_ledger.services.entries import Entry, FromBucket, FromWindow
from tollkeeper_ledger.services.openings import Openings
from tollkeeper_ledger.services.restores import Restores
from tollkeeper_ledger.services.returns import Consumption, Return, ReturnService
from tollkeeper_ledger.store.clock import ClockReading
from tollkeeper_ledger.store.limits import ClosingPool
from tollkeeper_ledger.store.pool import open_pool, transaction
from tollkeeper_ledger.store.tenants import TenantView
from trace_redis import Line, Mismatch
from trace_restore import TimelineOf, back_up, set_back
from usage_bench import superuser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tollkeeper_ledger.services.allot_batch import _Target
    from tollkeeper_ledger.store.pool import Pool

Step: TypeAlias = tuple[int, Line]
_SELLER = "INSERT INTO seller VALUES ('sim', 'S', '{}', '', '', '', '', '', 'S', 'EUR', 'UTC') ON CONFLICT DO NOTHING"
_TENANT = (
    "INSERT INTO tenant (tenant_id, seller_id, wire_id, display_name, address, tax_id, state, created_at)"
    " SELECT id, 'sim', wire, wire, '{}', '', 'active', now() FROM unnest($1::uuid[], $2::text[]) AS n (id, wire)"
)
_LIMIT = (
    "INSERT INTO limit_state (tenant_id, name, amount, enforcement, amount_version)"
    " SELECT n.tenant, n.name, n.amount, 'hard', n.version"
    " FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) AS n (tenant, name, amount, version)"
    " ON CONFLICT (tenant_id, name) DO UPDATE SET amount = excluded.amount, amount_version = excluded.amount_version"
)
_FAULTS = {
    "NoPool": PoolFault.NO_POOL,
    "Fence": PoolFault.FENCE,
    "Generation": PoolFault.GENERATION,
    "Closed": PoolFault.CLOSED,
    "Rollback": PoolFault.ROLLBACK,
    "Seq": PoolFault.SEQ,
    "ReturnRange": PoolFault.RETURN_RANGE,
    "Unreachable": PoolFault.UNREACHABLE,
}
_BATCH = 1_000
_LOG = structlog.get_logger()
_AFTER_RESTORE = 60


@dataclass(slots=True)
class _Clock:
    """Ledger time as the traces say it."""

    now_us: int = 0

    def reading(self) -> ClockReading:
        """Give it. The simulator's clocks may run fast, and its ledger refuses no ask for its time."""
        return ClockReading(now_us=self.now_us, speed_milli=100_000, version=0)


@dataclass(slots=True)
class _Unheard:
    """Redis is the other replay's: here nobody hears what it would be told."""

    def is_up(self) -> bool:
        """Say that it is there: nothing is known to be wrong."""
        return True

    async def call(self, calls: Sequence[object]) -> list[None]:
        """Answer nothing."""
        return [None] * len(calls)


@dataclass(slots=True)
class _Plan:
    length_us: int
    is_rolling: bool


@dataclass(frozen=True, slots=True)
class _Desk:
    """The ledger's services in one timeline."""

    context: BatchContext
    returns: ReturnService
    amounts: AmountFollower


@dataclass(slots=True)
class _Trace:
    """One trace, how far it is, and what its names are here."""

    name: str
    steps: deque[Step]
    tenants: dict[str, uuid.UUID] = field(default_factory=dict)
    windows: dict[str, bytes] = field(default_factory=dict)
    pools: dict[str, str] = field(default_factory=dict)
    """Pool key to window, both as the trace names them."""

    begins: dict[tuple[str, str, str], dict[int, str]] = field(default_factory=dict)
    """Windows of an identity by their begin."""
    left: set[str] = field(default_factory=set)
    """Windows that were over when their limit changed: only the model follows there."""

    backup: dict[str, str] = field(default_factory=dict)
    """What a restore brings back."""
    desk: _Desk | None = None
    """Since a restore: services of its own timeline."""

    def see(self, rows: Line) -> None:
        """Note a window."""
        self.begins.setdefault((rows["tenant"], rows["limit"], rows["key_hash"]), {})[rows["start_us"]] = rows["window"]

    def leave(self, tenant: str, limit: str) -> None:
        """Note that a limit changes: the ledger follows in the two newest windows of each key."""
        for (owner, name, _), windows in self.begins.items():
            if (owner, name) == (tenant, limit):
                self.left.update(windows[begin] for begin in sorted(windows)[:-2])

    def where(self, step: Step) -> str:
        """Say which step of which trace."""
        return f"{self.name}:{step[0]} {step[1]['kind']}"


class _Directory:
    """Tenants as the traces declare them."""

    def __init__(self) -> None:
        self.views: dict[str, TenantView] = {}
        self.plans: dict[tuple[uuid.UUID, str], _Plan] = {}

    async def get(self, names: Iterable[str]) -> dict[str, TenantView]:
        """Give tenants by name."""
        return {name: self.views[name] for name in names if name in self.views}

    @staticmethod
    def counts_values(_meter: str) -> bool:
        """Say that no meter counts distinct values: the schedules that are traced have none."""
        return False

    def declare(self, wire_id: str, tenant_id: uuid.UUID, line: Line) -> None:
        """Take in a limit, or another amount of it."""
        alignment = Alignment.ROLLING if line["rolling"] else Alignment.CALENDAR
        window = WindowRule(WindowUnit.MINUTE, alignment=alignment)
        rule = LimitRule(line["limit"], "m", LimitKind.WINDOW, line["amount"], window=window)
        if line.get("is") == "bucket":  # Traces kept as finds are older than the field.
            rule = LimitRule(line["limit"], "m", LimitKind.TOKEN_BUCKET, line["amount"])
        limit = EffectiveLimit(rule, Source.PLAN, line["amount_version"])
        known = self.views[wire_id].limits if wire_id in self.views else ()
        limits = (*(one for one in known if one.rule.name != rule.name), limit)
        self.views[wire_id] = TenantView(tenant_id, wire_id, "active", "", "", (), limits, None, 0)
        self.plans[tenant_id, rule.name] = _Plan(line["length_us"], line["rolling"])


class _Batch(AllotBatch):
    """The real batch, but windows are as long as the trace says, to the microsecond."""

    def _span(self, target: _Target) -> Span:
        plan = cast("_Directory", self._context.tenants).plans[target.tenant.tenant_id, target.entry.limit]
        at_us = target.entry.at_us
        start_us = at_us if plan.is_rolling else at_us // plan.length_us * plan.length_us
        return Span(start_us, start_us + plan.length_us)


class LedgerReplay:
    """Replays traces side by side. Make one for each set of traces, on a database of its own or after another's end."""

    def __init__(self, url: str, pool: Pool) -> None:
        self._url, self._pool = url, pool
        self._conn: Any = None
        self._clock, self._directory = _Clock(), _Directory()
        self._desk = self._open_desk(
            Restores(pool, cast("Any", _Unheard()), _LOG, installation_id=bytes(16), timeline=1)
        )
        self.restores = 0
        """Restores replayed so far."""
        self.steps = 0
        """Transactions' steps compared so far."""

    def _open_desk(self, restores: Restores) -> _Desk:
        functions, clock = cast("Any", _Unheard()), cast("Any", self._clock)
        context = BatchContext(
            tenants=cast("Any", self._directory),
            pool=self._pool,
            clock=clock,
            random_bytes=lambda count: uuid.uuid4().bytes[:count],
            restores=restores,
            functions=functions,
            # The model knows no pauses: an hour goes by between any two looks.
            openings=Openings(itertools.count(step=3600).__next__),
        )
        return _Desk(
            context,
            ReturnService(self._pool, clock, functions, restores),
            AmountFollower(self._pool, clock, functions, restores, _LOG),
        )

    async def run(self, traces: Mapping[str, Sequence[Line]]) -> None:
        """Replay traces. Raises Mismatch at the first difference."""
        started = [_Trace(name, deque(_steps(lines))) for name, lines in traces.items()]
        async with superuser(self._url) as conn:
            self._conn = conn
            await conn.execute(_SELLER)
            for trace in started:
                names = {line["tenant"] for _, line in trace.steps if line["kind"] == "limit"}
                trace.tenants = {name: uuid.uuid4() for name in sorted(names)}
            ids = [(tid, f"{t.name}-{name}") for t in started for name, tid in t.tenants.items()]
            await conn.execute(_TENANT, [tid for tid, _ in ids], [wire for _, wire in ids])
            while turn := [(trace, trace.steps.popleft()) for trace in started if trace.steps]:
                for (_, kind), some in groupby(sorted(turn, key=_order), key=_order):
                    steps = list(some)
                    desk = steps[0][0].desk or self._desk
                    while chunk := list(islice(steps, _BATCH)):
                        del steps[:_BATCH]
                        await self._do(kind, chunk, desk)
                        self.steps += len(chunk)

    async def _do(self, kind: str, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        match kind:
            case "limit":
                await self._limit(turn, desk)
            case "allot":
                await self._allot(turn, desk)
            case "return":
                await self._return(turn, desk)
            case "report":
                await self._report(turn, desk)
            case "call":
                await self._close(turn, desk)
            case "ledger":
                await self._go_back(turn)
            case other:
                raise AssertionError(f"unknown step {other!r}")
        if kind in {"allot", "return", "report"}:
            await self._compare_rows([(trace, step) for trace, step in turn if step[1]["rows"] is not None])

    async def _limit(self, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        for trace, (_, line) in turn:
            wire_id = f"{trace.name}-{line['tenant']}"
            trace.leave(line["tenant"], line["limit"])
            self._directory.declare(wire_id, trace.tenants[line["tenant"]], line)
        tenants = [trace.tenants[step[1]["tenant"]] for trace, step in turn]
        lines = [step[1] for _, step in turn]
        await self._conn.execute(
            _LIMIT,
            tenants,
            [line["limit"] for line in lines],
            [line["amount"] for line in lines],
            [line["amount_version"] for line in lines],
        )
        # Traces are not at the same time, and the model follows in windows that are over as well.
        self._clock.now_us = 0
        await desk.amounts.follow(tenants)

    async def _allot(self, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        self._clock.now_us = max(step[1]["ledger_us"] for _, step in turn)
        batch = _Batch(desk.context, BucketShards(), [_entry(trace, step[1]) for trace, step in turn])
        await batch.prepare()
        async with transaction(self._pool) as conn:
            results, calls = await batch.run(conn)
        opened = {call.keys[0]: bool(call.arguments[3]) for call in calls if call.function == "bucket_open"}
        for (trace, step), result in zip(turn, results, strict=True):
            answer = result.answer if isinstance(result, FromWindow) else result
            actual = _said(answer, opened)
            if step[1]["answer"] != actual:
                raise Mismatch(trace.where(step), f"answer to {step[1]['ask']}", step[1]["answer"], actual)
            if isinstance(result, FromWindow) and step[1]["rows"] is not None:
                rows = step[1]["rows"]
                known = trace.windows.setdefault(rows["window"], result.window.window_id)
                if known != result.window.window_id:
                    raise Mismatch(trace.where(step), "window", known.hex(), result.window.window_id.hex())
                trace.pools[rows["pool_key"]] = rows["window"]

    async def _return(self, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        for holder, some in _by_holder(turn):
            entries = [
                Return(_window(trace, line), generation=line["told"][0], returned_cum=line["told"][1])
                for trace, (_, line) in some
            ]
            known = await desk.returns.give_back(holder, entries)
            for (trace, step), actual in zip(some, known, strict=True):
                if step[1]["known"][1] != actual:
                    raise Mismatch(trace.where(step), "returned_cum known", step[1]["known"][1], actual)

    async def _report(self, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        for holder, some in _by_holder(turn):
            entries = [
                Consumption(_window(trace, line), consumed_cum=line["told"][0], over_cum=line["told"][1])
                for trace, (_, line) in some
            ]
            uses = await desk.returns.report(holder, entries)
            for (trace, step), use in zip(some, uses, strict=True):
                actual = [use.consumed, use.over] if use else [0, 0]
                if step[1]["known"] != actual:
                    raise Mismatch(trace.where(step), "use", step[1]["known"], actual)

    async def _close(self, turn: list[tuple[_Trace, Step]], desk: _Desk) -> None:
        for trace, (_, line) in turn:
            window = trace.pools[line["keys"][0]]
            if window in trace.left:
                continue
            unspent = int(line["reply"][1]) if line["reply"][0] == "OK" else 0
            row = await self._one_row(trace.windows[window])
            identity = (row["tenant_id"], row["limit_name"], row["key_hash"])
            pool = ClosingPool(identity=identity, window_id=trace.windows[window], generation=int(line["args"][0]))
            await desk.amounts._credit(pool, unspent)

    async def _go_back(self, turn: list[tuple[_Trace, Step]]) -> None:
        """Back up what a trace has, or set it back, compare all of it, and go on in the next timeline."""
        for trace, step in turn:
            line, tenants = step[1], list(trace.tenants.values())
            if line["what"] == "backup":
                trace.backup = await back_up(self._conn, tenants)
                continue
            if not trace.backup:
                continue
            await set_back(self._conn, tenants, trace.backup)
            restores = TimelineOf(
                self._pool, cast("Any", _Unheard()), _LOG, installation_id=bytes(16), timeline=line["timeline"]
            )
            restores.freeze(line["frozen_before_us"])
            trace.desk = self._open_desk(restores)
            trace.begins.clear()
            self.restores += 1
            await self._compare_rows([(trace, (step[0], {"kind": "ledger", "rows": rows})) for rows in line["rows"]])

    async def _one_row(self, window_id: bytes) -> Any:
        return await self._conn.fetchrow("SELECT * FROM limit_window WHERE window_id = $1", window_id)

    async def _compare_rows(self, turn: list[tuple[_Trace, Step]]) -> None:
        """Compare everything that Postgres has of windows with what the traces say."""
        ids = [_window(trace, step[1]["rows"]) for trace, step in turn]
        tables = {
            name: await self._conn.fetch(f"SELECT * FROM {name} WHERE window_id = ANY ($1)", ids)  # noqa: S608 - ours
            for name in ("limit_window", "pool_generation", "holder_lease", "lost_return", "holder_consumption")
        }
        found: dict[str, dict[bytes, list[Any]]] = {name: {} for name in tables}
        for name, rows in tables.items():
            for row in rows:
                found[name].setdefault(row["window_id"], []).append(row)
        for trace, step in turn:
            model = step[1]["rows"]
            trace.see(model)
            if model["window"] in trace.left:
                continue
            window_id = _window(trace, model)
            actual = _rows({name: rows.get(window_id, []) for name, rows in found.items()})
            expected = {
                **{name: model[name] for name in _WINDOW_FIELDS},
                # What is closing has ended, reported as lost or not.
                "generations": [one | {"lost": one["lost"] or one["closing"]} for one in model["generations"]],
                "leases": model["leases"],
                "lost_returns": sorted(model["lost_returns"]),
                "consumed": model["consumed"],
            }
            if expected != actual:
                differing = sorted(name for name in expected if expected[name] != actual.get(name))
                raise Mismatch(
                    trace.where(step),
                    f"rows after { ({name: value for name, value in step[1].items() if name != 'rows'}) }: {differing}",
                    {name: expected[name] for name in differing},
                    {name: actual.get(name) for name in differing},
                )


_WINDOW_FIELDS = ("start_us", "end_us", "amount", "amount_version", "allotted", "ceiling", "wanted")


def _rows(tables: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Put the rows of one window into a trace's form."""
    (window,) = tables["limit_window"] or [None]
    if window is None:
        return {}
    return {
        **{name: window[name] for name in _WINDOW_FIELDS},
        "generations": [
            {name: row[name] for name in ("generation", "allotted_cum", "credited", "closing", "closed")}
            | {"lost": row["lost"] or row["closing"]}
            for row in sorted(tables["pool_generation"], key=lambda row: int(row["generation"]))
        ],
        "leases": {
            row["holder"].hex(): [row["request_seq"], row["granted_cum"], row["returned_cum"]]
            for row in tables["holder_lease"]
        },
        "lost_returns": sorted(
            [row["holder"].hex(), row["generation"], row["returned_cum"]] for row in tables["lost_return"]
        ),
        "consumed": {
            row["holder"].hex(): [row["consumed_cum"], row["over_cum"]] for row in tables["holder_consumption"]
        },
    }


def _order(one: tuple[_Trace, Step]) -> tuple[int, str]:
    """Sort by services, then by kind: what one desk does of one kind goes into one transaction."""
    trace, (_, line) = one
    return id(trace.desk) if trace.desk else 0, str(line["kind"])


def _by_holder(turn: list[tuple[_Trace, Step]]) -> list[tuple[bytes, list[tuple[_Trace, Step]]]]:
    key: Callable[[tuple[_Trace, Step]], str] = lambda one: str(one[1][1]["holder"])  # noqa: E731 - shared by both
    return [(bytes.fromhex(holder), list(some)) for holder, some in groupby(sorted(turn, key=key), key=key)]


def _window(trace: _Trace, line: Line) -> bytes:
    return trace.windows.get(line["window"], bytes(16))


def _entry(trace: _Trace, line: Line) -> Entry:
    ask = line["ask"]
    return Entry(
        tenant=f"{trace.name}-{ask['tenant']}",
        limit=ask["limit"],
        key_hash=bytes.fromhex(ask["key_hash"]),
        key_values=("key",),
        at_us=ask["at_us"],
        ask=Ask(
            holder=bytes.fromhex(line["holder"]),
            request_seq=ask["request_seq"],
            need=ask["need"],
            want=ask["want"],
            generation_seen=ask["generation_seen"],
            allotted_cum_seen=ask["allotted_cum_seen"],
            fault=None if ask["fault"] is None else _FAULTS[ask["fault"]],
            ledger_only=ask["ledger_only"],
        ),
    )


def _said(answer: object, opened: Mapping[str, bool]) -> dict[str, object]:
    """Put an answer into a trace's form. `opened`: markers opened by it, and whether that was their first time."""
    match answer:
        case FromBucket():
            return {"is": "bucket", "generation": answer.generation, "first": opened.get(answer.keys.marker)}
        case Leased():
            return {"is": "lease", "give": answer.give, "granted_cum": answer.granted_cum}
        case Pooled():
            return {
                "is": "pool",
                "generation": answer.generation,
                "allotted_cum": answer.allotted_cum,
                "final": answer.final,
            }
        case Denied():
            return {"is": "denied", "left": answer.left}
        case Refused():
            return {"is": "refused", "reason": answer.reason, "last_request_seq": answer.last_request_seq}
        case _:
            return {"is": str(answer)}


def _steps(lines: Sequence[Line]) -> list[Step]:
    """Pick what the ledger did, and of what it did after a restore the first steps.

    Of the calls that close a pool only the one whose answer arrived is the ledger's: the last before its rows say so.
    """
    lines = list(_until_enough(lines))
    last: dict[tuple[str, int], int] = {}
    heard: set[int] = set()
    for number, line in enumerate(lines):
        if _closes(line):
            last[line["keys"][0], int(line["args"][0])] = number
        for rows in _rows_of(line):
            ended = [(rows["pool_key"], one["generation"]) for one in rows["generations"] if one["closed"]]
            heard.update(last.pop(key) for key in ended if key in last)
    return [
        (number, line)
        for number, line in enumerate(lines)
        if line["kind"] in {"limit", "allot", "return", "report", "ledger"} or number in heard
    ]


def _until_enough(lines: Sequence[Line]) -> Iterator[Line]:
    """Give lines until a restore, and a bounded number after it: what is frozen then is refused again and again."""
    left = None
    for line in lines:
        if line.get("what") == "restore" and left is None:
            left = _AFTER_RESTORE
        left = left and left - 1
        if left == 0:
            return
        yield line


def _closes(line: Line) -> bool:
    return bool(line["kind"] == "call" and line["function"] == "pool_close")


def _rows_of(line: Line) -> list[Line]:
    rows = line.get("rows")
    return rows if isinstance(rows, list) else [rows] if rows else []


async def open_ledger_pool(url: str) -> Pool:
    """Open a pool as the ledger's own is for sidecars' calls."""
    return await open_pool(url, role="tollkeeper_ingest", size=2)
