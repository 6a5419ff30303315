//! Marks in the usage log: which units of a dead process the next one on this volume may take over.
//!
//! A mark counts on the boot and in the directory that it was written on only, so neither a copied volume nor a restored
//! one brings units back; and it is removed, durably, before its units are spent again.

use std::sync::Arc;

use prost::{Message as _, bytes::Bytes};
use quota_core::{Holder, Kept, KeptPart, KeyHash, Marked, WindowId};
use quota_proto::{
    bridge::{LoggedMark, LoggedSource},
    decision::signed,
};
use tokio::sync::mpsc;
use usage_log::{Append, LogError, Recovered, UsageLog};

use crate::{ended, hub::Hub};

/// Names one boot of this machine.
pub(crate) type BootId = [u8; 16];

/// A mark to write: its name for the engine, the window, what is kept of it.
pub(crate) type Mark = (u64, WindowId, Option<Box<Kept>>);

/// Reads the boot's name; `None` where the system doesn't say, and then nothing is kept or taken over.
pub(crate) fn boot_id() -> Option<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .filter_map(|pair| match pair {
            [high, low] => u8::try_from(high.saturating_mul(16).saturating_add(*low)).ok(),
            _ => None,
        })
        .collect();
    bytes.try_into().ok()
}

/// Removes every mark that was found, durably, but for what it says is owed, and gives those that count here: units on the
/// boot that they were kept on, debts on any. Blocks; for the start.
///
/// # Errors
/// The log can't be written; nothing may be taken over then.
pub(crate) fn take_over(
    log: &UsageLog,
    recovered: &Recovered,
    boot_id: Option<BootId>,
) -> Result<Vec<Kept>, LogError> {
    let mut last = None;
    for mark in windows(recovered) {
        let owed = Some(mark).filter(|_| !recovered.moved).and_then(owed);
        last = Some(log.append(Append::Mark {
            key: mark.key,
            payload: &owed.unwrap_or_default(),
        })?);
    }
    let Some(last) = last else {
        return Ok(Vec::new());
    };
    log.wait_durable(last)?;
    if recovered.moved {
        return Ok(Vec::new());
    }
    Ok(windows(recovered)
        .filter_map(|mark| read(&mark.payload, boot_id))
        .collect())
}

/// What is left of a mark when its units are taken over: what is owed.
fn owed(mark: &usage_log::Kept) -> Option<Vec<u8>> {
    let logged = LoggedMark::decode(&*mark.payload).ok()?;
    let left = LoggedMark {
        kept: 0,
        sources: Vec::new(),
        ..logged
    };
    (left.debt > 0).then(|| left.encode_to_vec())
}

fn windows(recovered: &Recovered) -> impl Iterator<Item = &usage_log::Kept> {
    let marks = recovered.marks.iter();
    marks.filter(|mark| mark.key != ended::KEY)
}

/// Writes marks in their order, and tells the engine what became of each.
pub(crate) async fn write(
    hub: Arc<Hub>,
    log: UsageLog,
    boot_id: BootId,
    mut marks: mpsc::UnboundedReceiver<Mark>,
) {
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let told = Arc::clone(&hub);
    tokio::spawn(async move {
        while let Some((id, outcome)) = outcomes.recv().await {
            told.marked(id, outcome);
        }
    });
    while let Some((id, window, kept)) = marks.recv().await {
        let payload = kept.map_or_else(Vec::new, |kept| logged(&kept, hub.holder(), boot_id));
        let entry = Append::Mark {
            key: window.0,
            payload: &payload,
        };
        match log.append(entry) {
            Err(_) => drop(sender.send((id, Marked::NotWritten))),
            Ok(position) => {
                let sender = sender.clone();
                let notify = move |outcome: Result<(), LogError>| {
                    let outcome = outcome.map_or(Marked::Unknown, |()| Marked::Durable);
                    // Nobody listens any more after a stop.
                    let _ = sender.send((id, outcome));
                };
                log.on_durable(position, Box::new(notify));
            }
        }
    }
}

