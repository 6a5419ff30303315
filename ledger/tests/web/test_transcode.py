"""JSON over HTTP: every service by its annotations, with the same answers and errors as over gRPC."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from tollkeeper_ledger.web.body import Bodies
from tollkeeper_ledger.web.transcode.app import BODY_BYTES_MAX, Transcoder
from tollkeeper_ledger.web.transcode.bindings import bindings_of
from tollkeeper_ledger.web.transcode.openapi import openapi_of
from tollkeeper_ledger.web.transcode.template import PathTemplate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.descriptor import ServiceDescriptor

    Rule = tuple[str, http_pb2.HttpRule, bool]

_Field = descriptor_pb2.FieldDescriptorProto
ITEM_FIELDS = (
    _Field(name="shop", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL"),
    _Field(name="id", number=2, type="TYPE_STRING", label="LABEL_OPTIONAL"),
    _Field(name="units", number=3, type="TYPE_INT64", label="LABEL_OPTIONAL"),
    _Field(name="tags", number=4, type="TYPE_STRING", label="LABEL_REPEATED"),
    _Field(name="at", number=5, type="TYPE_MESSAGE", label="LABEL_OPTIONAL", type_name=".google.protobuf.Timestamp"),
    _Field(name="open", number=6, type="TYPE_BOOL", label="LABEL_OPTIONAL"),
    _Field(name="inner", number=7, type="TYPE_MESSAGE", label="LABEL_OPTIONAL", type_name=".shop.v1.Inner"),
)


def make_service(*rules: Rule) -> ServiceDescriptor:
    """Make a service `Shop` whose methods take and give `Item`, each with a rule; the flag makes it a stream."""
    file = descriptor_pb2.FileDescriptorProto(
        name="shop.proto", package="shop.v1", syntax="proto3", dependency=["google/protobuf/timestamp.proto"]
    )
    file.message_type.add(name="Inner").field.add(name="count", number=1, type="TYPE_INT64", label="LABEL_OPTIONAL")
    file.message_type.add(name="Item").field.extend(ITEM_FIELDS)
    service = file.service.add(name="Shop")
    for name, rule, is_stream in rules:
        method = service.method.add(
            name=name, input_type=".shop.v1.Item", output_type=".shop.v1.Item", server_streaming=is_stream
        )
        method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    pool = descriptor_pool.DescriptorPool()
    timestamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(timestamp)
    pool.Add(timestamp)
    pool.Add(file)
    return pool.FindServiceByName("shop.v1.Shop")


PUT = http_pb2.HttpRule(
    put="/v1/shops/{shop}/items/{id}", body="*", additional_bindings=[http_pb2.HttpRule(post="/items", body="*")]
)
SHOP = make_service(
    ("Get", http_pb2.HttpRule(get="/v1/shops/{shop}/items/{id}"), False),
    ("List", http_pb2.HttpRule(get="/v1/shops/{shop}/items"), False),
    ("Put", PUT, False),
    ("Inner", http_pb2.HttpRule(post="/v1/shops/{shop}:count", body="inner"), False),
    ("Fail", http_pb2.HttpRule(delete="/v1/shops/{shop}"), False),
    ("Watch", http_pb2.HttpRule(get="/v1/shops/{shop}:watch"), True),
)
ITEM = GetMessageClass(SHOP.methods_by_name["Get"].input_type)


JSON = {"content-type": "application/json"}


class Shop(grpc.GenericRpcHandler):
    """Echo items; `Fail` refuses; `Watch` sends three and then fails."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Find the handler of a call."""
        name = handler_call_details.method.rpartition("/")[2]
        coders = {"request_deserializer": ITEM.FromString, "response_serializer": ITEM.SerializeToString}
        if name == "Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch, **coders)
        return grpc.unary_unary_rpc_method_handler(self._fail if name == "Fail" else self._echo, **coders)

    async def _echo(self, request: Any, context: Any) -> Any:
        actor = dict(context.invocation_metadata()).get("tollkeeper-actor")
        if actor:
            request.tags.append(actor)
        return request

    async def _fail(self, _request: Any, context: Any) -> Any:
        status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="full")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="LEDGER_FULL", domain="tollkeeper"))
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(1_200)
        status.details.add().Pack(retry)
        await context.abort_with_status(rpc_status.to_status(status))

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(3):
            yield ITEM(shop=request.shop, units=number)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a transcoder before a real gRPC server."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Shop(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        app = Starlette(routes=[Transcoder(channel, [SHOP], Bodies()).route])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ledger") as client:
            yield client
    await server.stop(None)


