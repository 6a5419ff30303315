//! The records of one `RecordUsage` call as they came: one text for all of them, and lists of what stands where in it.
//!
//! Decoding the generated message makes allocations for every record's texts and a map of its attributes; this makes a
//! handful for a whole call. What repeats the record before, as tenants, meters and names of attributes mostly do, is
//! kept once.

use std::ops::Range;

use prost::{
    bytes::Bytes,
    encoding::{
        self, DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field,
    },
};
use prost_types::Timestamp;

use crate::{
    field::LIST_MAX,
    wire::{FromWire, WireError},
};

/// Records for which there is room before they are read, more than which no good call has.
const EXPECTED_MAX: usize = 1_000;

/// A call's records, decoded: every text is UTF-8, nothing else was looked at.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RecordUsageRequest {
    /// Where a record must be before it is acknowledged.
    pub acknowledgement: i32,
    text: String,
    records: Vec<Record>,
    quantities: Vec<(Piece, i64)>,
    attributes: Vec<(Piece, Piece)>,
}

/// One record of a call as it came.
#[derive(Clone, Copy, Debug)]
pub struct UsageRecord<'a> {
    call: &'a RecordUsageRequest,
    record: &'a Record,
}

/// A stretch of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Piece {
    start: usize,
    end: usize,
}

/// Where a record's fields are.
#[derive(Clone, PartialEq, Debug, Default)]
struct Record {
    id: Piece,
    tenant: Piece,
    event_time: Option<Timestamp>,
    quantities: Range<usize>,
    attributes: Range<usize>,
    counts: bool,
    is_alike: bool,
}

impl RecordUsageRequest {
    /// Tells how many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Tells whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Gives the records in the caller's order.
    #[must_use]
    pub fn records(&self) -> impl ExactSizeIterator<Item = UsageRecord<'_>> {
        let one = |record| UsageRecord { call: self, record };
        self.records.iter().map(one)
    }

    fn at(&self, piece: Piece) -> &str {
        self.text.get(piece.start..piece.end).unwrap_or_default()
    }
}

impl<'a> UsageRecord<'a> {
    /// Idempotency id.
    #[must_use]
    pub fn id(self) -> &'a str {
        self.call.at(self.record.id)
    }

    /// Wire id of the tenant.
    #[must_use]
    pub fn tenant(self) -> &'a str {
        self.call.at(self.record.tenant)
    }

    /// When it was used.
    #[must_use]
    pub const fn event_time(self) -> Option<Timestamp> {
        self.record.event_time
    }

    /// Whether it is taken from limits as well.
    #[must_use]
    pub const fn counts(self) -> bool {
        self.record.counts
    }

    /// Whether it has the tenant, the meters and the names of attributes of the record before it, in their order.
    #[must_use]
    pub const fn is_alike(self) -> bool {
        self.record.is_alike
    }

    /// Meters with units in the caller's order, of one meter perhaps several.
    #[must_use]
    pub fn quantities(self) -> impl ExactSizeIterator<Item = (&'a str, i64)> + Clone {
        let quantities = self.call.quantities.get(self.record.quantities.clone());
        let one = move |(meter, units): &(Piece, i64)| (self.call.at(*meter), *units);
        quantities.unwrap_or_default().iter().map(one)
    }

    /// Names with values, sorted by name; of several values of one name the last.
    #[must_use]
    pub fn attributes(self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone {
        let attributes = self.call.attributes.get(self.record.attributes.clone());
        let one = move |(name, value): &(Piece, Piece)| (self.call.at(*name), self.call.at(*value));
        attributes.unwrap_or_default().iter().map(one)
    }
}

impl FromWire for RecordUsageRequest {
    fn from_wire(wire: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::default();
        reader.call(&wire)?;
        let mut call = reader.call;
        // Every piece begins where a character may begin, so what is text as a whole is text piece by piece.
        let text = String::from_utf8(reader.text).ok();
        call.text = text.filter(|_| !reader.is_torn).ok_or(WireError::NotText)?;
        Ok(call)
    }
}

/// A call that is being read.
#[derive(Default)]
struct Reader {
    call: RecordUsageRequest,
    text: Vec<u8>,
    /// Some piece begins within a character.
    is_torn: bool,
}

impl Reader {
    fn call(&mut self, mut wire: &[u8]) -> Result<(), WireError> {
        while !wire.is_empty() {
            let (tag, kind) = decode_key(&mut wire)?;
            match tag {
                1 => {
                    let record = within(kind, &mut wire)?;
                    self.record(record)?;
                    if self.call.records.len() == 1 {
                        self.expect_more(wire.len().checked_div(record.len()));
                    }
                }
                2 => encoding::int32::merge(
                    kind,
                    &mut self.call.acknowledgement,
                    &mut wire,
                    context(),
                )?,
                _ => skip_field(kind, tag, &mut wire, context())?,
            }
        }
        Ok(())
    }

