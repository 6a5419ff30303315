//! How soon the log is full if it goes on filling as it did in the last minute.

use std::collections::VecDeque;

/// Real time between samples.
const STRIDE_US: u64 = 5_000_000;
/// Real time that samples reach back.
const SPAN_US: u64 = 60_000_000;

/// Fill of the log over the last minute.
#[derive(Default)]
pub(super) struct Filling(VecDeque<(u64, u64)>);

impl Filling {
    /// Notes how many bytes are in use.
    pub(super) fn note(&mut self, now_us: u64, used_bytes: u64) {
        let is_due = self
            .0
            .back()
            .is_none_or(|last| now_us.saturating_sub(last.0) >= STRIDE_US);
        if is_due {
            self.0.push_back((now_us, used_bytes));
        }
        // The last sample that is older than the span stays: it is where the span begins.
        while self
            .0
            .get(1)
            .is_some_and(|next| now_us.saturating_sub(next.0) >= SPAN_US)
        {
            self.0.pop_front();
        }
    }

    /// Tells the real time until no byte is free; none while the log doesn't grow.
    pub(super) fn full_in_us(
        &self,
        now_us: u64,
        used_bytes: u64,
        capacity_bytes: u64,
    ) -> Option<u64> {
        let (then_us, then_bytes) = *self.0.front()?;
        let grown = u128::from(used_bytes.checked_sub(then_bytes)?);
        let elapsed = u128::from(now_us.checked_sub(then_us)?);
        let free = u128::from(capacity_bytes.saturating_sub(used_bytes));
        let us = free.checked_mul(elapsed)?.checked_div(grown)?;
        Some(u64::try_from(us).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// A log that fills steadily says when it is full, to a tenth, from its first seconds on; one that empties or rests
    /// says nothing.
    #[test]
    fn steady_filling_tells_when() {
        let mut filling = Filling::default();
        assert_eq!(None, filling.full_in_us(0, 0, 1_000));
        for second in 0..300_u64 {
            let (now_us, used) = (second * 1_000_000, second * 10);
            filling.note(now_us, used);
            let told = filling.full_in_us(now_us, used, 10_000);
            let expected = (second > 0).then(|| (1_000 - second) * 1_000_000);
            assert_eq!(expected, told, "after {second} s");
        }
        for second in 300..400 {
            filling.note(second * 1_000_000, 3_000);
        }
        assert_eq!(None, filling.full_in_us(400_000_000, 3_000, 10_000));
        assert_eq!(None, filling.full_in_us(401_000_000, 2_000, 10_000));
    }
}
