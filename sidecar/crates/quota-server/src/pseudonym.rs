//! Pseudonyms: what is stored of an attribute that the catalogue hides.
//!
//! The same value of one attribute of one tenant has one pseudonym as long as the tenant's key lives; the ledger makes
//! the same. Keys are kept in memory only, so that one that is destroyed at the ledger is gone.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use quota_proto::ledger;
use sha2::Sha256;

const SECRET_BYTES: usize = 32;
/// Bytes of the code that are shown.
const SHOWN_BYTES: usize = 16;
/// Characters that show them.
const SHOWN_CHARS: usize = 22;
/// Digits of the highest version.
const VERSION_CHARS_MAX: usize = 10;

/// The key of one tenant's pseudonyms.
#[derive(Clone)]
pub(crate) struct PseudonymKey {
    version: u32,
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "PseudonymKey(version {})", self.version)
    }
}

impl PseudonymKey {
    /// Reads a key; `None` where it is none.
    pub(crate) fn read(from: &ledger::PseudonymKey) -> Option<Self> {
        if from.version == 0 || from.secret.len() != SECRET_BYTES {
            return None;
        }
        Some(Self {
            version: from.version,
            keyed: Hmac::new_from_slice(&from.secret).ok()?,
        })
    }

    /// Gives the pseudonym of an attribute's value.
    pub(crate) fn pseudonym(&self, name: &str, value: &str) -> String {
        let mut code = self.keyed.clone();
        for text in [name, value] {
            // Bounded far below 2^32 at the edge.
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            code.update(&length.to_le_bytes());
            code.update(text.as_bytes());
        }
        let code = code.finalize().into_bytes();
        let shown = code.get(..SHOWN_BYTES).unwrap_or_default();
        format!("p{}.{}", self.version, URL_SAFE_NO_PAD.encode(shown))
    }
}

/// Whether a text has the form of a pseudonym.
pub(crate) fn is_pseudonym(text: &str) -> bool {
    let Some((version, shown)) = text.strip_prefix('p').and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    let is_shown = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=VERSION_CHARS_MAX).contains(&version.len())
        && version.bytes().all(|byte| byte.is_ascii_digit())
        && !version.starts_with('0')
        && shown.len() == SHOWN_CHARS
        && shown.bytes().all(is_shown)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn key(version: u32, secret: Vec<u8>) -> Option<PseudonymKey> {
        PseudonymKey::read(&ledger::PseudonymKey {
            tenant: "acme".into(),
            version,
            secret,
        })
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.map(byte).collect()
    }

    /// Pseudonyms are those of the shared vectors, which Python's hmac made.
    #[test]
    fn pseudonyms_are_the_shared_ones() {
        let text = include_str!("../../../../proto/vectors/pseudonym.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let version = u32::try_from(case["version"].as_u64().unwrap()).unwrap();
            let key = key(version, bytes(case["secret"].as_str().unwrap())).unwrap();
            let (name, value) = (&case["name"], &case["value"]);
            let made = key.pseudonym(name.as_str().unwrap(), value.as_str().unwrap());
            assert_eq!(case["pseudonym"].as_str().unwrap(), made);
            assert!(is_pseudonym(&made));
        }
    }

    /// What has another form is no pseudonym: a token's plain value is hidden all the same.
    #[test]
    fn other_forms_are_no_pseudonyms() {
        let shown = "A".repeat(SHOWN_CHARS);
        assert!(is_pseudonym(&format!("p1.{shown}")));
        for text in [
            String::new(),
            "ann".into(),
            format!("p.{shown}"),
            format!("p0.{shown}"),
            format!("p01.{shown}"),
            format!("p12345678901.{shown}"),
            format!("px.{shown}"),
            format!("q1.{shown}"),
            format!("p1.{shown}A"),
            format!("p1.{}+", &shown[1..]),
            format!("p1{shown}"),
        ] {
            assert!(!is_pseudonym(&text), "{text}");
        }
    }

    /// A key of another length or without a version is none, and no key shows its secret.
    #[test]
    fn what_is_no_key_is_refused() {
        assert!(key(0, vec![7; 32]).is_none());
        assert!(key(1, vec![7; 31]).is_none());
        let shown = format!("{:?}", key(3, vec![7; 32]).unwrap());
        assert_eq!("PseudonymKey(version 3)", shown);
    }
}