    /// Makes room for so many records like the one that was read.
    fn expect_more(&mut self, count: Option<usize>) {
        let count = count.unwrap_or(0).min(EXPECTED_MAX);
        let (quantities, attributes) = (self.call.quantities.len(), self.call.attributes.len());
        self.call.records.reserve(count);
        self.call
            .quantities
            .reserve(count.saturating_mul(quantities.min(LIST_MAX)));
        self.call
            .attributes
            .reserve(count.saturating_mul(attributes.min(LIST_MAX)));
    }

    fn record(&mut self, mut wire: &[u8]) -> Result<(), WireError> {
        let (quantities, attributes) = (self.call.quantities.len(), self.call.attributes.len());
        let before = self.call.records.last();
        let before = before.map_or_else(Record::default, Record::clone);
        let mut record = Record::default();
        while !wire.is_empty() {
            let (tag, kind) = decode_key(&mut wire)?;
            match tag {
                1 => record.id = self.piece(within(kind, &mut wire)?, Piece::default()),
                2 => record.tenant = self.piece(within(kind, &mut wire)?, before.tenant),
                3 => {
                    let time = record.event_time.get_or_insert_default();
                    encoding::message::merge(kind, time, &mut wire, context())?;
                }
                4 => {
                    let place = self.call.quantities.len().saturating_sub(quantities);
                    let like = before.quantities.clone().nth(place);
                    self.quantity(within(kind, &mut wire)?, like)?;
                }
                5 => {
                    let place = self.call.attributes.len().saturating_sub(attributes);
                    let like = before.attributes.clone().nth(place);
                    self.attribute(within(kind, &mut wire)?, like)?;
                }
                6 => encoding::bool::merge(kind, &mut record.counts, &mut wire, context())?,
                _ => skip_field(kind, tag, &mut wire, context())?,
            }
        }
        self.sort_attributes(attributes);
        record.quantities = quantities..self.call.quantities.len();
        record.attributes = attributes..self.call.attributes.len();
        record.is_alike = self.are_alike(&before, &record);
        self.call.records.push(record);
        Ok(())
    }

    /// Whether two records name the same tenant, meters and attributes; one without meters is like no other.
    fn are_alike(&self, before: &Record, record: &Record) -> bool {
        let same =
            |left: Piece, right: Piece| left == right || self.bytes(left) == self.bytes(right);
        let meters = |record: &Record| self.call.quantities.get(record.quantities.clone());
        let names = |record: &Record| self.call.attributes.get(record.attributes.clone());
        let both = (
            meters(before).zip(meters(record)),
            names(before).zip(names(record)),
        );
        let (Some((meters_before, meters)), Some((names_before, names))) = both else {
            return false;
        };
        !meters.is_empty()
            && meters.len() == meters_before.len()
            && names.len() == names_before.len()
            && same(before.tenant, record.tenant)
            && meters_before
                .iter()
                .zip(meters)
                .all(|(left, right)| same(left.0, right.0))
            && names_before
                .iter()
                .zip(names)
                .all(|(left, right)| same(left.0, right.0))
    }

    fn quantity(&mut self, mut wire: &[u8], like: Option<usize>) -> Result<(), WireError> {
        let (like, _) = at(&self.call.quantities, like);
        let (mut meter, mut units) = (Piece::default(), 0);
        while !wire.is_empty() {
            let (tag, kind) = decode_key(&mut wire)?;
            match tag {
                1 => meter = self.piece(within(kind, &mut wire)?, like),
                2 => encoding::int64::merge(kind, &mut units, &mut wire, context())?,
                _ => skip_field(kind, tag, &mut wire, context())?,
            }
        }
        self.call.quantities.push((meter, units));
        Ok(())
    }

    fn attribute(&mut self, mut wire: &[u8], like: Option<usize>) -> Result<(), WireError> {
        let like = at(&self.call.attributes, like);
        let (mut name, mut value) = (Piece::default(), Piece::default());
        while !wire.is_empty() {
            let (tag, kind) = decode_key(&mut wire)?;
            match tag {
                1 => name = self.piece(within(kind, &mut wire)?, like.0),
                2 => value = self.piece(within(kind, &mut wire)?, like.1),
                _ => skip_field(kind, tag, &mut wire, context())?,
            }
        }
        self.call.attributes.push((name, value));
        Ok(())
    }

    /// Takes in text that may be the same as a piece that is there.
    fn piece(&mut self, text: &[u8], like: Piece) -> Piece {
        if self.bytes(like) == text {
            return like;
        }
        let start = self.text.len();
        self.is_torn |= text.first().is_some_and(|first| first & 0xc0 == 0x80);
        self.text.extend_from_slice(text);
        let end = self.text.len();
        Piece { start, end }
    }

