//! A usage record as it is logged, of borrowed text: `tollkeeper.bridge.v1.LoggedUsage` without flags, reservation and
//! levels.

use std::borrow::Cow;

use crate::{
    content,
    wire::{number_length, put_head, put_number, put_text, text_length},
};

/// A record that nobody reserved for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Logged<'a> {
    /// Wire id of the tenant.
    pub tenant: &'a str,
    /// Idempotency id.
    pub id: &'a str,
    /// Event time, microseconds, ledger time.
    pub event_time_us: i64,
    /// Receive time, microseconds, ledger time.
    pub received_us: i64,
    /// Meters with units, in meter order.
    pub quantities: &'a [(&'a str, i64)],
    /// Declared names with values, in name order.
    pub attributes: &'a [(&'a str, Cow<'a, str>)],
}

impl Logged<'_> {
    /// Adds its encoding to a buffer: the same bytes as of the generated message.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        put_text(buffer, 1, self.tenant);
        put_text(buffer, 2, self.id);
        put_number(buffer, 3, self.event_time_us);
        put_number(buffer, 4, self.received_us);
        for (meter, units) in self.quantities {
            let length = text_length(meter).saturating_add(number_length(*units));
            put_head(buffer, 5, length);
            put_text(buffer, 1, meter);
            put_number(buffer, 2, *units);
        }
        for (name, value) in self.attributes {
            let length = text_length(name).saturating_add(text_length(value));
            put_head(buffer, 6, length);
            put_text(buffer, 1, name);
            put_text(buffer, 2, value);
        }
    }

    /// Hashes what it says, version 1, as [`content::content_hash`] does; `scratch` is overwritten.
    #[must_use]
    pub fn content_hash(&self, scratch: &mut Vec<u8>) -> [u8; 32] {
        let quantities = self.quantities.iter();
        let attributes = self.attributes.iter();
        content::hash(
            scratch,
            self.tenant.as_bytes(),
            quantities.map(|(meter, units)| (meter.as_bytes(), *units)),
            attributes.map(|(name, value)| (name.as_bytes(), value.as_bytes())),
            Some(self.event_time_us),
        )
    }
}
