"""`quota explain`, `states`, `history`, `reset`, `reset-all-expired`: why a limit stands as it does, and turning it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

from tollkeeper_cli.commands.common import (
    AttributesOption,
    NoteOption,
    OutputOption,
    TenantOption,
    name_of,
    new_request_id,
    pages,
    pairs,
    require_tenant,
    targets_of,
    whole_number,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.duration_pb2 import Duration

_STATE_COLUMNS = (
    "tenant", "limit", "key", "start", "end", "round", "amount", "allotted", "consumed", "over", "outstanding",
    "lowered_at", "settled_at", "timeline",
)  # fmt: skip
_STATE_BRIEF = ("limit", "tenant", "key", "end", "round", "amount", "allotted", "consumed", "outstanding")
_HISTORY_COLUMNS = ("at", "actor", "action", "limit", "before", "after", "note", "request_id")
_HISTORY_BRIEF = ("when", "actor", "action", "limit", "change", "note")
_UNTOLD = {"name", "meter", "failure_policy", "windows", "keys", "allotted"}
"""What a line of history leaves out; JSON and CSV have it."""

_EXPLAIN_COLUMNS = (
    "limit", "tenant", "source", "plan", "says", "cost", "amount", "used", "remaining", "enforcement",
    "failure_policy", "balance", "held", "consumed", "debt", "allotted", "round", "pool_generation", "pool_free",
    "pool_total", "pool_holders", "pool_fault", "proof", "proof_need", "proof_age_ms",
)  # fmt: skip
_EXPLAIN_BRIEF = ("limit", "source", "says", "cost", "amount", "remaining", "balance", "pool_free", "proof")


def register(group: typer.Typer) -> None:
    """Add the commands to the group `quota`."""
    group.command("explain")(explain)
    group.command("states")(states)
    group.command("history")(history)
    group.command("reset")(reset)
    group.command("reset-all-expired")(reset_all_expired)
    group.command("set-level")(set_level)


def explain(
    context: typer.Context,
    costs: Annotated[list[str], typer.Argument(metavar="METER=UNITS...", help="What the call would use.")],
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    feature: Annotated[list[str] | None, typer.Option("--feature", help="A feature that the plan must have.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say why a call would be admitted or denied: which limits count it, from where, what is left, what proves it."""
    request = quota_pb2.ExplainQuotaRequest(
        tenant=require_tenant(tenant),
        costs=[
            quota_pb2.Cost(meter=meter, units=whole_number(units, what=f"the units of {meter}"))
            for meter, units in pairs(costs, what="cost").items()
        ],
        attributes=pairs(attribute or [], what="attribute"),
        features=feature or [],
    )
    with channel_to(targets_of(context).sidecar, server="sidecar") as channel:
        answer = quota_pb2_grpc.QuotaServiceStub(channel).ExplainQuota(request, timeout=CALL_TIMEOUT_S)
    said = sorted(answer.limits, key=lambda limit: (not limit.denies, not limit.matched, not _lacks(limit)))
    rows = [_explained(limit, is_denied=not answer.decision.allowed) for limit in said]
    show(rows, _EXPLAIN_COLUMNS, output, title=f"Limits of {request.tenant} for this call", brief=_EXPLAIN_BRIEF)
    if output is Output.TABLE:
        Console(highlight=False).print("\n".join(_verdict(answer)), markup=False, soft_wrap=True)


def states(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="Only this limit.")] = "",
    *,
    tenant: TenantOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List windows as the ledger knows them, of one tenant or of all: allotted, consumed, outstanding."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListLimitStates
        request = admin_pb2.ListLimitStatesRequest(tenant=tenant, limit=limit)
        found = [state for page in pages(call, request) for state in page.states]
    _show_states(found, output, title=f"Windows of {tenant or 'all tenants'}")


