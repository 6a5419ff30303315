"""One record through a real sidecar, and what the command line says of it: reports, voids, a proof, an audit."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from operator_support import Run
    from platform_support import Platform


CATALOGUE = """
version: 1
meters:
  - {name: web_requests, unit: requests, attributes: [status, user], dimensions: [status]}
  - {name: web_duration, unit: ms, aggregation: percentile, attributes: [status]}
  - {name: web_users, unit: users, aggregation: unique, value_attribute: user, attributes: [user]}
  - {name: web_slowest, unit: ms, aggregation: max}
plans:
  - {name: PLAN, currency: USD, billing_interval: {unit: month, count: 1}}
tenants:
  - {id: TENANT, name: Shop, plan: PLAN, subscription: {start: "2026-01-01T00:00:00Z", time_zone: Asia/Kathmandu}}
  - {id: TENANT.child, name: Branch, billing_tenant: TENANT}
"""
TENANT = f"web-{uuid.uuid4()}"
METERS = ("web_duration", "web_requests", "web_slowest", "web_users")


def record(platform: Platform, count: int) -> None:
    """Record requests until the ledger has committed them all; repeated under the same ids until it has."""
    at = Timestamp(seconds=int(time.time()))
    records = [
        usage_pb2.UsageRecord(
            id=f"web-{number}",
            tenant=TENANT,
            event_time=at,
            quantities=[
                usage_pb2.Quantity(meter=meter, units=number if meter in ("web_duration", "web_slowest") else 1)
                for meter in METERS
            ],
            attributes={"status": "2xx" if number % 4 else "5xx", "user": f"u{number % 3}", "secret": "dropped"},
        )
        for number in range(1, count + 1)
    ]
    request = usage_pb2.RecordUsageRequest(records=records, acknowledgement=usage_pb2.ACKNOWLEDGEMENT_LEDGER)
    give_up_s = time.monotonic() + 120
    done = (usage_pb2.RECORD_OUTCOME_RECORDED, usage_pb2.RECORD_OUTCOME_DUPLICATE)
    with grpc.insecure_channel(platform.target, options=[("grpc.default_authority", "localhost")]) as channel:
        while True:
            # A sidecar hears of a new tenant and new meters within a second.
            answer = quota_pb2_grpc.QuotaServiceStub(channel).RecordUsage(request, timeout=60)
            if all(result.outcome in done for result in answer.results):
                return
            assert time.monotonic() < give_up_s, answer.results[0]
            time.sleep(0.1)


def figures(run: Run, *words: str) -> dict[tuple[str, str | None], Any]:
    """Give a report's values by meter and status."""
    code, out, err = run("usage", "report", "--tenant", TENANT, *words, "-o", "json")
    assert code == 0, err
    return {(row["meter"], row.get("status")): row["value"] for row in json.loads(out)}


