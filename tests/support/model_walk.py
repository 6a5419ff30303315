"""A random walk of one tenant through real sidecars beside the obvious model.

What the model denies is never admitted, what it admits is admitted in the end. The ledger's clock stands still between
rounds. What comes back, from another sidecar or a settlement, is on its way for a moment: a call that the model admits
is made again until it passes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from model_limits import JOBS, METERS, SEATS, VALUES
from quota_model import NOBODY_KNOWS
from rpc_support import error_info
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from quota_model import Model, Said

CALL_S = 60.0
PATIENCE_S = 90.0
PACE_S = 0.5
"""Real time before a call on token buckets: were use measured, tokens would be lent ahead of it, and lapse."""
ROUNDED_US = 4
"""A bucket's `retry_after` is rounded up by so much at most."""
SECOND_US = 1_000_000
LONG_US = 3_600 * SECOND_US
CONSUME, PEEK, RESERVE, GIVE_BACK = (
    quota_pb2.CHECK_MODE_CONSUME,
    quota_pb2.CHECK_MODE_PEEK,
    quota_pb2.CHECK_MODE_RESERVE,
    quota_pb2.CHECK_MODE_GIVE_BACK,
)


Figures: TypeAlias = "dict[str, tuple[int, ...]]"
"""By limit: what remains, and of windows what was used."""


