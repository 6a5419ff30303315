"""What Rust computes of columns is what the obvious Python computes of one record after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain import columns
from tollkeeper_ledger.domain.usage_hash import h_next, merkle_root_by_tenant, row_check, row_checks, row_hash
from usage_support import Use, encode

HASHES = st.binary(min_size=32, max_size=32)
NAMES = st.text(max_size=20)
USES = [
    Use(id="first", tenant="a", quantities=(("b", 1), ("a", 2)), attributes=(("x", "1"),)),
    Use(id="second", tenant="ä", quantities=(("a", 3),), attributes=(), flags=1),
    Use(id="third", tenant="a", quantities=(("a", 2), ("b", -1)), attributes=(("y", "ß"), ("x", ""))),
]


def test_records_are_hashed_by_what_they_say() -> None:
    """Shapes, units in their order, attributes and hashes are each record's own, whatever lies beside it."""
    found = encode(USES)
    shapes, shape, units, attributes, attribute, hashes = columns.hash_records(found, [one.event_us for one in USES], 1)
    assert hashes == [one.hash() for one in USES]
    named = [[found.meters[meter] for meter in shapes[one]] for one in shape]
    assert (named, units) == ([["a", "b"], ["a"], ["a", "b"]], [(2, 1), (3,), (2, -1)])
    names, values = found.attribute_names, found.attribute_values
    pairs = [[(names[name], values[value]) for name, value in zip(*attributes[one], strict=True)] for one in attribute]
    assert pairs == [list(one.attributes) for one in USES]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tenant": [0, 0, 9]}, ValueError),
        ({"meter": [0, 1, 1, 1, 9]}, ValueError),
        ({"meter": [0, 1, 1, 1]}, ValueError),
        ({"units": [1, 2, 3, 4]}, ValueError),
        ({"units": [1, 2, 3, 4, 2**63]}, OverflowError),
        ({"units": [1, 2, 3, 4, "5"]}, TypeError),
        ({"tenant": [0, 0, -1]}, OverflowError),
        ({"flags": [0, 0]}, ValueError),
        ({"quantity_count": [2, 1]}, ValueError),
        ({"attribute_count": [1, 0, 3]}, ValueError),
        ({"attribute_name": [0, 9, 0]}, ValueError),
        ({"attribute_value": [0, 1, 9]}, ValueError),
    ],
    ids=str,
)
def test_columns_that_do_not_fit_are_an_error(change: dict[str, Any], error: type[Exception]) -> None:
    """No column can make it read what is not there, or end the process."""
    found = replace(encode(USES), **change)
    with pytest.raises(error):
        columns.hash_records(found, [one.event_us for one in USES], 1)


@given(HASHES, st.lists(HASHES, max_size=9))
def test_a_chain_takes_one_step_per_entry(start: bytes, entries: list[bytes]) -> None:
    """Each h is that of the one before and its entry."""
    expected, h = [], start
    for entry in entries:
        h = h_next(h, entry)
        expected.append(h)
    assert columns.chain(start, entries) == expected


@given(st.lists(NAMES, min_size=1, max_size=6), st.data())
def test_a_root_is_that_of_a_tree_per_tenant(tenants: list[str], data: st.DataObject) -> None:
    """Order of tenants, repeats in their dictionary and tenants without records make no difference."""
    places = st.integers(0, len(tenants) - 1)
    records = data.draw(st.lists(st.tuples(places, HASHES), max_size=40))
    expected: dict[str, list[bytes]] = {}
    for place, found in records:
        expected.setdefault(tenants[place], []).append(found)
    tenant, hashes = [place for place, _ in records], [found for _, found in records]
    assert columns.merkle_root(tenants, tenant, hashes) == merkle_root_by_tenant(expected)


@pytest.mark.parametrize(("tenant", "hashes"), [([0], []), ([1], [bytes(32)]), ([0], [bytes(31)])])
def test_a_root_of_what_does_not_fit_is_an_error(tenant: list[int], hashes: list[bytes]) -> None:
    """A record of nobody, or without a hash, is in no tree."""
    with pytest.raises(ValueError, match="do not fit"):
        columns.merkle_root(["a"], tenant, hashes)


@given(st.lists(st.tuples(HASHES, NAMES, st.integers(0, 2**62), st.integers(0, 2)), max_size=20))
def test_rows_hashed_together_are_the_rows_hashed_one_by_one(rows: list[tuple[bytes, str, int, int]]) -> None:
    """A batch's hashes and checks are those of its rows."""
    numbers = [number for _, _, number, _ in rows]
    segments = [UUID(int=number).bytes for number in range(3)]
    found = columns.row_hashes(
        [content for content, _, _, _ in rows],
        [name for _, name, _, _ in rows],
        7,
        numbers,
        [-number for number in numbers],
        [number // 2 for number in numbers],
        [number % 64 for number in numbers],
        segments,
        [segment for _, _, _, segment in rows],
    )
    expected = [
        row_hash(
            content,
            record_id=name,
            batch_id=7,
            seq=number,
            event_us=-number,
            received_us=number // 2,
            flags=number % 64,
            segment_id=segments[segment],
        )
        for content, name, number, segment in rows
    ]
    assert found == b"".join(expected)
    assert row_checks(found) == tuple(map(row_check, expected))


def test_rows_that_do_not_fit_are_an_error() -> None:
    """A segment that is none, or a missing number, is no row."""
    row: list[Any] = [[bytes(32)], ["id"], 1, [1], [1], [1], [0], [bytes(16)], [0]]
    assert len(columns.row_hashes(*row)) == 32
    for place, wrong in ((1, []), (3, []), (4, []), (5, []), (6, []), (7, []), (8, [1]), (8, [])):
        with pytest.raises(ValueError, match="do not fit"):
            columns.row_hashes(*row[:place], wrong, *row[place + 1 :])


INTEGERS = st.integers() | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.lists(INTEGERS, max_size=5).map(tuple), min_size=1, max_size=5))
def test_literals_are_what_postgres_reads(rows: list[tuple[int, ...]]) -> None:
    """Integers of any size come out as written by hand, in a literal each."""
    expected = ["{" + ",".join(map(str, row)) + "}" for row in rows]
    assert columns.number_literals(rows) == "\n".join(expected)
    assert [columns.number_literal(row) for row in rows] == expected


def test_what_is_no_integer_is_no_literal() -> None:
    """Nothing else can get into a statement's argument."""
    for wrong in ("1},{2", 1.0, None):
        with pytest.raises(TypeError):
            columns.number_literal([wrong])  # type: ignore[list-item]
