"""Pseudonyms: known answers, and what is taken for the same across keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tollkeeper_ledger.domain.pseudonyms import PseudonymKey, at_its_time, version_of

VECTORS = json.loads((Path(__file__).parents[3] / "proto" / "vectors" / "pseudonym.json").read_text(encoding="utf-8"))[
    "cases"
]
ONE, OTHER = PseudonymKey(1, b"\1" * 32), PseudonymKey(2, b"\2" * 32)


@pytest.mark.parametrize("case", VECTORS, ids=[case["what"] for case in VECTORS])
def test_pseudonyms_are_the_shared_ones(case: dict[str, Any]) -> None:
    """The ledger's pseudonyms are those that sidecars make: both read the same known answers."""
    key = PseudonymKey(case["version"], bytes.fromhex(case["secret"]))
    assert case["pseudonym"] == key.pseudonym(case["name"], case["value"])
    assert case["version"] == version_of(case["pseudonym"])


def test_other_forms_are_no_pseudonyms() -> None:
    """What is no pseudonym has no version, so that a plain value in a token is hidden."""
    shown = "A" * 22
    assert version_of(f"p7.{shown}") == 7
    forms = ["", "ann", f"p.{shown}", f"p0.{shown}", f"p01.{shown}", f"p12345678901.{shown}", f"q1.{shown}"]
    forms += [f"p1.{shown}A", f"p1.{shown[1:]}+", f"p1{shown}", f"p1.{shown}\n", f"p\u0661.{shown}"]
    assert [None] * len(forms) == [version_of(form) for form in forms]


def test_a_key_shows_no_secret() -> None:
    """Neither repr nor an error text that holds it says the secret."""
    assert repr(ONE) == "PseudonymKey(version=1)"


def test_only_pseudonyms_of_another_key_are_taken_for_the_same() -> None:
    """Of one key they are compared; of a turned one the stored one stands; what is not hidden is never replaced."""
    ann, bob, later = ONE.pseudonym("user", "ann"), ONE.pseudonym("user", "bob"), OTHER.pseudonym("user", "ann")
    stored = {"user": ann, "path": "/a"}
    assert {"user": ann, "path": "/b"} == at_its_time({"user": later, "path": "/b"}, stored, {"user"}, None)
    assert at_its_time({"user": bob}, stored, {"user"}, None) is None
    assert at_its_time({"user": later}, stored, (), None) is None
    assert at_its_time({"user": later}, {"user": "ann"}, {"user"}, None) is None
    assert at_its_time({"user": "ann"}, stored, {"user"}, None) is None
    assert at_its_time({}, stored, {"user"}, None) is None
    assert at_its_time({"user": later}, {}, {"user"}, None) is None


def test_what_was_stored_plainly_is_compared_by_the_tenants_key() -> None:
    """A pseudonym stands for the value that it is of; of one of another key nobody can say, and it is taken for it."""
    ann, turned = ONE.pseudonym("user", "ann"), OTHER.pseudonym("user", "bob")
    stored = {"user": "ann", "path": "/a"}
    assert stored == at_its_time({"user": ann, "path": "/a"}, stored, {"user"}, ONE)
    assert at_its_time({"user": ONE.pseudonym("user", "bob")}, stored, {"user"}, ONE) is None
    assert at_its_time({"user": turned}, stored, {"user"}, ONE) == {"user": "ann"}
    assert at_its_time({"user": "ann"}, stored, {"user"}, ONE) is None
    assert at_its_time({"user": ann}, stored, (), ONE) is None
