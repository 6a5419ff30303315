//! What became of a call's records, encoded one by one: a `RecordUsageResponse` without a message for each of them.

use prost::{EncodeError, Message as _, bytes::BufMut};

use crate::{
    quota::{RecordOutcome, RecordResult},
    wire::{ToWire, number_length, put_head, put_number, put_text, text_length},
};

/// Bytes of the result of a record whose id the sidecar made.
const USUAL_BYTES: usize = 42;

/// Results in the order of their records.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordUsageResults(Vec<u8>);

impl RecordUsageResults {
    /// Begins without any, with room for so many.
    #[must_use]
    pub fn with_room(count: usize) -> Self {
        Self(Vec::with_capacity(count.saturating_mul(USUAL_BYTES)))
    }

    /// Adds the result of a record of which nothing else is to be said.
    pub fn push(&mut self, outcome: RecordOutcome, id: &str) {
        let outcome = i64::from(i32::from(outcome));
        let length = number_length(outcome).saturating_add(text_length(id));
        put_head(&mut self.0, 1, length);
        put_number(&mut self.0, 1, outcome);
        put_text(&mut self.0, 2, id);
    }

    /// Adds a result with everything that is said of it.
    pub fn push_result(&mut self, result: &RecordResult) {
        put_head(&mut self.0, 1, result.encoded_len());
        result.encode_raw(&mut self.0);
    }
}

impl ToWire for RecordUsageResults {
    fn to_wire(&self, buffer: &mut impl BufMut) -> Result<(), EncodeError> {
        buffer.put_slice(&self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::RecordUsageResponse;

    /// Callers read the results as of the generated message, in order.
    #[test]
    fn results_read_as_generated_ones() {
        let refused = RecordResult {
            outcome: RecordOutcome::Invalid.into(),
            field: "records[1].id".into(),
            ..RecordResult::default()
        };
        let mut results = RecordUsageResults::with_room(3);
        results.push(RecordOutcome::Recorded, "a");
        results.push_result(&refused);
        results.push(RecordOutcome::Duplicate, &"x".repeat(128));
        let mut wire = Vec::new();
        results.to_wire(&mut wire).unwrap();
        let of = |outcome: RecordOutcome, id: String| RecordResult {
            outcome: outcome.into(),
            id,
            ..RecordResult::default()
        };
        let expected = RecordUsageResponse {
            results: vec![
                of(RecordOutcome::Recorded, "a".into()),
                refused,
                of(RecordOutcome::Duplicate, "x".repeat(128)),
            ],
        };
        assert_eq!(expected.encode_to_vec(), wire);
    }
}
