"""Limits on distinct values over the wire: through two sidecars, to the last value, with proof."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from values_support import EXHAUSTED, bring, rule, until_in_force

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
        give_up = time.monotonic() + 10
        while not (await bring(first, "shared", case="five-users", user="user-5")).allowed:
            assert time.monotonic() < give_up, "a raise lets the sixth in"
        assert (await bring(second, "shared", case="five-users", user="user-5")).allowed
        assert (await bring(second, "shared", case="five-users", user="user-6")).reason == EXHAUSTED
