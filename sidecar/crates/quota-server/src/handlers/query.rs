//! `GetQuota`, and `LeaseQuota` until it is served.

use std::sync::Arc;

use quota_core::LimitState;
use quota_proto::{
    decision::{Viewer, limit_state, timestamp},
    quota::{
        ErrorReason, GetQuotaRequest, GetQuotaResponse, LeaseQuotaRequest, LeaseQuotaResponse,
    },
    usage::ParsedQuery,
};

use crate::{
    refusal::{Answer, Refusal},
    service::Service,
};

/// Lists every limit of a tenant as known here, its own in name order, then its ancestors'. Takes nothing.
///
/// # Errors
/// Bad input, an unknown tenant or meter, a ledger that could not be asked in time.
pub async fn get_quota(
    service: &Arc<Service>,
    request: GetQuotaRequest,
) -> Answer<GetQuotaResponse> {
    let answer = quota(service, request).await;
    service.counted(answer)
}

async fn quota(service: &Service, request: GetQuotaRequest) -> Answer<GetQuotaResponse> {
    let query = ParsedQuery::try_from(request)?;
    let tenant: Arc<str> = query.tenant.as_str().into();
    let known = service.tenants_known(std::slice::from_ref(&tenant)).await?;
    if known != [true] {
        return Err(Refusal::unknown(
            ErrorReason::TenantUnknown,
            "tenant",
            "tenant",
            &tenant,
        ));
    }
    if !query.meter.is_empty() {
        service.require_meter("meter", &query.meter)?;
    }
    let Some(mut limits) = service.hub.quota(&tenant, &query.attributes) else {
        return Err(Refusal::ledger_unreachable(&tenant));
    };
    limits.retain(|limit| query.meter.is_empty() || *limit.meter == *query.meter);
    limits.sort_by(|left, right| order(&tenant, left).cmp(&order(&tenant, right)));
    let facts = service.hub.directory.lock().tenant(&tenant);
    let plan = facts.as_ref().map_or("", |facts| &facts.plan);
    let viewer = Viewer {
        tenant: &tenant,
        plan,
    };
    let now_us = service.hub.now()?.ledger_us;
    let as_of_us = limits
        .iter()
        .map(|limit| limit.as_of_us)
        .min()
        .unwrap_or(now_us);
    Ok(GetQuotaResponse {
        tenant: query.tenant,
        plan: plan.to_owned(),
        features: facts
            .as_ref()
            .map(|facts| facts.features.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        limits: limits
            .iter()
            .map(|limit| limit_state(limit, viewer))
            .collect(),
        as_of: Some(timestamp(as_of_us)),
    })
}

fn order<'a>(tenant: &str, limit: &'a LimitState) -> (bool, &'a str, &'a str) {
    (*limit.tenant != *tenant, &limit.tenant, &limit.name)
}

/// Refuses: slices are not served yet.
///
/// # Errors
/// Always.
pub async fn lease_quota(
    service: &Arc<Service>,
    _: LeaseQuotaRequest,
) -> Answer<LeaseQuotaResponse> {
    std::future::ready(service.counted(Err(Refusal::not_implemented("LeaseQuota")))).await
}
