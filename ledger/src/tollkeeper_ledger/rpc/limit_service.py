"""LimitService: convert messages and call the services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import limits_pb2_grpc

if TYPE_CHECKING:
    from tollkeeper_ledger.services.resources import Resources


class LimitService(limits_pb2_grpc.LimitServiceServicer):
    """Serve sidecars."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
