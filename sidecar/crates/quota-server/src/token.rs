//! Reservation tokens: what they say, signed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use quota_proto::{
    ledger::{ReservationToken, TokenKey},
    quota::ErrorReason,
};
use sha2::Sha256;

use crate::refusal::{Answer, Refusal};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 5;
const MAC_BYTES: usize = 32;
/// Longest token in text; the longest that we make is about 16 KiB (16 costs, 128 holds).
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Keys for tokens, newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenKeys {
    keys: Vec<(u32, Box<[u8]>)>,
}

impl TokenKeys {
    pub(crate) fn new(keys: &[TokenKey]) -> Self {
        let usable = keys.iter().filter(|key| !key.secret.is_empty());
        Self {
            keys: usable
                .map(|key| (key.key_id, key.secret.clone().into_boxed_slice()))
                .collect(),
        }
    }

    /// Whether the ledger has sent no key yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Signs with the newest key.
    ///
    /// # Errors
    /// The ledger has sent no key yet.
    pub(crate) fn sign(&self, token: &ReservationToken) -> Answer<String> {
        let (key_id, secret) = self.keys.first().ok_or_else(Refusal::starting)?;
        let mut bytes = Vec::with_capacity(256);
        bytes.push(VERSION);
        bytes.extend_from_slice(&key_id.to_be_bytes());
        token.encode(&mut bytes).map_err(|_| Refusal::internal())?;
        let mac = mac(secret, &bytes)?.finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Verifies a token in constant time and reads it.
    ///
    /// # Errors
    /// Not a token of this installation, or no key here yet.
    pub(crate) fn verify(&self, text: &str) -> Answer<ReservationToken> {
        if self.keys.is_empty() {
            return Err(Refusal::starting());
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(invalid("it is longer than any token"));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| invalid("it is not base64url without padding"))?;
        let signed = bytes
            .len()
            .checked_sub(MAC_BYTES)
            .ok_or_else(|| invalid("it is too short"))?;
        let (content, signature) = bytes
            .split_at_checked(signed)
            .ok_or_else(|| invalid("it is too short"))?;
        let (head, payload) = content
            .split_at_checked(HEAD_BYTES)
            .ok_or_else(|| invalid("it is too short"))?;
        let Some((&VERSION, key_id)) = head.split_first() else {
            return Err(invalid("its version is not 1"));
        };
        let key_id = key_id
            .try_into()
            .map(u32::from_be_bytes)
            .map_err(|_| invalid("it is too short"))?;
        let secret = self
            .keys
            .iter()
            .find(|(known, _)| *known == key_id)
            .map(|(_, secret)| secret);
        let secret = secret.ok_or_else(|| invalid("its key is not one of this installation"))?;
        mac(secret, content)?
            .verify_slice(signature)
            .map_err(|_| invalid("its signature is wrong"))?;
        let token =
            ReservationToken::decode(payload).map_err(|_| invalid("its content can't be read"))?;
        if token.reservation_id.len() != 16 || token.home.len() != 16 {
            return Err(invalid("its ids are not 16 bytes"));
        }
        Ok(token)
    }
}

fn mac(secret: &[u8], content: &[u8]) -> Answer<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| Refusal::internal())?;
    mac.update(content);
    Ok(mac)
}

/// Never repeats the token: whoever reads logs could settle with it.
fn invalid(why: &'static str) -> Refusal {
    Refusal::new(
        ErrorReason::ReservationInvalid,
        format!("the token names no reservation of this installation: {why}"),
    )
    .with("field", "token")
    .with("bound", "a token as the reserving check answered it")
    .with(
        "remedy",
        "send the token unchanged, to a sidecar of the same installation",
    )
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quota_proto::ledger::TokenCost;

    fn keys() -> TokenKeys {
        TokenKeys::new(&[
            TokenKey {
                key_id: 2,
                secret: vec![7; 32],
            },
            TokenKey {
                key_id: 1,
                secret: vec![9; 32],
            },
        ])
    }

    fn token() -> ReservationToken {
        ReservationToken {
            reservation_id: vec![1; 16],
            tenant: "acme".into(),
            home: vec![2; 16],
            sequence: 9,
            expires_us: 5,
            holds: Vec::new(),
            costs: vec![TokenCost {
                meter: "tokens".into(),
                units: 3,
            }],
            attributes: Vec::new(),
            holder: vec![3; 16],
        }
    }

    /// A token is read back as it was signed, also after its key has become an old one.
    #[test]
    fn signed_tokens_verify() {
        let text = keys().sign(&token()).unwrap();
        assert_eq!(Ok(token()), keys().verify(&text));
        let older = TokenKeys::new(&[
            TokenKey {
                key_id: 3,
                secret: vec![1; 32],
            },
            TokenKey {
                key_id: 2,
                secret: vec![7; 32],
            },
        ]);
        assert_eq!(Ok(token()), older.verify(&text));
    }

    /// Without keys nothing is signed or believed: the sidecar is starting.
    #[test]
    fn no_keys_is_starting() {
        let none = TokenKeys::default();
        assert_eq!(
            ErrorReason::SidecarStarting,
            none.sign(&token()).unwrap_err().reason
        );
        let text = keys().sign(&token()).unwrap();
        assert_eq!(
            ErrorReason::SidecarStarting,
            none.verify(&text).unwrap_err().reason
        );
    }

    /// A key of another installation, or an unknown key id, is refused.
    #[test]
    fn foreign_keys_are_refused() {
        let text = keys().sign(&token()).unwrap();
        for foreign in [
            TokenKey {
                key_id: 2,
                secret: vec![8; 32],
            },
            TokenKey {
                key_id: 5,
                secret: vec![7; 32],
            },
        ] {
            let refusal = TokenKeys::new(&[foreign]).verify(&text).unwrap_err();
            assert_eq!(ErrorReason::ReservationInvalid, refusal.reason);
        }
    }

    proptest! {
        /// Whatever text comes, verification answers and never panics, and never believes what was not signed.
        #[test]
        fn arbitrary_text_is_refused(text in "\\PC{0,400}") {
            prop_assert_eq!(ErrorReason::ReservationInvalid, keys().verify(&text).unwrap_err().reason);
        }

        /// Whatever bytes come under the right version and key, they are refused without the right signature.
        #[test]
        fn arbitrary_bytes_are_refused(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![VERSION, 0, 0, 0, 2];
            bytes.extend(payload);
            prop_assert!(keys().verify(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }

        /// A token with any one bit changed is refused.
        #[test]
        fn changed_bits_are_refused(position in 0_usize..4_096) {
            let text = keys().sign(&token()).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            let at = position % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(keys().verify(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }
}
