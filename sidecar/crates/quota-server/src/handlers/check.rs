//! `CheckQuota`.

use std::{pin::Pin, sync::Arc, time::Instant};

use quota_core::{CheckRequest, Decision, Mode, Reason};
use quota_proto::{
    check::{ParsedCheck, Purpose},
    decision::{self, Viewer},
    quota::{CheckQuotaRequest, CheckQuotaResponse, Detail},
};

use crate::{
    handlers::{
        give_back::give_back,
        level::needs_other_call,
        reserve::{Scope, consume_recorded, reserve},
    },
    headers::headers,
    hub::{Begun, Wait, cold::unreachable},
    refusal::{Answer, Refusal},
    replay::Repeat,
    service::{Service, shielded},
};

/// An answer now, or one that has to be waited for.
#[allow(clippy::large_enum_variant)] // the large one is the common one: boxing it would cost every check an allocation
pub(crate) enum Check {
    Now(Answer<CheckQuotaResponse>),
    Later(Pin<Box<dyn Future<Output = Answer<CheckQuotaResponse>> + Send>>),
}

/// Decides a check, and takes, holds or records as its mode says.
///
/// A plain check that is dropped while it waits takes nothing; everything else runs to its end.
///
/// # Errors
/// Bad input, a sidecar that is starting or full, a log that can't be written. A denial is no error.
pub async fn check_quota(
    service: &Arc<Service>,
    request: CheckQuotaRequest,
) -> Answer<CheckQuotaResponse> {
    match begin(service, request) {
        Check::Now(answer) => answer,
        Check::Later(answer) => answer.await,
    }
}

/// Begins a check; most are decided at once.
pub(crate) fn begin(service: &Arc<Service>, request: CheckQuotaRequest) -> Check {
    let started = Instant::now();
    let check = match ParsedCheck::try_from(request) {
        Ok(check) => check,
        Err(error) => return Check::Now(service.counted(Err(error.into()))),
    };
    if service.hub.cold.is_lost() && check.purpose != Purpose::GiveBack {
        let tenant = Arc::clone(&check.tenant);
        let answer = told(service, &check, &tenant, &unreachable(), started);
        return Check::Now(Ok(answer));
    }
    match check.purpose {
        Purpose::Peek => plain(service, check, Mode::Peek, started),
        Purpose::Consume {
            record_usage: false,
        } if check.request_id.is_empty() => plain(service, check, Mode::Consume, started),
        _ => careful(service, check, started),
    }
}

/// A check that leaves nothing behind but units.
fn plain(service: &Arc<Service>, mut check: ParsedCheck, mode: Mode, started: Instant) -> Check {
    let request = core_request(&mut check, mode);
    match service.hub.begin(&request) {
        Ok(Begun::Decided(decision)) if decision.reason.is_decided() => Check::Now(Ok(told(
            service,
            &check,
            &request.tenant,
            &decision,
            started,
        ))),
        Ok(Begun::Decided(decision)) => {
            let service = Arc::clone(service);
            Check::Later(Box::pin(shielded(async move {
                let answer = concluded(Arc::clone(&service), check, request, decision, started);
                service.counted(answer.await)
            })))
        }
        Ok(Begun::Waiting(wait)) => Check::Later(Box::pin(later(
            Arc::clone(service),
            check,
            request,
            wait,
            started,
        ))),
        Err(refusal) => Check::Now(service.counted(Err(refusal))),
    }
}

async fn later(
    service: Arc<Service>,
    check: ParsedCheck,
    request: CheckRequest,
    wait: Wait,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    let decision = service.counted(wait.decision().await)?;
    if decision.reason.is_decided() {
        return Ok(told(&service, &check, &request.tenant, &decision, started));
    }
    let answer = concluded(Arc::clone(&service), check, request, decision, started);
    service.counted(shielded(answer).await)
}

