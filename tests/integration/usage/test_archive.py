# ruff: noqa: SIM300 - expected first, then actual
"""Months of raw records that leave Postgres for a file, on a real Postgres: checked, complete, and back again."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import grpc
import grpc.aio
import pyarrow as pa
import pytest
import structlog
from pyarrow import parquet
from rollup_support import add_kinds
from rpc_support import error_info
from tampering import ARCHIVE_TABLES, is_located, tamper
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc
from tollkeeper_cli.proof import check_proof
from tollkeeper_ledger.app import running
from tollkeeper_ledger.config import Settings
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import DAY_US
from tollkeeper_ledger.domain.usage_archive import ArchivedMonth, ArchiveError, due_months, span_of_month
from tollkeeper_ledger.domain.usage_audit import Checked, Finding, hashes_of
from tollkeeper_ledger.domain.usage_hash import row_check
from tollkeeper_ledger.domain.windows import add_months
from tollkeeper_ledger.jobs.upkeep import Upkeep
from tollkeeper_ledger.services.archive_file import MonthFile, read_month_file
from tollkeeper_ledger.services.reports import list_records
from tollkeeper_ledger.services.usage_archive import Archiver
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.services.usage_rebuild import rebuild_rollups
from tollkeeper_ledger.services.usage_roots import RootSigner
from tollkeeper_ledger.store.clock import set_clock
from tollkeeper_ledger.store.pool import open_pool, open_pools
from usage_bench import TENANTS, open_bench, superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from typing import Any

    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio
LOG = structlog.get_logger()
KEPT = 13
ARCHIVE_TAMPERINGS = int(os.environ.get("TAMPERINGS", "500")) // 12
RECORDS = "SELECT * FROM usage_record ORDER BY batch_id, seq"


@pytest.fixture
async def old(new_database: Callable[[], str]) -> AsyncIterator[Bench]:
    """Give a ledger that holds records of two months, in batches that straddle both, 15 months later."""
    async with open_bench(await asyncio.to_thread(new_database)) as bench:
        await add_kinds(bench)
        _, second = months_of(bench)
        turn_us = to_us(span_of_month(second)[0])
        async with bench.pool.acquire() as conn:
            await set_clock(conn, now=from_us(turn_us + 2 * DAY_US), speed_milli=0)
        for number in range(3):
            log = await bench.new_log()
            for batch in range(4):
                first = len(log.entries)
                log.record(
                    *[
                        bench.use(
                            f"{number}-{batch}-{at}",
                            tenant=TENANTS[at % 2],
                            event_us=turn_us + (at - 5) * DAY_US // 4,
                            received_us=turn_us + 2 * DAY_US - 1,
                            quantities=(("requests", at + 1), ("k_sum", 7 * at), ("k_max", at), ("k_unique", 1)),
                            attributes=(("zone", "é" * at), ("user", "uv"[at % 2])) if at else (),
                        )
                        for at in range(10)
                    ]
                )
                outcome = await bench.ingest.append(log.cut(first))
                assert (10, 0) == (outcome.stored, outcome.quarantined)
        async with bench.pool.acquire() as conn:
            later = datetime(*add_months(second, 15).timetuple()[:2], 2, tzinfo=UTC)
            await set_clock(conn, now=later, speed_milli=0)
        await Upkeep(bench.pool, LOG).expire_ids()
        yield bench


def months_of(bench: Bench) -> tuple[date, date]:
    """Give the first days of the two months that have records: that of now and the next."""
    first = from_us(bench.now_us).date().replace(day=1)
    return first, add_months(first, 1)


def files_in(directory: Path) -> list[str]:
    """Give the names of what stands in a directory."""
    return sorted(path.name for path in directory.iterdir())


def archiver(bench: Bench, directory: Path) -> Archiver:
    """Give what archives that ledger's months."""
    return Archiver(bench.pool, directory, months_kept=KEPT, log=LOG)


async def found_by_audit(bench: Bench, directory: Path | None = None) -> tuple[list[Finding], Checked]:
    """Give what the audit of everything finds, and how much it checked."""
    checked, findings = Checked(), []
    async with superuser(bench.url) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        await conn.set_type_codec("jsonb", encoder=str, decoder=json.loads, schema="pg_catalog")
        async for found in verify_usage(conn, archive=directory):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                checked = found
    return findings, checked


