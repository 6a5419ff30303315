"""The comparison of what was acknowledged with what is stored and billed, and the summary of it."""

from __future__ import annotations

import importlib.util
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from tollkeeper.ledger.v1 import billing_pb2, reports_pb2
from tollkeeper_cli.demo.probe import BurstResult, Measured, PacedResult
from tollkeeper_cli.demo.summary import InvoiceSummary, Summary, print_summary
from tollkeeper_cli.demo.verify import Stored, collect, judge, judge_invoice
from tollkeeper_cli.replay.tally import Tally, TenantTally
from tollkeeper_cli.stack import Addresses

EXAMPLES = Path(__file__).parents[3] / "examples"


def tally() -> TenantTally:
    """Two requests were admitted and acknowledged."""
    return TenantTally(requests=3, admitted=2, units=Counter(tokens=30), record_ids=["r/1", "r/2"])


def record(record_id: str, tokens: int) -> reports_pb2.StoredRecord:
    """Make a stored record."""
    return reports_pb2.StoredRecord(id=record_id, units={"tokens": tokens})


def test_agreement_has_no_problems() -> None:
    """The same records and sums on both sides are in order."""
    verdict = judge("code", tally(), collect([record("r/1", 10), record("r/2", 20)], {"tokens": (30, 2)}))
    assert (verdict.duplicates, verdict.lost, verdict.unexpected, verdict.problems) == (0, 0, 0, [])


@pytest.mark.parametrize(
    ("records", "sums", "expected"),
    [
        ([("r/1", 10)], (30, 2), (0, 1, 0)),
        ([("r/1", 10), ("r/2", 20), ("r/2", 20)], (30, 2), (1, 0, 0)),
        ([("r/1", 10), ("r/2", 20), ("r/3", 0)], (30, 2), (0, 0, 1)),
        ([("r/1", 10), ("r/2", 21)], (30, 2), (0, 0, 0)),
        ([("r/1", 10), ("r/2", 20)], (31, 2), (0, 0, 0)),
        ([("r/1", 10), ("r/2", 20)], (30, 3), (0, 0, 0)),
        ([], (0, 0), (0, 2, 0)),
    ],
)
def test_every_difference_is_found(
    records: list[tuple[str, int]], sums: tuple[int, int], expected: tuple[int, int, int]
) -> None:
    """Lost, doubled and unknown records, and each of three sums that differs, are problems."""
    verdict = judge("code", tally(), collect([record(*one) for one in records], {"tokens": sums}))
    assert (verdict.duplicates, verdict.lost, verdict.unexpected) == expected
    assert verdict.problems


def test_one_record_for_two_requests_is_found() -> None:
    """Two settlements acknowledged under one record id lost one of them."""
    counts = TenantTally(admitted=2, units=Counter(tokens=30), record_ids=["r/1", "r/1"])
    verdict = judge("code", counts, collect([record("r/1", 30)], {"tokens": (30, 1)}))
    assert "1 settlements were acknowledged under another one's record id" in verdict.problems[0]


@pytest.mark.parametrize(
    ("quantity", "amount", "subtotal", "tax", "total", "problems"),
    [(30, 5, 5, 1, 6, 0), (29, 5, 5, 0, 5, 1), (30, 5, 6, 0, 6, 1), (30, 5, 5, 1, 5, 1), (29, 4, 5, 1, 5, 2)],
)
def test_invoice_is_compared(*, quantity: int, amount: int, subtotal: int, tax: int, total: int, problems: int) -> None:
    """A billed quantity that wasn't admitted, and sums that don't add up, are problems."""
    invoice = billing_pb2.Invoice(
        tenant="code",
        number="TK-000001",
        subtotal_minor=subtotal,
        tax_minor=tax,
        total_minor=total,
        lines=[billing_pb2.InvoiceLine(meter="tokens", quantity=quantity, amount_minor=amount)],
    )
    assert len(judge_invoice(invoice, tally())) == problems


