"""Commands against servers that answer from memory."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from pyarrow import parquet
from tollkeeper.ledger.v1 import decisions_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2
from tollkeeper_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_servers import FakeLedger, FakeQuota

    Tollkeeper = Callable[..., int]

pytestmark = pytest.mark.usefixtures("tollkeeper")


def test_listing_reads_every_page(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """A listing is whole, however the server cuts it."""
    assert tollkeeper("tenant", "list", "-o", "json") == 0
    assert [row["tenant"] for row in json.loads(capsys.readouterr().out)] == ["acme", "=evil", "code", "conv", "probe"]


def test_csv_listing_is_harmless(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenant named like a formula is text in a spreadsheet."""
    assert tollkeeper("tenant", "list", "-o", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["tenant"] for row in rows][1] == "'=evil"


def test_every_listing_offers_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that prints rows takes -o."""
    listings = (
        "tenant list", "plan list", "subscription list", "audit list", "invoice list", "invoice show", "invoice run",
        "invoice preview", "usage list", "usage report", "quota get-all", "quota get", "quota check", "apply", "diff",
        "replay", "subscription status", "subscription create",
        "subscription scheduled", "subscription migrate", "grant list", "grant history", "rate",
        "usage producers list", "usage quarantine list", "usage quarantine release", "usage quarantine discard",
    )  # fmt: skip
    for listing in listings:
        assert main([*listing.split(), "--help"]) == 0
        assert "table|json|csv" in capsys.readouterr().out, listing


@pytest.mark.parametrize(
    ("units", "strict", "code"),
    [("10", False, 0), ("60", False, 0), ("60", True, 1), ("101", False, 1), ("-1", False, 2), ("x", False, 2)],
)
def test_check_exit_codes(tollkeeper: Tollkeeper, quota: FakeQuota, units: str, code: int, *, strict: bool) -> None:
    """Admitted 0, soft 0 but 1 when strict, denied 1, refused by the server or unreadable 2; nothing is taken."""
    words = ["quota", "check", f"tokens={units}", "--tenant", "code", "-a", "user=u", *(["--strict"] if strict else [])]
    assert tollkeeper(*words) == code
    assert {request.mode for request in quota.requests} <= {quota_pb2.CHECK_MODE_PEEK}


def test_soft_excess_warns(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """An exceeded soft limit never looks like plain admission."""
    assert tollkeeper("quota", "check", "tokens=60", "--tenant", "code") == 0
    assert "soft_limit_exceeded tokens-per-minute" in capsys.readouterr().err


def test_enforce_takes_once_per_id(tollkeeper: Tollkeeper, quota: FakeQuota) -> None:
    """Enforce consumes under an idempotency id, one's own or the caller's."""
    assert tollkeeper("quota", "enforce", "tokens=5", "--tenant", "code", "--record") == 0
    assert tollkeeper("quota", "enforce", "tokens=5", "--tenant", "code", "--request-id", "mine") == 0
    made, given = quota.requests
    assert (made.mode, made.record_usage) == (quota_pb2.CHECK_MODE_CONSUME, True)
    assert made.request_id.startswith("cli/")
    assert (given.request_id, given.record_usage) == ("mine", False)


def test_give_back_names_what_was_taken(tollkeeper: Tollkeeper, quota: FakeQuota) -> None:
    """Give-back sends the units and attributes of the call that took them, under an id of its own or the caller's."""
    assert tollkeeper("quota", "give-back", "tokens=5", "--tenant", "code", "-a", "user=u") == 0
    assert tollkeeper("quota", "give-back", "tokens=5", "--tenant", "code", "--request-id", "mine") == 0
    made, given = quota.requests
    assert (made.mode, dict(made.attributes)) == (quota_pb2.CHECK_MODE_GIVE_BACK, {"user": "u"})
    assert made.request_id.startswith("cli/")
    assert given.request_id == "mine"


