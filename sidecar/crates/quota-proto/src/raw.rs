//! Usage records whose text is not copied: the same messages as the generated ones, with slices of what was received.
//!
//! Decoding a generated record makes an allocation for each of its texts and hashes its attributes by name; of these it
//! makes two in all. What is text on the wire is bytes here until [`RecordUsageRequest::is_text`] was asked.

use std::str::from_utf8;

use prost::bytes::Bytes;
use prost_types::Timestamp;

/// `tollkeeper.quota.v1.RecordUsageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RecordUsageRequest {
    /// 1 to 1,000 records.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<UsageRecord>,
    /// Where a record must be before it is acknowledged.
    #[prost(int32, tag = "2")]
    pub acknowledgement: i32,
}

/// `tollkeeper.quota.v1.UsageRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UsageRecord {
    /// Idempotency id.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    /// Wire id of the tenant.
    #[prost(bytes = "bytes", tag = "2")]
    pub tenant: Bytes,
    /// When it was used.
    #[prost(message, optional, tag = "3")]
    pub event_time: Option<Timestamp>,
    /// Quantities.
    #[prost(message, repeated, tag = "4")]
    pub quantities: Vec<Quantity>,
    /// Attributes in any order, of one name perhaps several.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<Attribute>,
    /// Whether it is taken from limits as well.
    #[prost(bool, tag = "6")]
    pub count_against_limits: bool,
}

/// `tollkeeper.quota.v1.Quantity` and `tollkeeper.bridge.v1.LoggedQuantity`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Quantity {
    /// Meter name.
    #[prost(bytes = "bytes", tag = "1")]
    pub meter: Bytes,
    /// Units.
    #[prost(int64, tag = "2")]
    pub units: i64,
}

/// An entry of `UsageRecord.attributes`, and `tollkeeper.bridge.v1.LoggedAttribute`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attribute {
    /// Name.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// Value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `tollkeeper.bridge.v1.LoggedUsage` of a record without flags, reservation and levels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoggedUsage {
    /// Wire id of the tenant.
    #[prost(bytes = "bytes", tag = "1")]
    pub tenant: Bytes,
    /// Idempotency id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Event time, microseconds, ledger time.
    #[prost(int64, tag = "3")]
    pub event_time_us: i64,
    /// Receive time, microseconds, ledger time.
    #[prost(int64, tag = "4")]
    pub received_us: i64,
    /// Quantities in meter order.
    #[prost(message, repeated, tag = "5")]
    pub quantities: Vec<Quantity>,
    /// Declared attributes in name order.
    #[prost(message, repeated, tag = "6")]
    pub attributes: Vec<Attribute>,
}

impl RecordUsageRequest {
    /// Tells whether everything that must be text is valid UTF-8.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.records.iter().all(UsageRecord::is_text)
    }
}

impl UsageRecord {
    fn is_text(&self) -> bool {
        let is = |bytes: &Bytes| from_utf8(bytes).is_ok();
        let is_pair = |pair: &Attribute| is(&pair.name) && is(&pair.value);
        is(&self.id)
            && is(&self.tenant)
            && self.quantities.iter().all(|quantity| is(&quantity.meter))
            && self.attributes.iter().all(is_pair)
    }
}

/// Something that holds text.
pub trait Text {
    /// Gives it; empty where it is none.
    fn text(&self) -> &str;
}

impl Text for String {
    fn text(&self) -> &str {
        self
    }
}

