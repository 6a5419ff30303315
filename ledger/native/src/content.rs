//! The content hash of usage records, version 1, as `ledger/v1/usage.proto` defines it, over columns.

use std::collections::{HashMap, hash_map::Entry};

use sha2::{Digest as _, Sha256};

use crate::{Hash, Misfit};

const TAG: &[u8] = b"tollkeeper.content.v1";
/// What records may say together: four times as much as the most that can be stored of 10,000. Dictionaries are short,
/// what points into them is not.
const BYTES_MAX: usize = 256 << 20;

/// Records as columns: dictionaries, then one value per record, quantity or attribute. Unchecked.
pub(crate) struct Columns {
    pub(crate) tenants: Vec<String>,
    pub(crate) meters: Vec<String>,
    pub(crate) attribute_names: Vec<String>,
    pub(crate) attribute_values: Vec<String>,
    pub(crate) tenant: Vec<u32>,
    pub(crate) flags: Vec<u32>,
    pub(crate) quantity_count: Vec<usize>,
    pub(crate) meter: Vec<u32>,
    pub(crate) units: Vec<i64>,
    pub(crate) attribute_count: Vec<usize>,
    pub(crate) attribute_name: Vec<u32>,
    pub(crate) attribute_value: Vec<u32>,
    pub(crate) event_us: Vec<i64>,
    /// The flag of records whose event time is no part of what they say.
    pub(crate) timeless: u32,
}

/// What is found out about records.
pub(crate) struct Hashed<'a> {
    /// Meters that records carry, by their names' byte order, in order of first use.
    pub(crate) shapes: Vec<Vec<u32>>,
    /// Per record: its shape.
    pub(crate) shape: Vec<usize>,
    /// Of all records, one behind the other, in the order of the shape's meters.
    units: Vec<i64>,
    counts: &'a [usize],
    /// Names and values of attributes that records have, as they came, in order of first use.
    pub(crate) attributes: Vec<(&'a [u32], &'a [u32])>,
    /// Per record: its attributes.
    pub(crate) attribute: Vec<usize>,
    pub(crate) hashes: Vec<Hash>,
}

impl Hashed<'_> {
    /// Gives each record's units.
    pub(crate) fn units_by_record(&self) -> impl Iterator<Item = &[i64]> {
        let mut rest = self.units.as_slice();
        self.counts.iter().map(move |&count| {
            let (own, others) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = others;
            own
        })
    }
}

/// What records with the same meters in the same order have in common.
struct Form {
    shape: usize,
    /// Which quantity comes first, second, …
    order: Vec<usize>,
    /// What stands before each quantity's units.
    before: Vec<Vec<u8>>,
}

/// Hashes every record. What repeats is put together once: this sets the rate of ingest.
pub(crate) fn hash(columns: &Columns) -> Result<Hashed<'_>, Misfit> {
    let mut left = Left(BYTES_MAX);
    let heads = heads(&columns.tenants)?;
    let mut found = Hashed {
        shapes: Vec::new(),
        shape: Vec::with_capacity(columns.tenant.len()),
        units: Vec::with_capacity(columns.units.len()),
        counts: &columns.quantity_count,
        attributes: Vec::new(),
        attribute: Vec::with_capacity(columns.tenant.len()),
        hashes: Vec::with_capacity(columns.tenant.len()),
    };
    let mut forms: HashMap<&[u32], Form> = HashMap::new();
    let mut tails: Vec<Vec<u8>> = Vec::new();
    let mut places: HashMap<(&[u32], &[u32]), usize> = HashMap::new();
    let mut meters = Rest(&columns.meter);
    let mut units = Rest(&columns.units);
    let mut names = Rest(&columns.attribute_name);
    let mut values = Rest(&columns.attribute_value);
    let mut bytes = Vec::with_capacity(256);
    for (record, &tenant) in columns.tenant.iter().enumerate() {
        bytes.clear();
        bytes.extend_from_slice(at(&heads, tenant)?);
        let quantities = nth(&columns.quantity_count, record)?;
        let meters = meters.take(quantities)?;
        let own = units.take(quantities)?;
        let form = match forms.entry(meters) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(form_of(
                meters,
                &columns.meters,
                &mut found.shapes,
                &mut left,
            )?),
        };
        found.shape.push(form.shape);
        if form.order.is_empty() {
            count(&mut bytes, 0)?;
        }
        for (before, &place) in form.before.iter().zip(&form.order) {
            let amount = nth(own, place)?;
            bytes.extend_from_slice(before);
            bytes.extend_from_slice(&amount.to_le_bytes());
            found.units.push(amount);
        }
        let attributes = nth(&columns.attribute_count, record)?;
        let key = (names.take(attributes)?, values.take(attributes)?);
        let place = match places.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => {
                tails.push(tail_of(key, columns, &mut left)?);
                found.attributes.push(key);
                *free.insert(found.attributes.len().saturating_sub(1))
            }
        };
        found.attribute.push(place);
        bytes.extend_from_slice(tails.get(place).ok_or(Misfit::Columns)?);
        if nth(&columns.flags, record)? & columns.timeless != 0 {
            count(&mut bytes, 0)?;
        } else {
            count(&mut bytes, 1)?;
            bytes.extend_from_slice(&nth(&columns.event_us, record)?.to_le_bytes());
        }
        left.spend(bytes.len())?;
        found.hashes.push(Sha256::digest(&bytes).into());
    }
    Ok(found)
}

