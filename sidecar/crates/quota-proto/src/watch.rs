//! News of the watch stream.

use std::sync::Arc;

use prost::Message as _;
use quota_core::{Event, Meter, TenantSnapshot, WindowId};

use crate::{
    ledger::{
        self, CacheOrder, ClockState, Heartbeat, MeterInfo, PseudonymKey, Settlement, WatchWelcome,
        Witness, watch_limits_response::Message,
    },
    limits::{MessageError, key_hash, meter, sixteen, snapshot, units},
};

/// How long before its receive time an event may lie at most, µs.
pub const LATE_MAX_US: i64 = 35 * 86_400_000_000;
/// How long after its receive time an event may lie at most, µs.
pub const EARLY_MAX_US: i64 = 300_000_000;

/// What holds for records of one meter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordRules {
    /// Attributes that are stored under pseudonyms only.
    pub hidden: Vec<String>,
    /// How long before its receive time an event may lie, µs.
    pub late_us: i64,
    /// How long after it, µs.
    pub early_us: i64,
}

impl RecordRules {
    /// Reads them; what a ledger of an older version does not say, or says beyond the bounds, is the bound.
    fn of(meter: &MeterInfo) -> Self {
        let within = |told_s: Option<i64>, most_us: i64| {
            told_s.map_or(most_us, |told_s| {
                told_s.saturating_mul(1_000_000).clamp(0, most_us)
            })
        };
        Self {
            hidden: meter.pseudonymised.clone(),
            late_us: within(meter.late_max_s, LATE_MAX_US),
            early_us: within(meter.early_max_s, EARLY_MAX_US),
        }
    }
}

/// One message of the watch stream, parsed.
#[derive(Clone, PartialEq, Debug)]
pub enum WatchNews {
    /// The ledger introduced itself.
    Welcome(WatchWelcome),
    /// All meters, with what holds for records of each.
    Meters(Vec<Meter>, Vec<RecordRules>),
    /// A tenant, new or changed.
    Tenant(TenantSnapshot),
    /// No such tenant.
    Unknown(Arc<str>),
    /// For the engine as it is: units notice or recall.
    Engine(Event),
    /// The clock was set.
    Clock(ClockState),
    /// The connection is alive.
    Heartbeat(Heartbeat),
    /// What Postgres had committed.
    Witness(Witness),
    /// How reservations of this home ended elsewhere.
    Settlements(Vec<Settlement>),
    /// What an operator wants done with what is leased.
    CacheOrder(CacheOrder),
    /// Keys of tenants' pseudonyms.
    PseudonymKeys(Vec<PseudonymKey>),
    /// Nothing to do here: confirmed tenants.
    Nothing,
}

/// Decodes and parses one message.
///
/// # Errors
/// Undecodable, or with a field that this version does not take; the stream goes on.
pub fn news(bytes: &[u8]) -> Result<WatchNews, MessageError> {
    let message = ledger::WatchLimitsResponse::decode(bytes)
        .map_err(|_| MessageError::Undecodable("watch"))?;
    Ok(
        match message
            .message
            .ok_or(MessageError::Missing("watch.message"))?
        {
            Message::Welcome(welcome) => WatchNews::Welcome(welcome),
            Message::Meters(list) => {
                let rules = list.meters.iter().map(RecordRules::of).collect();
                WatchNews::Meters(list.meters.into_iter().map(meter).collect(), rules)
            }
            Message::Tenant(tenant) => WatchNews::Tenant(snapshot(tenant)?),
            Message::Unknown(unknown) => WatchNews::Unknown(unknown.tenant.into()),
            Message::Units(notice) => WatchNews::Engine(Event::UnitsNotice {
                tenant: notice.tenant.into(),
                limit: notice.limit.into(),
                key_hash: key_hash(&notice.key_hash)?,
            }),
            Message::Recall(recall) => WatchNews::Engine(Event::Recall {
                tenant: recall.tenant.into(),
                limit: recall.limit.into(),
                key_hash: if recall.key_hash.is_empty() {
                    None
                } else {
                    Some(key_hash(&recall.key_hash)?)
                },
                units: units("recall.units", recall.units)?,
            }),
            Message::Replaced(replaced) => WatchNews::Engine(Event::Replaced {
                tenant: replaced.tenant.into(),
                limit: replaced.limit.into(),
                key_hash: key_hash(&replaced.key_hash)?,
                window: WindowId(sixteen("replaced.window_id", &replaced.window_id)?),
            }),
            Message::Clock(clock) => WatchNews::Clock(clock),
            Message::Heartbeat(heartbeat) => WatchNews::Heartbeat(heartbeat),
            Message::Witness(witness) => WatchNews::Witness(witness),
            Message::Settlements(list) => WatchNews::Settlements(list.settlements),
            Message::CacheOrder(order) => WatchNews::CacheOrder(order),
            Message::PseudonymKeys(list) => WatchNews::PseudonymKeys(list.keys),
            Message::Confirmed(_) => WatchNews::Nothing,
        },
    )
}
