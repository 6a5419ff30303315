"""Limits on distinct values over the wire: through two sidecars, to the last value, with proof."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from limit_rules import yearly
from values_support import EXHAUSTED, bring, rule, until_admitted, until_in_force

if TYPE_CHECKING:
    from platform_support import Platform


async def test_distinct_users_over_two_sidecars(platform: Platform, more_sidecars: list[str]) -> None:
    """Five users are admitted however often each comes and wherever; the sixth is denied with proof, everywhere."""
    await platform.set_limit("shared", rule("five-users", 5))
    async with platform.channel() as first, platform.channel(more_sidecars[0]) as second:
        sidecars = (first, second)
        for channel in sidecars:
            await until_in_force(channel, "shared", "five-users")
        for turn, (user, channel) in enumerate(itertools.product(range(5), sidecars)):
            decision = await bring(channel, "shared", case="five-users", user=f"user-{(user + turn) % 5}")
            assert decision.allowed, f"turn {turn}: {decision}"
        for channel, user in itertools.product(sidecars, range(5)):
            assert (await bring(channel, "shared", case="five-users", user=f"user-{user}")).allowed
        for channel in sidecars:
            decision = await bring(channel, "shared", case="five-users", user="user-5")
            assert (decision.reason, decision.binding.name) == (EXHAUSTED, "five-users")
            assert decision.retry_after.seconds > 0
        await platform.set_amount("shared", "five-users", 6)
        await until_admitted(first, "shared", case="five-users", user="user-5")
        assert (await bring(second, "shared", case="five-users", user="user-5")).allowed
        assert (await bring(second, "shared", case="five-users", user="user-6")).reason == EXHAUSTED


async def test_what_one_limit_denies_no_other_counts(platform: Platform, more_sidecars: list[str]) -> None:
    """A user that one limit denies is not counted by another that had room for it, at whichever of two sidecars."""
    for name, amount in (("two-users", 2), ("many-users", 50)):
        await platform.set_limit("shared", yearly(name, amount, meter="active-users", case="both"))
    async with platform.channel() as first, platform.channel(more_sidecars[0]) as second:
        for channel in (first, second):
            for name in ("two-users", "many-users"):
                await until_in_force(channel, "shared", name, case="both")
        for user in range(2):
            assert (await bring(first, "shared", case="both", user=f"in-{user}")).allowed
        counted, turn, give_up = 0, 0, time.monotonic() + 60
        while turn < 10 or counted != 2:
            assert time.monotonic() < give_up, f"{counted} users are counted, 2 came in"
            for channel in (first, second):
                turn += 1
                decision = await bring(channel, "shared", case="both", user=f"out-{turn}")
                assert (decision.reason, decision.binding.name) == (EXHAUSTED, "two-users")
                counted = next(limit.used for limit in decision.limits if limit.name == "many-users")
        await platform.set_amount("shared", "two-users", 3)
        await until_admitted(second, "shared", case="both", user="in-2")
        assert (await bring(first, "shared", case="both", user="out-0")).reason == EXHAUSTED
