//! `ExplainQuota`.

use std::sync::Arc;

use quota_core::Explanation;
use quota_proto::{
    check::ParsedCheck,
    decision::{Viewer, duration_of, explanation},
    quota::{
        CheckMode, CheckQuotaRequest, Decision, Detail, ExplainQuotaRequest, ExplainQuotaResponse,
    },
};

use crate::{
    handlers::check_quota,
    refusal::{Answer, Refusal},
    service::Service,
};

/// Says what a check would be answered, and of every limit why. Takes nothing.
///
/// # Errors
/// What `CheckQuota` answers in mode `PEEK`.
pub async fn explain_quota(
    service: &Arc<Service>,
    request: ExplainQuotaRequest,
) -> Answer<ExplainQuotaResponse> {
    let check = CheckQuotaRequest {
        tenant: request.tenant,
        costs: request.costs,
        features: request.features,
        attributes: request.attributes,
        mode: CheckMode::Peek.into(),
        detail: Detail::All.into(),
        ..CheckQuotaRequest::default()
    };
    let decision = check_quota(service, check.clone()).await?.decision;
    let parsed = ParsedCheck::try_from(check).map_err(Refusal::from)?;
    let found = service
        .hub
        .explain(&parsed.tenant, &parsed.costs, &parsed.attributes);
    let (limits, (ledger_us, redis_us)) = found.unwrap_or_default();
    let facts = service.hub.directory.lock().tenant(&parsed.tenant);
    let plan = facts.as_ref().map_or("", |facts| &facts.plan);
    let viewer = Viewer {
        tenant: &parsed.tenant,
        plan,
    };
    let tell = |limit: &Explanation| {
        let mut told = explanation(limit, viewer);
        told.denies = decision
            .as_ref()
            .is_some_and(|decision| denies(decision, limit));
        told
    };
    Ok(ExplainQuotaResponse {
        limits: limits.iter().map(tell).collect(),
        decision,
        ledger_age: ledger_us.map(duration_of),
        redis_age: redis_us.map(duration_of),
    })
}

fn denies(decision: &Decision, limit: &Explanation) -> bool {
    !decision.allowed
        && decision.binding.as_ref().is_some_and(|binding| {
            *binding.name == *limit.state.name && *binding.tenant == *limit.state.tenant
        })
}
