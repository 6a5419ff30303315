//! What records change of levels.

use prost::bytes::Bytes;
use quota_core::{Cost, Hold, HoldKind, Holder, KeyHash, LevelChange, Reservation, rise};
use quota_proto::{
    bridge::LoggedLevel,
    decision::signed,
    ledger::{ReservationToken, TokenHold},
    quota::LimitKind,
};

use crate::records::{Levels, key_bytes};

/// What the end of a reservation of this process makes levels rise by.
pub(crate) fn rises(reservation: &Reservation, actual: &[Cost]) -> Levels {
    let changes = reservation.holds.iter().filter_map(|hold| {
        let reserved = units_of(&reservation.costs, &hold.meter);
        rise(hold, reserved, units_of(actual, &hold.meter))
    });
    levels(reservation.holder, changes)
}

/// What the end of any reservation makes levels rise by, as its token says.
pub(crate) fn rises_of_token(token: &ReservationToken, actual: &[Cost]) -> Levels {
    let Ok(holder) = <[u8; 16]>::try_from(token.holder.as_slice()).map(Holder) else {
        return Levels::default();
    };
    let changes = token.holds.iter().filter_map(|hold| {
        let reserved = token
            .costs
            .iter()
            .find(|cost| cost.meter == hold.meter)
            .map_or(0, |cost| u64::try_from(cost.units).unwrap_or(0));
        rise(&level_hold(hold)?, reserved, units_of(actual, &hold.meter))
    });
    levels(holder, changes)
}

/// What falls.
pub(crate) fn falls(changes: &[LevelChange]) -> Levels {
    levels(Holder([0; 16]), changes.iter().cloned())
}

/// The costs whose meters a level counts.
pub(crate) fn counted(costs: &[Cost], levels: impl Fn(&str) -> bool) -> Vec<Cost> {
    costs
        .iter()
        .filter(|cost| cost.units > 0 && levels(&cost.meter))
        .cloned()
        .collect()
}

fn level_hold(hold: &TokenHold) -> Option<Hold> {
    if hold.kind != i32::from(LimitKind::Level) {
        return None;
    }
    let key_hash = if hold.key_hash.is_empty() {
        KeyHash::default()
    } else {
        KeyHash(hold.key_hash.as_slice().try_into().ok()?)
    };
    Some(Hold {
        tenant: hold.tenant.as_str().into(),
        limit: hold.limit.as_str().into(),
        meter: hold.meter.as_str().into(),
        key_hash,
        window: None,
        window_end_us: 0,
        units: u64::try_from(hold.units).unwrap_or(0),
        kind: HoldKind::Level,
    })
}

fn units_of(costs: &[Cost], meter: &str) -> u64 {
    costs
        .iter()
        .find(|cost| *cost.meter == *meter)
        .map_or(0, |cost| cost.units)
}

fn levels(holder: Holder, changes: impl Iterator<Item = LevelChange>) -> Levels {
    let changes: Vec<_> = changes
        .map(|change| LoggedLevel {
            tenant: change.tenant.as_ref().to_owned(),
            limit: change.limit.as_ref().to_owned(),
            key_hash: Bytes::from(key_bytes(change.key_hash)),
            units: signed(change.units),
            over: signed(change.over),
        })
        .collect();
    if changes.is_empty() {
        return Levels::default();
    }
    Levels {
        holder: Bytes::copy_from_slice(&holder.0),
        changes,
    }
}
