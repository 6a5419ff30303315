"""States of aggregations: merged in any grouping they are those of all records together; errors keep their bound."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.usage import ID_BYTES_MAX, UNITS_MAX
from tollkeeper_ledger.domain.usage_aggregate import (
    PERCENTILE_ERROR_PERMILLE,
    STATEFUL,
    Aggregation,
    Point,
    bucket_of,
    merge_states,
    middle_of,
    percentile,
    state_of,
)
from tollkeeper_ledger.domain.usage_rollup import void_id_of

UNITS = st.one_of(st.integers(0, 300), st.integers(0, UNITS_MAX))
POINTS = st.lists(
    st.builds(Point, st.integers(0, 50), st.text("ab\u00e9\U0001f600\uffff", min_size=1, max_size=2), UNITS),
    min_size=2,
    max_size=30,
    unique_by=lambda point: point.id,
)


@pytest.mark.parametrize("aggregation", sorted(STATEFUL))
@given(points=POINTS, cut=st.integers(1, 29))
def test_states_merge_to_the_state_of_all(aggregation: Aggregation, points: list[Point], cut: int) -> None:
    """However records are cut into two states, in whatever order, the merged one is that of all of them at once."""
    if aggregation is Aggregation.TIME_WEIGHTED:
        points = sorted(points, key=lambda point: (point.at_us, point.id.encode()))
    one, other = points[: cut % len(points)], points[cut % len(points) :]
    if not one:
        return
    states = (state_of(aggregation, one), state_of(aggregation, other))
    expected = state_of(aggregation, points)
    assert merge_states(aggregation, *states) == expected
    assert merge_states(aggregation, *reversed(states)) == expected


@given(POINTS)
def test_a_time_weighted_state_is_the_area_below_its_steps(points: list[Point]) -> None:
    """Between two records the earlier one's units hold, by event time and then id; overlapping states say so."""
    ordered = sorted(points, key=lambda point: (point.at_us, point.id.encode()))
    area = sum((later.at_us - now.at_us) * now.units for now, later in pairwise(ordered))
    assert state_of(Aggregation.TIME_WEIGHTED, points)[2] == area  # type: ignore[index]  # this state is a list
    if len(ordered) > 2:
        outer = state_of(Aggregation.TIME_WEIGHTED, [ordered[0], ordered[-1]])
        assert (
            merge_states(Aggregation.TIME_WEIGHTED, outer, state_of(Aggregation.TIME_WEIGHTED, ordered[1:-1])) is None
        )


@given(st.lists(UNITS, min_size=1, max_size=60), st.integers(1, 1000))
def test_a_percentile_is_within_its_stated_error(units: list[int], permille: int) -> None:
    """What is told differs from the exact nearest-rank percentile by 0.8 % at most, and not at all below 64."""
    state = state_of(Aggregation.PERCENTILE, [Point(0, "x", amount) for amount in units])
    exact = sorted(units)[max(1, -(-len(units) * permille // 1000)) - 1]
    assert isinstance(state, dict)
    told = percentile(state, permille)
    assert abs(told - exact) * 1000 <= PERCENTILE_ERROR_PERMILLE * exact
    assert exact >= 64 or told == exact


@given(st.integers(0, UNITS_MAX), st.integers(0, UNITS_MAX))
def test_buckets_keep_order(one: int, other: int) -> None:
    """A larger figure never lies in a lower bucket, and a bucket's middle lies in it."""
    low, high = sorted((one, other))
    assert bucket_of(low) <= bucket_of(high)
    assert bucket_of(middle_of(bucket_of(one))) == bucket_of(one)
    assert bucket_of(-one) == 0


@given(st.text(min_size=1, max_size=130), st.text(min_size=1, max_size=130))
def test_every_record_has_one_void_of_its_own(one: str, other: str) -> None:
    """Ids of voids fit the bound of ids and differ where the records' do."""
    assert len(void_id_of(one).encode()) <= ID_BYTES_MAX
    assert (void_id_of(one) == void_id_of(other)) == (one == other)