@dataclass(frozen=True, slots=True)
class Call:
    """Units by meter, with attributes, at a sidecar."""

    costs: dict[str, int]
    attributes: dict[str, str]
    sidecar: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A reservation that is open."""

    name: str
    token: str
    call: Call
    is_long: bool


@dataclass(slots=True)
class Lane:
    """One tenant, its model, and what happened so far."""

    tenant: str
    rng: Random
    model: Model
    stubs: dict[str, quota_pb2_grpc.QuotaServiceStub]
    has_buckets: bool
    taken: list[Call] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    calls: int = 0

    async def step(self) -> None:
        """Do one random thing in both worlds."""
        draw = self.rng.random()
        if self.opened and draw < 0.3:
            await self._end(self.opened.pop(self.rng.randrange(len(self.opened))))
        elif self.taken and draw < 0.45:
            await self._give_back()
        elif draw < 0.65:
            await self._reserve()
        else:
            await self._check(is_peek=draw < 0.72)

    async def finish(self) -> None:
        """End every reservation, and compare what is left and used."""
        while self.opened:
            await self._end(self.opened.pop())
        await self.buckets_agree()
        if len(self.stubs) == 1:
            await self._agree(self._windows, self._windows_shown)

    async def buckets_agree(self) -> None:
        """Wait until every sidecar finds in hard token buckets what the model says: tokens come back in a moment."""
        await self._agree(self._buckets, self._buckets_shown)

    async def _agree(
        self,
        figures: Callable[[dict[str, str]], Figures],
        shown_at: Callable[[str, dict[str, str]], Awaitable[Figures]],
    ) -> None:
        for attributes in ({}, *({"who": value} for value in VALUES)):
            wanted = figures(attributes)
            for sidecar in self.stubs if wanted else ():
                shown: Figures = {}

                async def is_shown(sidecar: str = sidecar, who: dict[str, str] = attributes) -> bool:
                    found = await shown_at(sidecar, who)
                    shown.update({name: found[name] for name in wanted if name in found})  # noqa: B023 - awaited here
                    return shown == wanted  # noqa: B023 - awaited here

                with contextlib.suppress(TimeoutError):
                    await wait_until(is_shown, seconds_max=PATIENCE_S)
                assert wanted == shown, self._failed(f"{sidecar} with {attributes} shows {shown}, expected {wanted}")

    async def _windows_shown(self, sidecar: str, attributes: dict[str, str]) -> Figures:
        request = quota_pb2.GetQuotaRequest(tenant=self.tenant, attributes=attributes)
        answer = await self.stubs[sidecar].GetQuota(request, timeout=CALL_S)
        return {one.name: (one.remaining, one.used) for one in answer.limits}

    async def _buckets_shown(self, sidecar: str, attributes: dict[str, str]) -> Figures:
        request = self._request(Call({METERS[0]: 0}, attributes, sidecar), PEEK)
        answer = await self.stubs[sidecar].CheckQuota(request, timeout=CALL_S)
        return {one.name: (one.remaining,) for one in answer.decision.limits}

    def _windows(self, attributes: dict[str, str]) -> Figures:
        """Give what remains of each hard window, level and limit in flight, and what was used of it."""
        return {
            limit.name: (self.model.remaining(limit.name, attributes), self.model.used(limit.name, attributes))
            for limit in self.model.limits
            if limit.kind != "token_bucket"
            and limit.amount > 0
            and limit.enforcement == "hard"
            and (attributes or not limit.key)
            and not self.model.owes(limit.name, attributes)
        }

    def _buckets(self, attributes: dict[str, str]) -> Figures:
        """Give how many whole tokens hard buckets hold that count such calls."""
        return {
            limit.name: (self.model.tokens(limit.name, attributes),)
            for limit, counter in self.model.charged({METERS[0]: 0}, attributes)
            if limit.kind == "token_bucket"
            and limit.amount > 0
            and limit.enforcement == "hard"
            and not counter.may_lack
        }

    def _draw_call(self) -> Call:
        costs = {}
        meters = sorted({limit.meter for limit in self.model.limits} | {METERS[0]})
        for meter in self.rng.sample(meters, min(len(meters), self.rng.choice([1, 1, 2, 3]))):
            most = 3 if self.has_buckets and meter == METERS[0] else self.rng.choice([2, 4, 4, 12])
            costs[meter] = self.rng.randint(0, most)
        attributes = {"who": self.rng.choice(VALUES)} if self.rng.random() < 0.5 else {}
        return Call(costs, attributes, self.rng.choice(list(self.stubs)))

    def _is_plain(self, call: Call) -> bool:
        """Tell whether every limit that counts a call knows what of its use was beyond it."""
        return not any(counter.is_doubtful for _, counter in self.model.charged(call.costs, call.attributes))

    async def _check(self, *, is_peek: bool) -> None:
        call = self._draw_call()
        if not is_peek:
            call.costs.pop(JOBS, None)
        if not call.costs:
            return
        said = self.model.judge(call.costs, call.attributes, call.sidecar)
        request = self._request(call, PEEK if is_peek else CONSUME)
        request.record_usage = not is_peek and self.rng.random() < 0.3
        answer = await self._ask(call, request, said)
        if is_peek or not answer.decision.allowed:
            return
        self.model.take(call.costs, call.attributes, call.sidecar)
        self._doubt(call, answer.decision)
        self.taken.append(call)
        if self.rng.random() < 0.3:
            await self._repeat(call, request, answer)

    async def _repeat(
        self, call: Call, request: quota_pb2.CheckQuotaRequest, answer: quota_pb2.CheckQuotaResponse
    ) -> None:
        """Send a request again: it is answered the same and takes nothing, and with other costs its id is refused."""
        again = await self.stubs[call.sidecar].CheckQuota(request, timeout=CALL_S)
        assert answer == again, self._failed(f"{request.request_id} was answered {again} after {answer}")
        other = quota_pb2.CheckQuotaRequest()
        other.CopyFrom(request)
        other.costs[0].units += 1
        refused = await self._refusal(call, other)
        assert refused == "REQUEST_ID_REUSED", self._failed(f"{request.request_id} with other costs: {refused}")

    async def _reserve(self) -> None:
        call = self._draw_call()
        call.costs.update({meter: max(1, units) for meter, units in call.costs.items()})
        if not self._is_plain(call):
            return
        is_long = self.rng.random() < 0.6
        ttl_us = LONG_US if is_long else SECOND_US * self.rng.choice([1, 20])
        said = self.model.judge(call.costs, call.attributes, call.sidecar)
        request = self._request(call, RESERVE)
        request.reservation_ttl.CopyFrom(Duration(seconds=ttl_us // SECOND_US))
        answer = await self._ask(call, request, said)
        if not answer.decision.allowed:
            return
        name = request.request_id
        self.model.reserve(name, (call.costs, call.attributes), call.sidecar, ttl_us)
        self._doubt(call, answer.decision)
        self.opened.append(Opened(name, answer.reservation.token, call, is_long))

    async def _end(self, opened: Opened) -> None:
        """Settle above, below or at what was reserved, or release; where that lives on for long, anywhere."""
        call = opened.call
        at = self.rng.choice(list(self.stubs)) if opened.is_long else call.sidecar
        expired = self.model.reserved[opened.name].is_over
        if self.rng.random() < 0.2:
            release = quota_pb2.ReleaseReservationRequest(token=opened.token)
            await self.stubs[at].ReleaseReservation(release, timeout=CALL_S)
            self._note(f"released {opened.name} at {at}")
            self.model.end(opened.name, {}, at)
            return
        actual = {meter: self.rng.randint(0, units + self._above(meter)) for meter, units in call.costs.items()}
        quantities = [usage_pb2.Quantity(meter=meter, units=units) for meter, units in actual.items()]
        settle = quota_pb2.SettleReservationRequest(token=opened.token, quantities=quantities)
        for is_repeated in (False, True)[: self.rng.choice([1, 1, 2])]:
            answer = await self.stubs[at].SettleReservation(settle, timeout=CALL_S)
            excess = {meter: used - call.costs[meter] for meter, used in actual.items() if used > call.costs[meter]}
            assert (excess, is_repeated) == (
                {one.meter: one.units for one in answer.excess},
                answer.repeated_call,
            ), self._failed(f"{settle} at {at}: {answer}")
            assert expired == answer.expired, self._failed(f"{settle} at {at}: {answer}")
        self._note(f"settled {opened.name} at {at} at {actual}, expired {expired}")
        self.model.end(opened.name, actual, at)

    def _above(self, meter: str) -> int:
        """How much more than reserved is used at most; a level's fall elsewhere must not come before such a rise."""
        return 0 if meter == SEATS and len(self.stubs) > 1 else self.rng.choice([0, 0, 6])

    async def _give_back(self) -> None:
        """Give back what a call took, or more than that, or at another sidecar."""
        taken = self.rng.choice(self.taken)
        costs = {meter: units for meter, units in taken.costs.items() if units}
        if len(costs) > 1:
            costs.pop(SEATS, None)
        if SEATS not in costs and self.rng.random() < 0.2:
            costs = {meter: units + self.rng.randint(1, 5) for meter, units in costs.items()}
        at = self.rng.choice(list(self.stubs)) if self.rng.random() < 0.2 else taken.sidecar
        call = Call(costs, taken.attributes, at)
        may = bool(costs) and self.model.may_give_back(costs, call.attributes, at)
        if not costs or not self._is_plain(call) or (SEATS in costs and not may):
            return
        refused = ""

        async def is_taken() -> bool:
            nonlocal refused
            refused = await self._refusal(call, self._request(call, GIVE_BACK))
            assert may or refused, self._failed(f"{call} was given back, although it was not used there")
            return not refused or not may

        try:
            await wait_until(is_taken, f"{call} to be given back", seconds_max=PATIENCE_S)
        except TimeoutError as error:
            raise self._failed(f"{call} was never taken back") from error
        self._note(f"gave back {call}: {refused or 'taken'}")
        if may:
            self.model.give_back(costs, call.attributes, at)
            self.taken.remove(taken)
        else:
            assert refused == "NOT_CONSUMED_HERE", self._failed(f"{call}: {refused}")

    async def _refusal(self, call: Call, request: quota_pb2.CheckQuotaRequest) -> str:
        """Make a call; give the reason for which it was refused, empty where it was not."""
        try:
            await self.stubs[call.sidecar].CheckQuota(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            return error_info(error).reason
        return ""

    def _request(self, call: Call, mode: quota_pb2.CheckMode.ValueType) -> quota_pb2.CheckQuotaRequest:
        self.calls += 1
        return quota_pb2.CheckQuotaRequest(
            tenant=self.tenant,
            costs=[quota_pb2.Cost(meter=meter, units=units) for meter, units in call.costs.items()],
            attributes=call.attributes,
            mode=mode,
            request_id=f"{self.tenant}/{self.calls}",
            detail=quota_pb2.DETAIL_ALL,
        )

    async def _ask(self, call: Call, request: quota_pb2.CheckQuotaRequest, said: Said) -> quota_pb2.CheckQuotaResponse:
        """Ask until the answer is the model's; what the model denies must never be admitted."""
        answers: list[quota_pb2.CheckQuotaResponse] = []

        async def is_the_models() -> bool:
            nonlocal said
            await asyncio.sleep(PACE_S if self.has_buckets else 0)
            self.calls += 1
            request.request_id = f"{self.tenant}/{self.calls}"
            answer = await self.stubs[call.sidecar].CheckQuota(request, timeout=CALL_S)
            answers.append(answer)
            if answer.decision.reason == decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
                self._unanswered(call)
                said = self.model.judge(call.costs, call.attributes, call.sidecar)
            wrong = self._wrong(call, said, answer.decision)
            assert not (wrong and answer.decision.allowed), self._failed(
                f"{call}: {wrong} in {answer}, expected {said}"
            )
            return not wrong

        try:
            await wait_until(is_the_models, f"{said} to {call}", seconds_max=PATIENCE_S)
        except TimeoutError as error:
            raise self._failed(f"{call} was never answered {said}; at last {answers[-1]}") from error
        decision = answers[-1].decision
        name = decision_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_")
        mode = quota_pb2.CheckMode.Name(request.mode).removeprefix("CHECK_MODE_")
        self._note(f"{mode} {request.request_id} {call}: {name} after {len(answers)}")
        return answers[-1]

    def _wrong(self, call: Call, said: Said, decision: decision_pb2.Decision) -> str:
        """Tell what of a decision is not as the model has it."""
        reason = decision_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_")
        limits = [limit for limit, _ in self.model.charged(call.costs, call.attributes)]
        is_uncovered = reason == "UNCOVERED" and any(limit.enforcement != "hard" for limit in limits)
        if said.allowed is not None and said.allowed != decision.allowed:
            return f"allowed {decision.allowed}"
        if reason not in said.reasons and not is_uncovered:
            return f"reason {reason}"
        if decision.allowed:
            return ""
        if decision.binding.name not in said.retry_after_us:
            return f"binding {decision.binding.name}"
        retry_us = decision.retry_after.ToMicroseconds() if decision.HasField("retry_after") else None
        is_one = NOBODY_KNOWS in said.retry_after_us.values() or any(
            us == retry_us or (us is not None and retry_us is not None and 0 <= retry_us - us < ROUNDED_US)
            for us in said.retry_after_us.values()
        )
        return "" if is_one else f"retry_after {retry_us} us"

    def _doubt(self, call: Call, decision: decision_pb2.Decision) -> None:
        """Note that nobody answered in time, so that soft limits counted a call as beyond them."""
        if decision.reason != decision_pb2.DECISION_REASON_UNCOVERED:
            return
        for limit, counter in self.model.charged(call.costs, call.attributes):
            counter.is_doubtful = counter.is_doubtful or limit.enforcement != "hard"

    def _unanswered(self, call: Call) -> None:
        """Note that tokens may have been given to a call that nobody waited for any more."""
        for limit, counter in self.model.charged(call.costs, call.attributes):
            if limit.kind == "token_bucket" and limit.amount > 0:
                counter.may_lack, counter.is_doubtful = True, counter.is_doubtful or limit.enforcement != "hard"

    def _note(self, what: str) -> None:
        self.told.append(f"{self.model.now_us % (60 * SECOND_US)} us: {what}")

    def _failed(self, what: str) -> AssertionError:
        history = "\n  ".join(self.told)
        return AssertionError(f"{self.tenant}: {what}\nlimits: {self.model.limits}\nbefore:\n  {history}")
