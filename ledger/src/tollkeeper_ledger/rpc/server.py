"""Build the gRPC server: limits, health, reflection, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from tollkeeper_ledger.rpc.interceptor import ErrorInterceptor
from tollkeeper_ledger.rpc.registry import add_services

if TYPE_CHECKING:
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources

MESSAGE_BYTES_MAX = 8 * 1024 * 1024

# Stated, never left at the library's defaults: some of those mean "unlimited".
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_concurrent_streams", 200),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.so_reuseport", 0),
)


async def start_server(resources: Resources, limits: Limits) -> tuple[grpc.aio.Server, int]:
    """Start serving on `ledger_listen`; give the server and the port that it got. Raises RuntimeError when it can't."""
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(resources.log)], options=SERVER_OPTIONS, maximum_concurrent_rpcs=10_000
    )
    names = add_services(server, resources, limits)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name], server)
    port = server.add_insecure_port(resources.settings.ledger_listen)
    await server.start()
    for name in ["", *names]:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, port


def channel_to(listen: str, port: int) -> grpc.aio.Channel:
    """Open a channel to the server that listens on `listen` and got this port: for calls of this process to itself."""
    host = listen.rpartition(":")[0]
    near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not bound to here
    sizes = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    return grpc.aio.insecure_channel(f"{near}:{port}", options=[(name, MESSAGE_BYTES_MAX) for name in sizes])