async def rollups(bench: Bench) -> list[Any]:
    """Give every sum per quarter of an hour."""
    return await bench.rows("SELECT * FROM usage_rollup_quarter ORDER BY tenant_id, meter_id, quarter, segment_id")


async def test_a_month_is_due_when_so_many_whole_months_follow_it() -> None:
    """With 13 months kept, July of last year is due from September on."""
    months = [date(2025, 8, 1), date(2025, 7, 1), date(2026, 8, 1)]
    assert [] == due_months(months, today=date(2026, 8, 31), kept=KEPT)
    assert [date(2025, 7, 1)] == due_months(months, today=date(2026, 9, 1), kept=KEPT)
    assert [date(2025, 7, 1), date(2025, 8, 1)] == due_months(months, today=date(2026, 10, 1), kept=KEPT)


async def test_a_month_leaves_and_everything_still_adds_up(old: Bench, tmp_path: Path) -> None:
    """Records of a due month are in the file alone; the audit counts them, rollups stay as they are, even rebuilt."""
    before, sums = await old.rows(RECORDS), await rollups(old)
    first, second = months_of(old)
    archived = await archiver(old, tmp_path).archive_due()
    assert [first, second] == [one.month for one in archived]
    assert 0 == len(await old.rows(RECORDS))
    assert len(before) == sum(one.records for one in archived)
    findings, checked = await found_by_audit(old, tmp_path)
    assert ([], len(before)) == (findings, checked.archived)
    assert [] == [hour async for hour in rebuild_rollups(old.pool, check_only=False) if hour.findings]
    assert sums == await rollups(old)
    assert [] == await archiver(old, tmp_path).archive_due()


@pytest.mark.parametrize("check_only", [True, False])
async def test_rollups_are_kept_where_their_month_leaves_meanwhile(
    old: Bench,
    tmp_path: Path,
    check_only: bool,  # noqa: FBT001 - a table's column
) -> None:
    """A rebuild that goes on while months are archived names nothing of them and leaves all that is derived as it is.

    What differs in a month that is still there is made anew as ever.
    """
    first, second = months_of(old)
    tables = [f"usage_rollup_{kind}" for kind in ("minute", "quarter", "state", "value")]

    async def derived() -> list[list[Any]]:
        return [[tuple(row) for row in await old.rows(f"SELECT * FROM {one} ORDER BY {one}::text")] for one in tables]  # noqa: S608

    before = await derived()
    assert all(before)
    async with superuser(old.url) as conn:
        await conn.execute(
            "UPDATE usage_rollup_minute SET units = units + 1 WHERE minute >= $1", span_of_month(second)[0]
        )
    wrong = await derived()
    found = []
    async for hour in rebuild_rollups(old.pool, check_only=check_only):
        if not found:
            assert await archiver(old, tmp_path).archive(first) is not None
        found.append(hour)
    left = [one for one in found[1:] if one.hour < span_of_month(second)[0]]
    assert ([], ()) == (left, found[0].findings)
    assert any(one.findings for one in found)
    assert (wrong if check_only else before) == await derived()
    assert [] == (await found_by_audit(old, tmp_path))[0] or check_only


async def test_a_batch_may_be_here_and_away(old: Bench, tmp_path: Path) -> None:
    """Where one month of a batch is archived, what stays of it is checked row by row, and all of it is counted."""
    first, _ = months_of(old)
    assert await archiver(old, tmp_path).archive(first) is not None
    assert ([], 60) == ((await found_by_audit(old))[0], (await found_by_audit(old))[1].archived)
    async with superuser(old.url) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("DELETE FROM usage_record WHERE id = '1-1-7'")
    (finding, *_), _ = await found_by_audit(old)
    assert "archived ones" in finding.problem


async def test_a_month_comes_back_as_it_was(old: Bench, tmp_path: Path) -> None:
    """Every field of every record is back; the audit checks it in full; it stays until it is archived by a command."""
    before = await old.rows(RECORDS)
    work = archiver(old, tmp_path)
    earlier = await work.archive_due()
    for month in months_of(old):
        assert 60 == await work.bring_back(month)
    assert before == await old.rows(RECORDS)
    findings, checked = await found_by_audit(old, tmp_path)
    assert ([], 0, len(before)) == (findings, checked.archived, checked.records)
    assert [] == await work.archive_due()
    with pytest.raises(ArchiveError, match="is not archived"):
        await work.bring_back(months_of(old)[0])
    again = [await work.archive(month) for month in months_of(old)]
    assert [one.rows_digest for one in earlier] == [one.rows_digest for one in again if one is not None]
    assert ([], len(before)) == ((await found_by_audit(old, tmp_path))[0], (await found_by_audit(old))[1].archived)


