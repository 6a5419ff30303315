"""Usage over HTTP: single records, batches and CloudEvents become stored records once, each with its own answer."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from http_support import findings, stored
from tollkeeper_ledger.web.cloud_events import event_id

if TYPE_CHECKING:
    import httpx

RECORDED, DUPLICATE = "RECORD_OUTCOME_RECORDED", "RECORD_OUTCOME_DUPLICATE"
CONFLICT, INVALID = "RECORD_OUTCOME_CONFLICT", "RECORD_OUTCOME_INVALID"
PSEUDONYM = re.compile(r"p1\.[A-Za-z0-9_-]{22}")


def stamp(**ago: float) -> str:
    """Give a time so long ago."""
    return (datetime.now(UTC) - timedelta(**ago)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def record(**changed: Any) -> dict[str, Any]:
    """Give a record under an id of its own."""
    return {
        "id": f"h-{secrets.token_hex(8)}",
        "tenant": "acme",
        "event_time": stamp(seconds=5),
        "quantities": [{"meter": "requests", "units": 3}],
        **changed,
    }


def event(**changed: Any) -> dict[str, Any]:
    """Give an event under an id of its own."""
    return {
        "specversion": "1.0",
        "id": secrets.token_hex(8),
        "source": "/gateway/1",
        "type": "com.example.used",
        "subject": "acme",
        "time": stamp(seconds=5),
        "data": {"quantities": {"requests": 3, "bytes": 1_000}},
        **changed,
    }


async def test_a_record_is_stored_once_however_often_it_is_sent(http: httpx.AsyncClient) -> None:
    """First 200 recorded, again 200 duplicate, with other content 409; only declared attributes are kept."""
    one = record(attributes={"path": "/a", "who": "ann", "else": "x"})
    first, again = [await http.post("/v1/usage", json=one) for _ in range(2)]
    other = await http.post("/v1/usage", json={**one, "quantities": [{"meter": "requests", "units": 4}]})
    assert (first.status_code, first.json()["outcome"], first.json()["id"]) == (200, RECORDED, one["id"])
    assert (again.status_code, again.json()["outcome"]) == (200, DUPLICATE)
    assert (other.status_code, other.json()["error"]["status"]) == (409, "ALREADY_EXISTS")
    kept = (await stored(http))[one["id"]]
    assert kept["units"] == {"requests": 3}
    assert kept["attributes"] == {"path": "/a", "who": kept["attributes"]["who"]}
    assert PSEUDONYM.fullmatch(kept["attributes"]["who"])
    assert await findings(http) == []


async def test_what_one_meter_hides_is_hidden_for_all(http: httpx.AsyncClient) -> None:
    """An attribute that a meter of the record hides is stored as its pseudonym, though another has it in the clear."""
    units = [{"meter": "bytes", "units": 1}, {"meter": "requests", "units": 1}]
    ids = []
    for quantities in (units, units[::-1], units[:1]):
        one = record(quantities=quantities, attributes={"path": "/a", "who": "ann"})
        assert (await http.post("/v1/usage", json=one)).status_code == 200
        ids.append(one["id"])
    kept = await stored(http)
    hidden = {"path": "/a", "who": kept[ids[0]]["attributes"]["who"]}
    assert PSEUDONYM.fullmatch(hidden["who"])
    assert [kept[name]["attributes"] for name in ids] == [hidden, hidden, {"who": "ann"}]


BAD_RECORDS: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"tenant": "nobody"}, "tenant", "TENANT_UNKNOWN"),
    ({"tenant": "a b"}, "tenant", "FIELD_INVALID"),
    ({"tenant": ""}, "tenant", "FIELD_REQUIRED"),
    ({"id": ""}, "id", "FIELD_REQUIRED"),
    ({"id": "r/1"}, "id", "FIELD_INVALID"),
    ({"id": "v/1"}, "id", "FIELD_INVALID"),
    ({"id": "x" * 129}, "id", "FIELD_TOO_LONG"),
    ({"id": "a\0b"}, "id", "FIELD_INVALID"),
    ({"event_time": None}, "event_time", "FIELD_REQUIRED"),
    ({"event_time": "1970-01-01T00:00:00Z"}, "event_time", "FIELD_OUT_OF_RANGE"),
    ({"event_time": stamp(days=-1)}, "event_time", "FIELD_OUT_OF_RANGE"),
    ({"event_time": "yesterday"}, "", "FIELD_INVALID"),
    ({"quantities": []}, "quantities", "FIELD_REQUIRED"),
    ({"quantities": [{"meter": "nothing", "units": 1}]}, "quantities[0].meter", "METER_UNKNOWN"),
    ({"quantities": [{"meter": "requests", "units": -1}]}, "quantities[0].units", "FIELD_OUT_OF_RANGE"),
    ({"quantities": [{"meter": "requests", "units": 2**53}]}, "quantities[0].units", "FIELD_OUT_OF_RANGE"),
    ({"quantities": [{"meter": "requests", "units": 1.5}]}, "", "FIELD_INVALID"),
    ({"quantities": [{"meter": "requests"}, {"meter": "requests"}]}, "quantities[1].meter", "FIELD_REPEATED"),
    ({"attributes": {str(n): "" for n in range(17)}}, "attributes", "FIELD_TOO_LONG"),
    ({"nothing": 1}, "", "FIELD_INVALID"),
    ({"id": "\ud800"}, "", "FIELD_INVALID"),
)


async def test_a_bad_record_holds_no_other_up(http: httpx.AsyncClient) -> None:
    """In a batch each is named with field and reason and the others are stored; alone it is 400; none is kept."""
    pairs = [(record(), record(**changed)) for changed, _, _ in BAD_RECORDS]
    body = json.dumps({"records": [one for pair in pairs for one in pair]})
    answer = await http.post("/v1/usage", content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert {one["outcome"] for one in results[0::2]} == {RECORDED}
    for place, (_, field, reason) in enumerate(BAD_RECORDS):
        path = f"records[{2 * place + 1}]"
        told = results[2 * place + 1]
        assert (INVALID, reason, f"{path}.{field}" if field else path) == (
            told["outcome"],
            told["reason"],
            told["field"],
        )
        alone = await http.post("/v1/usage", content=json.dumps(pairs[place][1]), headers=JSON)
        assert (alone.status_code, alone.json()["error"]["details"][0]["reason"]) == (400, reason)
    assert {good["id"] for good, _ in pairs} == (await stored(http)).keys() & {
        one["id"] for pair in pairs for one in pair
    }


JSON = {"content-type": "application/json"}


BAD_BODIES = (
    ("application/json", b"", 400),
    ("application/json", b"[]", 400),
    ("application/json", b'{"records": []}', 400),
    ("application/json", b'{"records": {}}', 400),
    ("application/json", b'{"records": [{}], "more": 1}', 400),
    ("application/json", json.dumps({"records": [{}] * 1_001}).encode(), 400),
    ("application/json", b'{"records": [{}], "acknowledgement": "SOON"}', 400),
    ("application/json", b'{"records": [{}], "acknowledgement": 9}', 400),
    ("application/json", b'{"id": "a", "id": "b"}', 400),
    ("application/json", b"[" * 100_000, 400),
    ("application/json", b" " * (8 * 1024 * 1024 + 1), 413),
    ("application/cloudevents-batch+json", b"{}", 400),
    ("application/cloudevents-batch+json", b"[]", 400),
    ("application/cloudevents+json", b"[]", 400),
    ("text/plain", b"{}", 415),
)


async def test_a_body_that_holds_no_records_is_refused(http: httpx.AsyncClient) -> None:
    """Empty, malformed, oversized and nested bodies, and forms of other sites."""
    for media_type, body, code in BAD_BODIES:
        answer = await http.post("/v1/usage", content=body, headers={"content-type": media_type})
        assert answer.status_code == code, (body[:40], answer.text)
        assert answer.json()["error"]["message"]


async def test_a_thousand_records_get_a_thousand_results(http: httpx.AsyncClient) -> None:
    """In the order of the request; the same id twice in one request is one record."""
    batch = [record(tenant="other", id=f"t-{n % 999}", event_time="2026-01-01T00:00:00Z") for n in range(1_000)]
    now = stamp(minutes=1)
    for one in batch:
        one["event_time"] = now
    results = (await http.post("/v1/usage", json={"records": batch})).json()["results"]
    assert [one["id"] for one in batch] == [one["id"] for one in results]
    assert [one["outcome"] for one in results] == [RECORDED] * 999 + [DUPLICATE]
    assert len(await stored(http, "other")) == 999
    sums = (await http.get("/v1/tenants/other/usage?meters=requests")).json()
    assert "2997" in json.dumps(sums)


async def test_calls_at_once_share_commits_and_keep_their_own_answers(http: httpx.AsyncClient) -> None:
    """40 calls at once, each id sent by two of them: one is told recorded, the other duplicate."""
    batches = [[record() for _ in range(5)] for _ in range(20)]
    answers = await asyncio.gather(
        *(http.post("/v1/usage", json={"records": batch}) for batch in batches for _ in range(2))
    )
    outcomes = [[one["outcome"] for one in answer.json()["results"]] for answer in answers]
    for first, second in zip(outcomes[0::2], outcomes[1::2], strict=True):
        assert [{RECORDED, DUPLICATE}] * 5 == [set(pair) for pair in zip(first, second, strict=True)]
    assert {one["id"] for batch in batches for one in batch} <= (await stored(http)).keys()
    assert await findings(http) == []


async def test_an_event_is_one_record_in_every_mode(http: httpx.AsyncClient) -> None:
    """Structured, binary and batched: the same source and id are the same record; another source is another one."""
    one = event(data={"quantities": {"requests": 3, "bytes": 1_000}, "attributes": {"path": "/ä"}})
    structured = await http.post("/v1/usage", content=json.dumps(one), headers=kind("cloudevents+json; charset=utf-8"))
    assert (structured.status_code, structured.json()["outcome"]) == (200, RECORDED), structured.text
    names = {f"ce-{name}": value for name, value in one.items() if name != "data"}
    binary = await http.post("/v1/usage", json=one["data"], headers=names)
    assert (binary.status_code, binary.json()["outcome"]) == (200, DUPLICATE), binary.text
    encoded = {name: value for name, value in one.items() if name != "data"}
    encoded["data_base64"] = base64.b64encode(json.dumps(one["data"]).encode()).decode()
    batch = [encoded, {**one, "source": "/gateway/2"}, {**one, "data": {"quantities": {"requests": 9}}}]
    batched = await http.post("/v1/usage", content=json.dumps(batch), headers=kind("cloudevents-batch+json"))
    assert [result["outcome"] for result in batched.json()["results"]] == [DUPLICATE, RECORDED, CONFLICT]
    kept = (await stored(http))[event_id("/gateway/1", one["id"])]
    assert kept["units"] == {"bytes": 1_000, "requests": 3}
    assert kept["attributes"] == {"path": "/ä"}


BAD_EVENTS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"specversion": "0.3"}, "specversion"),
    ({"id": ""}, "id"),
    ({"source": None}, "source"),
    ({"time": None}, "time"),
    ({"subject": None}, "subject"),
    ({"tenant": "other"}, "subject"),
    ({"data": None}, "data"),
    ({"data": {"requests": 1}}, "data"),
    ({"data": {"quantities": 1}}, "data.quantities"),
    ({"data": {"quantities": {"requests": "many"}}}, ""),
    ({"data": None, "data_base64": "e30"}, "data_base64"),
    ({"id": "\ud800"}, ""),
)


async def test_an_event_that_is_no_record_is_refused(http: httpx.AsyncClient) -> None:
    """With the attribute that is wrong; the other events of the batch are stored."""
    body = json.dumps([one for changed, _ in BAD_EVENTS for one in (event(**changed), event())])
    answer = await http.post("/v1/usage", content=body, headers=kind("cloudevents-batch+json"))
    results = answer.json()["results"]
    assert {one["outcome"] for one in results[1::2]} == {RECORDED}
    for place, (_, field) in enumerate(BAD_EVENTS):
        path = f"records[{2 * place}]"
        told = results[2 * place]
        assert (INVALID, f"{path}.{field}" if field else path) == (told["outcome"], told["field"])


def kind(name: str) -> dict[str, str]:
    """Give the header of a media type."""
    return {"content-type": f"application/{name}"}


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "bc"), ("ab", "c")), (("a/", "b"), ("a", "/b")), (("", "a"), ("a", ""))]
)
def test_events_of_other_sources_never_share_an_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    """However source and id are cut; and the record's id is within its bound."""
    assert event_id(*one) != event_id(*other)
    assert len(event_id("s" * 10_000, "i" * 10_000).encode()) <= 128


async def test_an_answer_that_nobody_heard_is_told_again(http: httpx.AsyncClient) -> None:
    """Callers who hang up after sending, then send again: every record is stored once, whichever call stored it."""
    sent = [record() for _ in range(20)]
    for one in sent:
        body = json.dumps(one).encode()
        head = f"POST /v1/usage HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()
    again = (await http.post("/v1/usage", json={"records": sent})).json()["results"]
    assert {one["outcome"] for one in again} <= {RECORDED, DUPLICATE}
    assert {one["id"] for one in sent} <= (await stored(http)).keys()
    assert {(await http.post("/v1/usage", json=one)).json()["outcome"] for one in sent} == {DUPLICATE}
    assert await findings(http) == []