def test_one_record_feeds_reports_and_can_be_taken_back_and_proved(
    platform: Platform, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of every meter come from the same records; a void changes all of them; the chain holds all along."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.yaml").write_text(CATALOGUE.replace("TENANT", TENANT).replace("PLAN", f"plan-of-{TENANT}"))
    code, _, err = run("apply", "-f", "web.yaml")
    assert code == 0, err
    record(platform, 40)
    whole = figures(run)
    assert {name: whole[name, None] for name in METERS} == {
        "web_duration": "20",
        "web_requests": "40",
        "web_slowest": "40",
        "web_users": "3",
    }
    split = figures(run, "--meter", "web_requests", "--group-by", "status", "--bucket", "month")
    assert split == {("web_requests", "2xx"): "30", ("web_requests", "5xx"): "10"}
    # An attribute's values choose records, from rollups and from records, of the meters that declare it.
    failed = figures(run, "--where", "status=5xx")
    assert failed == {("web_requests", None): "10", ("web_duration", None): "20"}
    both = ("--where", "status=5xx", "--where", "status=2xx", "--where", "user=u1", "--meter", "web_requests")
    assert figures(run, *both) == {("web_requests", None): "14"}
    code, out, err = run("usage", "summary", "--tenant", TENANT, "--where", "status=5xx", "-o", "json")
    assert (code, [row["value"] for row in json.loads(out) if row["meter"] == "web_requests"]) == (0, ["10"]), err
    code, _, err = run("usage", "report", "--tenant", TENANT, "--where", "statsu=5xx")
    assert (code, "statsu" in err, "status, user" in err) == (2, True, True), err
    code, out, err = run("usage", "void", "web-40", "web-39", "--tenant", TENANT, "--note", "twice")
    assert (code, out) == (0, "voided 2, before already 0\n"), err
    after = figures(run)
    assert (after["web_slowest", None], after["web_requests", None]) == ("38", "38")
    code, _, err = run("usage", "void", "nothing", "--tenant", TENANT)
    assert code != 0
    assert "nothing" in err
    code, out, err = run("usage", "prove", "web-7", "--tenant", TENANT, "-o", "json")
    assert code == 0, err
    assert json.loads(out)[0]["units"] == {"web_duration": 7, "web_requests": 1, "web_slowest": 7, "web_users": 1}
    code, out, err = run("audit", "verify", "-o", "json")
    assert (code, json.loads(out)) == (0, []), err
    assert "all as committed" in " ".join(err.split())


def zones(run: Run, *words: str) -> set[tuple[str, str]]:
    """Give the time zone that a report tells, and when its days begin there."""
    code, out, err = run("usage", *words, "-o", "json")
    assert code == 0, err
    rows = json.loads(out)
    assert rows, words
    starts = [datetime.fromisoformat(row["start"]).astimezone(ZoneInfo(row["time_zone"])) for row in rows]
    return {(row["time_zone"], f"{start:%H:%M}") for row, start in zip(rows, starts, strict=True)}


def test_days_are_those_of_the_tenant_where_no_zone_is_named(run: Run, tmp_path: Path) -> None:
    """A report's days are the subscription's, of a tenant that another pays for the payer's, else UTC; it is told."""
    shop, lone = (f"{name}-{uuid.uuid4()}" for name in ("zone", "lone"))
    text = CATALOGUE.replace("TENANT", shop).replace("PLAN", f"plan-of-{shop}")
    (tmp_path / "zone.yaml").write_text(text + f"  - {{id: {lone}, name: Lone}}\n")
    code, _, err = run("apply", "-f", str(tmp_path / "zone.yaml"))
    assert code == 0, err
    for tenant, zone in ((shop, "Asia/Kathmandu"), (f"{shop}.child", "Asia/Kathmandu"), (lone, "UTC")):
        assert run("usage", "record", "web_slowest=7", "--tenant", tenant)[0] == 0
        for words in (("report", "--bucket", "day"), ("trend", "--spans", "2")):
            assert zones(run, *words, "--tenant", tenant) == {(zone, "00:00")}
            named = (*words, "--tenant", tenant, "--time-zone", "Europe/Berlin")
            assert zones(run, *named) == {("Europe/Berlin", "00:00")}
        code, out, err = run("usage", "report", "--tenant", tenant, "--bucket", "day")
        assert (code, f"Usage of {tenant}, {zone}" in out, "T00:00:00" in out) == (0, True, True), err


def test_usage_is_recorded_from_the_command_line_once_per_id(run: Run) -> None:
    """A repeat is a duplicate, other content a conflict (1), a broken rule a usage error (2); an id is made if none."""
    at = datetime.now(UTC).isoformat()
    words = ["usage", "record", "requests=2", "--tenant", "ops", "-a", "user=ann", "--id", "typed-1", "--at", at]
    assert run(*words)[:2] == (0, "recorded typed-1\n")
    assert run(*words)[:2] == (0, "duplicate typed-1\n")
    assert run(*[word.replace("=2", "=3") for word in words])[:2] == (1, "conflict typed-1\n")
    code, _, told = run("usage", "record", "nothing=1", "--tenant", "ops")
    assert (code, "quantities[0].meter" in told) == (2, True)
    assert run("usage", "record", "requests=1", "--tenant", "ops", "--id", "typed-2")[0] == 2
    assert run("usage", "record", "requests=1", "--tenant", "ops")[0] == 0
    assert "typed-1" in run("usage", "list", "--tenant", "ops", "-o", "csv")[1]


