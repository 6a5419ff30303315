"""Which services this process serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    billing_pb2,
    billing_pb2_grpc,
    limits_pb2,
    limits_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    producers_pb2,
    producers_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    usage_pb2,
)

from tollkeeper_ledger.rpc.admin_service import AdminService
from tollkeeper_ledger.rpc.billing_service import BillingService
from tollkeeper_ledger.rpc.limit_service import LimitService
from tollkeeper_ledger.rpc.otlp_service import SERVICE as OTLP_SERVICE
from tollkeeper_ledger.rpc.otlp_service import MetricsService, read_rules
from tollkeeper_ledger.rpc.payment_service import PaymentService
from tollkeeper_ledger.rpc.producer_service import TopicService
from tollkeeper_ledger.rpc.report_service import ReportService
from tollkeeper_ledger.rpc.usage_service import UsageService, add_usage_service
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.services.usage_input import UsageInput, input_producer_id

if TYPE_CHECKING:
    import grpc.aio
    from google.protobuf.descriptor import ServiceDescriptor

    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources


def add_services(server: grpc.aio.Server, resources: Resources, limits: Limits) -> list[str]:
    """Add every service to the server and give their full names, for health and reflection."""
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(resources, limits), server)
    billing_pb2_grpc.add_BillingServiceServicer_to_server(BillingService(resources), server)
    limits_pb2_grpc.add_LimitServiceServicer_to_server(LimitService(resources, limits), server)
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(PaymentService(resources), server)
    producers_pb2_grpc.add_TopicServiceServicer_to_server(TopicService(resources), server)
    reports_pb2_grpc.add_ReportServiceServicer_to_server(ReportService(resources), server)
    add_usage_service(server, UsageService(resources, limits, usage_input(resources, limits, "calls")))
    names = [service.full_name for service in described_services()]
    mapping = resources.settings.otlp_mapping
    if mapping is not None:
        MetricsService(usage_input(resources, limits, "otlp"), read_rules(mapping)).add_to(server)
        names.append(OTLP_SERVICE)
    return names


def usage_input(resources: Resources, limits: Limits, name: str) -> UsageInput:
    """Give a way in for usage, a producer of its own."""
    return UsageInput(
        UsageIngest(
            resources.pools.ingest,
            embedded=resources.settings.embedded,
            chain=resources.chain,
            restores=limits.restores,
        ),
        limits.tenants,
        resources.clock,
        producer_id=input_producer_id(limits.installation.installation_id, name),
    )


def described_services() -> list[ServiceDescriptor]:
    """Give the descriptors of every service."""
    files = [
        admin_pb2.DESCRIPTOR,
        billing_pb2.DESCRIPTOR,
        limits_pb2.DESCRIPTOR,
        payments_pb2.DESCRIPTOR,
        producers_pb2.DESCRIPTOR,
        reports_pb2.DESCRIPTOR,
        usage_pb2.DESCRIPTOR,
    ]
    return [service for file in files for service in file.services_by_name.values()]