fn logged(kept: &Kept, holder: Holder, boot_id: BootId) -> Vec<u8> {
    LoggedMark {
        holder: Bytes::copy_from_slice(&holder.0),
        tenant: kept.tenant.as_ref().to_owned(),
        limit: kept.limit.as_ref().to_owned(),
        key_hash: Bytes::copy_from_slice(&kept.key_hash.0),
        key_values: kept.key_values.iter().map(ToString::to_string).collect(),
        window_id: Bytes::copy_from_slice(&kept.window.0),
        window_start_us: kept.start_us,
        window_end_us: kept.end_us,
        round: kept.round,
        kept: signed(kept.units),
        boot_id: Bytes::copy_from_slice(&boot_id),
        sources: kept.parts.iter().map(logged_part).collect(),
        debt: signed(kept.debt),
    }
    .encode_to_vec()
}

fn logged_part(part: &KeptPart) -> LoggedSource {
    LoggedSource {
        holder: Bytes::copy_from_slice(&part.holder.0),
        generation: part.generation,
        units: signed(part.units),
        returned_cum: signed(part.returned_cum),
    }
}

fn read_part(logged: &LoggedSource, holder: Holder) -> Option<KeptPart> {
    let holder = if logged.holder.is_empty() {
        holder
    } else {
        Holder(logged.holder.as_ref().try_into().ok()?)
    };
    Some(KeptPart {
        holder,
        generation: logged.generation,
        units: u64::try_from(logged.units).ok()?,
        returned_cum: u64::try_from(logged.returned_cum).ok()?,
    })
}

/// Reads a mark; `None` where it is none, or was made on another boot and nothing is owed.
fn read(payload: &[u8], boot_id: Option<BootId>) -> Option<Kept> {
    let mut logged = LoggedMark::decode(payload).ok()?;
    if boot_id.is_none_or(|boot_id| *logged.boot_id != boot_id) {
        (logged.kept, logged.sources) = (0, Vec::new());
        if logged.debt == 0 {
            return None;
        }
    }
    let holder = Holder(logged.holder.as_ref().try_into().ok()?);
    let sources = logged.sources.iter();
    let parts: Option<Box<[KeptPart]>> = sources.map(|one| read_part(one, holder)).collect();
    Some(Kept {
        tenant: logged.tenant.into(),
        limit: logged.limit.into(),
        key_hash: KeyHash(logged.key_hash.as_ref().try_into().ok()?),
        key_values: logged.key_values.into_iter().map(Box::from).collect(),
        window: WindowId(logged.window_id.as_ref().try_into().ok()?),
        start_us: logged.window_start_us,
        end_us: logged.window_end_us,
        round: logged.round,
        units: u64::try_from(logged.kept).ok()?,
        parts: parts?,
        debt: u64::try_from(logged.debt).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            tenant: "t".into(),
            limit: "l".into(),
            key_hash: KeyHash([1; 16]),
            key_values: Box::new(["k".into()]),
            window: WindowId([2; 16]),
            start_us: 3,
            end_us: 4,
            round: 5,
            units: 6,
            parts: Box::new([KeptPart {
                holder: Holder([7; 16]),
                generation: 8,
                units: 5,
                returned_cum: 9,
            }]),
            debt: 0,
        }
    }

    /// A mark comes back from the log as it went in, on the boot that it was made on and on no other.
    #[test]
    fn marks_count_on_their_boot_only() {
        let payload = logged(&kept(), Holder([9; 16]), [7; 16]);
        assert_eq!(Some(kept()), read(&payload, Some([7; 16])));
        assert_eq!(None, read(&payload, Some([8; 16])));
        assert_eq!(None, read(&payload, None));
        assert_eq!(None, read(&[0xff], Some([7; 16])));
    }

    /// What is owed is owed on any boot; units are not there on another one.
    #[test]
    fn debts_count_on_any_boot() {
        let owing = Kept { debt: 3, ..kept() };
        let payload = logged(&owing, Holder([9; 16]), [7; 16]);
        let elsewhere = Kept {
            units: 0,
            parts: Box::default(),
            ..owing.clone()
        };
        assert_eq!(Some(owing), read(&payload, Some([7; 16])));
        for boot_id in [None, Some([8; 16])] {
            assert_eq!(Some(elsewhere.clone()), read(&payload, boot_id));
        }
    }

    /// This machine names its boot, the same each time.
    #[test]
    fn the_boot_has_a_name() {
        assert!(boot_id().is_some());
        assert_eq!(boot_id(), boot_id());
    }
}