async def test_path_query_and_body_make_one_request(http: httpx.AsyncClient) -> None:
    """Fields come from the path, repeated and dotted ones from the query, or all others from the body."""
    asked = await http.get(
        "/v1/shops/a%2Fb/items?units=5&tags=x&tags=y&at=2026-01-31T00:00:00Z&open=true&inner.count=7"
    )
    assert asked.json() == {
        "shop": "a/b",
        "id": "",
        "units": 5,
        "tags": ["x", "y"],
        "at": "2026-01-31T00:00:00Z",
        "open": True,
        "inner": {"count": 7},
    }
    put = await http.put("/v1/shops/s/items/1", json={"units": "12", "tags": ["t"]})
    assert (put.json()["shop"], put.json()["id"], put.json()["units"]) == ("s", "1", 12)
    also = await http.post("/items", json={"shop": "s", "id": "2"})
    assert also.json()["id"] == "2"
    inner = await http.post("/v1/shops/s:count", json={"count": 3})
    assert inner.json()["inner"] == {"count": 3}


@pytest.mark.parametrize(
    ("units", "expected"), [(2**53 - 1, 2**53 - 1), (2**53 + 1, str(2**53 + 1)), (-(2**63), str(-(2**63)))]
)
async def test_whole_numbers_are_exact(http: httpx.AsyncClient, units: int, expected: int | str) -> None:
    """Up to 2^53 - 1 a number is a number; beyond, where a double would lie, it is a string."""
    answer = await http.put("/v1/shops/s/items/1", json={"units": str(units)})
    assert expected == answer.json()["units"]


@pytest.mark.parametrize(
    ("verb", "path", "content", "code"),
    [
        ("GET", "/v1/shops/s/items?unit=5", b"", 400),
        ("GET", "/v1/shops/s/items?units=five", b"", 400),
        ("GET", "/v1/shops/s/items?units=1&units=2", b"", 400),
        ("GET", "/v1/shops/s/items?shop=t", b"", 400),
        ("GET", "/v1/shops/s/items?open=1", b"", 400),
        ("GET", "/v1/shops/s/items?inner=1", b"", 400),
        ("GET", "/v1/shops/s/items", b"{}", 400),
        ("GET", "/v1/shops/%ff/items", b"", 400),
        ("PUT", "/v1/shops/s/items/1", b"{", 400),
        ("PUT", "/v1/shops/s/items/1", b"[]", 400),
        ("PUT", "/v1/shops/s/items/1", b'{"units": NaN}', 400),
        ("PUT", "/v1/shops/s/items/1", b'{"units": 1, "units": 2}', 400),
        ("PUT", "/v1/shops/s/items/1", b'{"inner": {"count": 1, "count": 2}}', 400),
        ("PUT", "/v1/shops/s/items/1", b'{"units": 1.5}', 400),
        ("PUT", "/v1/shops/s/items/1", b'{"id": "2"}', 400),
        ("PUT", "/v1/shops/s/items/1?units=1", b"{}", 400),
        ("PUT", "/v1/shops/s/items/1", b"[" * 100_000, 400),
        ("PUT", "/v1/shops/s/items/1", b" " * (BODY_BYTES_MAX + 1), 413),
        ("PATCH", "/v1/shops/s/items/1", b"", 405),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/shops/a/b/items", b"", 404),
    ],
)
async def test_a_bad_request_is_refused_and_never_becomes_a_call(
    http: httpx.AsyncClient, verb: str, path: str, content: bytes, code: int
) -> None:
    """Unknown, doubled, misplaced and malformed fields are 400 with a message; paths and verbs 404 and 405."""
    answer = await http.request(verb, path, content=content, headers=JSON)
    assert code == answer.status_code
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_form_of_another_site_becomes_no_call(http: httpx.AsyncClient, kind: str) -> None:
    """What a browser sends without asking first, of any verb that changes something, is 415."""
    answer = await http.post("/items", content=b'{"id": "2"}', headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415


async def test_a_header_that_no_call_can_carry_is_refused(http: httpx.AsyncClient) -> None:
    """An actor that isn't printable ASCII is 400 with the header's name."""
    answer = await http.get("/v1/shops/s/items", headers={b"tollkeeper-actor": b"\xc3\xa4"})
    assert (answer.status_code, answer.json()["error"]["details"][0]["metadata"]) == (
        400,
        {"field": "tollkeeper-actor"},
    )


async def test_a_failed_call_keeps_code_reason_and_retry(http: httpx.AsyncClient) -> None:
    """RESOURCE_EXHAUSTED is 429 with its ErrorInfo and a Retry-After rounded up to whole seconds."""
    answer = await http.delete("/v1/shops/s")
    error = answer.json()["error"]
    assert (answer.status_code, error["status"], answer.headers["retry-after"]) == (429, "RESOURCE_EXHAUSTED", "2")
    assert error["details"][0]["reason"] == "LEDGER_FULL"


async def test_a_stream_is_one_object_per_line_and_says_how_it_ended(http: httpx.AsyncClient) -> None:
    """Each message is a line; what breaks the stream is the last one."""
    answer = await http.get("/v1/shops/s:watch")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["units"] for row in rows[:3]] == [0, 1, 2]
    assert rows[3]["error"]["status"] == "UNAVAILABLE"


