//! Usage records and reservations as the log stores them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::{Message as _, bytes::Bytes};
use quota_core::{Cost, Hold, HoldKind, Holder, KeyHash, Reservation, ReservationId, WindowId};
use quota_proto::{
    Attributes,
    bridge::{
        LoggedAttribute, LoggedHold, LoggedLevel, LoggedQuantity, LoggedReservation, LoggedUsage,
    },
    decision::signed,
    ledger::{ReservationToken, TokenAttribute, TokenCost, TokenHold},
    quota::LimitKind,
};
use sha2::{Digest as _, Sha256};

use crate::{ids::hex, reservations::Opened};

/// Longest `request_id` that stands in a record's id as it is; ids have 128 bytes at most.
const REQUEST_ID_BYTES_MAX: usize = 120;

/// What a usage record is made of.
pub(crate) struct Draft<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) id: String,
    pub(crate) event_time_us: i64,
    pub(crate) received_us: i64,
    pub(crate) quantities: &'a [Cost],
    pub(crate) attributes: &'a Attributes,
    pub(crate) flags: u32,
    pub(crate) ends: Option<ReservationId>,
    /// The producer whose log holds that reservation, where it is another than this one.
    pub(crate) home: Option<[u8; 16]>,
    /// What it changes of levels.
    pub(crate) levels: Levels,
}

/// What a record changes of levels, and whose leases a rise came from.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Levels {
    pub(crate) holder: Bytes,
    pub(crate) changes: Vec<LoggedLevel>,
}

/// Makes a record in the order in which it is hashed: quantities by meter, attributes by name.
pub(crate) fn usage(draft: Draft<'_>) -> LoggedUsage {
    let mut quantities = logged_quantities(draft.quantities);
    quantities.sort_unstable_by(|left, right| left.meter.cmp(&right.meter));
    LoggedUsage {
        tenant: draft.tenant.to_owned(),
        id: draft.id,
        event_time_us: draft.event_time_us,
        received_us: draft.received_us,
        quantities,
        attributes: logged_attributes(draft.attributes),
        flags: draft.flags,
        reservation_id: draft
            .ends
            .map(|id| Bytes::copy_from_slice(&id.0))
            .unwrap_or_default(),
        home: draft
            .home
            .map(|home| Bytes::copy_from_slice(&home))
            .unwrap_or_default(),
        holder: draft.levels.holder,
        levels: draft.levels.changes,
    }
}

/// Gives the id of the record that ends a reservation.
pub(crate) fn reservation_record_id(id: ReservationId) -> String {
    format!("r/{}", hex(&id.0))
}

/// Gives the id of the record that a check with a `request_id` writes.
///
/// A long `request_id` stands there as its digest, so that the whole stays within an id's length.
pub(crate) fn check_record_id(request_id: &str) -> String {
    if request_id.len() <= REQUEST_ID_BYTES_MAX {
        format!("c/{request_id}/0")
    } else {
        format!(
            "c/~{}/0",
            URL_SAFE_NO_PAD.encode(Sha256::digest(request_id.as_bytes()))
        )
    }
}

/// Gives the id of the record that a `GIVE_BACK` with a `request_id` writes for levels.
pub(crate) fn fall_record_id(request_id: &str) -> String {
    format!("g{}", &check_record_id(request_id)[1..])
}

