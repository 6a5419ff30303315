# ruff: noqa: SIM300 - expected first, then actual
"""Features with a number or a text: how they are written, and what a tenant has of its plan's and its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.features import features_of, value_text
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError, read_catalogue

HEAD = """version: 1
seller: {id: s, name: S, currency: USD}
features: [{name: streaming}, {name: seats}, {name: support}]
plans: [{name: p, billing_interval: month, features: %s}]
tenants: [{id: t, plan: p, features: %s}]
"""


def read(plan: str, own: str = "[]") -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the definition of the plan, and the tenant's own features."""
    catalogue = read_catalogue(HEAD % (plan, own), source_name="c.yaml")
    return json.loads(canonical_json(plan_to_json(catalogue.plans[0]))), catalogue.tenants[0].features


@pytest.mark.parametrize("plan", [
    "{streaming: true, seats: 5, support: gold}",
    "[streaming, {seats: 5, support: gold}]",
    "[{support: gold}, {seats: 5}, {streaming: true}]",
])  # fmt: skip
def test_one_meaning_has_one_form(plan: str) -> None:
    """A table, a list, or both, in any order, are the same version of the plan."""
    definition, _ = read(plan)
    assert (["seats", "streaming", "support"], {"seats": 5, "support": "gold"}) == (
        definition["features"], definition["feature_values"],
    )  # fmt: skip


def test_flags_alone_are_stored_as_they_always_were() -> None:
    """A plan whose features have no values keeps its digest; false is as if nothing were said."""
    assert read("[streaming]")[0] == read("{streaming: true, seats: false}")[0]
    assert "feature_values" not in read("[streaming]")[0]


@pytest.mark.parametrize(("own", "expected"), [
    ("[]", {"seats": 5, "streaming": True, "support": "gold"}),
    ("{seats: 20, streaming: false}", {"seats": 20, "support": "gold"}),
    ("{seats: 0, support: '5'}", {"seats": 0, "streaming": True, "support": "5"}),
    ("{seats: true}", {"seats": True, "streaming": True, "support": "gold"}),
])  # fmt: skip
def test_a_tenants_own_stand_instead_of_its_plans(own: str, expected: dict[str, Any]) -> None:
    """A value, a flag, none at all; 0 is a value, and a number in quotes is a text. Without a plan there are none."""
    definition, said = read("[streaming, {seats: 5, support: gold}]", own)
    assert expected == features_of(definition, said)
    assert {} == features_of({}, said)
    assert ["", "5", "gold"] == [value_text(value) for value in (True, 5, "gold")]


@pytest.mark.parametrize(("plan", "said"), [
    ("{seats: -1}", "plans[0].features.seats: is out of range"),
    ("{seats: 9007199254740992}", "plans[0].features.seats: is out of range"),
    ("{seats: [1]}", "plans[0].features.seats: is not a single value"),
    ("{seats: ''}", "plans[0].features.seats: is not a single value"),
    ("[[seats]]", "plans[0].features: has a list in its list"),
    ("[seats, {seats: 1}]", "plans[0].features: names the same twice"),
    ("{'two words': 1}", "plans[0].features: is not a name"),
])  # fmt: skip
def test_values_that_cant_be_are_refused_by_name(plan: str, said: str) -> None:
    """The field is named, and nothing is read as something else."""
    with pytest.raises(CatalogueInvalidError) as refused:
        read(plan)
    assert said in str(refused.value)
