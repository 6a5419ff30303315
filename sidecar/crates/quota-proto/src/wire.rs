//! Messages from and to bytes, where the generated code is not what reads or writes them.

use prost::{
    DecodeError, EncodeError, Message,
    bytes::{BufMut, Bytes},
    encoding::encoded_len_varint,
};

/// What a call can bring.
pub trait FromWire: Sized {
    /// Decodes it.
    ///
    /// # Errors
    /// It is no such message.
    fn from_wire(wire: Bytes) -> Result<Self, WireError>;
}

/// Why bytes are no message of a type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// They are no message at all, or a field is of another type.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A field ends behind the message that it is in.
    #[error("a field is longer than its message")]
    CutShort,
    /// What must be text is not.
    #[error("a string is not UTF-8")]
    NotText,
}

/// What a call can be answered with.
pub trait ToWire {
    /// Encodes it at a buffer's end.
    ///
    /// # Errors
    /// The buffer has an end.
    fn to_wire(&self, buffer: &mut impl BufMut) -> Result<(), EncodeError>;
}

impl<M: Message + Default> FromWire for M {
    fn from_wire(wire: Bytes) -> Result<Self, WireError> {
        // In one piece, so that fields of bytes are slices of it.
        Ok(Self::decode(wire)?)
    }
}

impl<M: Message> ToWire for M {
    fn to_wire(&self, buffer: &mut impl BufMut) -> Result<(), EncodeError> {
        self.encode(buffer)
    }
}

/// Wire types.
const NUMBER: u8 = 0;
const BYTES: u8 = 2;
/// Bytes of the longest number.
const VARINT_MAX: usize = 10;

/// Adds a field of text, which is left out where it is empty. The tag is at most 15, as those of all functions here.
pub(crate) fn put_text(buffer: &mut Vec<u8>, tag: u8, text: &str) {
    if !text.is_empty() {
        put_head(buffer, tag, text.len());
        buffer.extend_from_slice(text.as_bytes());
    }
}

/// Adds a field of a number, which is left out where it is 0.
pub(crate) fn put_number(buffer: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        buffer.push(tag << 3 | NUMBER);
        put_varint(buffer, bits(number));
    }
}

/// Adds what stands before so many bytes of a message.
pub(crate) fn put_head(buffer: &mut Vec<u8>, tag: u8, length: usize) {
    buffer.push(tag << 3 | BYTES);
    put_varint(buffer, length as u64);
}

/// Adds a number seven bits a byte, the lowest first; in one piece, since a buffer that grows byte by byte looks for
/// room at each of them.
#[inline]
fn put_varint(buffer: &mut Vec<u8>, number: u64) {
    if number < 0x80 {
        return buffer.push(seven(number));
    }
    let (mut piece, mut rest) = ([0; VARINT_MAX], number);
    for byte in &mut piece {
        *byte = seven(rest) | 0x80;
        rest >>= 7;
    }
    let length = encoded_len_varint(number);
    if let Some(last) = piece.get_mut(..length).and_then(<[u8]>::last_mut) {
        *last &= 0x7f;
    }
    // All of it and then cut, since that needs no copy of a length that only shows now.
    let end = buffer.len().saturating_add(length);
    buffer.extend_from_slice(&piece);
    buffer.truncate(end);
}

/// The lowest seven bits.
const fn seven(number: u64) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

/// Tells how many bytes a field of text takes.
pub(crate) fn text_length(text: &str) -> usize {
    match text.len() {
        0 => 0,
        length => encoded_len_varint(length as u64)
            .saturating_add(length)
            .saturating_add(1),
    }
}

/// Tells how many bytes a field of a number takes.
pub(crate) fn number_length(number: i64) -> usize {
    match number {
        0 => 0,
        _ => encoded_len_varint(bits(number)).saturating_add(1),
    }
}

/// Negative numbers have their sign's bits, as `int32` and `int64` do.
const fn bits(number: i64) -> u64 {
    u64::from_le_bytes(number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use prost::encoding::encode_varint;

    use super::*;

    /// Numbers of every length are written as prost writes them.
    #[test]
    fn numbers_are_written_as_prost_writes_them() {
        let edges = (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1]);
        for number in edges.chain([u64::MAX, u64::MAX - 1]) {
            let (mut expected, mut ours) = (vec![7], vec![7]);
            encode_varint(number, &mut expected);
            put_varint(&mut ours, number);
            assert_eq!(expected, ours, "{number}");
        }
    }
}
