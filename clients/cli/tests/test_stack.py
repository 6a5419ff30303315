"""What a stack takes for a server that serves."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tollkeeper_cli.stack import is_serving

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_serves_once_its_health_check_says_so(tmp_path: Path) -> None:
    """By TCP and by Unix socket: not where nobody listens, nor while the answer is another one."""
    path = tmp_path / "s.sock"
    assert not is_serving(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert not is_serving(f"unix:{path}"), "what a killed process left is no server"
    path.unlink()
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        said = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(said, server)
        targets = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", f"unix:{path}"]
        server.add_insecure_port(targets[1])
        server.start()
        told = health_pb2.HealthCheckResponse
        for status, expected in ((told.NOT_SERVING, False), (told.SERVING, True)):
            said.set("", status)
            assert [expected, expected] == [is_serving(target) for target in targets]
        server.stop(None).wait()
    assert [is_serving(target) for target in targets] == [False, False]


def test_who_accepts_and_says_nothing_does_not_serve() -> None:
    """A port that takes connections and speaks no gRPC is no server."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_serving(f"127.0.0.1:{silent.getsockname()[1]}")