impl Text for Bytes {
    fn text(&self) -> &str {
        from_utf8(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{bridge, content, quota, usage::ParsedRecord};

    fn record() -> impl Strategy<Value = quota::UsageRecord> {
        let text = "[a-zA-Z\u{e4}\u{0}:/ ]{0,9}";
        let quantities = prop::collection::vec(("[a-z]{0,3}", any::<i64>()), 0..4);
        let attributes = prop::collection::hash_map(text, text, 0..4);
        let time = prop::option::of((any::<i64>(), any::<i32>()));
        (text, text, time, quantities, attributes, any::<bool>()).prop_map(
            |(id, tenant, time, quantities, attributes, count_against_limits)| quota::UsageRecord {
                count_against_limits,
                id,
                tenant,
                event_time: time.map(|(seconds, nanos)| Timestamp { seconds, nanos }),
                quantities: quantities
                    .into_iter()
                    .map(|(meter, units)| quota::Quantity { meter, units })
                    .collect(),
                attributes,
            },
        )
    }

    /// One that keeps every rule.
    fn good_record() -> impl Strategy<Value = quota::UsageRecord> {
        let quantities = prop::collection::hash_map("[a-z]{1,3}", 0..1_i64 << 53, 1..17);
        let attributes = prop::collection::hash_map("[a-z\u{e4}]{1,9}", "[a-z \u{e4}]{0,9}", 0..17);
        let time = (0..253_402_300_800_i64, 0..1_000_000_000_i32);
        (
            "[a-z\u{e4}]{0,9}",
            "[a-z:]{1,9}",
            time,
            quantities,
            attributes,
        )
            .prop_map(|(id, tenant, (seconds, nanos), quantities, attributes)| {
                quota::UsageRecord {
                    count_against_limits: false,
                    id,
                    tenant,
                    event_time: Some(Timestamp { seconds, nanos }),
                    quantities: quantities
                        .into_iter()
                        .map(|(meter, units)| quota::Quantity { meter, units })
                        .collect(),
                    attributes,
                }
            })
    }

    proptest! {
        /// Whatever a caller sends is read the same as by the generated code.
        #[test]
        fn requests_read_as_generated_ones(records in prop::collection::vec(record(), 0..4), ack in any::<i32>()) {
            let request = quota::RecordUsageRequest { records, acknowledgement: ack };
            let raw = RecordUsageRequest::decode(&*request.encode_to_vec()).unwrap();
            prop_assert!(raw.is_text());
            let again = quota::RecordUsageRequest::decode(&*raw.encode_to_vec()).unwrap();
            prop_assert_eq!(&request, &again);
            for (record, raw) in request.records.iter().zip(&raw.records) {
                prop_assert_eq!(record.attributes.len(), raw.attributes.len());
                prop_assert_eq!(&record.id, raw.id.text());
            }
        }

        /// What is logged of a record is what the generated message holds, with the same content hash.
        #[test]
        fn records_are_logged_as_generated_ones(record in good_record(), received_us in 1..i64::MAX) {
            let raw = UsageRecord::decode(&*record.encode_to_vec()).unwrap();
            let parsed = ParsedRecord::try_from(raw).unwrap();
            let id = parsed.id.text().to_owned();
            let raw = parsed.logged(id, received_us);
            let logged = bridge::LoggedUsage::decode(&*raw.encode_to_vec()).unwrap();
            prop_assert_eq!(content::content_hash(&logged), content::raw_content_hash(&raw));
            prop_assert_eq!(logged.encode_to_vec(), raw.encode_to_vec());
            prop_assert_eq!((&record.id, &record.tenant), (&logged.id, &logged.tenant));
            let mut quantities: Vec<_> = record.quantities.into_iter().map(|one| (one.meter, one.units)).collect();
            quantities.sort();
            let ours = logged.quantities.into_iter().map(|one| (one.meter, one.units));
            prop_assert_eq!(quantities, ours.collect::<Vec<_>>());
            let mut sorted: Vec<_> = record.attributes.into_iter().collect();
            sorted.sort();
            let attributes = logged.attributes.into_iter().map(|pair| (pair.name, pair.value));
            prop_assert_eq!(sorted, attributes.collect::<Vec<_>>());
        }
    }

    /// Of several values of one name the last counts, as in any map; names are sorted.
    #[test]
    fn the_last_value_of_a_name_counts() {
        let pair = |name: &'static str, value: &'static str| Attribute {
            name: name.into(),
            value: value.into(),
        };
        let raw = UsageRecord {
            tenant: "t".into(),
            quantities: vec![Quantity {
                meter: "m".into(),
                units: 1,
            }],
            attributes: vec![
                pair("b", "1"),
                pair("a", "2"),
                pair("b", "3"),
                pair("b", "4"),
            ],
            ..UsageRecord::default()
        };
        let read = quota::UsageRecord::decode(&*raw.encode_to_vec()).unwrap();
        assert_eq!("4", read.attributes["b"]);
        let parsed = ParsedRecord::try_from(raw).unwrap();
        assert_eq!(vec![pair("a", "2"), pair("b", "4")], parsed.attributes);
    }

    /// A field that the contract gets must be read here as well.
    #[test]
    fn every_field_of_the_contract_is_here() {
        let set = prost_types::FileDescriptorSet::decode(crate::DESCRIPTORS).unwrap();
        let fields = |package: &str, name: &str| -> Vec<i32> {
            let files = set.file.iter().filter(|file| file.package() == package);
            let mut messages = files.flat_map(|file| &file.message_type);
            let found = messages.find(|message| message.name() == name).unwrap();
            found
                .field
                .iter()
                .map(prost_types::FieldDescriptorProto::number)
                .collect()
        };
        let quota = |name| fields("tollkeeper.quota.v1", name);
        assert_eq!(vec![1, 2], quota("RecordUsageRequest"));
        assert_eq!(vec![1, 2, 3, 4, 5, 6], quota("UsageRecord"));
        assert_eq!(vec![1, 2], quota("Quantity"));
        let bridge = |name| fields("tollkeeper.bridge.v1", name);
        assert_eq!(vec![1, 2], bridge("LoggedQuantity"));
        assert_eq!(vec![1, 2], bridge("LoggedAttribute"));
    }

    /// Text that is no UTF-8 is found wherever it stands.
    #[test]
    fn what_is_no_text_is_found() {
        let bad = Bytes::from_static(&[0xff]);
        let with = |change: &dyn Fn(&mut UsageRecord)| {
            let mut record = UsageRecord {
                quantities: vec![Quantity::default()],
                attributes: vec![Attribute::default()],
                ..UsageRecord::default()
            };
            change(&mut record);
            let records = vec![UsageRecord::default(), record];
            RecordUsageRequest {
                records,
                acknowledgement: 0,
            }
            .is_text()
        };
        assert!(with(&|_| ()));
        assert!(!with(&|record| record.id = bad.clone()));
        assert!(!with(&|record| record.tenant = bad.clone()));
        assert!(!with(&|record| record.quantities[0].meter = bad.clone()));
        assert!(!with(&|record| record.attributes[0].name = bad.clone()));
        assert!(!with(&|record| record.attributes[0].value = bad.clone()));
    }
}
