//! Bad fields of callers, and the small parsers that find them.

use std::{borrow::Cow, collections::HashMap, fmt::Display, hash::BuildHasher};

use quota_core::{UNITS_MAX, Units};

use crate::quota::ErrorReason;

/// Longest name, id or attribute in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 128;
/// Most attributes, costs, features and quantities.
pub(crate) const LIST_MAX: usize = 16;
/// Longest piece of a caller's value that an error shows, in characters.
const VALUE_CHARS_MAX: usize = 64;

/// Sorted names with values.
pub type Attributes = Vec<(Box<str>, Box<str>)>;

/// A field that breaks its rule: where, what, which bound, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {value} is not {bound}; {remedy}")]
pub struct FieldError {
    /// Path of the field, for example `costs[3].units`.
    pub field: String,
    /// The value as it came, shortened and with control characters escaped.
    pub value: String,
    /// What it must be.
    pub bound: Cow<'static, str>,
    /// What the caller can do.
    pub remedy: Cow<'static, str>,
    /// Stable reason.
    pub reason: ErrorReason,
}

/// A parsed field, or why it isn't one.
pub type FieldResult<T> = Result<T, FieldError>;

impl FieldError {
    /// Makes an error of any reason.
    #[must_use]
    pub fn new(
        reason: ErrorReason,
        field: impl Into<String>,
        value: impl Display,
        bound: impl Into<Cow<'static, str>>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            field: field.into(),
            value: shown(&value.to_string()),
            bound: bound.into(),
            remedy: remedy.into(),
            reason,
        }
    }

    /// Puts `prefix` before the path, as `prefix.path`.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = format!("{prefix}.{}", self.field);
        self
    }

    pub(crate) fn required(
        field: impl Into<String>,
        bound: &'static str,
        remedy: &'static str,
    ) -> Self {
        Self::new(ErrorReason::FieldRequired, field, "nothing", bound, remedy)
    }

    pub(crate) fn out_of_range(
        field: impl Into<String>,
        value: impl Display,
        bound: &'static str,
        remedy: &'static str,
    ) -> Self {
        Self::new(ErrorReason::FieldOutOfRange, field, value, bound, remedy)
    }

    pub(crate) fn too_long(
        field: impl Into<String>,
        value: impl Display,
        bound: &'static str,
    ) -> Self {
        Self::new(ErrorReason::FieldTooLong, field, value, bound, "shorten it")
    }

    pub(crate) fn repeated(field: impl Into<String>, value: impl Display) -> Self {
        Self::new(
            ErrorReason::FieldRepeated,
            field,
            value,
            "named once",
            "add the units up under one name",
        )
    }

    pub(crate) fn unknown_enum(field: impl Into<String>, value: i32) -> Self {
        Self::new(
            ErrorReason::EnumUnknown,
            field,
            value,
            "a value of this version's enum",
            "upgrade the sidecar or send a known value",
        )
    }
}

/// Gives a reason's wire name: the enum's without its prefix.
#[must_use]
pub fn reason_name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// Shortens a value and escapes what could fool a reader of a log.
fn shown(value: &str) -> String {
    let mut short: String = value
        .chars()
        .take(VALUE_CHARS_MAX)
        .flat_map(escaped)
        .collect();
    if value.chars().nth(VALUE_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let plain = (!deceptive(character)).then_some(character);
    let coded = deceptive(character).then(|| character.escape_unicode());
    plain.into_iter().chain(coded.into_iter().flatten())
}

/// Control characters, and those that change the direction of text.
const fn deceptive(character: char) -> bool {
    matches!(character, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether nothing in a text could fool its reader.
fn is_plain(value: &str) -> bool {
    let is_printable = |byte: u8| matches!(byte, 0x20..0x7f);
    value.bytes().all(is_printable) || !value.chars().any(deceptive)
}

/// Parses a tenant's wire id, `[A-Za-z0-9._:-]{1,128}`.
pub(crate) fn tenant(field: &str, value: &str) -> FieldResult<()> {
    const BOUND: &str = "1 to 128 characters of A-Z a-z 0-9 . _ : -";
    if value.is_empty() {
        return Err(FieldError::required(field, BOUND, "name the tenant"));
    }
    if value.len() > TEXT_BYTES_MAX {
        return Err(FieldError::too_long(field, value, BOUND));
    }
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
    if value.bytes().all(plain) {
        return Ok(());
    }
    Err(FieldError::new(
        ErrorReason::FieldInvalid,
        field,
        value,
        BOUND,
        "use the tenant's wire id",
    ))
}

/// Parses a name or id: 1 to 128 bytes without control characters.
///
/// # Errors
/// Empty, too long, or with a control or direction character.
pub fn text(field: &str, value: &str) -> FieldResult<()> {
    if value.is_empty() {
        return Err(FieldError::required(
            field,
            "1 to 128 bytes",
            "give it a value",
        ));
    }
    optional_text(field, value)
}

/// Parses text that may be empty.
pub(crate) fn optional_text(field: &str, value: &str) -> FieldResult<()> {
    if value.len() > TEXT_BYTES_MAX {
        return Err(FieldError::too_long(field, value, "at most 128 bytes"));
    }
    if !is_plain(value) {
        return Err(FieldError::new(
            ErrorReason::FieldInvalid,
            field,
            value,
            "free of control and direction characters",
            "leave them out",
        ));
    }
    Ok(())
}

/// Parses units, 0 to 2^53 − 1.
///
/// # Errors
/// Negative, or larger.
pub fn units(field: impl FnOnce() -> String, value: i64) -> FieldResult<Units> {
    match Units::try_from(value) {
        Ok(units) if units <= UNITS_MAX => Ok(units),
        _ => Err(FieldError::out_of_range(
            field(),
            value,
            "0 to 9007199254740991",
            "send a whole number of the meter's unit within the bound",
        )),
    }
}

/// Parses up to 16 attributes and sorts them by name.
///
/// # Errors
/// Too many, or a name or value that is malformed.
pub fn attributes(values: HashMap<String, String, impl BuildHasher>) -> FieldResult<Attributes> {
    attribute_count(values.len())?;
    let mut sorted = Vec::with_capacity(values.len());
    for (name, value) in values {
        attribute(&name, &value)?;
        sorted.push((name.into_boxed_str(), value.into_boxed_str()));
    }
    sorted.sort_unstable();
    Ok(sorted)
}

/// Checks how many attributes there are.
pub(crate) fn attribute_count(count: usize) -> FieldResult<()> {
    if count <= LIST_MAX {
        return Ok(());
    }
    let bound = "at most 16 attributes";
    Err(FieldError::too_long("attributes", count, bound))
}

/// Parses a name with its value.
pub(crate) fn attribute(name: &str, value: &str) -> FieldResult<()> {
    text("attributes.key", name)?;
    attribute_value(name, value)
}

/// Parses the value of a name that was parsed.
pub(crate) fn attribute_value(name: &str, value: &str) -> FieldResult<()> {
    if value.len() > TEXT_BYTES_MAX || !is_plain(value) {
        optional_text(&format!("attributes[{}]", shown(name)), value)?;
    }
    Ok(())
}
