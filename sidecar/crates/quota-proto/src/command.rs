//! The engine's commands as the control plane carries them.

use std::sync::Arc;

use prost::bytes::Bytes;
use quota_core::{
    AllotAsk, Command, FunctionCall, KeyHash, PoolFault, SourceLeases, UseReport, WindowLeases,
};

use crate::{
    bridge::{Channels, RedisCall, RedisCalls, command::Action},
    decision::signed,
    ledger::{self, watch_limits_request::Message as WatchMessage},
};

/// What kind of answer a command waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerKind {
    /// `AllotResponse`.
    Allot,
    /// `ReturnUnitsResponse`.
    Return,
    /// `ReportConsumptionResponse`.
    Report,
    /// Replies of Redis functions.
    Functions,
    /// Only that it is done.
    Done,
}

/// Encodes a command for the bridge, and says what will come back.
#[must_use]
pub fn action(command: Command) -> (Action, AnswerKind) {
    match command {
        Command::Allot { holder, asks } => {
            let entries = asks.into_iter().map(allot_entry).collect();
            let request = ledger::AllotRequest {
                holder: holder.0.to_vec(),
                entries,
            };
            (Action::Allot(encoded(&request)), AnswerKind::Allot)
        }
        Command::ReturnUnits { holder, entries } => {
            let entry = |(window, generation, returned): (quota_core::WindowId, u64, u64)| {
                ledger::ReturnEntry {
                    window_id: window.0.to_vec(),
                    generation,
                    returned_cum: signed(returned),
                }
            };
            let entries = entries.into_iter().map(entry).collect();
            let request = ledger::ReturnUnitsRequest {
                holder: holder.0.to_vec(),
                entries,
            };
            (Action::ReturnUnits(encoded(&request)), AnswerKind::Return)
        }
        Command::ReportConsumption { holder, entries } => {
            let entry = |entry: UseReport| ledger::ConsumptionEntry {
                window_id: entry.window.0.to_vec(),
                consumed_cum: signed(entry.used.consumed),
                over_cum: signed(entry.used.over),
                given_back_cum: signed(entry.used.given_back),
                lease_epoch: entry.lease_epoch,
                in_flight: signed(entry.in_flight),
            };
            let entries = entries.into_iter().map(entry).collect();
            let request = ledger::ReportConsumptionRequest {
                holder: holder.0.to_vec(),
                entries,
                leases: Vec::new(),
            };
            (
                Action::ReportConsumption(encoded(&request)),
                AnswerKind::Report,
            )
        }
        Command::ReportLeases { holder, entries } => {
            let request = ledger::ReportConsumptionRequest {
                holder: holder.0.to_vec(),
                entries: Vec::new(),
                leases: entries.into_iter().map(window_leases).collect(),
            };
            (
                Action::ReportConsumption(encoded(&request)),
                AnswerKind::Report,
            )
        }
        Command::Redis(calls) => {
            let calls = calls.into_iter().map(redis_call).collect();
            (Action::Redis(RedisCalls { calls }), AnswerKind::Functions)
        }
        Command::Subscribe(names) => (Action::Subscribe(channels(&names)), AnswerKind::Done),
        Command::Unsubscribe(names) => (Action::Unsubscribe(channels(&names)), AnswerKind::Done),
        Command::WatchTenants(tenants) => (watch_add(&tenants), AnswerKind::Done),
    }
}

fn window_leases(leases: WindowLeases) -> ledger::WindowLeases {
    let source = |source: &SourceLeases| ledger::SourceLeases {
        holder: source
            .holder
            .map(|holder| holder.0.to_vec())
            .unwrap_or_default(),
        generation: source.generation,
        units: signed(source.units),
        total: signed(source.total),
    };
    ledger::WindowLeases {
        tenant: leases.tenant.as_ref().to_owned(),
        limit: leases.limit.as_ref().to_owned(),
        key_hash: wire_key(leases.key_hash),
        key_values: leases.key_values.into_iter().map(String::from).collect(),
        window_id: leases.window.0.to_vec(),
        start_us: leases.start_us,
        end_us: leases.end_us,
        timeline: leases.timeline,
        allotted: signed(leases.allotted),
        sources: leases.sources.iter().map(source).collect(),
    }
}

