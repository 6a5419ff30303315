"""Catalogues that documents show are catalogues."""

from __future__ import annotations

import re
from pathlib import Path

from tollkeeper_ledger.domain.catalogue.limit import LIMIT_FIELDS
from tollkeeper_ledger.services.catalogue import read_catalogue

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_limits_that_are_shown_are_taken() -> None:
    """The example is read without a fault, and shows limits of every kind and enforcement."""
    text = (DOCS / "limits.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    plan = read_catalogue(example, source_name="limits.md").plans[0]
    assert {limit.kind for limit in plan.limits} == {"window", "token_bucket", "level", "concurrency"}
    assert {limit.enforcement for limit in plan.limits} == {"hard", "shadow"}


def test_every_field_of_a_limit_is_told_of() -> None:
    """The table has the fields that a limit may have, and no others."""
    text = (DOCS / "limits.md").read_text()
    told = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert told == LIMIT_FIELDS