def history(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="Only this limit.")] = "",
    *,
    tenant: TenantOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List who changed or reset which limit when, newest first."""
    request = admin_pb2.ListLimitHistoryRequest(tenant=require_tenant(tenant), limit=limit)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListLimitHistory
        found = [entry for page in pages(call, request) for entry in page.entries]
    rows: list[dict[str, Cell]] = [
        {
            "at": to_text(entry.at),
            "when": _seconds_text(to_text(entry.at)),
            "actor": entry.actor,
            "action": entry.action,
            "limit": entry.limit,
            "before": entry.before,
            "after": entry.after,
            "change": _change(entry.before, entry.after),
            "note": entry.note,
            "request_id": entry.request_id,
        }
        for entry in found
    ]
    show(rows, _HISTORY_COLUMNS, output, title=f"History of {request.tenant}'s limits", brief=_HISTORY_BRIEF)


def reset(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="The limit's name.")],
    *,
    tenant: TenantOption = "",
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="VALUE", help="Only this key: its values in the rule's order.")
    ] = None,
    note: NoteOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give the full amount of a window again, now. Billed usage stays; what sidecars still hold comes on top."""
    targets = targets_of(context)
    request = admin_pb2.ResetLimitRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), limit=limit, key_values=key or [], note=note
    )
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ResetLimit(request, timeout=CALL_TIMEOUT_S)
    _show_states(answer.states, output, title=f"{answer.windows} windows reset")


def reset_all_expired(
    context: typer.Context,
    *,
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant. Default: all.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Turn the windows that are over and that nobody has used since, and print them; a repeat prints nothing."""
    targets = targets_of(context)
    turned: list[admin_pb2.WindowState] = []
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ResetAllExpired
        while True:
            request = admin_pb2.ResetAllExpiredRequest(request_id=new_request_id(), tenant=tenant)
            answer = call(request, timeout=CALL_TIMEOUT_S)
            turned.extend(answer.states)
            if not answer.states:
                break
    if turned or output is not Output.TABLE:
        _show_states(turned, output, title=f"{len(turned)} windows turned")


def set_level(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="The name of a limit of kind `level`.")],
    units: Annotated[str, typer.Argument(help="What is stored in the world.")],
    *,
    tenant: TenantOption = "",
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="VALUE", help="Which key: its values in the rule's order.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log; required.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what a level (seats, bytes) really is. What sidecars have leased of it may come on top."""
    if not reason:
        raise UsageError("why? Give --reason TEXT for the audit log")
    targets = targets_of(context)
    request = admin_pb2.SetLevelRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        limit=limit,
        key=key or [],
        units=whole_number(units, what="the units"),
        reason=reason,
    )
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).SetLevel(request, timeout=CALL_TIMEOUT_S)
    row: dict[str, Cell] = {
        "limit": limit,
        "key": list(request.key),
        "before": answer.before_units,
        "units": answer.units,
        "leased": answer.leased_units,
        "amount": answer.amount,
    }
    show([row], tuple(row), output, title=f"Level of {request.tenant}")


def _show_states(found: Iterable[admin_pb2.WindowState], output: Output, *, title: str) -> None:
    rows: list[dict[str, Cell]] = [
        {
            "tenant": state.tenant,
            "limit": state.limit,
            "key": list(state.key_values),
            "start": to_text(state.start),
            "end": to_text(state.end),
            "round": state.round,
            "amount": state.amount,
            "allotted": state.allotted,
            "consumed": state.consumed,
            "over": state.over,
            "outstanding": state.outstanding,
            "lowered_at": to_text(state.lowered_at),
            "settled_at": to_text(state.settled_at),
            "timeline": state.timeline,
        }
        for state in found
    ]
    show(rows, _STATE_COLUMNS, output, title=title, brief=_STATE_BRIEF)


def _lacks(limit: quota_pb2.LimitExplanation) -> bool:
    """Tell whether a limit that counts the call has fewer units than that, as last seen here."""
    state = limit.state
    return limit.matched and not state.hidden and state.amount >= 0 and limit.cost > state.remaining


def _says(limit: quota_pb2.LimitExplanation, *, is_denied: bool) -> str:
    """Say in a word or two what a limit does to the call. Only the first that denies decided it."""
    if limit.denies:
        return "denies"
    if not limit.matched:
        return f"not: {limit.unmatched}"
    is_hard = limit.state.enforcement == decision_pb2.ENFORCEMENT_HARD
    if not _lacks(limit) or (is_hard and not is_denied):
        return "counts"
    return "denies too" if is_hard else "is exceeded"