def summary(problems: list[str]) -> Summary:
    """Make a summary of one tenant."""
    counts = Tally()
    code = counts.of("code")
    code.requests, code.admitted = 3, 2
    code.units.update(context_tokens=20, generated_tokens=10)
    code.denials["tokens-per-minute", "QUOTA_EXHAUSTED"] = 1
    stored = Stored(
        record_ids=Counter({"r/1": 1, "r/2": 1}),
        units=Counter(context_tokens=20, generated_tokens=10),
        sums={"context_tokens": (20, 2), "generated_tokens": (10, 2)},
    )
    return Summary(
        speed="120",
        unlimited=False,
        tally=counts,
        trace={"code": {"requests": 3, "context_tokens": 25, "generated_tokens": 12}},
        stored={"code": stored},
        verdicts={"code": judge("code", TenantTally(record_ids=["r/1", "r/2"], units=stored.units), stored)},
        measured=Measured(
            paced=PacedResult(checks=10_000, denied=0, p50_us=200, p99_us=700, max_us=5_000, late=1),
            python=PacedResult(checks=5_000, denied=0, p50_us=300, p99_us=900, max_us=6_000, late=1),
            burst=BurstResult(checks=30_000, denied=0, checks_per_second=10_000),
        ),
        usage_lag_ms=950,
        quarantined=0,
        invoices=[InvoiceSummary(tenant="code", number="TK-000001", currency="USD", total_minor=2_001, pdf="a.pdf")],
        addresses=Addresses(),
        data_directory=".run",
        replay_seconds=30.0,
        seconds=60.0,
        problems=problems,
    )


def test_json_has_every_promised_key() -> None:
    """The keys that scripts rely on are there, with whole numbers, in values that JSON can carry."""
    found = json.loads(json.dumps(summary([]).to_json()))
    expected = {
        "requests": 3, "admitted": 2, "denied": 1, "context_tokens": 20, "generated_tokens": 10,
        "ledger_context_tokens": 20, "ledger_generated_tokens": 10, "ledger_records": 2, "duplicates": 0, "lost": 0,
        "check_p50_us": 200, "check_p99_us": 700, "checks_per_second": 10_000, "seconds": 60.0,
        "invoices": [
            {"tenant": "code", "number": "TK-000001", "currency": "USD", "total_minor": 2_001, "pdf": "a.pdf"}
        ],
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["tenants"]["code"]["ledger_context_tokens"] == 20
    assert found["denied_by"] == [
        {"tenant": "code", "limit": "tokens-per-minute", "reason": "QUOTA_EXHAUSTED", "count": 1}
    ]


def test_summary_shouts_problems() -> None:
    """A problem is a FAILED line, and never stands beside an OK."""
    texts = []
    for problems in ([], ["code: 1 records lost"]):
        console = Console(file=io.StringIO(), width=160)
        print_summary(console, summary(problems))
        texts.append(console.file.getvalue())  # type: ignore[attr-defined]
    assert "OK every acknowledged record" in texts[0]
    assert "FAILED" not in texts[0]
    assert "FAILED code: 1 records lost" in texts[1]
    assert "OK every" not in texts[1]
    assert "20.01 USD" in texts[0]


def test_summary_says_how_long_the_machine_was_too_slow() -> None:
    """A replay that was slowed down says so; one that wasn't says nothing of it."""
    console, busy = Console(file=io.StringIO(), width=160), summary([])
    print_summary(console, busy)
    busy.tally.braked_s = 12.5
    print_summary(console, busy)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("slower for 12.5 s, because the machine was busy") == 1
    assert shown.count("ms late") == 2


def test_example_limits_deny_what_they_should() -> None:
    """The example's limits deny 2 to 10 % of the trace offline, by several limits; the trace is the whole trace."""
    spec = importlib.util.spec_from_file_location("size_limits", EXAMPLES / "size_limits.py")
    assert spec is not None
    assert spec.loader is not None
    size_limits = importlib.util.module_from_spec(spec)
    import sys  # noqa: PLC0415 - dataclasses look their module up there

    sys.modules["size_limits"] = size_limits
    spec.loader.exec_module(size_limits)
    import yaml  # noqa: PLC0415 - only this test reads YAML

    requests = size_limits.trace(size_limits.TRACES)
    catalogue = yaml.safe_load((EXAMPLES / "catalogues" / "llm.yaml").read_text())
    counts = size_limits.simulate(requests, size_limits.limits_of(catalogue))
    denied = {name: count for name, count in counts.items() if " " in name}
    assert (counts["code"], counts["conv"]) == (8_819, 19_366)
    assert sum(request.settle["context_tokens"] for request in requests) == 18_059_974 + 22_361_870
    assert sum(request.settle["generated_tokens"] for request in requests) == 245_896 + 4_088_665
    assert 0.03 < sum(denied.values()) / len(requests) < 0.08
    assert len({name.partition(" ")[2] for name in denied}) >= 3