def test_set_says_only_what_was_asked(tollkeeper: Tollkeeper, ledger: FakeLedger) -> None:
    """A field that isn't given stays absent on the wire, so that the server keeps its value."""
    assert tollkeeper("quota", "set", "tokens-per-minute", "unlimited", "--tenant", "code") == 0
    assert tollkeeper("quota", "set", "tokens-per-minute", "5", "--tenant", "code", "--enforcement", "soft") == 0
    assert tollkeeper("quota", "set", "new", "5", "--tenant", "code", "--meter", "tokens") == 2
    first, second = ledger.requests
    assert (first.amount, first.HasField("burst"), first.enforcement, first.HasField("rule")) == (-1, False, 0, False)
    assert (second.amount, second.enforcement) == (5, decision_pb2.ENFORCEMENT_SOFT)


def test_tenant_comes_from_the_environment(
    tollkeeper: Tollkeeper, quota: FakeQuota, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TOLLKEEPER_TENANT is the default; without any the command says how to give one."""
    assert tollkeeper("quota", "check", "tokens=1") == 2
    assert "TOLLKEEPER_TENANT" in capsys.readouterr().err
    monkeypatch.setenv("TOLLKEEPER_TENANT", "conv")
    assert tollkeeper("quota", "check", "tokens=1") == 0
    assert [request.tenant for request in quota.requests] == ["conv"]


def test_get_names_what_there_is(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit that doesn't exist is a usage error that lists the ones that do."""
    assert tollkeeper("quota", "get", "tokens", "--tenant", "code", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["amount"] == -1
    assert tollkeeper("quota", "get", "nothing", "--tenant", "code") == 2
    assert "tokens-per-minute" in capsys.readouterr().err


def test_refused_catalogue_shows_reason_and_remedy(
    tollkeeper: Tollkeeper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's typed error arrives whole: file, line, reason, remedy; exit code 2."""
    (tmp_path / "bad.yaml").write_text("wrong: 1")
    assert tollkeeper("apply", "-f", "bad.yaml") == 2
    error = capsys.readouterr().err
    for part in ("bad.yaml:3: unknown meter", "CATALOGUE_INVALID", "declare the meter"):
        assert part in error
    assert tollkeeper("apply", "-f", "missing.yaml") == 2


def test_unreachable_server_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that isn't there is told apart from one that refuses."""
    assert main(["--ledger", "127.0.0.1:1", "tenant", "list"]) == 3
    assert "the ledger at 127.0.0.1:1 doesn't answer" in capsys.readouterr().err
    assert main(["--sidecar", "unix:/nonexistent/socket", "quota", "get-all", "--tenant", "code"]) == 3


def test_usage_report_is_exact(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Sums beyond 64 bits keep every digit."""
    assert tollkeeper("usage", "report", "--tenant", "code", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["sum"] == 10**30
    assert tollkeeper("usage", "report", "--tenant", "code", "--from", "yesterday") == 2


def test_a_report_is_the_same_in_every_form(
    tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Groups and percentiles are columns; Parquet keeps sums exact and times as instants; it needs a file's name."""
    words = (
        "usage",
        "report",
        "--tenant",
        "code",
        "--percentile",
        "50",
        "--percentile",
        "99.9",
        "--group-by",
        "status",
    )
    assert tollkeeper(*words, "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["status"], row["p50"], row["p99.9"]) for row in rows] == [(None, None, None), ("2xx", 500, 999)]
    assert tollkeeper(*words, "-o", "parquet", "--file", "report.parquet") == 0
    table = parquet.read_table(tmp_path / "report.parquet").to_pylist()
    assert [int(row["sum"]) for row in table] == [10**30, 7]
    assert [row["start"] and row["start"].isoformat() for row in table] == [None, "2023-11-16T18:17:03.000005+00:00"]
    assert [(row["status"], row["p50"], row["p99.9"]) for row in table] == [(None, None, None), ("2xx", 500, 999)]
    assert tollkeeper(*words, "-o", "parquet") == 2
    assert tollkeeper(*words, "--percentile", "99.99") == 2


def test_a_trend_shows_changes_and_a_summary_its_period(
    tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each span has its change, the first none; the summary says of which period and plan it is."""
    assert tollkeeper("usage", "trend", "--tenant", "code", "--spans", "3", "-o", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["change_permille"] for row in rows] == ["", "1", "2"]
    assert tollkeeper("usage", "trend", "--tenant", "code", "--bucket", "total") == 2
    assert tollkeeper("usage", "summary", "--tenant", "code") == 0
    assert "plan hourly, 2023-11-16T18:17:03.000005Z to" in " ".join(capsys.readouterr().out.split())


def test_an_audit_that_finds_something_is_exit_1(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong rows are listed and the exit code says so; a proof that does not hold is none."""
    assert tollkeeper("audit", "verify", "-o", "json") == 1
    captured = capsys.readouterr()
    assert [(row["table"], row["row"]) for row in json.loads(captured.out)] == [("usage_record", "tenant code, id 'x'")]
    assert "1 wrong rows" in captured.err
    assert tollkeeper("audit", "verify") == 0
    assert (
        "2 links, 3 records, 4 hours of rollups, 6 closed periods, 5 signed roots: all as committed"
        in capsys.readouterr().err
    )
    assert tollkeeper("usage", "prove", "x", "--tenant", "code") == 1
    assert "not proved: it says nothing that binds the record's id and time" in capsys.readouterr().err


def test_export_writes_every_record(tollkeeper: Tollkeeper, tmp_path: Path) -> None:
    """Both forms carry all records of all messages; the CSV has one header."""
    assert tollkeeper("usage", "export", "records.csv", "--tenant", "code") == 0
    assert tollkeeper("usage", "export", "records.jsonl", "--tenant", "code", "--format", "jsonl") == 0
    assert tollkeeper("usage", "export", "records.parquet", "--tenant", "code", "--format", "parquet") == 0
    stored = parquet.read_table(tmp_path / "records.parquet").to_pylist()
    assert [(row["id"], row["units"], row["attributes"]) for row in stored] == [
        (f"r/{at}", [("tokens", 5)], [("user", "=cmd()")]) for at in (1, 2, 3)
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "records.csv").read_text())))
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [line["id"] for line in lines] == ["r/1", "r/2", "r/3"]
    assert lines[0]["units"] == {"tokens": 5}
    assert lines[0]["event_time"] == "2023-11-16T18:17:03.000005Z"


def test_an_export_that_breaks_off_leaves_no_half_file(tollkeeper: Tollkeeper, tmp_path: Path) -> None:
    """What was there stays as it was until all records are written; an empty file never stands for an export."""
    kept = tmp_path / "kept.csv"
    kept.write_text("before")
    for name, form in (("kept.csv", "csv"), ("new.json", "json"), ("new.parquet", "parquet")):
        assert tollkeeper("usage", "export", name, "--tenant", "broken", "--format", form) == 3
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("kept.csv", "before")]
    assert tollkeeper("usage", "export", "kept.csv/x", "--tenant", "code") == 2


def test_an_export_as_json_is_one_document(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output carries the records and nothing else; how many there were is said beside it."""
    assert tollkeeper("usage", "export", "--tenant", "code", "--format", "json") == 0
    captured = capsys.readouterr()
    assert [row["id"] for row in json.loads(captured.out)] == ["r/1", "r/2", "r/3"]
    assert captured.err == "3 records\n"


def test_a_listing_says_when_there_is_more(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit cuts a listing with a word on standard error, --all gives everything, and what is whole says nothing."""
    words = ("usage", "list", "--tenant", "code", "-o", "json")
    for more, count, told in (
        (("--limit", "2"), 2, "there are more than these 2: give --limit N, or --all\n"),
        (("--limit", "3"), 3, ""),
        (("--limit", "1", "--all"), 3, ""),
    ):
        assert tollkeeper(*words, *more) == 0
        captured = capsys.readouterr()
        assert (len(json.loads(captured.out)), captured.err) == (count, told)


def test_times_without_an_offset_are_of_the_zone(
    tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str], ledger: FakeLedger
) -> None:
    """A date begins at the midnight of the zone named, else of the tenant's own; an offset says it by itself."""
    for start, more in (
        ("2026-03-01", ()),
        ("2026-03-01", ("--time-zone", "Europe/Berlin")),
        ("2026-03-01T00:00:00Z", ("--time-zone", "Europe/Berlin")),
    ):
        assert tollkeeper("usage", "list", "--tenant", "code", "--from", start, *more) == 0
    assert ledger.reports.spans == ["2026-02-28T18:15:00Z", "2026-02-28T23:00:00Z", "2026-03-01T00:00:00Z"]
    assert tollkeeper("usage", "list", "--tenant", "code", "--from", "2026-03-01", "--time-zone", "Mars/Olympus") == 2
    assert "give --from with an offset" in " ".join(capsys.readouterr().err.split())


def test_invoice_run_names_what_is_held(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """What was made is listed, what is held is said with its reason."""
    assert tollkeeper("invoice", "run", "-o", "json") == 0
    captured = capsys.readouterr()
    assert [row["number"] for row in json.loads(captured.out)] == ["TK-000001"]
    assert "held: conv: producer ab is behind" in captured.err


def test_invoice_run_that_breaks_off_lists_what_it_made(
    tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]
) -> None:
    """No repeat lists these invoices again, so they are shown beside the error."""
    assert tollkeeper("invoice", "run", "--tenant", "breaks", "-o", "json") != 0
    captured = capsys.readouterr()
    assert [row["number"] for row in json.loads(captured.out)] == ["TK-000001"]
    assert "the database is away" in captured.err


def test_pdf_stays_in_the_folder(tollkeeper: Tollkeeper, tmp_path: Path) -> None:
    """A file name from the server can't lead out of the present folder."""
    assert tollkeeper("invoice", "pdf", "TK-000001") == 0
    assert (tmp_path / "TK-000001.pdf").read_bytes() == b"%PDF-1.7"


def test_malformed_recording_with_strict_sends_nothing(
    tollkeeper: Tollkeeper, quota: FakeQuota, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--strict ends the command at the first bad line, before anything is asked."""
    (tmp_path / "log").write_text("nonsense\n")
    assert tollkeeper("replay", "log", "--format", "combined", "--strict") == 1
    assert "log:1: not an access log line" in capsys.readouterr().err
    assert quota.requests == []


@pytest.mark.parametrize("words", [["nonsense"], ["quota", "check"], ["tenant", "list", "-o", "xml"], ["--nonsense"]])
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    """A wrong command line is exit 2, as with any other program."""
    assert main(words) == 2


@pytest.mark.parametrize(
    ("words", "subjects", "code"),
    [
        (["check", "--tenant", "acme"], ["day", "USD"], 1),
        (["check", "--tenant", "probe"], ["day"], 0),
        (["monitor-all"], ["day"], 1),
    ],
)
def test_checks_of_thresholds_exit_with_1_where_one_is_reached(
    tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str], words: list[str], subjects: list[str], code: int
) -> None:
    """A check names everything, the monitor of all tenants what is reached; both say so by their exit code."""
    assert code == tollkeeper("alerts", *words, "-o", "json")
    assert subjects == [row["subject"] for row in json.loads(capsys.readouterr().out)]


def test_violations_are_listed_with_by_how_much(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Every window is a row."""
    assert tollkeeper("alerts", "violations", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [row[name] for name in ("tenant", "limit", "key", "enforcement", "over")] == ["acme", "day", "u", "soft", 20]


def test_decisions_are_listed_and_counted(
    tollkeeper: Tollkeeper, ledger: FakeLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls with what they met, harmless in a spreadsheet; sums page by page; filters go to the ledger."""
    words = ("--tenant", "acme", "--name", "day")
    assert tollkeeper("violations", "list", *words, "--reason", "quota_exhausted", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    expected = ["acme", "day", "quota_exhausted", 5, 98, 100, "team", {"user": "=cmd()"}]
    shown = ("tenant", "limit", "reason", "units", "used", "amount", "caller", "attributes")
    assert expected == [row[name] for name in shown]
    assert tollkeeper("violations", "counts", *words, "--from", "2026-11-01", "--to", "2026-11-02", "-o", "csv") == 0
    assert capsys.readouterr().out.splitlines() == [
        "tenant,limit,reason,count,left_out",
        "acme,day,quota_exhausted,7,0",
        "acme,day,soft_limit_exceeded,7,1",
    ]
    listed, counted, _ = ledger.reports.decisions
    assert (listed.tenant, listed.limit, listed.reason) == ("acme", "day", 100)
    assert (counted.limit, counted.from_day, counted.to_day) == ("day", "2026-11-01", "2026-11-02")
    assert tollkeeper("violations", "list", "--reason", "bad_luck") == 2
    assert "quota_exhausted" in capsys.readouterr().err


def test_a_limits_decision_log_is_set(tollkeeper: Tollkeeper, ledger: FakeLedger) -> None:
    """What no option names is left as it is."""
    words = ("quota", "set", "day", "100", "--tenant", "acme")
    assert tollkeeper(*words, "--decision-log", "sampled", "--decision-log-one-in", "50") == 0
    assert tollkeeper(*words) == 0
    asked = [(one.decision_log, one.decision_log_one_in) for one in ledger.requests]
    assert asked == [(decisions_pb2.DECISION_LOG_SAMPLED, 50), (0, 0)]


def test_alerts_are_listed_with_their_figures(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Every alert is a row, its keys one text."""
    assert tollkeeper("alerts", "list", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert tuple(row[name] for name in ("tenant", "subject", "key", "threshold", "value", "base")) == (
        "acme",
        "day",
        "u, v",
        "90%",
        "91",
        "100",
    )


def test_receivers_of_alerts_are_added_looked_at_and_sent_to_again(
    tollkeeper: Tollkeeper, ledger: FakeLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    """The secret is told once; what a receiver answered is harmless in a listing; message or receiver is named."""
    assert tollkeeper("webhook", "add", "https://example.com", "--tenant", "acme", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"webhook_id": "w", "secret": "whsec_AA=="}]
    assert tollkeeper("webhook", "messages", "--state", "dead", "-o", "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["state"], row["reply"], row["next_at"]) == ("dead", "'=x", "")
    assert tollkeeper("webhook", "replay", "--webhook", "w") == 0
    assert "queued again: 3" in capsys.readouterr().out
    assert tollkeeper("webhook", "replay") == tollkeeper("webhook", "replay", "--webhook", "w", "--message", "m") == 2
    added, listed, replayed = ledger.requests
    assert (added.tenant, listed.state, replayed.webhook_id) == ("acme", "dead", "w")


def test_a_profile_is_changed_field_by_field(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not named stays, taxes on meters too; several taxes of one name may name different meters."""
    assert tollkeeper("payment", "set-profile", "--tenant", "acme", "--dunning-days", "2, 9", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["taxes"], row["dunning_days"], row["email"]) == (["VAT=7@books"], ["2", "9"], "a@example.com")
    taxes = ["--tax", "VAT=7@books,maps", "--tax", "VAT=19"]
    assert tollkeeper("payment", "set-profile", "--tenant", "acme", *taxes, "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["taxes"] == ["VAT=7@books,maps", "VAT=19"]


@pytest.mark.parametrize(
    "words",
    [["--tax", "VAT"], ["--tax", "=7"], ["--tax", "VAT=7@"], ["--dunning-days", "x"], ["--dunning-days", "0"]],
)
def test_a_profile_that_can_not_be_read_is_wrong_usage(tollkeeper: Tollkeeper, words: list[str]) -> None:
    """Nothing is guessed and nothing is sent."""
    assert tollkeeper("payment", "set-profile", "--tenant", "acme", *words) == 2
