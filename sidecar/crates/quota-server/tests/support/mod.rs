//! A data plane with a scripted control plane beside it, and a client.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod client;
pub mod control;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use quota_server::DataPlane;
use serde_json::Value;
use tempfile::TempDir;

pub use client::Client;
pub use control::{Control, Script};

/// A running data plane whose control plane is a script.
#[allow(clippy::struct_field_names)] // the plane in a plane is the one under test
pub struct Plane {
    pub plane: Arc<DataPlane>,
    pub control: Control,
    pub client: Client,
}

impl Plane {
    /// Starts on a fresh log and waits until it is ready.
    pub async fn start(folder: &TempDir, script: Script) -> Self {
        let plane = Self::start_cold(folder.path(), script).await;
        plane.until(|stats| stats["ready"] == true).await;
        plane
    }

    /// Starts without waiting.
    pub async fn start_cold(folder: &Path, script: Script) -> Self {
        let config = serde_json::json!({
            "listen": "127.0.0.1:0",
            "socket": folder.join("s.sock"),
            "usage_log_dir": folder.join("log"),
            "usage_log_bytes": 1 << 20,
            "embedded": true,
            "ship_interval_ms": 20,
            // Generous, so that a busy machine makes tests slow instead of wrong.
            "ledger_budget_us": 2_000_000,
            "redis_budget_us": 2_000_000,
            "proof_age_us": 1_000_000,
            "welcome_wait_ms": if script.away { 20 } else { 600_000 },
        });
        let plane = Arc::new(DataPlane::start(&config.to_string()).expect("starts"));
        let control = Control::start(Arc::clone(&plane), script);
        let addresses: Value = serde_json::from_str(&plane.addresses()).unwrap();
        let client = Client::tcp(addresses["tcp"].as_str().unwrap()).await;
        Self {
            plane,
            control,
            client,
        }
    }

    /// Waits for a condition on its figures.
    pub async fn until(&self, condition: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        while !condition(&self.stats()) {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "never came true: {}",
                self.stats()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn stats(&self) -> Value {
        serde_json::from_str(&self.plane.stats()).unwrap()
    }

    /// Stops as a killed process would: nothing is drained.
    pub fn kill(self) -> Script {
        let Self {
            plane,
            control,
            client,
        } = self;
        drop(client);
        let script = control.stop();
        plane.stop();
        script
    }
}

/// Copies a directory with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
