# ruff: noqa: SIM300 - expected first, then actual
"""`python -m bench --quick` runs every bench on real processes and reports every field; no time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIGURES = {"per_s", "cpu_us"}
TIMED = {
    "record_calls_of_100",
    "record_single_2000_per_s",
    "usage_visible",
    "get_quota_21_limits",
    "start_answered",
    "start_decided",
    "usage_of_a_month",
    "invoice_preview",
    "invoice_pdf",
}
NAMES = [
    "ledger_ingest_20_tenants", "ledger_ingest_10000_tenants", "cold_first_leases", "cold_openings", "check_unary",
    "record_calls_of_100", "record_single_2000_per_s", "usage_visible", "get_quota_21_limits", "start_answered",
    "start_decided", "live_buckets", "usage_of_a_month", "rating", "invoice_run", "invoice_preview",
    "invoice_pdf",
]  # fmt: skip


def test_a_quick_run_reports_every_field(tmp_path: Path) -> None:
    """Every bench does its work and is reported beside its floor, with machine, versions, ratios and goals."""
    path = tmp_path / "report.json"
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--out", str(path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads(path.read_text())
    assert {"version", "quick", "repeats", "machine", "missing", "benches"} == set(report)
    assert (True, 1) == (report["quick"], report["repeats"])
    assert {"processor", "cores", "cores_allowed", "memory_bytes", "system", "load_before", "versions"} == set(
        report["machine"]
    )
    assert {"python", "rustc", "asyncpg", "h2load", "nghttpd"} <= set(report["machine"]["versions"])
    assert NAMES == [entry["name"] for entry in report["benches"]]
    for entry in report["benches"]:
        assert {"name", "unit", "floor_is", "ours", "floor", "ratio", "beside", "goals", "stolen_percent"} == set(entry)
        for side in ("ours", "floor"):
            assert set(entry[side]) >= FIGURES
            assert entry[side]["per_s"] > 0
        assert set(entry["ratio"]) >= {"per_s"}
        if entry["name"] in TIMED:
            assert set(entry["ours"]) >= {"p50_ms", "p99_ms"}
        for goal in entry["goals"]:
            assert {"figure", "bound", "at_least", "value", "met"} == set(goal)
            # A quick run decides nothing.
            assert goal["met"] is None
            assert goal["value"] > 0
        assert entry["name"] in ended.stdout