def test_a_record_in_quarantine_is_shown_tried_again_and_discarded(run: Run) -> None:
    """What conflicts waits under its name; a release tries it again, a discard ends it and needs a reason."""
    at, name = datetime.now(UTC).isoformat(), f"twice-{uuid.uuid4()}"
    words = ["--tenant", "ops", "--id", name, "--at", at]
    assert run("usage", "record", "requests=1", *words)[0] == 0
    assert run("usage", "record", "requests=2", *words)[0] == 1

    def listed(*more: str) -> list[tuple[str, str, str]]:
        code, out, err = run("usage", "quarantine", "list", "--tenant", "ops", "-o", "json", *more)
        assert code == 0, err
        return [(row["record"], row["reason"], row["state"]) for row in json.loads(out) if row["id"] == name]

    ((record, reason, state),) = listed("--reason", "CONFLICT")
    assert (reason, state) == ("CONFLICT", "waiting")
    code, out, err = run("usage", "quarantine", "release", record, "--note", "again", "-o", "json")
    assert (code, [(one["state"], one["reason"]) for one in json.loads(out)]) == (1, [("waiting", "CONFLICT")]), err
    assert run("usage", "quarantine", "release")[0] == 2
    assert run("usage", "quarantine", "release", record, "--all")[0] == 2
    assert run("usage", "quarantine", "discard", record)[0] == 2
    assert run("usage", "quarantine", "discard", record, "--tenant", "child", "--note", "x")[0] == 2
    assert run("usage", "quarantine", "discard", record, "--note", "sent twice")[0] == 0
    assert listed() == []
    assert listed("--ended") == [(record, "CONFLICT", "discarded")]
    code, out, err = run("usage", "quarantine", "show", record)
    shown = json.loads(out)
    assert (code, [act["state"] for act in shown["acts"]]) == (0, ["waiting", "discarded"]), err
    assert shown["content"]["quantities"] == [["requests", 2]]


def test_producers_are_listed_with_their_lag(run: Run) -> None:
    """Exit code 1 says that one is gone; a word about one that nobody knows is refused, and so is one without why."""
    give_up_s = time.monotonic() + 120
    while True:
        code, out, err = run("usage", "producers", "list", "-o", "json")
        rows = json.loads(out)
        assert code == int(any(row["state"] in ("silent", "lost") for row in rows)), err
        # A sidecar says how far it is 10 s after its start at the latest.
        if any(row["state"] == "open" and row["lag_ms"] is not None for row in rows):
            break
        assert time.monotonic() < give_up_s, out
        time.sleep(0.2)
    assert all(row["lag_ms"] is None or row["lag_ms"] >= 0 for row in rows)
    assert "closed" not in {row["state"] for row in rows}
    assert len(json.loads(run("usage", "producers", "list", "--closed", "-o", "json")[1])) >= len(rows)
    assert run("usage", "producers", "lost", rows[0]["producer"])[0] == 2
    assert run("usage", "producers", "lost", "nobody", "--note", "x")[0] == 2
    code, _, err = run("usage", "producers", "lost", "kafka/tollkeeper/none/0", "--note", "x")
    assert (code != 0, "kafka/tollkeeper/none/0" in err) == (True, True)
    code, out, err = run("ledger", "mark-safe", "--note", "nightly")
    assert (code, out.startswith("safe before 2")) == (0, True), err
    assert run("ledger", "mark-safe", "--at", "2999-01-01T00:00:00Z")[0] == 2