async def test_a_month_that_comes_and_goes_stays_in_its_file(
    old: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where today's Parquet has other bytes for the same records, the file that Postgres knows is kept and is good.

    Without that file, or with another in its place, the records stay where they are.
    """
    first, _ = months_of(old)
    work = archiver(old, tmp_path)
    archived = await work.archive(first)
    assert archived is not None
    await work.bring_back(first)
    writer = parquet.ParquetWriter
    monkeypatch.setattr(parquet, "ParquetWriter", lambda *told, **more: writer(*told, **more | {"compression": "gzip"}))
    assert archived == await work.archive(first)
    assert [] == (await found_by_audit(old, tmp_path))[0]
    assert archived.records == await work.bring_back(first)
    path = tmp_path / archived.file
    kept = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_bytes(kept[:-1])):
        spoil()
        with pytest.raises(ArchiveError, match="put that back"):
            await work.archive(first)
        assert 120 == len(await old.rows(RECORDS))
    path.write_bytes(kept)
    assert archived == await work.archive(first)
    assert [archived.file] == files_in(tmp_path)


async def test_whoever_lost_the_claim_drops_nothing(
    old: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archiver whose session ended while it wrote puts no file in place and drops nothing: another may be at it."""
    first, _ = months_of(old)
    finish = MonthFile.finish

    def ends(file: MonthFile) -> tuple[bytes, bytes]:
        told = finish(file)
        asyncio.run_coroutine_threadsafe(end_claims(), loop).result(10)
        return told

    async def end_claims() -> None:
        async with superuser(old.url) as conn:
            await conn.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )

    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patched:
        patched.setattr(MonthFile, "finish", ends)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await archiver(old, tmp_path).archive(first)
    assert ([], 120) == (files_in(tmp_path), len(await old.rows(RECORDS)))
    assert await archiver(old, tmp_path).archive(first) is not None


async def test_two_who_bring_a_month_back_bring_it_once(old: Bench, tmp_path: Path) -> None:
    """Of two at once one brings it back, the other says why it doesn't."""
    first, _ = months_of(old)
    assert await archiver(old, tmp_path).archive(first) is not None
    done = await asyncio.gather(*[archiver(old, tmp_path).bring_back(first) for _ in range(2)], return_exceptions=True)
    assert [60] == [one for one in done if isinstance(one, int)]
    assert [ArchiveError] == [type(one) for one in done if not isinstance(one, int)]
    assert 120 == len(await old.rows(RECORDS))


async def found_records(bench: Bench, directory: Path, month: date) -> dict[str, AuditedRecord]:
    """Archive a month, bring it back, and give its records as the file has them, by id."""
    archived = await archiver(bench, directory).archive(month)
    assert archived is not None
    await archiver(bench, directory).bring_back(month)
    return {record.id: record for record in read_month_file(directory / archived.file)}


async def test_the_file_says_everything_by_name(old: Bench, tmp_path: Path) -> None:
    """The file holds each record with its tenant and meters by name, and the hash that the chain is made of."""
    records = await found_records(old, tmp_path, months_of(old)[0])
    assert 60 == len(records)
    one = records["2-3-4"]
    assert "acme" == one.tenant
    assert {"requests": 5, "k_sum": 28, "k_max": 4, "k_unique": 1} == dict(one.quantities)
    assert {"zone": "éééé", "user": "u"} == one.attributes
    assert one.row_check == int.from_bytes(hashes_of(one)[1][:8], "little", signed=True)


async def test_a_file_that_was_changed_or_lost_is_named(old: Bench, tmp_path: Path) -> None:
    """One flipped bit of an archive's file, or no file, is a finding; nothing of it comes back."""
    first, _ = months_of(old)
    work = archiver(old, tmp_path)
    archived = await work.archive(first)
    assert archived is not None
    path = tmp_path / archived.file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ((finding,), _) = await found_by_audit(old, tmp_path)
    assert ("usage_archive", f"month {first:%Y-%m}") == (finding.table, finding.row)
    with pytest.raises(ArchiveError, match="is not the file"):
        await work.bring_back(first)
    path.unlink()
    ((finding,), _) = await found_by_audit(old, tmp_path)
    assert "can't be read" in finding.problem
    with pytest.raises(ArchiveError):
        await work.bring_back(first)


