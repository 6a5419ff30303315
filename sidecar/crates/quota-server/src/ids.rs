//! Random names: reservations, and time-ordered ids of usage records.

use quota_core::ReservationId;

/// Bytes of randomness fetched at once, so that an id costs no system call.
const POOL: usize = 4_096;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Characters of a UUID, and where its bytes stand among them.
const UUID: usize = 36;
const UUID_PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

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
        if self.used.saturating_add(16) > POOL {
            self.source.fill(&mut self.pool[..])?;
            self.used = 0;
        }
        let end = self.used.saturating_add(16);
        let mut bytes = [0; 16];
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
        let mut bytes = self.sixteen()?;
        let ms = u64::try_from(ledger_us.div_euclid(1_000))
            .unwrap_or(0)
            .to_be_bytes();
        bytes[..6].copy_from_slice(&ms[2..]);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let mut written = [b'-'; UUID];
        for (byte, place) in bytes.into_iter().zip(UUID_PLACES) {
            if let Some(pair) = written.get_mut(place..).and_then(<[u8]>::first_chunk_mut) {
                *pair = digits(byte);
            }
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
