# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService's part about the chain: checking all of it, proving one record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import reports_pb2

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.telling import telling
from tollkeeper_ledger.domain.usage_audit import Checked, Finding
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.spans import instant_of
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.services.usage_proofs import prove_usage
from tollkeeper_ledger.services.usage_roots import read_roots_file
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.usage_archive import hold_months

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import grpc.aio

    from tollkeeper_ledger.domain.usage_proof import Step, UsageProof
    from tollkeeper_ledger.services.resources import Resources

    Context = grpc.aio.ServicerContext[Any, Any]


class UsageAudits:
    """Serve whoever checks the chain."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    async def VerifyUsage(
        self, request: reports_pb2.VerifyUsageRequest, context: Context
    ) -> AsyncIterator[reports_pb2.VerifyUsageResponse]:
        """Recompute everything and name wrong rows, in one snapshot."""
        directory = self._resources.settings.audit_dir
        outside = [] if directory is None else await asyncio.to_thread(read_roots_file, directory)
        last = Checked()
        async with (
            connection(self._resources.pools.billing) as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            await hold_months(conn)
            archive = self._resources.settings.archive_dir
            async for found in verify_usage(conn, outside=outside, archive=archive):
                if isinstance(found, Finding):
                    message = _progress(last)
                    message.finding.table, message.finding.row = found.table, telling(found.row)
                    message.finding.problem = telling(found.problem)
                    yield message
                else:
                    last = found
                    yield _progress(last)
        message = _progress(last)
        message.done = True
        yield message

    async def ProveUsage(
        self, request: reports_pb2.ProveUsageRequest, context: Context
    ) -> reports_pb2.ProveUsageResponse:
        """Show that a tenant's record is in the chain."""
        record, proof = await prove_usage(
            self._resources.pools,
            tenant=request.tenant,
            record_id=request.id,
            at=instant_of(request, "event_time"),
            archive=self._resources.settings.archive_dir,
            later_from=request.later_from,
        )
        answer = reports_pb2.ProveUsageResponse(
            record=reports_pb2.StoredRecord(
                id=record.id,
                event_time=timestamp(from_us(record.event_us)),
                units=dict(record.quantities),
                attributes=record.attributes,
                producer_id=proof.body.producer_id.bytes,
                seq=record.seq,
                flags=record.flags,
            ),
            content_hash=proof.content_hash,
            tenant_path=_steps(proof.tenant_path),
            tenant_records=proof.tenant_records,
            batch_path=_steps(proof.batch_path),
            link=_link(proof),
            later_batches=proof.later_batches,
            later_count=proof.later_count,
            row_hashes=proof.row_hashes,
            received_us=record.received_us,
            segment_id=record.segment_id.bytes,
        )
        if proof.root is not None:
            answer.root.statement = proof.root.statement
            answer.root.signature = proof.root.signature
            answer.root.public_key = proof.root.public_key
        return answer


def _progress(checked: Checked) -> reports_pb2.VerifyUsageResponse:
    return reports_pb2.VerifyUsageResponse(
        links=checked.links,
        records=checked.records,
        hours=checked.hours,
        roots=checked.roots,
        archived=checked.archived,
        periods=checked.periods,
    )


def _steps(path: Sequence[Step]) -> list[reports_pb2.ProofStep]:
    return [reports_pb2.ProofStep(sibling=step.sibling, is_left=step.is_left) for step in path]


def _link(proof: UsageProof) -> reports_pb2.ChainLink:
    body = proof.body
    return reports_pb2.ChainLink(
        stream=proof.stream,
        position=proof.position,
        previous_hash=proof.previous_hash,
        batch_id=body.batch_id,
        producer_id=body.producer_id.bytes,
        incarnation=body.incarnation,
        first_seq=body.first_seq,
        last_seq=body.last_seq,
        h=body.h,
        merkle_root=body.merkle_root,
        rows_digest=body.rows_digest,
        refused_digest=body.refused_digest,
        stored=body.stored,
        duplicates=body.duplicates,
        conflicts=body.conflicts,
        quarantined=body.quarantined,
        holes=body.holes,
        committed_us=body.committed_us,
        hash=proof.hash,
    )
