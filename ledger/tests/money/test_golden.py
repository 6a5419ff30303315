"""Invoices of earlier engine versions are made again to the byte, whatever today's engine does."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tollkeeper_ledger.domain.invoice import Finalised, document_to_bytes, make_document, rate_and_sum, unnumbered

DATA = Path(__file__).parent / "data"
# Recorded by the last commit whose engine was version 1: never to be recorded anew. A test that fails here says that
# `invoice reproduce` and `invoice verify` would fail for invoices that customers have.
RECORDED: list[dict[str, Any]] = json.loads((DATA / "golden_engine_1.json").read_text())
FINALISED = Finalised("22222222-2222-2222-2222-222222222222", "TK-000042", datetime(2031, 5, 2, tzinfo=UTC))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"].replace(" ", "-"))
def test_an_earlier_engines_invoice_has_its_bytes(case: dict[str, Any]) -> None:
    """Recorded inputs, with the version that they name, give the recorded document, byte for byte."""
    definitions = {digest: definition.encode() for digest, definition in case["definitions"].items()}
    made = document_to_bytes(make_document(case["inputs"].encode(), definitions, FINALISED))
    assert case["document"] == made.decode()
    assert case["sha256"] == hashlib.sha256(made).hexdigest()


@pytest.mark.parametrize("prefix", ["TK", 'Ü"\\/Ω', "{}"])
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"].replace(" ", "-"))
def test_a_number_given_afterwards_leaves_the_bytes_as_they_are(case: dict[str, Any], prefix: str) -> None:
    """An invoice that is written before its number is known is the one that is written with it."""
    definitions = {digest: definition.encode() for digest, definition in case["definitions"].items()}
    rated = rate_and_sum(case["inputs"].encode(), definitions)
    number, at = f"{prefix}-000042", datetime(2031, 5, 2, 7, 8, 9, 12, tzinfo=UTC)
    document, written = unnumbered(rated, "an-id").finalise(number, at)
    whole = make_document(case["inputs"].encode(), definitions, Finalised("an-id", number, at))
    assert (document, written) == (whole, document_to_bytes(whole))