/// How many bytes may still be put together.
struct Left(usize);

impl Left {
    fn spend(&mut self, bytes: usize) -> Result<(), Misfit> {
        self.0 = self.0.checked_sub(bytes).ok_or(Misfit::Bytes)?;
        Ok(())
    }
}

/// A column of which records take their parts, one after the other.
struct Rest<'a, T>(&'a [T]);

impl<'a, T> Rest<'a, T> {
    fn take(&mut self, count: usize) -> Result<&'a [T], Misfit> {
        let (own, others) = self.0.split_at_checked(count).ok_or(Misfit::Columns)?;
        self.0 = others;
        Ok(own)
    }
}

fn heads(tenants: &[String]) -> Result<Vec<Vec<u8>>, Misfit> {
    tenants
        .iter()
        .map(|tenant| {
            let mut head = Vec::with_capacity(64);
            text(&mut head, TAG)?;
            text(&mut head, tenant.as_bytes())?;
            Ok(head)
        })
        .collect()
}

fn form_of(
    meters: &[u32],
    names: &[String],
    shapes: &mut Vec<Vec<u32>>,
    left: &mut Left,
) -> Result<Form, Misfit> {
    let mut quantities = meters
        .iter()
        .enumerate()
        .map(|(place, &meter)| Ok((at(names, meter)?.as_bytes(), place, meter)))
        .collect::<Result<Vec<_>, Misfit>>()?;
    quantities.sort_by_key(|&(name, _, _)| name);
    let ordered: Vec<u32> = quantities.iter().map(|&(_, _, meter)| meter).collect();
    let known = shapes.iter().position(|known| *known == ordered);
    let shape = known.unwrap_or_else(|| {
        shapes.push(ordered);
        shapes.len().saturating_sub(1)
    });
    let mut before = Vec::with_capacity(quantities.len());
    for (place, &(name, _, _)) in quantities.iter().enumerate() {
        left.spend(name.len())?;
        let mut constant = Vec::with_capacity(64);
        if place == 0 {
            count(&mut constant, quantities.len())?;
        }
        text(&mut constant, name)?;
        before.push(constant);
    }
    Ok(Form {
        shape,
        order: quantities.iter().map(|&(_, place, _)| place).collect(),
        before,
    })
}

fn tail_of(
    (names, values): (&[u32], &[u32]),
    columns: &Columns,
    left: &mut Left,
) -> Result<Vec<u8>, Misfit> {
    let mut pairs = names
        .iter()
        .zip(values)
        .map(|(&name, &value)| {
            Ok((
                at(&columns.attribute_names, name)?.as_bytes(),
                at(&columns.attribute_values, value)?.as_bytes(),
            ))
        })
        .collect::<Result<Vec<_>, Misfit>>()?;
    pairs.sort_by_key(|&(name, _)| name);
    let mut tail = Vec::with_capacity(64);
    count(&mut tail, pairs.len())?;
    for (name, value) in pairs {
        left.spend(name.len().saturating_add(value.len()))?;
        text(&mut tail, name)?;
        text(&mut tail, value)?;
    }
    Ok(tail)
}

/// Adds a string as hashes take it: its length as u32 little-endian, then its bytes.
pub(crate) fn text(bytes: &mut Vec<u8>, value: &[u8]) -> Result<(), Misfit> {
    count(bytes, value.len())?;
    bytes.extend_from_slice(value);
    Ok(())
}

fn count(bytes: &mut Vec<u8>, value: usize) -> Result<(), Misfit> {
    let value = u32::try_from(value).map_err(|_| Misfit::Number)?;
    bytes.extend_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Gives what an index points to.
pub(crate) fn at<T>(column: &[T], place: u32) -> Result<&T, Misfit> {
    let place = usize::try_from(place).map_err(|_| Misfit::Columns)?;
    column.get(place).ok_or(Misfit::Columns)
}

/// Gives the value of a place.
pub(crate) fn nth<T: Copy>(column: &[T], place: usize) -> Result<T, Misfit> {
    column.get(place).copied().ok_or(Misfit::Columns)
}