/// Tells a decision, or makes the call anew in the mode that the limits which it met need.
async fn concluded(
    service: Arc<Service>,
    mut check: ParsedCheck,
    request: CheckRequest,
    decision: Decision,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    if let Some(refusal) = needs_other_call(&decision, &request.costs) {
        return Err(refusal);
    }
    match decision.reason {
        Reason::NeedsRecord => {
            check.costs = request.costs;
            check.features = request.features;
            check.attributes = request.attributes;
            check.purpose = Purpose::Consume { record_usage: true };
            consume_recorded(&service, check, Scope::Levels, started).await
        }
        _ => Ok(told(&service, &check, &request.tenant, &decision, started)),
    }
}

/// A check that is idempotent, recorded or a reservation: runs to its end whatever its caller does.
fn careful(service: &Arc<Service>, check: ParsedCheck, started: Instant) -> Check {
    let key = if check.request_id.is_empty() {
        None
    } else {
        match service.replay.lock().begin(&check, service.hub.real_us()) {
            Err(refusal) => return Check::Now(service.counted(Err(refusal))),
            Ok(Repeat::Admitted(answer)) => return Check::Now(Ok(answer)),
            Ok(Repeat::Joined(receiver)) => {
                let joined =
                    async move { receiver.await.unwrap_or_else(|_| Err(Refusal::internal())) };
                return Check::Later(Box::pin(joined));
            }
            Ok(Repeat::First(key)) => Some(key),
        }
    };
    let service = Arc::clone(service);
    Check::Later(Box::pin(shielded(async move {
        let answer = service.counted(shielded(run(Arc::clone(&service), check, started)).await);
        if let Some(key) = key {
            service
                .replay
                .lock()
                .finish(key, &answer, service.hub.real_us());
        }
        answer
    })))
}

async fn run(
    service: Arc<Service>,
    check: ParsedCheck,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    match check.purpose {
        Purpose::Reserve { ttl_us } => reserve(&service, check, ttl_us, started).await,
        Purpose::Consume { record_usage: true } => {
            consume_recorded(&service, check, Scope::Everything, started).await
        }
        Purpose::Consume {
            record_usage: false,
        }
        | Purpose::Peek => {
            let mut check = check;
            let request = core_request(&mut check, Mode::Consume);
            let decision = decide(&service, &request).await?;
            concluded(service, check, request, decision, started).await
        }
        Purpose::GiveBack => give_back(&service, check, started).await,
    }
}

/// Waits for a decision.
pub(crate) async fn decide(service: &Service, request: &CheckRequest) -> Answer<Decision> {
    match service.hub.begin(request)? {
        Begun::Decided(decision) => Ok(decision),
        Begun::Waiting(wait) => wait.decision().await,
    }
}

/// Moves what the engine needs out of a check; attributes stay behind as well where they are recorded.
pub(crate) fn core_request(check: &mut ParsedCheck, mode: Mode) -> CheckRequest {
    let recorded = !matches!(
        check.purpose,
        Purpose::Consume {
            record_usage: false
        } | Purpose::Peek
    );
    let attributes = if recorded {
        check.attributes.clone()
    } else {
        std::mem::take(&mut check.attributes)
    };
    CheckRequest {
        tenant: Arc::clone(&check.tenant),
        costs: if recorded {
            check.costs.clone()
        } else {
            std::mem::take(&mut check.costs)
        },
        features: std::mem::take(&mut check.features),
        attributes,
        mode,
        all_limits: check.detail == Detail::All,
    }
}

/// Tells a decision and counts it.
pub(crate) fn told(
    service: &Service,
    check: &ParsedCheck,
    tenant: &str,
    decision: &Decision,
    started: Instant,
) -> CheckQuotaResponse {
    let plan = if check.detail == Detail::None {
        None
    } else {
        service.hub.directory.lock().tenant(tenant)
    };
    let plan = plan.as_ref().map_or("", |facts| &facts.plan);
    let mut told = decision::decision(decision, check.detail, Viewer { tenant, plan });
    if check.want_headers {
        told.headers = headers(decision);
    }
    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    service.stats.decided(decision.reason, took_us);
    CheckQuotaResponse {
        decision: Some(told),
        reservation: None,
    }
}
