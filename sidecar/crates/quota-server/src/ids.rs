//! Random names: reservations, and time-ordered ids of usage records.

use std::ops::Range;

use quota_core::ReservationId;

/// Bytes of randomness fetched at once, so that an id costs no system call.
const POOL: usize = 4_096;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Characters of a UUID, and which of its 32 digits stand where among them.
pub(crate) const UUID: usize = 36;
const UUID_PARTS: [(Range<usize>, usize); 5] = [
    (0..8, 0),
    (8..12, 9),
    (12..16, 14),
    (16..20, 19),
    (20..32, 24),
];

/// Where randomness comes from.
pub trait Randomness: Send {
    /// Fills `bytes` with unpredictable bytes.
    ///
    /// # Errors
    /// The source fails.
    fn fill(&mut self, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// The operating system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn fill(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(|error| std::io::Error::other(error.to_string()))
    }
}

/// Makes ids.
pub(crate) struct Ids {
    source: Box<dyn Randomness>,
    pool: Box<[u8; POOL]>,
    used: usize,
}

impl Ids {
    pub(crate) fn new(source: Box<dyn Randomness>) -> Self {
        Self {
            source,
            pool: Box::new([0; POOL]),
            used: POOL,
        }
    }

    /// Makes sixteen random bytes.
    pub(crate) fn sixteen(&mut self) -> std::io::Result<[u8; 16]> {
        self.random()
    }

    /// Gives random bytes that were never given before.
    fn random<const BYTES: usize>(&mut self) -> std::io::Result<[u8; BYTES]> {
        if self.used.saturating_add(BYTES) > POOL {
            self.source.fill(&mut self.pool[..])?;
            self.used = 0;
        }
        let end = self.used.saturating_add(BYTES);
        let mut bytes = [0; BYTES];
        if let Some(fresh) = self.pool.get_mut(self.used..end) {
            bytes.copy_from_slice(fresh);
            fresh.fill(0);
        }
        self.used = end;
        Ok(bytes)
    }

    /// Makes a reservation's id.
    pub(crate) fn reservation(&mut self) -> std::io::Result<ReservationId> {
        self.sixteen().map(ReservationId)
    }

    /// Makes a `UUIDv7` of ledger time and adds it to a text.
    pub(crate) fn add_uuid_v7(&mut self, ledger_us: i64, text: &mut String) -> std::io::Result<()> {
        let mut bytes = [0; 16];
        bytes[6..].copy_from_slice(&self.random::<10>()?);
        let ms = u64::try_from(ledger_us.div_euclid(1_000))
            .unwrap_or(0)
            .to_be_bytes();
        bytes[..6].copy_from_slice(&ms[2..]);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let mut digits = [0; 32];
        for (eight, four) in digits.chunks_exact_mut(8).zip(bytes.chunks_exact(4)) {
            let four = four.first_chunk().copied().unwrap_or_default();
            eight.copy_from_slice(&eight_digits(u32::from_be_bytes(four)));
        }
        let mut written = [b'-'; UUID];
        for (part, place) in UUID_PARTS {
            let part = &digits[part];
            written[place..][..part.len()].copy_from_slice(part);
        }
        text.push_str(std::str::from_utf8(&written).unwrap_or_default());
        Ok(())
    }
}

/// Writes bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        push_hex(&mut text, *byte);
    }
    text
}

fn push_hex(text: &mut String, byte: u8) {
    text.extend(digits(byte).map(char::from));
}

/// Writes four bytes as lower-case hex, all digits at once: a byte of a word for each.
const fn eight_digits(number: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let halves = ((number as u64) << 16 | number as u64) & 0x0000_ffff_0000_ffff;
    let bytes = (halves << 8 | halves) & 0x00ff_00ff_00ff_00ff;
    let nibbles = (bytes << 4 | bytes) & 0x0f0f_0f0f_0f0f_0f0f;
    // 10 and more reach the next four bits when 6 is added.
    let letters = (nibbles.wrapping_add(EACH.wrapping_mul(6)) >> 4) & EACH;
    let zero = EACH.wrapping_mul(b'0' as u64);
    let from_letters = letters.wrapping_mul((b'a' - b'0' - 10) as u64);
    nibbles
        .wrapping_add(zero)
        .wrapping_add(from_letters)
        .to_be_bytes()
}

const fn digits(byte: u8) -> [u8; 2] {
    [DIGITS[(byte >> 4) as usize], DIGITS[(byte & 0x0f) as usize]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids of one source never repeat across refills, and a UUID carries version, variant and time.
    #[test]
    fn ids_are_distinct_and_well_formed() {
        let mut ids = Ids::new(Box::new(SystemRandomness));
        let mut seen = hashbrown::HashSet::new();
        for _ in 0..1_000 {
            assert!(seen.insert(ids.sixteen().unwrap()));
        }
        let mut id = String::new();
        ids.add_uuid_v7(0x0123_4567_89ab_i64 * 1_000, &mut id)
            .unwrap();
        assert_eq!("01234567-89ab-7", &id[..15]);
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_eq!(36, id.len());
        for number in [0, 0x0123_4567, 0x89ab_cdef, 0x9a09_90af, u32::MAX] {
            let expected = format!("{number:08x}");
            assert_eq!(expected.as_bytes(), eight_digits(number));
        }
        assert_eq!("000f10a9ff", hex(&[0, 0x0f, 0x10, 0xa9, 0xff]));
    }

    /// A source that fails gives an error, never a predictable id.
    #[test]
    fn broken_randomness_is_an_error() {
        struct Broken;
        impl Randomness for Broken {
            fn fill(&mut self, _: &mut [u8]) -> std::io::Result<()> {
                Err(std::io::Error::other("broken"))
            }
        }
        assert!(Ids::new(Box::new(Broken)).sixteen().is_err());
    }
}