/// Encodes an open reservation for the log.
pub(crate) fn logged_reservation(
    reservation: &Reservation,
    attributes: &Attributes,
    request_id: &str,
    opened_us: i64,
) -> Vec<u8> {
    let hold = |hold: &Hold| LoggedHold {
        tenant: hold.tenant.as_ref().to_owned(),
        limit: hold.limit.as_ref().to_owned(),
        key_hash: Bytes::copy_from_slice(&hold.key_hash.0),
        window_id: hold
            .window
            .map(|window| Bytes::copy_from_slice(&window.0))
            .unwrap_or_default(),
        units: signed(hold.units),
        window_end_us: hold.window_end_us,
        meter: hold.meter.as_ref().to_owned(),
        kind: hold_kind(hold.kind).into(),
    };
    let logged = LoggedReservation {
        reservation_id: Bytes::copy_from_slice(&reservation.id.0),
        tenant: reservation.tenant.as_ref().to_owned(),
        expires_us: reservation.expires_us,
        request_id: request_id.to_owned(),
        costs: logged_quantities(&reservation.costs),
        attributes: logged_attributes(attributes),
        holds: reservation.holds.iter().map(hold).collect(),
        holder: Bytes::copy_from_slice(&reservation.holder.0),
        opened_us,
    };
    logged.encode_to_vec()
}

/// Reads an open reservation from the log; `None` where the payload is none.
pub(crate) fn read_reservation(payload: &[u8]) -> Option<(Reservation, Opened)> {
    let logged = LoggedReservation::decode(payload).ok()?;
    let costs = logged
        .costs
        .iter()
        .map(read_cost)
        .collect::<Option<Vec<_>>>()?;
    let attributes = logged
        .attributes
        .into_iter()
        .map(|pair| (pair.name.into(), pair.value.into()))
        .collect();
    let opened = Opened {
        costs: costs.clone(),
        attributes,
        expires_us: logged.expires_us,
    };
    let reservation = Reservation {
        id: ReservationId(sixteen(&logged.reservation_id)?),
        tenant: logged.tenant.into(),
        costs,
        holds: logged
            .holds
            .into_iter()
            .map(read_hold)
            .collect::<Option<_>>()?,
        expires_us: logged.expires_us,
        holder: Holder(sixteen(&logged.holder)?),
    };
    Some((reservation, opened))
}

/// Says what a token is to say.
pub(crate) fn token(
    reservation: &Reservation,
    attributes: &Attributes,
    home: [u8; 16],
    sequence: u64,
) -> ReservationToken {
    let hold = |hold: &Hold| TokenHold {
        tenant: hold.tenant.as_ref().to_owned(),
        limit: hold.limit.as_ref().to_owned(),
        window_id: hold
            .window
            .map(|window| window.0.to_vec())
            .unwrap_or_default(),
        units: signed(hold.units),
        key_hash: key_bytes(hold.key_hash),
        meter: hold.meter.as_ref().to_owned(),
        kind: hold_kind(hold.kind).into(),
    };
    let cost = |cost: &Cost| TokenCost {
        meter: cost.meter.as_ref().to_owned(),
        units: signed(cost.units),
    };
    ReservationToken {
        reservation_id: reservation.id.0.to_vec(),
        tenant: reservation.tenant.as_ref().to_owned(),
        home: home.to_vec(),
        sequence,
        expires_us: reservation.expires_us,
        holds: reservation.holds.iter().map(hold).collect(),
        costs: reservation.costs.iter().map(cost).collect(),
        attributes: attributes
            .iter()
            .map(|(name, value)| TokenAttribute {
                name: name.to_string(),
                value: value.to_string(),
            })
            .collect(),
        holder: reservation.holder.0.to_vec(),
    }
}

/// Reads what a token says was reserved; units below 0 (nobody signs any) count as none.
pub(crate) fn token_costs(token: &ReservationToken) -> Vec<Cost> {
    let cost = |cost: &TokenCost| Cost {
        meter: cost.meter.as_str().into(),
        units: u64::try_from(cost.units).unwrap_or(0),
    };
    token.costs.iter().map(cost).collect()
}

/// Reads the attributes that the reservation's record carries.
pub(crate) fn token_attributes(token: &ReservationToken) -> Attributes {
    token
        .attributes
        .iter()
        .map(|pair| (pair.name.as_str().into(), pair.value.as_str().into()))
        .collect()
}

