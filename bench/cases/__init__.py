"""Every bench, by name, in the order of the report."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from bench.cases.buckets import open_buckets
from bench.cases.cold import open_cold
from bench.cases.ingest import open_ingest
from bench.cases.invoices import open_pdf, open_preview, open_run
from bench.cases.queries import open_month
from bench.cases.rating import open_rating
from bench.cases.sidecar import open_check, open_get_quota, open_record, open_record_single
from bench.cases.start import open_start
from bench.cases.visible import open_visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.frame import Opener

CASES: Mapping[str, Opener] = MappingProxyType(
    {
        "ledger_ingest_20_tenants": partial(open_ingest, tenants=20, per_s=50_000),
        "ledger_ingest_10000_tenants": partial(open_ingest, tenants=10_000, per_s=20_000),
        "cold_first_leases": partial(open_cold, second=False),
        "cold_openings": partial(open_cold, second=True),
        "check_unary": open_check,
        "record_calls_of_100": open_record,
        "record_single_2000_per_s": open_record_single,
        "usage_visible": open_visible,
        "get_quota_21_limits": open_get_quota,
        "start_answered": partial(open_start, decided=False),
        "start_decided": partial(open_start, decided=True),
        "live_buckets": open_buckets,
        "usage_of_a_month": open_month,
        "rating": open_rating,
        "invoice_run": open_run,
        "invoice_preview": open_preview,
        "invoice_pdf": open_pdf,
    }
)
