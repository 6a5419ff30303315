//! Answers to commands as events of the engine.

use prost::Message;
use quota_core::{
    AllotAnswer, CommandFailure, CommandId, Event, FailureKind, FunctionReply, Units, WindowUse,
};

use crate::{
    bridge::{self, answer::Result as Outcome},
    command::AnswerKind,
    ledger::{self, allot_answer::Result as AllotResult},
    limits::{MessageError, amount, units, window},
};

/// Parses the answer to command `id`. One that can't be understood is a failure of unknown outcome.
#[must_use]
pub fn event(id: CommandId, kind: AnswerKind, outcome: Option<Outcome>) -> Event {
    match kind {
        AnswerKind::Allot => {
            Event::Allotted(id, ledger_answer(outcome, |from| Ok(allot_answers(from))))
        }
        AnswerKind::Return => Event::Returned(id, ledger_answer(outcome, returned)),
        AnswerKind::Report => Event::Reported(id, ledger_answer(outcome, uses)),
        AnswerKind::Functions => Event::Functions(id, functions(outcome)),
        AnswerKind::Done => Event::Done(id, done(outcome)),
    }
}

/// What `AllotResponse` says beside its answers.
#[derive(Clone, PartialEq, Message)]
struct AllotExtra {
    #[prost(message, optional, tag = "2")]
    witness: Option<ledger::Witness>,
}

/// Gives the witness that came with an answer to `Allot`, where there is one.
#[must_use]
pub fn witness(kind: AnswerKind, outcome: Option<&Outcome>) -> Option<ledger::Witness> {
    match (kind, outcome) {
        (AnswerKind::Allot, Some(Outcome::Ledger(bytes))) => {
            AllotExtra::decode(bytes.clone()).ok()?.witness
        }
        _ => None,
    }
}

/// Parses a failure.
#[must_use]
pub fn failure(from: bridge::Failure) -> CommandFailure {
    let kind = match bridge::FailureKind::try_from(from.kind) {
        Ok(bridge::FailureKind::Unspecified | bridge::FailureKind::Unreachable) => {
            FailureKind::Unreachable
        }
        Ok(bridge::FailureKind::Refused) => FailureKind::Refused,
        Ok(bridge::FailureKind::Deadline) | Err(_) => FailureKind::Deadline,
    };
    CommandFailure {
        kind,
        reason: from.reason.into_boxed_str(),
    }
}

/// An answer of which nobody can tell what was done.
fn unclear() -> CommandFailure {
    CommandFailure {
        kind: FailureKind::Deadline,
        reason: "ANSWER_MALFORMED".into(),
    }
}

fn ledger_answer<M: Message + Default, T>(
    outcome: Option<Outcome>,
    parse: impl FnOnce(M) -> Result<T, MessageError>,
) -> Result<T, CommandFailure> {
    match outcome {
        Some(Outcome::Ledger(bytes)) => M::decode(bytes)
            .map_err(|_| unclear())
            .and_then(|message| parse(message).map_err(|_| unclear())),
        Some(Outcome::Failure(from)) => Err(failure(from)),
        _ => Err(unclear()),
    }
}

fn functions(outcome: Option<Outcome>) -> Result<Vec<FunctionReply>, CommandFailure> {
    match outcome {
        Some(Outcome::Redis(replies)) => {
            Ok(replies.replies.into_iter().map(function_reply).collect())
        }
        Some(Outcome::Failure(from)) => Err(failure(from)),
        _ => Err(unclear()),
    }
}

fn function_reply(from: bridge::RedisReply) -> FunctionReply {
    if from.error.is_empty() {
        FunctionReply::Elements(
            from.elements
                .into_iter()
                .map(String::into_boxed_str)
                .collect(),
        )
    } else {
        FunctionReply::Error(from.error.into_boxed_str())
    }
}

fn done(outcome: Option<Outcome>) -> Result<(), CommandFailure> {
    match outcome {
        Some(Outcome::Done(_)) => Ok(()),
        Some(Outcome::Failure(from)) => Err(failure(from)),
        _ => Err(unclear()),
    }
}

fn returned(from: ledger::ReturnUnitsResponse) -> Result<Vec<Units>, MessageError> {
    from.returned_cum
        .into_iter()
        .map(|value| units("returned_cum", value))
        .collect()
}

fn uses(from: ledger::ReportConsumptionResponse) -> Result<Vec<WindowUse>, MessageError> {
    from.uses.into_iter().map(window_use).collect()
}

fn window_use(from: ledger::WindowUse) -> Result<WindowUse, MessageError> {
    Ok(WindowUse {
        consumed: units("use.consumed", from.consumed)?,
        over: units("use.over", from.over)?,
        allotted: units("use.allotted", from.allotted)?,
        amount: amount("use.amount", from.amount)?,
        as_of_us: from.as_of_us,
        lease_epoch: from.lease_epoch,
    })
}

fn allot_answers(from: ledger::AllotResponse) -> Vec<AllotAnswer> {
    from.answers
        .into_iter()
        .map(|answer| allot_answer(answer).unwrap_or_else(|_| malformed()))
        .collect()
}

/// One bad entry must not spoil its neighbours: it counts as refused, and what it may have given is never used.
fn malformed() -> AllotAnswer {
    AllotAnswer::Refused {
        reason: "ANSWER_MALFORMED".into(),
        last_request_seq: 0,
    }
}

fn allot_answer(from: ledger::AllotAnswer) -> Result<AllotAnswer, MessageError> {
    match from.result.ok_or(MessageError::Missing("allot.result"))? {
        AllotResult::Lease(lease) => Ok(AllotAnswer::Lease {
            window: window(from.window)?,
            give: units("lease.give", lease.give)?,
            granted_cum: units("lease.granted_cum", lease.granted_cum)?,
            lease_epoch: lease.lease_epoch,
            valid_for_us: u64::from(lease.valid_for_ms).saturating_mul(1_000),
        }),
        AllotResult::Pool(pool) => Ok(AllotAnswer::Pool {
            window: window(from.window)?,
            generation: pool.generation,
            allotted_cum: units("pool.allotted_cum", pool.allotted_cum)?,
            last: pool.r#final,
            pool_key: pool.pool_key.into(),
            holders_key: pool.holders_key.into(),
            channel: pool.channel.into(),
            values_key: pool.values_key.into(),
        }),
        AllotResult::Denied(denied) => Ok(AllotAnswer::Denied {
            window: window(from.window)?,
            left: units("denied.left", denied.left)?,
        }),
        AllotResult::Bucket(bucket) => Ok(AllotAnswer::Bucket {
            generation: bucket.generation,
            marker_key: bucket.marker_key.into(),
            bucket_prefix: bucket.bucket_prefix.into(),
            channel: bucket.channel.into(),
        }),
        AllotResult::Refused(refused) => Ok(AllotAnswer::Refused {
            reason: refused.reason.into_boxed_str(),
            last_request_seq: refused.last_request_seq,
        }),
    }
}
