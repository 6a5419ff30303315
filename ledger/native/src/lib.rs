//! What the ledger computes for every record of a batch, for all of them at once: no rule lives here.
//!
//! `_columns.pyi` documents every function for Python. The obvious form of each stands in the ledger's
//! `domain/usage_hash.py`, and tests hold one against the other.

#![expect(
    clippy::needless_pass_by_value,
    reason = "what Python hands over is converted into values of our own"
)]

mod content;
mod merkle;
mod rows;

use pyo3::{
    exceptions::{PyOverflowError, PyValueError},
    prelude::*,
    types::{PyBytes, PyInt, PyList, PyString, PyTuple},
};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
type Hash = [u8; 32];

/// Why columns can't be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misfit {
    /// One is too short, or points outside of what it points into.
    Columns,
    /// A length is beyond 32 bits, or a number beyond 64.
    Number,
    /// Records say more than is hashed at once.
    Bytes,
}

impl From<Misfit> for PyErr {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Columns => PyValueError::new_err("do not fit each other"),
            Misfit::Number => PyOverflowError::new_err("a number is too large"),
            Misfit::Bytes => PyValueError::new_err("say too much"),
        }
    }
}

type Column<'py> = Bound<'py, PyList>;

/// Hashes what records say; gives shapes, each record's shape and units, attributes, which each has, and hashes.
#[pyfunction]
fn hash_records<'py>(
    py: Python<'py>,
    columns: &Bound<'py, PyAny>,
    event_us: Vec<i64>,
    timeless: u32,
) -> PyResult<(
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
)> {
    let columns = content::Columns {
        tenants: columns.getattr("tenants")?.extract()?,
        meters: columns.getattr("meters")?.extract()?,
        attribute_names: columns.getattr("attribute_names")?.extract()?,
        attribute_values: columns.getattr("attribute_values")?.extract()?,
        tenant: columns.getattr("tenant")?.extract()?,
        flags: columns.getattr("flags")?.extract()?,
        quantity_count: columns.getattr("quantity_count")?.extract()?,
        meter: columns.getattr("meter")?.extract()?,
        units: columns.getattr("units")?.extract()?,
        attribute_count: columns.getattr("attribute_count")?.extract()?,
        attribute_name: columns.getattr("attribute_name")?.extract()?,
        attribute_value: columns.getattr("attribute_value")?.extract()?,
        event_us,
        timeless,
    };
    let found = py.detach(|| content::hash(&columns))?;
    let units = PyList::empty(py);
    for record in found.units_by_record() {
        units.append(PyTuple::new(py, record)?)?;
    }
    let shapes = PyList::empty(py);
    for shape in &found.shapes {
        shapes.append(PyTuple::new(py, shape)?)?;
    }
    let attributes = PyList::empty(py);
    for (names, values) in &found.attributes {
        attributes.append((PyTuple::new(py, *names)?, PyTuple::new(py, *values)?))?;
    }
    Ok((
        shapes,
        PyList::new(py, &found.shape)?,
        units,
        attributes,
        PyList::new(py, &found.attribute)?,
        hashes_to_python(py, &found.hashes)?,
    ))
}

/// Chains entries.
#[pyfunction]
fn chain<'py>(
    py: Python<'py>,
    h: &[u8],
    entries: Vec<Bound<'py, PyBytes>>,
) -> PyResult<Column<'py>> {
    let entries = bytes_of(&entries);
    let chained: Vec<Hash> = py.detach(|| {
        let mut joined = h.to_vec();
        entries
            .iter()
            .map(|entry| {
                joined.extend_from_slice(entry);
                let next: Hash = Sha256::digest(&joined).into();
                joined.clear();
                joined.extend_from_slice(&next);
                next
            })
            .collect()
    });
    hashes_to_python(py, &chained)
}

/// Gives the Merkle root of records' hashes, by tenant.
#[pyfunction]
fn merkle_root<'py>(
    py: Python<'py>,
    tenants: Vec<String>,
    tenant: Vec<u32>,
    hashes: Vec<Bound<'py, PyBytes>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let hashes = bytes_of(&hashes);
    let root = py.detach(|| merkle::root_by_tenant(&tenants, &tenant, &hashes))?;
    Ok(PyBytes::new(py, &root))
}

/// Hashes rows; gives all hashes, one behind the other.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a row has so many columns")]
fn row_hashes<'py>(
    py: Python<'py>,
    content_hashes: Vec<Bound<'py, PyBytes>>,
    record_ids: Vec<Bound<'py, PyString>>,
    batch_id: i64,
    seqs: Vec<i64>,
    events_us: Vec<i64>,
    received_us: Vec<i64>,
    flags: Vec<i64>,
    segments: Vec<Bound<'py, PyBytes>>,
    segment: Vec<u32>,
) -> PyResult<Bound<'py, PyBytes>> {
    let content_hashes = bytes_of(&content_hashes);
    let segments = bytes_of(&segments);
    let record_ids = record_ids
        .iter()
        .map(|id| id.to_str())
        .collect::<PyResult<Vec<_>>>()?;
    let rows = rows::Rows {
        content_hashes: &content_hashes,
        record_ids: &record_ids,
        batch_id,
        seqs: &seqs,
        events_us: &events_us,
        received_us: &received_us,
        flags: &flags,
        segments: &segments,
        segment: &segment,
    };
    let hashed = py.detach(|| rows.hash())?;
    Ok(PyBytes::new(py, &hashed))
}

/// Gives integers as an array literal.
#[pyfunction]
fn number_literal(values: Vec<Bound<'_, PyAny>>) -> PyResult<String> {
    let mut text = String::with_capacity(values.len().saturating_mul(8));
    add_literal(&mut text, values.into_iter())?;
    Ok(text)
}

/// Gives rows of integers as array literals, a line each.
#[pyfunction]
fn number_literals(rows: Vec<Bound<'_, PyTuple>>) -> PyResult<String> {
    let mut lines = String::with_capacity(rows.len().saturating_mul(16));
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            lines.push('\n');
        }
        add_literal(&mut lines, row.iter())?;
    }
    Ok(lines)
}

fn add_literal<'py>(
    text: &mut String,
    values: impl Iterator<Item = Bound<'py, PyAny>>,
) -> PyResult<()> {
    text.push('{');
    for (place, value) in values.enumerate() {
        if place > 0 {
            text.push(',');
        }
        match value.extract::<i64>() {
            Ok(value) => text.push_str(itoa::Buffer::new().format(value)),
            // Postgres' numeric knows larger ones.
            Err(_) => text.push_str(value.cast::<PyInt>()?.str()?.to_str()?),
        }
    }
    text.push('}');
    Ok(())
}

fn bytes_of<'a>(column: &'a [Bound<'_, PyBytes>]) -> Vec<&'a [u8]> {
    column.iter().map(PyBytesMethods::as_bytes).collect()
}

fn hashes_to_python<'py>(py: Python<'py>, hashes: &[Hash]) -> PyResult<Column<'py>> {
    PyList::new(py, hashes.iter().map(|hash| PyBytes::new(py, hash)))
}

/// The native module.
#[pymodule(gil_used = false)]
fn _columns(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash_records, module)?)?;
    module.add_function(wrap_pyfunction!(chain, module)?)?;
    module.add_function(wrap_pyfunction!(merkle_root, module)?)?;
    module.add_function(wrap_pyfunction!(row_hashes, module)?)?;
    module.add_function(wrap_pyfunction!(number_literal, module)?)?;
    module.add_function(wrap_pyfunction!(number_literals, module)?)
}