async def test_any_changed_field_about_archived_months_is_found_and_its_row_named(old: Bench, tmp_path: Path) -> None:
    """Single fields of what Postgres keeps of files, of roots, and of archived months' rollups: the first one named.

    Also what straddles a month that is here and one that is away, and files that were changed with their digest.
    """
    first, second = months_of(old)
    for month in (first, second):
        assert await archiver(old, tmp_path).archive(month) is not None
    billing = await open_pool(old.url, role="tollkeeper_billing", size=1)
    try:
        assert await RootSigner(billing, tmp_path / "keys", installation_id=bytes(16)).tick()
    finally:
        billing.terminate()
    async with superuser(old.url) as conn:
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        meters = {row["meter_id"]: row["name"] for row in await conn.fetch("SELECT meter_id, name FROM meter")}
        changed = set()
        for seed in range(ARCHIVE_TAMPERINGS):
            attempt = conn.transaction()
            await attempt.start()
            done = await tamper(conn, random.Random(seed), ARCHIVE_TABLES)
            found = [one async for one in verify_usage(conn, archive=tmp_path) if isinstance(one, Finding)]
            assert is_located(done, found, meters), (seed, done, found[:5])
            changed.add((done.table, done.column))
            await attempt.rollback()
        assert {"records", "rows_digest", "file", "file_digest", "month"} <= {
            column for table, column in changed if table == "usage_archive"
        }
    assert [] == (await found_by_audit(old, tmp_path))[0]


async def test_a_file_that_was_forged_with_its_digests_is_found_by_the_chain(old: Bench, tmp_path: Path) -> None:
    """Whoever writes another file, and all that Postgres says of it, leaves batches that are not those of the chain."""
    first, _ = months_of(old)
    archived = await archiver(old, tmp_path).archive(first)
    assert archived is not None
    path = tmp_path / archived.file
    records = [
        one
        if one.id != "1-2-3"
        else one._replace(quantities=[(meter, units + (meter == "requests")) for meter, units in one.quantities])
        for one in read_month_file(path)
    ]
    forged = [one._replace(row_check=row_check(hashes_of(one)[1])) for one in records]
    with MonthFile(path) as file:
        file.add(forged)
        rows_digest, digest = file.finish()
        file.place()
    async with superuser(old.url) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("UPDATE usage_archive SET rows_digest = $1, file_digest = $2", rows_digest, digest)
    findings, _ = await found_by_audit(old, tmp_path)
    batch = next(one.batch_id for one in records if one.id == "1-2-3")
    assert ("usage_record", f"batch {batch}") == (findings[0].table, findings[0].row)
    assert {"usage_record", "usage_rollup_minute", "usage_rollup_quarter"} == {one.table for one in findings}


def spoiled_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Give files that somebody may leave in the place of a month's, each with what is wrong with it."""
    yield "nothing", b""
    yield "no Parquet", b"PAR1" * 9
    yield "cut short", path.read_bytes()[:-9]
    table = parquet.read_table(path)
    nothing = {name: pa.nulls(len(table), table.schema.field(name).type) for name in table.column_names}
    texts = pa.array(["x"] * len(table))
    others = [(f"{name} is null", name, column) for name, column in nothing.items()]
    others += [(f"{name} is text", name, texts) for name in ("batch_id", "seq", "event_time", "units", "segment_id")]
    others += [
        ("units are fewer", "units", pa.array([[1]] * len(table))),
        (
            "a meter is null",
            "meters",
            pa.array([[None] * len(one.as_py()) for one in table["meters"]], pa.list_(pa.string())),
        ),
        ("beyond the calendar", "received_at", pa.array([2**62] * len(table), pa.timestamp("us", tz="UTC"))),
        ("too large", "flags", pa.array([2**63] * len(table), pa.uint64())),
    ]
    for problem, name, column in others:
        sink = io.BytesIO()
        parquet.write_table(table.set_column(table.column_names.index(name), name, column), sink)
        yield problem, sink.getvalue()
    for name in table.column_names:
        sink = io.BytesIO()
        parquet.write_table(table.drop_columns([name]), sink)
        yield f"{name} is missing", sink.getvalue()


