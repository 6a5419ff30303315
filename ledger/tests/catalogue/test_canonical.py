"""Canonical bytes are what the standard library writes, whatever writes them faster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue import canonical
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, defining_json

_NAMES = st.text(max_size=8)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(_NAMES, inner),
    max_leaves=20,
)
_EVERY_LETTER = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x11000), 0x1F600, 0x10FFFF)))


@given(_VALUES)
def test_any_value_has_the_bytes_of_its_definition(value: Any) -> None:
    """Any text, name, number and nesting is written as the standard library writes it, so digests never change."""
    assert defining_json(value) == canonical_json(value)


def test_every_letter_and_order_of_names_has_the_bytes_of_its_definition() -> None:
    """Every letter of the basic plane is escaped or not as defined, and names beyond it are sorted by code point."""
    names = dict.fromkeys(("z", "", "\uffff", "𐀀", "\ue000", "\x7f", "A", "\x00", "é"), 0)
    for value in ({"text": _EVERY_LETTER}, dict.fromkeys(_EVERY_LETTER, 1), names):
        assert defining_json(value) == canonical_json(value)


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40])
def test_numbers_of_any_size_have_the_bytes_of_their_definition(value: int) -> None:
    """Numbers beyond 64 bits are written digit by digit."""
    assert json.dumps({"units": value}, separators=(",", ":")).encode() == canonical_json({"units": value})


def test_deep_nesting_and_names_that_are_no_text_have_the_bytes_of_their_definition() -> None:
    """What the fast writer can't write is written all the same."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    for value in (deep, {3: 1, 1: 2}):
        assert defining_json(value) == canonical_json(value)


def test_half_a_letter_is_refused() -> None:
    """Text that has no UTF-8 is an error, never other bytes."""
    with pytest.raises(UnicodeEncodeError):
        canonical_json({"a": "\ud800"})


def test_without_the_fast_writer_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where orjson isn't installed, the standard library writes, and floats are refused as well."""
    value = {"é": [1, "\n", None, True], "a": {"b": 2**80}}
    fast = canonical_json(value)
    monkeypatch.setattr(canonical, "_ORJSON", None)
    assert fast == canonical_json(value)
    with pytest.raises(TypeError, match="no canonical form: float"):
        canonical_json({"a": 0.5})
