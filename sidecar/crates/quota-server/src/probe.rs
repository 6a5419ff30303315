//! Measures checks as a native caller meets them: unary calls at a steady pace. For full streams see `load`.
#![allow(clippy::arithmetic_side_effects)] // a measuring client with small numbers, not the request path

use std::time::{Duration, Instant};

use quota_proto::quota::{CheckMode, CheckQuotaRequest, CheckQuotaResponse, Cost, Detail};
use serde::Serialize;
use thiserror::Error;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::calls::micros;

const METHOD: PathAndQuery =
    PathAndQuery::from_static("/tollkeeper.quota.v1.QuotaService/CheckQuota");
const WARM_UP_CALLS: u32 = 200;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A sleep wakes up late; the rest is spun away.
const SPIN: Duration = Duration::from_micros(100);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Pace<'a> {
    /// `unix:PATH` or `host:port`.
    pub target: &'a str,
    /// Tenant to check; its usage is not recorded.
    pub tenant: &'a str,
    /// Meter to check one unit of.
    pub meter: &'a str,
    /// Checks in all.
    pub checks: u32,
    /// Checks a second, ≥ 1.
    pub rate: u32,
}

/// Latencies of checks at a steady pace, in microseconds, counted from when each was due.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Paced {
    /// Checks made.
    pub checks: u32,
    /// Checks that were denied.
    pub denied: u32,
    /// Half were answered within this.
    pub p50_us: u64,
    /// 99 % were answered within this.
    pub p99_us: u64,
    /// All were answered within this.
    pub max_us: u64,
    /// Checks that were sent after the next one was due.
    pub late: u32,
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The target is no address, or nobody listens there.
    #[error("can't reach {0}: {1}")]
    Connect(String, tonic::transport::Error),
    /// A check failed.
    #[error("a check failed: {0}")]
    Check(#[from] Status),
    /// What to call is not told right.
    #[error("no calls: {0}")]
    Calls(String),
    /// The plan is not one.
    #[error("no plan: {0}")]
    Plan(serde_json::Error),
    /// The result has no JSON form.
    #[error("no result: {0}")]
    Encode(#[from] serde_json::Error),
    /// There is no runtime to run on.
    #[error("no runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Sends unary checks at a fixed rate from this thread and measures each from the moment it was due: a slow answer makes
/// the following ones late, and their wait counts.
///
/// # Errors
/// Where the target can't be reached or a check fails.
pub fn measure(pace: Pace<'_>) -> Result<Paced, ProbeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut grpc = runtime.block_on(connect(pace.target))?;
    for _ in 0..WARM_UP_CALLS {
        runtime.block_on(check(&mut grpc, pace))?;
    }
    let mut taken_us = Vec::with_capacity(pace.checks as usize);
    let (mut denied, mut late) = (0, 0);
    let between = Duration::from_secs(1) / pace.rate.max(1);
    let started = Instant::now();
    for number in 0..pace.checks {
        let due = started + between * number;
        wait_until(due);
        late += u32::from(due.elapsed() > between);
        denied += u32::from(!runtime.block_on(check(&mut grpc, pace))?);
        taken_us.push(micros(due.elapsed()));
    }
    taken_us.sort_unstable();
    Ok(Paced {
        checks: pace.checks,
        denied,
        p50_us: percentile(&taken_us, 50),
        p99_us: percentile(&taken_us, 99),
        max_us: percentile(&taken_us, 100),
        late,
    })
}

/// Gives a result as a JSON object.
///
/// # Errors
/// Where it has no such form.
pub fn to_json(result: &impl Serialize) -> Result<String, ProbeError> {
    Ok(serde_json::to_string(result)?)
}

fn request(pace: Pace<'_>) -> CheckQuotaRequest {
    CheckQuotaRequest {
        tenant: pace.tenant.to_owned(),
        costs: vec![Cost {
            meter: pace.meter.to_owned(),
            units: 1,
        }],
        mode: CheckMode::Consume.into(),
        detail: Detail::None.into(),
        ..CheckQuotaRequest::default()
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

/// Reads `unix:PATH` or `host:port`.
pub(crate) fn endpoint(target: &str) -> Result<Endpoint, ProbeError> {
    let uri = if target.starts_with("unix:") {
        target.to_owned()
    } else {
        format!("http://{target}")
    };
    Endpoint::from_shared(uri).map_err(|error| ProbeError::Connect(target.to_owned(), error))
}

async fn connect(target: &str) -> Result<Grpc<Channel>, ProbeError> {
    let endpoint = endpoint(target)?.timeout(CALL_TIMEOUT);
    let failed = |error| ProbeError::Connect(target.to_owned(), error);
    Ok(Grpc::new(endpoint.connect().await.map_err(failed)?))
}

/// Checks one unit; answers whether it was allowed.
async fn check(grpc: &mut Grpc<Channel>, pace: Pace<'_>) -> Result<bool, Status> {
    ready(grpc).await?;
    let codec = ProstCodec::<CheckQuotaRequest, CheckQuotaResponse>::default();
    let answer = grpc
        .unary(Request::new(request(pace)), METHOD, codec)
        .await?
        .into_inner();
    Ok(answer.decision.is_some_and(|decision| decision.allowed))
}

fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > SPIN {
            std::thread::sleep(left.saturating_sub(SPIN));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// The smallest value that at least so many percent of the sorted values don't exceed; 0 where there are none.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = sorted
        .len()
        .saturating_mul(percent)
        .div_ceil(100)
        .saturating_sub(1);
    sorted.get(rank).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    /// A percentile is a value that was measured, and the highest for 100.
    #[test]
    fn percentiles_are_measured_values() {
        let sorted: Vec<u64> = (1..=200).collect();
        assert_eq!(
            (100, 198, 200),
            (
                percentile(&sorted, 50),
                percentile(&sorted, 99),
                percentile(&sorted, 100)
            )
        );
        assert_eq!((7, 0), (percentile(&[7], 99), percentile(&[], 99)));
    }
}
