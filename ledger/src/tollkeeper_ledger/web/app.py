"""Put the HTTP side together: probes, webhooks, and the services as JSON."""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from tollkeeper_ledger.web import metrics, usage
from tollkeeper_ledger.web.body import Bodies
from tollkeeper_ledger.web.health import Health
from tollkeeper_ledger.web.transcode.app import Transcoder
from tollkeeper_ledger.web.transcode.openapi import openapi_of
from tollkeeper_ledger.web.webhooks import PATH, Webhooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio
    from google.protobuf.descriptor import ServiceDescriptor
    from starlette.requests import Request

    from tollkeeper_ledger.services.resources import Resources


def http_app(resources: Resources, channel: grpc.aio.Channel, services: Sequence[ServiceDescriptor]) -> Starlette:
    """Give the app. `channel` leads to this process' own gRPC server: a call is judged there like any other."""
    bodies = Bodies()
    provider = resources.provider
    transcoder = Transcoder(channel, services, bodies)
    webhooks = Webhooks(provider.events if provider is not None else None, bodies, resources.log)
    return Starlette(
        routes=[
            Route("/health", Health(resources).answer, methods=["GET"]),
            Route(PATH, webhooks.answer, methods=["POST"]),
            Route("/openapi.json", Document(transcoder).answer, methods=["GET"]),
            Route(usage.PATH, usage.UsageEndpoint(transcoder, bodies).answer, methods=["POST"]),
            Route(metrics.PATH, metrics.MetricsEndpoint(channel, bodies).answer, methods=["POST"]),
            transcoder.route,
        ]
    )


class Document:
    """Give the OpenAPI document: made of the descriptors at the first request, kept as bytes."""

    def __init__(self, transcoder: Transcoder) -> None:
        self._transcoder = transcoder
        self._bytes = b""

    async def answer(self, _request: Request) -> Response:
        """Answer one request."""
        if not self._bytes:
            comments = json.loads(files("tollkeeper.ledger.v1").joinpath("comments.json").read_text())
            document = openapi_of(
                self._transcoder.bindings,
                title="Tollkeeper's ledger",
                version=version("tollkeeper-ledger"),
                comments=comments,
            )
            self._bytes = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        return Response(self._bytes, media_type="application/json")