async def test_who_asks_is_passed_on(http: httpx.AsyncClient) -> None:
    """The headers that name actor, credential and trace reach the service."""
    answer = await http.get("/v1/shops/s/items/1", headers={"tollkeeper-actor": "ann"})
    assert answer.json()["tags"] == ["ann"]


@pytest.mark.parametrize(
    "rules",
    [
        (("A", http_pb2.HttpRule(get="/a/{nothing}"), False),),
        (("A", http_pb2.HttpRule(get="/a/{inner}"), False),),
        (("A", http_pb2.HttpRule(get="/a/{tags}"), False),),
        (("A", http_pb2.HttpRule(post="/a", body="nothing"), False),),
        (("A", http_pb2.HttpRule(get="a"), False),),
        (("A", http_pb2.HttpRule(get="/{shop}/{shop}"), False),),
        (("A", http_pb2.HttpRule(get="/a"), False), ("B", http_pb2.HttpRule(get="/a"), False)),
    ],
)
def test_a_wrong_annotation_stops_the_start(rules: tuple[Rule, ...]) -> None:
    """Fields that aren't there, paths that aren't paths, and paths of two methods are found at the start."""
    with pytest.raises(ValueError, match=r"shop|template|begins"):
        bindings_of([make_service(*rules)])


@given(st.text(min_size=1, max_size=20))
def test_any_value_comes_back_from_a_path(value: str) -> None:
    """Whatever a name holds, quoted into a path it is read as it was, and never reaches another segment."""
    template = PathTemplate.from_text("/v1/{shop}/items/{id}")
    assert template.match(f"/v1/{quote(value, safe='')}/items/9") == {"shop": value, "id": "9"}


def test_the_document_describes_every_binding() -> None:
    """Each binding is an operation with its parameters; every schema that one refers to is there."""
    document = openapi_of(
        bindings_of([SHOP]), title="Shop", version="1", comments={"shop.v1.Shop.Get": "Gives an item. Takes nothing."}
    )
    assert document["paths"]["/v1/shops/{shop}/items/{id}"]["get"]["summary"] == "Gives an item"
    listed = document["paths"]["/v1/shops/{shop}/items"]["get"]["parameters"]
    assert [(one["name"], one["in"]) for one in listed] == [
        ("shop", "path"),
        *((name, "query") for name in ("id", "units", "tags", "at", "open")),
    ]
    assert len(SHOP.methods) + 1 == sum(len(verbs) for verbs in document["paths"].values())
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert {"shop.v1.Item", "shop.v1.Inner", "Error"} <= references
