//! Refusals as gRPC statuses.

use std::{collections::HashMap, time::Duration};

use quota_proto::quota::ErrorReason;
use tonic::{Code, Status, codegen::http};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{refusal::Refusal, transport::limits};

const DOMAIN: &str = "tollkeeper";
const DETAILS: &str = "grpc-status-details-bin";
const STATUS: &str = "grpc-status";

/// Tells a refusal with its `ErrorInfo`, and `RetryInfo` where a retry helps.
pub(super) fn status(refusal: Refusal) -> Status {
    let code = Code::from_i32(refusal.code());
    let reason = refusal.reason_name();
    let metadata: HashMap<String, String> = refusal
        .metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let Some(ms) = refusal.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(u64::from(ms))));
    }
    Status::with_error_details(code, refusal.message, details)
}

/// Gives the refusal that a status of the library stands for; `None` where the peer just went away.
pub(super) fn refusal_of(found: &Status) -> Option<Refusal> {
    match found.code() {
        Code::OutOfRange | Code::ResourceExhausted => Some(too_long()),
        Code::Internal | Code::InvalidArgument => Some(Refusal::undecodable(
            "it is cut short, badly framed or not of its type",
        )),
        _ => None,
    }
}

/// Replaces an untyped error of the library in a response that failed before its handler ran.
pub(super) fn typed_response<B>(response: http::Response<B>) -> Result<http::Response<B>, Status> {
    let headers = response.headers();
    let Some(code) = headers.get(STATUS) else {
        return Ok(response);
    };
    if code == "0" || headers.contains_key(DETAILS) {
        return Ok(response);
    }
    match refusal_of(&Status::new(Code::from_bytes(code.as_bytes()), "")) {
        Some(refusal) => Err(status(refusal)),
        None => Ok(response),
    }
}

fn too_long() -> Refusal {
    Refusal::new(
        ErrorReason::FieldTooLong,
        format!(
            "the message is longer than {} bytes; send less at once",
            limits::MESSAGE_BYTES
        ),
    )
    .with("field", "message")
    .with(
        "bound",
        format_args!("at most {} bytes", limits::MESSAGE_BYTES),
    )
    .with("remedy", "send less at once")
}