/// Encodes the wish to follow more tenants.
#[must_use]
pub fn watch_add(tenants: &[Arc<str>]) -> Action {
    let tenants = tenants
        .iter()
        .map(|tenant| tenant.as_ref().to_owned())
        .collect();
    watch(WatchMessage::Add(ledger::WatchTenants { tenants }))
}

/// Encodes the first message of a watch stream.
#[must_use]
pub fn watch_hello(hello: ledger::WatchHello) -> Action {
    watch(WatchMessage::Hello(hello))
}

/// Encodes which clock setting is in force here.
#[must_use]
pub fn watch_clock_applied(version: u64) -> Action {
    watch(WatchMessage::ClockApplied(version))
}

/// Encodes which outcomes of this home's reservations were taken in.
#[must_use]
pub fn watch_acknowledge(reservation_ids: Vec<Vec<u8>>) -> Action {
    watch(WatchMessage::Acknowledge(ledger::AcknowledgeSettlements {
        reservation_ids,
    }))
}

/// Encodes that an operator's order was carried out, and how many keys it touched.
#[must_use]
pub fn watch_cache_done(order_id: Vec<u8>, keys: usize) -> Action {
    let keys = u64::try_from(keys).unwrap_or(u64::MAX);
    watch(WatchMessage::CacheDone(ledger::CacheOrderDone {
        order_id,
        keys,
    }))
}

fn watch(message: WatchMessage) -> Action {
    Action::Watch(encoded(&ledger::WatchLimitsRequest {
        message: Some(message),
    }))
}

fn encoded(message: &impl prost::Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn channels(names: &[Arc<str>]) -> Channels {
    Channels {
        channels: names.iter().map(|name| name.as_ref().to_owned()).collect(),
    }
}

fn redis_call(call: FunctionCall) -> RedisCall {
    RedisCall {
        function: call.function.to_owned(),
        keys: call
            .keys
            .iter()
            .map(|key| key.as_ref().to_owned())
            .collect(),
        arguments: call.arguments,
    }
}

/// The key as it is sent: empty where nothing splits the limit.
fn wire_key(key: KeyHash) -> Vec<u8> {
    if key == KeyHash::default() {
        Vec::new()
    } else {
        key.0.to_vec()
    }
}

fn allot_entry(ask: AllotAsk) -> ledger::AllotEntry {
    ledger::AllotEntry {
        tenant: ask.tenant.as_ref().to_owned(),
        limit: ask.limit.as_ref().to_owned(),
        key_hash: wire_key(ask.key_hash),
        key_values: ask.key_values.into_iter().map(String::from).collect(),
        at_us: ask.at_us,
        request_seq: ask.request_seq,
        need: signed(ask.need),
        want: signed(ask.want),
        generation_seen: ask.generation_seen,
        allotted_cum_seen: signed(ask.allotted_cum_seen),
        pool_error: ask
            .fault
            .map_or(ledger::PoolError::Unspecified, pool_error)
            .into(),
        ledger_only: ask.ledger_only,
    }
}

const fn pool_error(fault: PoolFault) -> ledger::PoolError {
    match fault {
        PoolFault::NoPool => ledger::PoolError::NoPool,
        PoolFault::Fence => ledger::PoolError::Fence,
        PoolFault::Generation => ledger::PoolError::Generation,
        PoolFault::Closed => ledger::PoolError::Closed,
        PoolFault::Rollback => ledger::PoolError::Rollback,
        PoolFault::Seq => ledger::PoolError::Seq,
        PoolFault::ReturnRange => ledger::PoolError::ReturnRange,
        PoolFault::Unreachable => ledger::PoolError::Unreachable,
    }
}