fn logged_quantities(costs: &[Cost]) -> Vec<LoggedQuantity> {
    costs
        .iter()
        .map(|cost| LoggedQuantity {
            meter: cost.meter.as_ref().to_owned(),
            units: signed(cost.units),
        })
        .collect()
}

fn logged_attributes(attributes: &Attributes) -> Vec<LoggedAttribute> {
    attributes
        .iter()
        .map(|(name, value)| LoggedAttribute {
            name: name.to_string(),
            value: value.to_string(),
        })
        .collect()
}

fn read_cost(from: &LoggedQuantity) -> Option<Cost> {
    Some(Cost {
        meter: from.meter.as_str().into(),
        units: u64::try_from(from.units).ok()?,
    })
}

/// The limit kind that stands for a hold's kind in logs and tokens.
const fn hold_kind(kind: HoldKind) -> LimitKind {
    match kind {
        HoldKind::Tokens => LimitKind::TokenBucket,
        HoldKind::Window => LimitKind::Window,
        HoldKind::Level => LimitKind::Level,
        HoldKind::Flight { .. } => LimitKind::Concurrency,
    }
}

/// Reads a hold's kind; the lease of units in flight is not kept: it ended with its process.
fn read_kind(kind: i32, is_bare: bool) -> HoldKind {
    match LimitKind::try_from(kind) {
        Ok(LimitKind::Level) => HoldKind::Level,
        Ok(LimitKind::Concurrency) => HoldKind::Flight {
            lease_epoch: 0,
            over: 0,
        },
        _ if is_bare => HoldKind::Tokens,
        _ => HoldKind::Window,
    }
}

/// A key as the contract has it: empty where nothing splits the limit.
pub(crate) fn key_bytes(key: KeyHash) -> Vec<u8> {
    if key == KeyHash::default() {
        Vec::new()
    } else {
        key.0.to_vec()
    }
}

fn read_hold(from: LoggedHold) -> Option<Hold> {
    Some(Hold {
        tenant: from.tenant.into(),
        limit: from.limit.into(),
        meter: from.meter.into(),
        key_hash: KeyHash(sixteen(&from.key_hash)?),
        window: if from.window_id.is_empty() {
            None
        } else {
            Some(WindowId(sixteen(&from.window_id)?))
        },
        window_end_us: from.window_end_us,
        units: u64::try_from(from.units).ok()?,
        kind: read_kind(from.kind, from.window_id.is_empty()),
    })
}

fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reservation comes back from the log as it went in.
    #[test]
    fn reservations_survive_the_log() {
        let hold = |window, kind| Hold {
            tenant: "t".into(),
            limit: "l".into(),
            meter: "m".into(),
            key_hash: KeyHash([4; 16]),
            window,
            window_end_us: 7,
            units: 3,
            kind,
        };
        let reservation = Reservation {
            id: ReservationId([1; 16]),
            tenant: "t".into(),
            costs: vec![Cost {
                meter: "m".into(),
                units: 3,
            }],
            holds: vec![
                hold(Some(WindowId([2; 16])), HoldKind::Window),
                hold(Some(WindowId([2; 16])), HoldKind::Level),
                hold(None, HoldKind::Tokens),
            ],
            expires_us: 9,
            holder: Holder([3; 16]),
        };
        let attributes: Attributes = vec![("a".into(), "b".into())];
        let payload = logged_reservation(&reservation, &attributes, "q", 5);
        let opened = Opened {
            costs: reservation.costs.clone(),
            attributes,
            expires_us: 9,
        };
        assert_eq!(Some((reservation, opened)), read_reservation(&payload));
        assert_eq!(None, read_reservation(&[0xff]));
    }

    /// Ids of records that checks write fit into an id, for the longest `request_id` too, and stay distinct.
    #[test]
    fn check_record_ids_fit() {
        assert_eq!("c/q/0", check_record_id("q"));
        let longest = check_record_id(&"x".repeat(128));
        assert!(longest.len() <= 128);
        assert_ne!(longest, check_record_id(&"y".repeat(128)));
    }
}
