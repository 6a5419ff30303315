"""`quota`: look at limits, try them, use them, set them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, decisions_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

from tollkeeper_cli.commands import quota_windows
from tollkeeper_cli.commands.common import (
    AttributesOption,
    NoteOption,
    OutputOption,
    TenantOption,
    length_text,
    new_request_id,
    pairs,
    require_tenant,
    span_text,
    targets_of,
    whole_number,
)
from tollkeeper_cli.commands.quota_rule import RuleAsked, known_rule, rule_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import FoundProblemsError, UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

_LIMIT_COLUMNS = (
    "name", "meter", "kind", "per", "enforcement", "amount", "burst", "used", "used_percent", "remaining",
    "reset_after_ms", "window_end", "key", "source", "plan", "tenant", "hidden", "as_of",
)  # fmt: skip
_LIMIT_BRIEF = ("name", "per", "amount", "used", "used_percent", "remaining", "resets_in", "key")
_DECISION_COLUMNS = ("allowed", "reason", "limit", "subject", "remaining", "reset_after_ms", "retry_after_ms")
_SOFT = (decision_pb2.DECISION_REASON_SOFT_LIMIT_EXCEEDED, decision_pb2.DECISION_REASON_UNCOVERED)

CostsArgument = Annotated[list[str], typer.Argument(metavar="METER=UNITS...", help="What the call would use.")]
FeaturesOption = Annotated[list[str] | None, typer.Option("--feature", help="A feature that the plan must have.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit 1 when a soft limit is exceeded, too.")]


class EnforcementChoice(StrEnum):
    """What happens beyond a limit."""

    HARD = "hard"
    SOFT = "soft"
    SHADOW = "shadow"


class DecisionLogChoice(StrEnum):
    """Which decisions of a limit are kept one by one."""

    OFF = "off"
    DENIED = "denied"
    SAMPLED = "sampled"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Look at limits, try them, use them, set them.")
    group.command("get-all")(get_all)
    group.command("get")(get)
    group.command("check")(check)
    group.command("enforce")(enforce)
    group.command("give-back")(give_back)
    # An amount of -1 is no option.
    group.command("set", context_settings={"ignore_unknown_options": True})(set_limit)
    group.command("unset")(unset_limit)
    quota_windows.register(group)
    app.add_typer(group, name="quota")


def get_all(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List every limit of a tenant with what is used and left. Takes nothing."""
    answer = _get_quota(context, tenant, attribute, meter="")
    show(
        [_limit_row(limit) for limit in answer.limits],
        _LIMIT_COLUMNS,
        output,
        title=_title(answer),
        brief=_LIMIT_BRIEF,
    )


def _title(answer: quota_pb2.GetQuotaResponse) -> str:
    plan = f", on plan {answer.plan}" if answer.plan else ""
    oldest = min((limit.as_of for limit in answer.limits), key=lambda at: (at.seconds, at.nanos), default=None)
    return f"Limits of {answer.tenant}{plan}" + (f", as of {to_text(oldest)}" if oldest else "")


def get(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="The limit's name, or its meter's.")],
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one limit, or all limits of one meter. Takes nothing."""
    answer = _get_quota(context, tenant, attribute, meter="")
    found = [state for state in answer.limits if limit in (state.name, state.meter)]
    if not found:
        known = ", ".join(sorted(state.name for state in answer.limits)) or "none"
        raise UsageError(f"tenant {answer.tenant} has no limit or limited meter {limit!r}; its limits: {known}")
    show(
        [_limit_row(state) for state in found],
        _LIMIT_COLUMNS,
        output,
        title=_title(answer),
        brief=_LIMIT_BRIEF,
    )


def check(
    context: typer.Context,
    costs: CostsArgument,
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    feature: FeaturesOption = None,
    output: OutputOption = Output.TABLE,
    strict: StrictOption = False,
) -> None:
    """Tell whether a call would be admitted. Takes nothing. Exits 1 when it would be denied."""
    request = _check_request(tenant, costs, attribute, feature)
    request.mode = quota_pb2.CHECK_MODE_PEEK
    _decide(context, request, output, strict=strict)


def enforce(
    context: typer.Context,
    costs: CostsArgument,
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    feature: FeaturesOption = None,
    request_id: Annotated[str, typer.Option(help="Idempotency id; a repeat gets the first answer.")] = "",
    output: OutputOption = Output.TABLE,
    record: Annotated[bool, typer.Option("--record", help="Write a usage record as well.")] = False,
    strict: StrictOption = False,
) -> None:
    """Take the units of a call from every limit that matches. Exits 1 when it is denied."""
    request = _check_request(tenant, costs, attribute, feature)
    request.mode = quota_pb2.CHECK_MODE_CONSUME
    request.request_id = request_id or new_request_id()
    request.record_usage = record
    _decide(context, request, output, strict=strict)


def give_back(
    context: typer.Context,
    costs: CostsArgument,
    *,
    tenant: TenantOption = "",
    attribute: AttributesOption = None,
    request_id: Annotated[str, typer.Option(help="Idempotency id; a repeat gives nothing back twice.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give back what a call took at this sidecar; name its attributes. Recorded usage stays recorded."""
    request = _check_request(tenant, costs, attribute, None)
    request.mode = quota_pb2.CHECK_MODE_GIVE_BACK
    request.request_id = request_id or new_request_id()
    _decide(context, request, output, strict=False)