    fn bytes(&self, piece: Piece) -> &[u8] {
        self.text.get(piece.start..piece.end).unwrap_or_default()
    }

    /// Brings a record's attributes, which begin there, into the order of their names, as a map of them would be.
    fn sort_attributes(&mut self, start: usize) {
        let text = &*self.text;
        let name = |pair: &(Piece, Piece)| text.get(pair.0.start..pair.0.end).unwrap_or_default();
        let own = self.call.attributes.get_mut(start..).unwrap_or_default();
        if own.is_sorted_by(|left, right| name(left) < name(right)) {
            return;
        }
        own.sort_by(|left, right| name(left).cmp(name(right)));
        let mut own = self.call.attributes.split_off(start);
        own.dedup_by(|later, earlier| {
            let is_same = name(later) == name(earlier);
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        self.call.attributes.append(&mut own);
    }
}

fn context() -> DecodeContext {
    DecodeContext::default()
}

fn at<T: Copy + Default>(list: &[T], place: Option<usize>) -> T {
    place
        .and_then(|place| list.get(place))
        .copied()
        .unwrap_or_default()
}

/// Splits off what a field holds.
fn within<'w>(kind: WireType, wire: &mut &'w [u8]) -> Result<&'w [u8], WireError> {
    check_wire_type(WireType::LengthDelimited, kind)?;
    let length = usize::try_from(decode_varint(wire)?).unwrap_or(usize::MAX);
    let (inner, rest) = wire.split_at_checked(length).ok_or(WireError::CutShort)?;
    *wire = rest;
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap};

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{bridge, content, logged::Logged, quota, usage::parsed_records};

    /// A record whose text is any bytes, and whose attributes may be of one name.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Loose {
        #[prost(bytes = "vec", tag = "1")]
        id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        tenant: Vec<u8>,
        #[prost(message, repeated, tag = "4")]
        quantities: Vec<LoosePair>,
        #[prost(message, repeated, tag = "5")]
        attributes: Vec<LoosePair>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct LoosePair {
        #[prost(bytes = "vec", tag = "1")]
        name: Vec<u8>,
        #[prost(bytes = "vec", optional, tag = "2")]
        value: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct LooseRequest {
        #[prost(message, repeated, tag = "1")]
        records: Vec<Loose>,
    }

    fn read(wire: &impl prost::Message) -> Result<RecordUsageRequest, WireError> {
        RecordUsageRequest::from_wire(wire.encode_to_vec().into())
    }

    fn record() -> impl Strategy<Value = quota::UsageRecord> {
        let text = "[a-zA-Z\u{e4}\u{0}:/ ]{0,9}";
        // Few names, so that records repeat each other's.
        let quantities = prop::collection::vec(("[a-b]{0,2}", any::<i64>()), 0..4);
        let attributes = prop::collection::hash_map("[a-c\u{e4}]{0,1}", text, 0..4);
        let time = prop::option::of((any::<i64>(), any::<i32>()));
        (text, "[a-b]", time, quantities, attributes, any::<bool>()).prop_map(
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

    /// The same, read from the generated message.
    fn generated(record: UsageRecord<'_>) -> quota::UsageRecord {
        let quantity = |(meter, units): (&str, i64)| quota::Quantity {
            meter: meter.into(),
            units,
        };
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        quota::UsageRecord {
            id: record.id().into(),
            tenant: record.tenant().into(),
            event_time: record.event_time(),
            quantities: record.quantities().map(quantity).collect(),
            attributes: record.attributes().map(pair).collect(),
            count_against_limits: record.counts(),
        }
    }

    proptest! {
        /// Whatever a caller sends is read the same as by the generated code; attributes are in their names' order.
        #[test]
        fn requests_read_as_generated_ones(records in prop::collection::vec(record(), 0..5), ack in any::<i32>()) {
            let request = quota::RecordUsageRequest { records, acknowledgement: ack };
            let raw = read(&request).unwrap();
            prop_assert_eq!((ack, request.records.len()), (raw.acknowledgement, raw.len()));
            for (expected, record) in request.records.iter().zip(raw.records()) {
                prop_assert_eq!(expected, &generated(record));
                let sorted: BTreeMap<_, _> = expected.attributes.iter().map(|(name, value)| (&**name, &**value)).collect();
                prop_assert_eq!(sorted.into_iter().collect::<Vec<_>>(), record.attributes().collect::<Vec<_>>());
            }
        }

        /// Bytes that came apart are refused wherever the generated code refuses them, and else read the same. It does
        /// not look at the wire type of a map's entries; here another one is refused as it is for every field.
        #[test]
        fn bad_bytes_are_refused_where_generated_code_refuses_them(
            records in prop::collection::vec(record(), 0..3),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let request = quota::RecordUsageRequest { records, acknowledgement: 1 };
            let mut wire = request.encode_to_vec();
            for (at, byte) in changes {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            let expected = quota::RecordUsageRequest::decode(&*wire);
            let raw = RecordUsageRequest::from_wire(wire.into());
            if let (Ok(_), Err(error)) = (&expected, &raw) {
                prop_assert!(error.to_string().contains("invalid wire type"), "{error}");
            }
            prop_assert!(expected.is_ok() || raw.is_err());
            if let (Ok(expected), Ok(raw)) = (expected, raw) {
                let records: Vec<_> = raw.records().map(generated).collect();
                prop_assert_eq!((expected.acknowledgement, expected.records), (raw.acknowledgement, records));
            }
        }

        /// What is logged of a record is what the generated message holds, with the same content hash.
        #[test]
        fn records_are_logged_as_generated_ones(record in good_record(), received_us in 1..i64::MAX) {
            let request = quota::RecordUsageRequest { records: vec![record.clone()], acknowledgement: 0 };
            let raw = read(&request).unwrap();
            let parsed = parsed_records(&raw).next().unwrap().unwrap();
            let mut quantities: Vec<_> = parsed.quantities().collect();
            quantities.sort_unstable();
            let attributes: Vec<_> = parsed.attributes().map(|(name, value)| (name, Cow::Borrowed(value))).collect();
            let ours = Logged {
                tenant: parsed.tenant,
                id: parsed.id,
                event_time_us: parsed.event_time_us.unwrap(),
                received_us,
                quantities: &quantities,
                attributes: &attributes,
            };
            let mut wire = Vec::new();
            ours.encode(&mut wire);
            let logged = bridge::LoggedUsage::decode(&*wire).unwrap();
            prop_assert_eq!(logged.encode_to_vec(), wire);
            prop_assert_eq!(content::content_hash(&logged), ours.content_hash(&mut vec![7]));
            prop_assert_eq!((&record.id, &record.tenant), (&logged.id, &logged.tenant));
            prop_assert_eq!((parsed.event_time_us, received_us), (Some(logged.event_time_us), logged.received_us));
            let sent: BTreeMap<_, _> = record.quantities.into_iter().map(|one| (one.meter, one.units)).collect();
            let kept = logged.quantities.into_iter().map(|one| (one.meter, one.units));
            prop_assert_eq!(sent.into_iter().collect::<Vec<_>>(), kept.collect::<Vec<_>>());
            let sent: BTreeMap<_, _> = record.attributes.into_iter().collect();
            let kept = logged.attributes.into_iter().map(|pair| (pair.name, pair.value));
            prop_assert_eq!(sent.into_iter().collect::<Vec<_>>(), kept.collect::<Vec<_>>());
        }
    }

    /// Of several values of one name the last counts, as in any map; names are sorted.
    #[test]
    fn the_last_value_of_a_name_counts() {
        let pair = |name: &str, value: &str| LoosePair {
            name: name.into(),
            value: Some(value.into()),
        };
        let loose = Loose {
            attributes: vec![
                pair("b", "1"),
                pair("a", "2"),
                pair("b", "3"),
                pair("b", "4"),
            ],
            ..Loose::default()
        };
        let wire = LooseRequest {
            records: vec![Loose::default(), loose, Loose::default()],
        };
        let expected = quota::RecordUsageRequest::decode(&*wire.encode_to_vec()).unwrap();
        assert_eq!("4", expected.records[1].attributes["b"]);
        let raw = read(&wire).unwrap();
        let pairs: Vec<Vec<_>> = raw
            .records()
            .map(|record| record.attributes().collect())
            .collect();
        assert_eq!(vec![vec![], vec![("a", "2"), ("b", "4")], vec![]], pairs);
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

    /// Text that is no UTF-8 is found wherever it stands, and so is a character that two texts share.
    #[test]
    fn what_is_no_text_is_found() {
        let with = |change: &dyn Fn(&mut Loose)| {
            let mut record = Loose {
                quantities: vec![LoosePair::default()],
                attributes: vec![LoosePair::default()],
                ..Loose::default()
            };
            change(&mut record);
            let records = vec![Loose::default(), record];
            read(&LooseRequest { records }).is_ok()
        };
        let bad = || vec![0xff];
        assert!(with(&|_| ()));
        assert!(!with(&|record| record.id = bad()));
        assert!(!with(&|record| record.tenant = bad()));
        assert!(!with(&|record| record.quantities[0].name = bad()));
        assert!(!with(&|record| record.attributes[0].name = bad()));
        assert!(!with(&|record| record.attributes[0].value = Some(bad())));
        assert!(!with(&|record| {
            (record.id, record.tenant) = (vec![0xc3], vec![0xa4]);
        }));
        assert!(with(&|record| record.id = "\u{e4}".into()));
    }
}
