"""The services as JSON over HTTP, on a ledger that runs: the same calls, answers and refusals as over gRPC."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import pytest
from tollkeeper_ledger.app import running
from tollkeeper_ledger.rpc.registry import described_services
from tollkeeper_ledger.web import listener
from tollkeeper_ledger.web.transcode.bindings import bindings_of
from tollkeeper_ledger.web.transcode.errors import answer_of
from tollkeeper_ledger.web.transcode.messages import json_of, request_of, response_class

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.app import Running
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.web.transcode.bindings import Binding

BINDINGS = bindings_of(described_services())
CATALOGUE = """
version: 1
seller: {id: default, name: Example GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters: [{name: requests, unit: requests, aggregation: sum}]
plans:
  - name: free
    currency: USD
    billing_interval: {unit: day, count: 1}
    limits: [{name: monthly, meter: requests, kind: window, amount: 10, window: {unit: month, count: 1}}]
tenants: [{id: "acme:eu", name: Acme, plan: free}]
"""


@asynccontextmanager
async def http_of(ledger: Running) -> AsyncIterator[httpx.AsyncClient]:
    """Connect to a ledger's HTTP."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ledger.http_port}", timeout=60) as client:
        yield client


def asked(binding: Binding) -> tuple[str, dict[str, str]]:
    """Give a path whose fields name nothing that exists, and the fields that stand in it."""
    fields = dict.fromkeys(binding.template.fields, "nobody:1")
    return re.sub(r"\{([^}]+)\}", "nobody%3A1", binding.template.text), fields


async def over_grpc(
    channel: grpc.aio.Channel, binding: Binding, fields: dict[str, str], body: bytes
) -> tuple[int, Any]:
    """Make the call and give its HTTP code, and its answer or its error."""
    message = request_of(binding, path=fields, query=[], body=body)
    kind = channel.unary_stream if binding.method.server_streaming else channel.unary_unary
    call = kind(
        binding.full_method,
        request_serializer=type(message).SerializeToString,
        response_deserializer=response_class(binding.method).FromString,
    )(message)
    try:
        if binding.method.server_streaming:
            return 200, [json_of(one) async for one in call]
        return 200, json_of(await call)
    except grpc.aio.AioRpcError as error:
        code, answer, _ = answer_of(error)
        return code, answer


@pytest.mark.parametrize("with_request_id", [False, True])
async def test_every_call_is_answered_as_over_grpc(ledger_settings: Settings, *, with_request_id: bool) -> None:
    """Each annotated call, for things that don't exist, without and with a request id, ends alike over both."""
    seen = set()
    async with (
        running(ledger_settings) as ledger,
        http_of(ledger) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel,
    ):
        for binding in BINDINGS:
            if binding.template.text == "/v1/usage":  # has forms of its own
                continue
            path, fields = asked(binding)
            has_id = "request_id" in binding.method.input_type.fields_by_name
            content = {"request_id": binding.method.name} if with_request_id and has_id and binding.body else {}
            body = json.dumps(content).encode() if binding.body else b""
            code, expected = await over_grpc(channel, binding, fields, body)
            headers = {"content-type": "application/json"} if binding.body else {}
            answer = await http.request(binding.verb, path, content=body, headers=headers)
            assert answer.status_code == code, (path, answer.text, expected)
            if code != 200:
                assert answer.json() == expected, path
            elif binding.method.server_streaming:
                assert len(answer.text.splitlines()) == len(expected), path
            else:
                assert answer.json().keys() == expected.keys(), path
            seen.add(answer.status_code)
    assert {200, 400, 404} <= seen


async def test_an_operator_works_over_http_alone(ledger_settings: Settings) -> None:
    """A catalogue is declared and read, a limit overridden; a repeat gets the first answer, another request none."""
    apply = {"request_id": "http-1", "yaml": CATALOGUE, "source_name": "c.yaml"}
    async with running(ledger_settings) as ledger, http_of(ledger) as http:
        first = await http.post("/v1/catalogue:apply", json=apply)
        assert first.status_code == 200, first.text
        assert (await http.post("/v1/catalogue:apply", json=apply)).json() == first.json()
        reused = await http.post("/v1/catalogue:apply", json={**apply, "source_name": "d.yaml"})
        assert reused.json()["error"]["details"][0]["reason"] == "REQUEST_ID_REUSED"
        tenant = (await http.get("/v1/tenants/acme:eu")).json()["tenant"]
        assert tenant["tenant"] == "acme:eu"
        override = {"request_id": "http-2", "amount": 7, "note": "trial"}
        headers = {"tollkeeper-actor": "ann"}
        put = await http.put("/v1/tenants/acme%3Aeu/overrides/monthly", json=override, headers=headers)
        assert put.status_code == 200, put.text
        limits = (await http.get("/v1/tenants/acme:eu/limits")).json()["limits"]
        assert [(one["name"], one["amount"]) for one in limits] == [("monthly", 7)]
        history = (await http.get("/v1/limits/history?tenant=acme:eu&limit=monthly")).json()
        assert "ann" in json.dumps(history)
        deleted = await http.delete("/v1/tenants/acme:eu/overrides/monthly?request_id=http-3")
        assert deleted.status_code == 200, deleted.text


async def test_a_faulty_catalogue_says_where(ledger_settings: Settings) -> None:
    """An error over HTTP has the reason and the metadata that it has over gRPC."""
    async with running(ledger_settings) as ledger, http_of(ledger) as http:
        answer = await http.post(
            "/v1/catalogue:apply", json={"request_id": "x", "yaml": "meters: 7", "source_name": "f"}
        )
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert answer.json()["error"]["details"][0]["reason"] == "CATALOGUE_INVALID"


async def test_the_document_tells_what_is_served(ledger_settings: Settings) -> None:
    """/openapi.json has each path, with the contract's words, and no reference into nothing."""
    async with running(ledger_settings) as ledger, http_of(ledger) as http:
        document = (await http.get("/openapi.json")).json()
    operations = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert operations == {(binding.verb, binding.template.text) for binding in BINDINGS}
    assert document["paths"]["/v1/tenants"]["get"]["summary"] == "Lists tenants in wire id order"
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET /" + b"a" * listener.HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * listener.HEAD_BYTES_MAX + b"\r\n\r\n", b"431"),
        (
            b"POST /v1/catalogue:apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2000000\r\n\r\n" + b" " * 1_100_000,
            b"413",
        ),
        (b"\0\0\0\0\r\n\r\n", b"400"),
        (b"GET /v1/tenants/%00 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /v1/tenants/../tenants HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
    ],
)
async def test_hostile_heads_and_bodies_are_refused(ledger_settings: Settings, head: bytes, code: bytes) -> None:
    """What is too long or no HTTP gets its code, and the next caller an answer."""
    async with running(ledger_settings) as ledger:
        reader, writer = await asyncio.open_connection("127.0.0.1", ledger.http_port)
        writer.write(head)
        assert (await reader.readline()).split()[1] == code
        writer.close()
        async with http_of(ledger) as http:
            assert (await http.get("/health")).status_code == 200


async def test_a_slow_head_is_cut_off(ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which no request becomes whole is ended; one that is used is not."""
    monkeypatch.setattr(listener, "HEAD_SECONDS_MAX", 0.2)
    async with running(ledger_settings) as ledger, http_of(ledger) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", ledger.http_port)
        writer.write(b"GET /health HTTP/1.1\r\n")
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert (await http.get("/health")).status_code == 200