def set_limit(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="The limit's name.")],
    amount: Annotated[str, typer.Argument(help="Units; -1 or `unlimited`, 0 = none.")],
    *,
    tenant: TenantOption = "",
    enforcement: Annotated[EnforcementChoice | None, typer.Option(help="What happens beyond it.")] = None,
    burst: Annotated[int | None, typer.Option(help="Token buckets: the most that it holds.")] = None,
    meter: Annotated[str, typer.Option(help="What it counts; a new limit needs it.")] = "",
    window: Annotated[
        str, typer.Option(help="`day`, `15 minutes`, `2 weeks`, `billing_period`; a new limit needs it.")
    ] = "",
    time_zone: Annotated[str, typer.Option(help="Zone of its days, as Europe/Berlin; UTC for a new limit.")] = "",
    anchor: Annotated[str, typer.Option(help="Day that windows are counted from, YYYY-MM-DD.")] = "",
    rolling: Annotated[
        bool | None, typer.Option("--rolling/--calendar", help="Whether windows begin at first use.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Attribute that splits it; may be given again, '' = not split.")
    ] = None,
    shared: Annotated[
        bool | None, typer.Option("--shared/--hidden", help="Whether callers of child tenants see its figures.")
    ] = None,
    decision_log: Annotated[
        DecisionLogChoice | None, typer.Option(help="Which of its decisions are kept one by one.")
    ] = None,
    one_in: Annotated[
        int | None, typer.Option("--decision-log-one-in", min=1, help="Of sampled ones, one in so many.")
    ] = None,
    note: NoteOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Set or add one limit of one tenant, over what its plan says. In force within a second.

    What no option names stays as it is. Another length, zone or key of a limit that is used is in force when its window
    turns.
    """
    units = -1 if amount == "unlimited" else whole_number(amount, what="the amount")
    request = admin_pb2.SetOverrideRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), limit=limit, amount=units, note=note
    )
    if enforcement is not None:
        request.enforcement = decision_pb2.Enforcement.Value(f"ENFORCEMENT_{enforcement.upper()}")
    if burst is not None:
        request.burst = burst
    if shared is not None:
        request.shared = shared
    if decision_log is not None:
        request.decision_log = decisions_pb2.DecisionLog.Value(f"DECISION_LOG_{decision_log.upper()}")
    if one_in is not None:
        request.decision_log_one_in = one_in
    asked = RuleAsked(meter=meter, window=window, time_zone=time_zone, anchor=anchor, rolling=rolling, key=key)
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        if not asked.is_empty:
            known = known_rule(stub, request.tenant, limit)
            request.rule.CopyFrom(rule_of(limit, units, asked, known))
        rule = stub.SetOverride(request, timeout=CALL_TIMEOUT_S).limit
    row: dict[str, Cell] = {
        "name": rule.name,
        "meter": rule.meter,
        "amount": rule.amount,
        "enforcement": _name(decision_pb2.Enforcement.Name(rule.enforcement), "ENFORCEMENT_"),
        "source": rule.source,
    }
    show([row], tuple(row), output, title=f"Limit of {request.tenant}")


def unset_limit(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="The limit's name.")],
    *,
    tenant: TenantOption = "",
) -> None:
    """Remove what `set` did: the plan's limit is in force again."""
    request = admin_pb2.DeleteOverrideRequest(request_id=new_request_id(), tenant=require_tenant(tenant), limit=limit)
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        admin_pb2_grpc.AdminServiceStub(channel).DeleteOverride(request, timeout=CALL_TIMEOUT_S)


