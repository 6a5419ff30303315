# ruff: noqa: SIM300 - expected first, then actual
"""UsageService and ReportService of a running ledger, called as a sidecar and an operator call them."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc, usage_pb2, usage_pb2_grpc
from tollkeeper_cli.proof import ProofError, check_proof, whole_proof
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.usage_hash import h_start
from tollkeeper_ledger.services import usage_proofs
from tollkeeper_ledger.services.usage_roots import PUBLIC_FILE, RootSigner, open_key
from usage_support import Log
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.domain.usage import UsageAppend
    from usage_bench import Bench


def message_of(append: UsageAppend) -> usage_pb2.AppendUsageRequest:
    """Give a batch as a sidecar sends it."""
    columns = append.columns
    return usage_pb2.AppendUsageRequest(
        producer_id=append.producer_id.bytes,
        incarnation=append.incarnation,
        format=1,
        first_seq=append.first_seq,
        h_before=append.h_before,
        records=usage_pb2.UsageColumns(**{name: getattr(columns, name) for name in columns.__slots__}),
        holes=[
            usage_pb2.UsageHole(first_seq=hole.first_seq, last_seq=hole.last_seq, reason=hole.reason)
            for hole in append.holes
        ],
        watermark_us=append.watermark_us,
        tenants_served=append.tenants_served,
        closing=append.closing,
    )


def reason_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """Give code and ErrorInfo of a failed call."""
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return error.code(), info


@pytest_asyncio.fixture
async def channel(bench: Bench, ledger_settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel to a ledger on the bench's database."""
    async with running(ledger_settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as opened:
        yield opened


async def opened(channel: grpc.aio.Channel) -> tuple[Any, Log]:
    """Open a new producer and give the stub and its log."""
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    log = Log(producer_id=uuid.uuid4())
    answer = await stub.OpenProducer(
        usage_pb2.OpenProducerRequest(producer_id=log.producer_id.bytes, incarnation=1, holder=b"x", format=1)
    )
    assert (0, h_start(log.producer_id.bytes), 0) == (answer.committed_seq, answer.h, answer.safe_seq)
    return stub, log


@pytest.mark.asyncio
async def test_what_was_appended_is_reported(bench: Bench, channel: grpc.aio.Channel) -> None:
    """Records sent by AppendUsage come back by ListUsageRecords, their exact sums by QueryUsage."""
    stub, log = await opened(channel)
    largest = 2**53 - 1
    base = bench.now_us - bench.now_us % 60_000_000 - 60_000_000
    log.record(
        *[
            bench.use(
                f"rpc-{n:04}",
                tenant="globex",
                event_us=base + n,
                quantities=(("context_tokens", largest), ("requests", n)),
                attributes=(("model", "m-large"), ("user", "ü\n" + str(n))),
            )
            for n in range(2500)
        ]
    )
    answer = await stub.AppendUsage(message_of(log.cut(watermark_us=base)))
    assert (2500, 2500, log.h(2500)) == (answer.committed_seq, answer.stored, answer.h)
    reports: Any = reports_pb2_grpc.ReportServiceStub(channel)
    records = [
        record
        async for page in reports.ListUsageRecords(reports_pb2.ListUsageRecordsRequest(tenant="globex"))
        for record in page.records
    ]
    assert [f"rpc-{n:04}" for n in range(2500)] == [record.id for record in records]
    last = records[-1]
    assert (
        {"context_tokens": largest, "requests": 2499},
        {"model": "m-large", "user": "ü\n2499"},
        log.producer_id.bytes,
        2500,
        base + 2499,
    ) == (dict(last.units), dict(last.attributes), last.producer_id, last.seq, last.event_time.ToMicroseconds())
    whole = await reports.QueryUsage(reports_pb2.QueryUsageRequest(tenant="globex"))
    expected = [
        ("context_tokens", str(2500 * largest), 2500),
        ("requests", str(sum(range(2500))), 2500),
    ]
    assert expected == [(one.meter, one.sum, one.records) for one in whole.buckets]
    for size in (1, 2, 3, 4, 5):
        split = await reports.QueryUsage(
            reports_pb2.QueryUsageRequest(tenant="globex", bucket=size, time_zone="Asia/Kathmandu", meters=["requests"])
        )
        assert expected[1:] == [(one.meter, one.sum, one.records) for one in split.buckets]
    trend = await reports.GetUsageTrend(reports_pb2.GetUsageTrendRequest(tenant="globex", meters=["requests"], spans=3))
    assert expected[1:] == [(one.meter, one.sum, one.records) for one in trend.buckets if one.records]
    assert 3 == len(trend.buckets)
    summary = await reports.GetUsageSummary(reports_pb2.GetUsageSummaryRequest(tenant="globex"))
    assert {("sum", one.sum, one.sum) for one in summary.buckets} == {
        (one.aggregation, one.sum, one.value) for one in summary.buckets
    }
    void = usage_pb2.VoidUsageRequest(request_id=f"void-{log.producer_id}", tenant="globex", ids=["rpc-2499"], note="n")
    for _ in range(2):
        voided = await stub.VoidUsage(void)
        assert (1, 0) == (voided.voided, voided.voided_before)
    whole = await reports.QueryUsage(reports_pb2.QueryUsageRequest(tenant="globex", meters=["requests"]))
    assert [(str(sum(range(2499))), 2499)] == [(one.sum, one.records) for one in whole.buckets]
    status = await reports.GetIngestStatus(reports_pb2.GetIngestStatusRequest())
    mine = [producer for producer in status.producers if producer.producer_id == log.producer_id.bytes]
    assert [("open", 1, 2500, base)] == [
        (one.state, one.incarnation, one.committed_seq, one.watermark.ToMicroseconds()) for one in mine
    ]
    assert status.records >= 2500


@pytest.mark.asyncio
async def test_undecodable_bytes_are_a_malformed_batch(channel: grpc.aio.Channel) -> None:
    """Bytes that are no message are refused with BATCH_MALFORMED, so that a producer can bisect."""
    call: Any = channel.unary_unary("/tollkeeper.ledger.v1.UsageService/AppendUsage")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a\xff\xff\xff\xff\x0f")
    code, info = reason_of(caught.value)
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_MALFORMED")


@pytest.mark.asyncio
async def test_a_gap_names_the_number_to_send(bench: Bench, channel: grpc.aio.Channel) -> None:
    """A batch above committed + 1 is refused with the number to begin with; nothing is stored."""
    stub, log = await opened(channel)
    log.record(*[bench.use(f"gap-{n}") for n in range(4)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AppendUsage(message_of(log.cut(2)))
    code, info = reason_of(caught.value)
    assert (code, info.reason, info.metadata["expected"]) == (grpc.StatusCode.FAILED_PRECONDITION, "PRODUCER_GAP", "1")
    assert await bench.stored(log) == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "VERSION_UNSUPPORTED"),
        ({"producer_id": b"short"}, "FIELD_INVALID"),
        ({"h_before": b"short"}, "FIELD_INVALID"),
        ({"first_seq": 0}, "FIELD_OUT_OF_RANGE"),
        ({"first_seq": 2**64 - 1}, "FIELD_OUT_OF_RANGE"),
        ({"incarnation": 2}, "PRODUCER_UNKNOWN"),
        ({"incarnation": 0}, "PRODUCER_FENCED"),
        ({"producer_id": bytes(16)}, "PRODUCER_UNKNOWN"),
    ],
)
async def test_a_bad_envelope_is_refused_with_its_reason(
    bench: Bench, channel: grpc.aio.Channel, change: dict[str, Any], reason: str
) -> None:
    """An envelope that breaks a rule is refused with a stable reason and stores nothing."""
    stub, log = await opened(channel)
    log.record(bench.use(f"envelope-{log.producer_id}"))
    message = message_of(log.cut())
    for field, value in change.items():
        setattr(message, field, value)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AppendUsage(message)
    assert reason == reason_of(caught.value)[1].reason
    assert await bench.stored(log) == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [
        ({"tenant": ""}, "FIELD_REQUIRED"),
        ({"tenant": "nobody"}, "TENANT_UNKNOWN"),
        ({"tenant": "a\0b"}, "FIELD_INVALID"),
        ({"tenant": "acme", "bucket": 77}, "ENUM_UNKNOWN"),
        ({"tenant": "acme", "time_zone": "../etc/passwd"}, "FIELD_INVALID"),
        ({"tenant": "acme", "time_zone": "Mars/Olympus"}, "FIELD_INVALID"),
        ({"tenant": "acme", "to": {"seconds": 61}}, "FIELD_INVALID"),
        ({"tenant": "acme", "to": {"seconds": 2**62}}, "FIELD_OUT_OF_RANGE"),
        ({"tenant": "acme", "meters": ["x"] * 101}, "FIELD_TOO_LONG"),
        ({"tenant": "acme", "where": ["model=x"] * 33}, "FIELD_TOO_LONG"),
        ({"tenant": "acme", "where": ["model"]}, "FIELD_INVALID"),
        ({"tenant": "acme", "where": ["=x"]}, "FIELD_INVALID"),
        ({"tenant": "acme", "where": ["model=\0"]}, "FIELD_INVALID"),
    ],
)
async def test_a_bad_question_is_refused_with_its_reason(
    channel: grpc.aio.Channel, request_fields: dict[str, Any], reason: str
) -> None:
    """A question that can't be answered is refused with a stable reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(reports_pb2.QueryUsageRequest(**request_fields))
    assert reason == reason_of(caught.value)[1].reason


@pytest.mark.asyncio
async def test_the_audit_log_comes_newest_first_in_pages(bench: Bench, channel: grpc.aio.Channel) -> None:
    """Holes of a producer stand in the audit log; pages follow each other without gap or repeat."""
    stub, log = await opened(channel)
    for _ in range(5):
        log.lose(2)
        log.record(bench.use(f"audit-{log.last_seq}"))
    await stub.AppendUsage(message_of(log.cut()))
    reports: Any = reports_pb2_grpc.ReportServiceStub(channel)
    entries: list[reports_pb2.AuditEntry] = []
    token = ""
    while True:
        page = await reports.ListAuditLog(reports_pb2.ListAuditLogRequest(page_size=2, page_token=token))
        entries += page.entries
        if not (token := page.next_page_token):
            break
    mine = [entry for entry in entries if entry.actor == f"producer/{log.producer_id.hex}"]
    assert [f'{{"first_seq":{first},"last_seq":{first + 1},"reason":"CRC"}}' for first in (13, 10, 7, 4, 1)] == [
        entry.after for entry in mine
    ]
    assert {("UsageHole", "", "")} == {(entry.action, entry.tenant, entry.before) for entry in mine}


@pytest.mark.asyncio
async def test_records_are_listed_within_a_span(bench: Bench, channel: grpc.aio.Channel) -> None:
    """A span begins with its first instant and ends before its last."""
    stub, log = await opened(channel)
    base = bench.now_us - 86_400_000_000
    log.record(*[bench.use(f"span-{at}", event_us=base + at) for at in range(5)])
    await stub.AppendUsage(message_of(log.cut()))
    request = reports_pb2.ListUsageRecordsRequest(tenant="acme")
    getattr(request, "from").FromMicroseconds(base + 1)
    request.to.FromMicroseconds(base + 4)
    pages = reports_pb2_grpc.ReportServiceStub(channel).ListUsageRecords(request)
    assert ["span-1", "span-2", "span-3"] == [record.id async for page in pages for record in page.records]


@pytest.mark.asyncio
async def test_a_tenant_can_check_by_itself_that_its_record_is_in_the_chain(
    bench: Bench, ledger_settings: Settings, tmp_path: Path
) -> None:
    """A proof leads from the record's fields to a signed root; with any byte of it changed it proves nothing.

    Also where the system made the id, so that the content hash leaves the event time out.
    """
    settings = ledger_settings.model_copy(update={"audit_dir": tmp_path})
    open_key(tmp_path)  # Before the ledger does: both sign with it.
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as opened_channel:
        stub, log = await opened(opened_channel)
        for first in (0, 9):
            log.record(
                *[
                    bench.use(
                        f"proof-{first + at}",
                        tenant=("acme", "globex", "acme")[at % 3],
                        quantities=(("context_tokens", at), ("requests", 1)),
                        attributes=(("zone", "ä"),),
                        flags=at % 2,
                    )
                    for at in range(9)
                ]
            )
            await stub.AppendUsage(message_of(log.cut(first)))
        reports: Any = reports_pb2_grpc.ReportServiceStub(opened_channel)
        signer = RootSigner(ledger.resources.pools.billing, tmp_path, installation_id=b"i" * 16)
        await signer.tick()
        proofs = {}
        for at in range(18):
            tenant = ("acme", "globex", "acme")[at % 9 % 3]
            request = reports_pb2.ProveUsageRequest(tenant=tenant, id=f"proof-{at}")
            proofs[at] = await reports.ProveUsage(request)
            proved = check_proof(
                tenant, f"proof-{at}", proofs[at], public_key=(tmp_path / PUBLIC_FILE).read_text().strip()
            )
            assert proved.public_key
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reports.ProveUsage(reports_pb2.ProveUsageRequest(tenant="globex", id="proof-0"))
        assert reason_of(caught.value)[1].reason == "USAGE_UNKNOWN"
        messages = [one async for one in reports.VerifyUsage(reports_pb2.VerifyUsageRequest())]
        assert (True, []) == (messages[-1].done, [one.finding for one in messages if one.HasField("finding")])
        assert messages[-1].links >= 2
        assert messages[-1].roots >= 1
    assert {0, 1} == {proofs[at].record.flags for at in (2, 5)}
    for at in (2, 5):
        assert [] == [place for place, forged in flipped(proofs[at]) if is_believed(f"proof-{at}", forged)]


@pytest.mark.asyncio
async def test_a_proof_over_many_batches_comes_in_parts(
    bench: Bench, ledger_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where long nothing was signed a proof is had in several answers, each of bounded size; no part of it proves."""
    monkeypatch.setattr(usage_proofs, "LATER_AT_ONCE", 4)
    batches = 11
    async with running(ledger_settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as opened_to:
        stub, log = await opened(opened_to)
        for number in range(batches):
            log.record(bench.use(f"parts-{number}"))
            await stub.AppendUsage(message_of(log.cut(number)))
        signer = RootSigner(ledger.resources.pools.billing, tmp_path, installation_id=b"i" * 16)
        await signer.tick()
        asked = reports_pb2.ProveUsageRequest(tenant="acme", id="parts-0")
        answers: list[reports_pb2.ProveUsageResponse] = []
        with grpc.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
            prove = reports_pb2_grpc.ReportServiceStub(channel).ProveUsage

            def ask(request: reports_pb2.ProveUsageRequest) -> reports_pb2.ProveUsageResponse:
                answers.append(prove(request))
                kept = reports_pb2.ProveUsageResponse()
                kept.CopyFrom(answers[-1])
                return kept

            proof = await asyncio.to_thread(whole_proof, asked, ask)
            assert proof.later_count >= batches - 1
            assert [len(one.later_batches) for one in answers[:-1]] == [4] * ((proof.later_count - 1) // 4)
            assert 1 <= len(answers[-1].later_batches) <= 4
            assert check_proof("acme", "parts-0", proof).public_key
            assert [] == [one for one in answers if is_believed("parts-0", one)]
            asked.later_from = 2**64 - 1
            assert 0 == len((await asyncio.to_thread(prove, asked)).later_batches)

            def turned(request: reports_pb2.ProveUsageRequest) -> reports_pb2.ProveUsageResponse:
                told = ask(request)
                told.root.signature += bytes(bool(request.later_from))
                return told

            asked.later_from = 0
            with pytest.raises(ProofError, match="another root"):
                await asyncio.to_thread(whole_proof, asked, turned)


def flipped(proof: reports_pb2.ProveUsageResponse) -> Iterator[tuple[int, reports_pb2.ProveUsageResponse]]:
    """Give every proof that differs from this one in a bit of one byte, with the byte's place."""
    whole = proof.SerializeToString()
    for place, byte in enumerate(whole):
        forged = reports_pb2.ProveUsageResponse()
        try:
            forged.ParseFromString(whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :])
        except DecodeError:
            continue
        if forged != proof:
            yield place, forged


def is_believed(record_id: str, proof: reports_pb2.ProveUsageResponse, **asked: Any) -> bool:
    """Say whether a tenant takes a proof for that of its record."""
    try:
        check_proof("acme", record_id, proof, **asked)
    except ProofError:
        return False
    return True


@pytest.mark.asyncio
@pytest.mark.parametrize("flags", [0, 1])
async def test_a_proof_is_of_one_id_and_one_time(bench: Bench, channel: grpc.aio.Channel, flags: int) -> None:
    """Nobody can show a record's proof for another id or another time, whatever else of the record is left as it was.

    A proof without hashes of rows, as ledgers gave it before, is taken by whoever says so, and binds neither.
    """
    stub, log = await opened(channel)
    name = f"bound-{flags}"
    log.record(*[bench.use(f"{name}-{at}", flags=flags) for at in range(3)])
    await stub.AppendUsage(message_of(log.cut()))
    reports: Any = reports_pb2_grpc.ReportServiceStub(channel)
    proof = await reports.ProveUsage(reports_pb2.ProveUsageRequest(tenant="acme", id=f"{name}-1"))
    asked = reports_pb2.ProveUsageRequest(tenant="acme", id=f"{name}-1", event_time=proof.record.event_time)
    assert proof == await reports.ProveUsage(asked)
    assert is_believed(f"{name}-1", proof, event_us=bench.now_us)
    assert not is_believed(f"{name}-1", proof, event_us=bench.now_us + 1)
    asked.event_time.FromMicroseconds(bench.now_us + 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reports.ProveUsage(asked)
    assert "USAGE_UNKNOWN" == reason_of(caught.value)[1].reason
    changes: dict[str, Callable[[reports_pb2.ProveUsageResponse], object]] = {
        "id": lambda forged: setattr(forged.record, "id", f"{name}-2"),
        "time": lambda forged: forged.record.event_time.FromMicroseconds(bench.now_us + 1),
        "received": lambda forged: setattr(forged, "received_us", bench.now_us + 1),
        "number": lambda forged: setattr(forged.record, "seq", 3),
        "flags": lambda forged: setattr(forged.record, "flags", 1 - flags),
        "producer": lambda forged: setattr(forged.record, "producer_id", bytes(16)),
        "segment": lambda forged: setattr(forged, "segment_id", bytes(16)),
        "order": lambda forged: forged.row_hashes.append(forged.row_hashes.pop(0)),
        "no rows": lambda forged: forged.ClearField("row_hashes"),
    }
    for what, change in changes.items():
        forged = reports_pb2.ProveUsageResponse()
        forged.CopyFrom(proof)
        change(forged)
        assert not is_believed(forged.record.id, forged), what
    assert is_believed(f"{name}-1", forged, must_bind=False)


SLOTS = """
SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND datname = current_database() AND application_name = 'tollkeeper_listener'
"""


@pytest.mark.asyncio
async def test_each_replica_has_a_stream_of_the_chain(bench: Bench, ledger_settings: Settings, tmp_path: Path) -> None:
    """Two ledgers add to a stream each, one root covers both, and each takes one again when its session was killed."""
    async with running(ledger_settings) as one, running(ledger_settings) as other:
        ledgers = (one, other)

        async def are_apart(gone: frozenset[int] = frozenset()) -> bool:
            held = {row["pid"] for row in await bench.rows(SLOTS)}
            streams = {ledger.resources.chain.stream for ledger in ledgers}
            return len(ledgers) == len(held - gone) == len(streams)

        async def append_and_prove(name: str) -> None:
            for number, ledger in enumerate(ledgers):
                async with grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
                    stub, log = await opened(channel)
                    log.record(bench.use(f"{name}-{number}"))
                    await stub.AppendUsage(message_of(log.cut()))
            await RootSigner(one.resources.pools.billing, tmp_path, installation_id=b"i" * 16).tick()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
                reports: Any = reports_pb2_grpc.ReportServiceStub(channel)
                streams = set()
                for number in range(len(ledgers)):
                    request = reports_pb2.ProveUsageRequest(tenant="acme", id=f"{name}-{number}")
                    proof = await reports.ProveUsage(request)
                    assert check_proof("acme", f"{name}-{number}", proof).public_key
                    streams.add(proof.link.stream)
                assert len(ledgers) == len(streams)
                messages = [said async for said in reports.VerifyUsage(reports_pb2.VerifyUsageRequest())]
                assert [] == [said.finding for said in messages if said.HasField("finding")]

        await wait_until(are_apart)
        await append_and_prove("slots")
        gone = frozenset(row["pid"] for row in await bench.rows(SLOTS))
        await bench.rows("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS pid", list(gone))
        await wait_until(lambda: are_apart(gone))
        await append_and_prove("slots-again")