async def test_a_file_can_hold_anything_and_the_audit_goes_on(old: Bench, tmp_path: Path) -> None:
    """Whatever stands in a file with a forged digest, and whatever its name, is told of the month; none comes back."""
    first, _ = months_of(old)
    archived = await archiver(old, tmp_path).archive(first)
    assert archived is not None
    path = tmp_path / archived.file
    for problem, data in list(spoiled_files(path)):
        path.write_bytes(data)
        async with superuser(old.url) as conn:
            await conn.execute("SET session_replication_role = replica")
            await conn.execute("UPDATE usage_archive SET file_digest = sha256($1)", data)
        findings, _ = await found_by_audit(old, tmp_path)
        assert {"usage_archive", "usage_record"} >= {one.table for one in findings[:1]} != set(), problem
        with pytest.raises(ArchiveError):
            await archiver(old, tmp_path).bring_back(first)
        assert 60 == len(await old.rows(RECORDS)), problem
    async with superuser(old.url) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("UPDATE usage_archive SET file = '/dev/zero'")
    ((finding,), _) = await found_by_audit(old, tmp_path)
    assert "is called '/dev/zero'" in finding.problem
    with pytest.raises(ArchiveError, match="is called"):
        await archiver(old, tmp_path).bring_back(first)


async def test_what_is_not_as_committed_stays(old: Bench, tmp_path: Path) -> None:
    """A month with a changed record is not archived, so that nobody launders it; the other month is."""
    first, second = months_of(old)
    async with superuser(old.url) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("UPDATE usage_record SET units[1] = 9 WHERE event_time >= $1", span_of_month(second)[0])
    # Batches straddle both months: the changed records are in every batch, so neither may go.
    assert [] == await archiver(old, tmp_path).archive_due()
    with pytest.raises(ArchiveError, match="not those that were committed"):
        await archiver(old, tmp_path).archive(first)
    assert [] == files_in(tmp_path)


async def test_a_month_stays_while_its_ids_are_kept(old: Bench, tmp_path: Path) -> None:
    """Whoever could still send a record again finds it: ids expire first."""
    first, _ = months_of(old)
    async with superuser(old.url) as conn:
        rows = await conn.fetch("SELECT * FROM usage_record WHERE id = '0-0-0'")
        one = (await found_records(old, tmp_path, first))[rows[0]["id"]]
        await conn.execute(
            "INSERT INTO usage_id VALUES ($1, '0-0-0', $2, $3, $4)",
            rows[0]["tenant_id"],
            hashes_of(one)[0],
            rows[0]["batch_id"],
            rows[0]["seq"],
        )
    with pytest.raises(ArchiveError, match="ids have not expired"):
        await archiver(old, tmp_path).archive(first)


async def test_an_unbilled_period_keeps_its_records(old: Bench, tmp_path: Path) -> None:
    """Records stay until every period that bills them is closed."""
    async with superuser(old.url) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("UPDATE billing_segment SET subscription_id = $1, plan_version_id = $1", uuid.uuid4())
        assert [] == await archiver(old, tmp_path).archive_due()
        with pytest.raises(ArchiveError, match="is not billed yet"):
            await archiver(old, tmp_path).archive(months_of(old)[0])
        await conn.execute("UPDATE billing_segment SET state = 'closed', closed_at = now()")
    assert 2 == len(await archiver(old, tmp_path).archive_due())


async def test_a_long_reader_delays_and_loses_nothing(old: Bench, tmp_path: Path) -> None:
    """While somebody reads the records a month stays, appends are not held up, and the next turn takes it."""
    work = archiver(old, tmp_path)
    before = await old.rows(RECORDS)
    async with superuser(old.url) as conn:
        async with conn.transaction():
            await conn.fetch(RECORDS)
            assert [] == await work.archive_due()
        assert before == await old.rows(RECORDS)
    assert 2 == len(await work.archive_due())
    assert ([], len(before)) == ((await found_by_audit(old, tmp_path))[0], (await found_by_audit(old))[1].archived)


async def proof_of(
    channel: grpc.aio.Channel, tenant: str, record_id: str, at: datetime | None
) -> reports_pb2.ProveUsageResponse:
    """Ask for a record's proof, by its event time where one is given."""
    request = reports_pb2.ProveUsageRequest(tenant=tenant, id=record_id)
    if at is not None:
        request.event_time.FromMicroseconds(to_us(at))
    answer: reports_pb2.ProveUsageResponse = await reports_pb2_grpc.ReportServiceStub(channel).ProveUsage(request)
    return answer


