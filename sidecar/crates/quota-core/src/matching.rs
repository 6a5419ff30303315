//! Whether a limit applies to a call, and under which key.

use crate::limit::{AttributeMatch, LimitRule, MatchRule};

/// Attributes of a call, sorted by name.
pub(crate) type Attributes = [(Box<str>, Box<str>)];

/// The value of an attribute.
pub(crate) fn attribute<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    let place = attributes
        .binary_search_by(|(other, _)| (**other).cmp(name))
        .ok()?;
    attributes.get(place).map(|(_, value)| &**value)
}

/// Whether a limit is in force at this ledger time and applies to a call with these attributes.
pub(crate) fn applies(rule: &LimitRule, attributes: &Attributes, ledger_us: i64) -> bool {
    is_in_force(rule, ledger_us)
        && rule
            .matches
            .iter()
            .all(|wanted| matches(wanted, attributes))
}

/// Whether a call's attributes meet one condition.
pub(crate) fn matches(wanted: &AttributeMatch, attributes: &Attributes) -> bool {
    attribute(attributes, &wanted.attribute).is_some_and(|value| match &wanted.rule {
        MatchRule::Exact(text) => **text == *value,
        MatchRule::Prefix(text) => value.starts_with(&**text),
        MatchRule::Set(texts) => texts.binary_search_by(|text| (**text).cmp(value)).is_ok(),
        MatchRule::Any => true,
    })
}

/// Whether a limit is in force at this ledger time.
pub(crate) fn is_in_force(rule: &LimitRule, ledger_us: i64) -> bool {
    rule.valid_from_us.is_none_or(|from| from <= ledger_us)
        && rule.valid_to_us.is_none_or(|to| ledger_us < to)
}

/// Key values of a call in the rule's order; a missing one is empty.
pub(crate) fn key_values<'a>(
    rule: &'a LimitRule,
    attributes: &'a Attributes,
) -> impl Iterator<Item = &'a str> + Clone {
    rule.key
        .iter()
        .map(|name| attribute(attributes, name).unwrap_or(""))
}
