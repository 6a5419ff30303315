//! News of the watch stream.

use std::sync::Arc;

use prost::Message as _;
use quota_core::{Event, Meter, TenantSnapshot, WindowId};

use crate::{
    ledger::{
        self, CacheOrder, ClockState, Heartbeat, Settlement, WatchWelcome, Witness,
        watch_limits_response::Message,
    },
    limits::{MessageError, key_hash, meter, sixteen, snapshot, units},
};

/// One message of the watch stream, parsed.
#[derive(Clone, PartialEq, Debug)]
pub enum WatchNews {
    /// The ledger introduced itself.
    Welcome(WatchWelcome),
    /// All meters, with the attributes of each that must not be stored as they are.
    Meters(Vec<Meter>, Vec<Vec<String>>),
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
                let hidden = list
                    .meters
                    .iter()
                    .map(|meter| meter.pseudonymised.clone())
                    .collect();
                WatchNews::Meters(list.meters.into_iter().map(meter).collect(), hidden)
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
            Message::Confirmed(_) => WatchNews::Nothing,
        },
    )
}