def _most(limit: quota_pb2.LimitExplanation) -> int:
    """Give the largest cost that a limit ever admits, as far as it is told."""
    state = limit.state
    if state.hidden:
        return limit.cost
    return state.burst if state.kind == decision_pb2.LIMIT_KIND_TOKEN_BUCKET and state.amount else state.amount


def _explained(limit: quota_pb2.LimitExplanation, *, is_denied: bool) -> dict[str, Cell]:
    state = limit.state
    says = _says(limit, is_denied=is_denied)
    has_pool, has_proof = limit.HasField("pool"), limit.HasField("proof")
    return {
        "limit": state.name,
        "tenant": state.tenant,
        "source": state.source,
        "plan": state.plan,
        "says": says,
        "cost": limit.cost if limit.matched else None,
        "amount": None if state.hidden else state.amount,
        "used": None if state.hidden else state.used,
        "remaining": None if state.hidden else state.remaining,
        "enforcement": name_of(decision_pb2.Enforcement, state.enforcement, "ENFORCEMENT_"),
        "failure_policy": name_of(decision_pb2.FailurePolicy, limit.failure_policy, "FAILURE_POLICY_"),
        "balance": limit.balance,
        "held": limit.held,
        "consumed": limit.consumed,
        "debt": limit.debt,
        "allotted": limit.allotted,
        "round": limit.round,
        "pool_generation": str(limit.pool.generation) if has_pool else None,
        "pool_free": limit.pool.free if has_pool else None,
        "pool_total": limit.pool.total if has_pool else None,
        "pool_holders": limit.pool.holders if has_pool else None,
        "pool_fault": limit.pool.fault if has_pool else None,
        "proof": limit.proof.source if has_proof else None,
        "proof_need": limit.proof.need if has_proof else None,
        "proof_age_ms": _milliseconds(limit.proof.age) if has_proof else None,
    }


def _verdict(answer: quota_pb2.ExplainQuotaResponse) -> list[str]:
    """Say in words what decides."""
    decision = answer.decision
    reason = name_of(decision_pb2.DecisionReason, decision.reason, "DECISION_REASON_")
    subject = decision.binding.name or decision.subject
    lines = [f"{'admitted' if decision.allowed else 'denied'}: {reason} {subject}".rstrip()]
    for limit in answer.limits:
        if limit.denies and limit.state.hidden:
            lines.append(f"{limit.state.name} is tenant {limit.state.tenant}'s, which does not share its figures")
        elif limit.denies:
            lines.append(
                f"{limit.state.name} has {limit.state.remaining:,} of {limit.state.amount:,} left,"
                f" {limit.cost:,} asked for; from {limit.state.source} {limit.state.plan}".rstrip()
            )
            if limit.HasField("proof"):
                lines.append(f"proved by the {limit.proof.source}, {_milliseconds(limit.proof.age)} ms ago")
        if _says(limit, is_denied=not decision.allowed).startswith("denies") and limit.cost > _most(limit):
            lines.append(f"{limit.state.name} never admits more than {_most(limit):,} at once, whatever is left")
    if decision.HasField("retry_after"):
        lines.append(f"the same call passes in {_milliseconds(decision.retry_after):,} ms if nobody else asks")
    ages = (
        ("ledger", answer.ledger_age if answer.HasField("ledger_age") else None),
        ("redis", answer.redis_age if answer.HasField("redis_age") else None),
    )
    for name, age in ages:
        lines.append(f"{name}: {'not connected' if age is None else f'heard of {_milliseconds(age)} ms ago'}")
    return lines


def _change(before: str, after: str) -> str:
    """Say what differs, for people: `amount 10 -> 3`; a new limit with what it is, a removed one as such."""
    old, new = (json.loads(text) if text else {} for text in (before, after))
    if not new:
        return "removed"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in _UNTOLD]
    if not old:
        return ", ".join(f"{name} {_value(new[name])}" for name in names if new[name] not in ("", [], {}))
    return ", ".join(f"{name} {_value(old.get(name))} -> {_value(new.get(name))}" for name in names)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values())
    if isinstance(value, list):
        return " ".join(_value(part) for part in value)
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _seconds_text(text: str) -> str:
    """Leave out the fraction of a second."""
    head, point, _ = text.partition(".")
    return f"{head}Z" if point else text


def _milliseconds(duration: Duration) -> int:
    return duration.seconds * 1_000 + duration.nanos // 1_000_000