async def test_a_record_is_proved_as_long_as_it_is_kept(old: Bench, ledger_settings: Settings, tmp_path: Path) -> None:
    """Long after its id has expired a record is proved by id and event time, from Postgres and from files alike.

    Also where its batch is partly here and partly away. Without a time the answer says what to give; without the file
    it says which month is away.
    """
    rows = await old.rows("SELECT wire_id, id, event_time FROM usage_record JOIN tenant USING (tenant_id) ORDER BY id")
    asked = [(row["wire_id"], row["id"], row["event_time"]) for row in rows if row["id"].startswith("1-2-")]
    first, second = months_of(old)
    settings = ledger_settings.model_copy(update={"database_url": old.url, "archive_dir": tmp_path / "files"})
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        signer = RootSigner(ledger.resources.pools.billing, tmp_path / "keys", installation_id=b"i" * 16)
        await signer.tick()
        before = [await proof_of(channel, *one) for one in asked]
        for month in (first, second):
            assert await archiver(old, tmp_path / "files").archive(month) is not None
            assert before == [await proof_of(channel, *one) for one in asked]
        assert 0 == len(await old.rows(RECORDS))
        for (tenant, record_id, at), proof in zip(asked, before, strict=True):
            assert check_proof(tenant, record_id, proof, event_us=to_us(at)).public_key
            for time in (None, at + timedelta(microseconds=1)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await proof_of(channel, tenant, record_id, time)
                assert grpc.StatusCode.NOT_FOUND == refused.value.code()
                assert "event time" in error_info(refused.value).metadata["remedy"]
        (tmp_path / "files").rename(tmp_path / "elsewhere")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await proof_of(channel, *asked[0])
        assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
        assert f"{first:%Y-%m}" == error_info(refused.value).metadata["months"]


async def test_several_archivers_archive_once(old: Bench, tmp_path: Path) -> None:
    """Of two at once one archives a month; what stands in the directory is what Postgres has the digest of."""
    done = await asyncio.gather(*[archiver(old, tmp_path).archive_due() for _ in range(2)])
    assert sorted(months_of(old)) == sorted(one.month for each in done for one in each)
    assert [] == (await found_by_audit(old, tmp_path))[0]
    assert 2 == len(files_in(tmp_path))


async def test_postgres_refuses_what_does_not_fit(old: Bench, tmp_path: Path) -> None:
    """The function drops no month to which records may come, and none that has other records than the file."""
    first, second = months_of(old)
    for month, records in ((first, 59), (add_months(second, 14), 1)):
        with pytest.raises(asyncpg.InvalidParameterValueError):
            async with old.pool.acquire() as conn:
                await conn.fetchval(
                    "SELECT archive_usage_month($1, $2, $3, 'f', $3, '{1}', '{1}')", month, records, bytes(32)
                )
    work = archiver(old, tmp_path)
    archived = await work.archive(first)
    assert isinstance(archived, ArchivedMonth)
    await work.bring_back(first)
    with pytest.raises(asyncpg.InvalidParameterValueError):
        async with old.pool.acquire() as conn:
            await conn.fetchval("SELECT archive_usage_month($1, 60, $2, 'f', $2, '{1}', '{1}')", first, bytes(32))
    assert 120 == len(await old.rows(RECORDS))


async def test_listing_archived_records_is_refused_by_name(old: Bench, tmp_path: Path) -> None:
    """A list that would leave out archived records is refused, with the months; other spans are served."""
    first, second = months_of(old)
    await archiver(old, tmp_path).archive(first)
    settings = Settings(database_url=old.url, redis_url="redis://127.0.0.1:1")
    async with open_pools(settings) as pools:
        with pytest.raises(PreconditionError) as refused:
            _ = [page async for page in list_records(pools, tenant="acme", start=None, end=None)]
        assert ("USAGE_ARCHIVED", f"{first:%Y-%m}") == (refused.value.reason, refused.value.metadata["months"])
        start = span_of_month(second)[0]
        pages = [page async for page in list_records(pools, tenant="acme", start=start, end=None)]
        assert 24 == sum(len(page) for page in pages)