def _get_quota(
    context: typer.Context, tenant: str, attribute: list[str] | None, *, meter: str
) -> quota_pb2.GetQuotaResponse:
    """Ask the sidecar for a tenant's limits."""
    request = quota_pb2.GetQuotaRequest(
        tenant=require_tenant(tenant), attributes=pairs(attribute or [], what="attribute"), meter=meter
    )
    with channel_to(targets_of(context).sidecar, server="sidecar") as channel:
        return quota_pb2_grpc.QuotaServiceStub(channel).GetQuota(request, timeout=CALL_TIMEOUT_S)


def _check_request(
    tenant: str, costs: list[str], attribute: list[str] | None, feature: list[str] | None
) -> quota_pb2.CheckQuotaRequest:
    """Read a check from the command line."""
    return quota_pb2.CheckQuotaRequest(
        tenant=require_tenant(tenant),
        costs=[
            quota_pb2.Cost(meter=meter, units=whole_number(units, what=f"the units of {meter}"))
            for meter, units in pairs(costs, what="cost").items()
        ],
        attributes=pairs(attribute or [], what="attribute"),
        features=feature or [],
    )


def _decide(context: typer.Context, request: quota_pb2.CheckQuotaRequest, output: Output, *, strict: bool) -> None:
    """Ask, show the decision, and end with the exit code that it means."""
    with channel_to(targets_of(context).sidecar, server="sidecar") as channel:
        answer = quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=CALL_TIMEOUT_S)
    decision = answer.decision
    reason = _name(decision_pb2.DecisionReason.Name(decision.reason), "DECISION_REASON_")
    row: dict[str, Cell] = {
        "allowed": decision.allowed,
        "reason": reason,
        "limit": decision.binding.name,
        "subject": decision.subject,
        "remaining": decision.remaining if decision.HasField("remaining") else None,
        "reset_after_ms": _milliseconds(decision.reset_after) if decision.HasField("reset_after") else None,
        "retry_after_ms": _milliseconds(decision.retry_after) if decision.HasField("retry_after") else None,
    }
    show([row], _DECISION_COLUMNS, output)
    if not decision.allowed:
        raise FoundProblemsError(f"denied: {reason} {decision.binding.name or decision.subject}".rstrip())
    if decision.reason in _SOFT:
        message = f"admitted, but: {reason} {decision.binding.name}".rstrip()
        if strict:
            raise FoundProblemsError(message)
        Console(stderr=True).print(f"warning: {message}", markup=False, highlight=False)


def _limit_row(limit: decision_pb2.LimitState) -> dict[str, Cell]:
    """Turn a limit into a row; what is another tenant's and not shared stays empty."""
    is_bucket = limit.kind == decision_pb2.LIMIT_KIND_TOKEN_BUCKET
    is_told = not limit.hidden
    return {
        "name": limit.name,
        "meter": limit.meter,
        "kind": _name(decision_pb2.LimitKind.Name(limit.kind), "LIMIT_KIND_"),
        "per": length_text(limit.length.seconds) if limit.HasField("length") else "",
        "enforcement": _name(decision_pb2.Enforcement.Name(limit.enforcement), "ENFORCEMENT_"),
        "amount": limit.amount if is_told else None,
        "burst": limit.burst if is_bucket and is_told else None,
        "used": limit.used if is_told else None,
        "used_percent": limit.used_percent if is_told else None,
        "remaining": limit.remaining if is_told else None,
        "reset_after_ms": _milliseconds(limit.reset_after) if limit.HasField("reset_after") else None,
        "resets_in": span_text(_milliseconds(limit.reset_after)) if limit.HasField("reset_after") else "",
        "window_end": to_text(limit.window_end),
        "key": dict(limit.key),
        "source": limit.source,
        "plan": limit.plan,
        "tenant": limit.tenant,
        "hidden": limit.hidden,
        "as_of": to_text(limit.as_of),
    }


def _milliseconds(duration: Duration) -> int:
    return duration.seconds * 1_000 + duration.nanos // 1_000_000


def _name(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower()
