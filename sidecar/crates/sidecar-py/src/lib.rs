//! The bridge between the data plane and Python: converts, and releases the GIL. No rule lives here.
//!
//! `_native.pyi` documents every method for Python.

use pyo3::{
    exceptions::{PyOSError, PyValueError},
    prelude::*,
    types::PyBytes,
};
use quota_server::{
    StartError,
    config::ConfigError,
    load,
    probe::{self, Pace, ProbeError},
};

/// One running data plane.
#[pyclass(frozen, module = "tollkeeper_sidecar._native")]
struct DataPlane(quota_server::DataPlane);

#[pymethods]
impl DataPlane {
    /// Starts the data plane.
    #[staticmethod]
    fn start(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        py.detach(|| quota_server::DataPlane::start(config_json))
            .map(Self)
            .map_err(|error| start_error(&error))
    }

    /// Gives the eventfd.
    fn fd(&self, py: Python<'_>) -> i32 {
        py.detach(|| self.0.fd())
    }

    /// Takes every waiting command.
    fn take_commands<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let commands = py.detach(|| self.0.take_commands());
        PyBytes::new(py, &commands)
    }

    /// Hands over answers and news.
    fn give_answers(&self, py: Python<'_>, batch: &[u8]) -> PyResult<()> {
        py.detach(|| self.0.give_answers(batch))
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Tells where it listens.
    fn addresses(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.addresses())
    }

    /// Tells its counters.
    fn stats(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.stats())
    }

    /// Begins a clean stop.
    fn begin_drain(&self, py: Python<'_>) {
        py.detach(|| self.0.begin_drain());
    }

    /// Tells whether a drain has finished.
    fn drained(&self, py: Python<'_>) -> bool {
        py.detach(|| self.0.drained())
    }

    /// Stops at once.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

fn start_error(error: &StartError) -> PyErr {
    match error {
        StartError::Config(ConfigError::Malformed(_) | ConfigError::OutOfRange(..)) => {
            PyValueError::new_err(error.to_string())
        }
        StartError::Log(_) | StartError::Io(_) => PyOSError::new_err(error.to_string()),
    }
}

/// Measures unary checks at a steady pace.
#[pyfunction]
fn measure_checks(
    py: Python<'_>,
    target: &str,
    tenant: &str,
    meter: &str,
    checks: u32,
    rate: u32,
) -> PyResult<String> {
    let pace = Pace {
        target,
        tenant,
        meter,
        checks,
        rate,
    };
    py.detach(|| probe::measure(pace).and_then(|result| probe::to_json(&result)))
        .map_err(|error| PyOSError::new_err(error.to_string()))
}

/// Loads sidecars with checks and calls, and tells what their callers were told.
#[pyfunction]
fn measure_load(py: Python<'_>, plan_json: &str) -> PyResult<String> {
    py.detach(|| load::load_json(plan_json))
        .map_err(|error| match error {
            ProbeError::Plan(_) | ProbeError::Calls(_) => PyValueError::new_err(error.to_string()),
            error => PyOSError::new_err(error.to_string()),
        })
}

/// The native module.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DataPlane>()?;
    module.add_function(wrap_pyfunction!(measure_checks, module)?)?;
    module.add_function(wrap_pyfunction!(measure_load, module)?)
}
