//! The content hash of a usage record, version 1, as `ledger/v1/usage.proto` defines it.

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{bridge::LoggedUsage, ledger::RecordFlag};

/// Room for what most records say.
const BYTES_USUAL: usize = 256;

/// Hashes what a record says: two records of one id with equal hashes are the same record.
///
/// Quantities and attributes are taken in the order in which they are logged, which is their names' byte order.
#[must_use]
pub fn content_hash(record: &LoggedUsage) -> [u8; 32] {
    let quantities = record.quantities.iter();
    let attributes = record.attributes.iter();
    hash(
        &mut Vec::with_capacity(BYTES_USUAL),
        record.tenant.as_bytes(),
        quantities.map(|quantity| (quantity.meter.as_bytes(), quantity.units)),
        attributes.map(|pair| (pair.name.as_bytes(), pair.value.as_bytes())),
        (!system_made(record.flags)).then_some(record.event_time_us),
    )
}

/// Hashes what a record says, put together in `bytes`.
pub(crate) fn hash<'a>(
    bytes: &mut Vec<u8>,
    tenant: &[u8],
    quantities: impl ExactSizeIterator<Item = (&'a [u8], i64)>,
    attributes: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    event_time_us: Option<i64>,
) -> [u8; 32] {
    // In one piece: a digest that is fed field by field takes twice the time.
    bytes.clear();
    string(bytes, b"tollkeeper.content.v1");
    string(bytes, tenant);
    count(bytes, quantities.len());
    for (meter, units) in quantities {
        string(bytes, meter);
        bytes.extend_from_slice(&units.to_le_bytes());
    }
    count(bytes, attributes.len());
    for (name, value) in attributes {
        string(bytes, name);
        string(bytes, value);
    }
    count(bytes, usize::from(event_time_us.is_some()));
    bytes.extend(
        event_time_us
            .iter()
            .flat_map(|time_us| time_us.to_le_bytes()),
    );
    Sha256::digest(&*bytes).into()
}

/// Hashes an encoded record; `None` where the payload is none.
#[must_use]
pub fn payload_hash(payload: &[u8]) -> Option<[u8; 32]> {
    LoggedUsage::decode(payload)
        .ok()
        .map(|record| content_hash(&record))
}

fn system_made(flags: u32) -> bool {
    flags & (RecordFlag::SystemId as u32) != 0
}

fn string(bytes: &mut Vec<u8>, value: &[u8]) {
    count(bytes, value.len());
    bytes.extend_from_slice(value);
}

/// Lengths are bounded far below 2^32 at the edge; a longer one would only make the hash differ.
fn count(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::{LoggedAttribute, LoggedQuantity};

    fn record() -> LoggedUsage {
        LoggedUsage {
            tenant: "acme".into(),
            id: "r1".into(),
            event_time_us: 1_700_000_000_000_000,
            received_us: 1,
            quantities: vec![LoggedQuantity {
                meter: "tokens".into(),
                units: 7,
            }],
            attributes: vec![LoggedAttribute {
                name: "model".into(),
                value: "m".into(),
            }],
            ..LoggedUsage::default()
        }
    }

    /// The hash is the one that the contract spells out byte by byte.
    #[test]
    fn hash_is_what_the_contract_spells_out() {
        let mut bytes = Vec::new();
        let text = |value: &str, bytes: &mut Vec<u8>| {
            bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            bytes.extend(value.as_bytes());
        };
        text("tollkeeper.content.v1", &mut bytes);
        text("acme", &mut bytes);
        bytes.extend(1_u32.to_le_bytes());
        text("tokens", &mut bytes);
        bytes.extend(7_i64.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        text("model", &mut bytes);
        text("m", &mut bytes);
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(1_700_000_000_000_000_i64.to_le_bytes());
        let expected: [u8; 32] = Sha256::digest(&bytes).into();
        assert_eq!(expected, content_hash(&record()));
    }

    /// Receive time never changes a record's identity; event time does unless the system made the id.
    #[test]
    fn event_time_counts_only_for_ids_of_callers() {
        let later = LoggedUsage {
            received_us: 2,
            ..record()
        };
        assert_eq!(content_hash(&record()), content_hash(&later));
        let moved = LoggedUsage {
            event_time_us: 5,
            ..record()
        };
        assert_ne!(content_hash(&record()), content_hash(&moved));
        let flags = RecordFlag::SystemId as u32;
        let system = LoggedUsage { flags, ..record() };
        let system_moved = LoggedUsage {
            flags,
            event_time_us: 5,
            ..record()
        };
        assert_eq!(content_hash(&system), content_hash(&system_moved));
    }

    /// An encoded record has the hash of the record; what isn't one has none.
    #[test]
    fn payloads_hash_like_their_records() {
        assert_eq!(
            Some(content_hash(&record())),
            payload_hash(&record().encode_to_vec())
        );
        assert_eq!(None, payload_hash(&[0xff]));
    }
}
