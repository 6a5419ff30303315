//! Settings of the data plane, as the control plane hands them over.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENT_BYTES_MIN: u64 = 256 << 10;
const SEGMENTS_MIN: u64 = 4;

/// A bad setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON object that it should be.
    #[error("configuration is not as documented: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A value outside its bounds.
    #[error("{0} is {1}, it must be {2}")]
    OutOfRange(&'static str, String, &'static str),
}

/// Settings; keys and defaults are documented in `_native.pyi`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the TCP listener.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Path of the Unix socket.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Directory of the usage log.
    pub usage_log_dir: PathBuf,
    /// Room for the usage log.
    #[serde(default = "usage_log_bytes")]
    pub usage_log_bytes: u64,
    /// Whether a scaled clock is believed.
    #[serde(default)]
    pub embedded: bool,
    /// Checks that may wait at once.
    #[serde(default = "waiting_max")]
    pub waiting_max: usize,
    /// Real µs that a check waits for Redis.
    #[serde(default = "redis_budget_us")]
    pub redis_budget_us: u64,
    /// Real µs that a check waits for the ledger.
    #[serde(default = "ledger_budget_us")]
    pub ledger_budget_us: u64,
    /// Real µs after which proof is stale.
    #[serde(default = "proof_age_us")]
    pub proof_age_us: u64,
    /// Keys of limits kept in memory at most.
    #[serde(default = "keys_max")]
    pub keys_max: usize,
    /// Longest real ms that a record waits for its batch.
    #[serde(default = "ship_interval_ms")]
    pub ship_interval_ms: u64,
    /// Real ms after the start from which a ledger that has not introduced itself counts as away.
    #[serde(default = "welcome_wait_ms")]
    pub welcome_wait_ms: u64,
}

const fn usage_log_bytes() -> u64 {
    1 << 30
}
const fn waiting_max() -> usize {
    10_000
}
const fn redis_budget_us() -> u64 {
    5_000
}
const fn ledger_budget_us() -> u64 {
    100_000
}
const fn proof_age_us() -> u64 {
    100_000
}
const fn keys_max() -> usize {
    1_000_000
}
const fn ship_interval_ms() -> u64 {
    1_000
}
const fn welcome_wait_ms() -> u64 {
    5_000
}

impl Config {
    /// Parses and checks settings.
    ///
    /// # Errors
    /// Not JSON, an unknown key, a missing one, or a value outside its bounds.
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(json)?;
        let bounds: [(&'static str, u64, u64, u64, &'static str); 6] = [
            (
                "usage_log_bytes",
                config.usage_log_bytes,
                1 << 20,
                1 << 40,
                "1 MiB to 1 TiB",
            ),
            (
                "redis_budget_us",
                config.redis_budget_us,
                1,
                10_000_000,
                "1 to 10,000,000",
            ),
            (
                "ledger_budget_us",
                config.ledger_budget_us,
                1,
                60_000_000,
                "1 to 60,000,000",
            ),
            (
                "proof_age_us",
                config.proof_age_us,
                1,
                1_000_000,
                "1 to 1,000,000",
            ),
            (
                "ship_interval_ms",
                config.ship_interval_ms,
                1,
                60_000,
                "1 to 60,000",
            ),
            (
                "welcome_wait_ms",
                config.welcome_wait_ms,
                1,
                600_000,
                "1 to 600,000",
            ),
        ];
        for (name, value, least, most, bound) in bounds {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::OutOfRange(name, value.to_string(), bound));
            }
        }
        if !(1_000..=100_000_000).contains(&config.keys_max) {
            return Err(ConfigError::OutOfRange(
                "keys_max",
                config.keys_max.to_string(),
                "1,000 to 100,000,000",
            ));
        }
        if !(1..=1_000_000).contains(&config.waiting_max) {
            return Err(ConfigError::OutOfRange(
                "waiting_max",
                config.waiting_max.to_string(),
                "1 to 1,000,000",
            ));
        }
        Ok(config)
    }

    /// Lays the log out: (bytes per segment, segments); 16 MiB each where there is room for four of them.
    #[must_use]
    pub fn log_layout(&self) -> (u32, u32) {
        let quarter = self.usage_log_bytes / SEGMENTS_MIN;
        let segment = quarter.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES) & !4_095;
        let segments = self
            .usage_log_bytes
            .checked_div(segment)
            .unwrap_or(0)
            .max(SEGMENTS_MIN);
        (
            u32::try_from(segment).unwrap_or(u32::MAX),
            u32::try_from(segments).unwrap_or(u32::MAX),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the log's directory is required; what is left out has its documented default.
    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::parse(r#"{"usage_log_dir": "/x"}"#).unwrap();
        assert_eq!(
            (None, None, false),
            (config.listen, config.socket.clone(), config.embedded)
        );
        assert_eq!(
            (1 << 30, 10_000, 5_000, 100_000),
            (
                config.usage_log_bytes,
                config.waiting_max,
                config.redis_budget_us,
                config.ledger_budget_us
            )
        );
        assert_eq!((16 << 20, 64), config.log_layout());
    }

    /// Unknown keys, missing keys and values out of bounds are refused by name.
    #[test]
    fn bad_settings_are_refused_by_name() {
        for (json, name) in [
            ("{}", "usage_log_dir"),
            (
                r#"{"usage_log_dir": "/x", "listn": "127.0.0.1:1"}"#,
                "listn",
            ),
            (
                r#"{"usage_log_dir": "/x", "usage_log_bytes": 0}"#,
                "usage_log_bytes",
            ),
            (
                r#"{"usage_log_dir": "/x", "waiting_max": 0}"#,
                "waiting_max",
            ),
            (r#"{"usage_log_dir": "/x", "keys_max": 1}"#, "keys_max"),
            (
                r#"{"usage_log_dir": "/x", "ship_interval_ms": 60001}"#,
                "ship_interval_ms",
            ),
        ] {
            let error = Config::parse(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    /// A small log still has four segments.
    #[test]
    fn small_logs_have_four_segments() {
        let config =
            Config::parse(r#"{"usage_log_dir": "/x", "usage_log_bytes": 1048576}"#).unwrap();
        assert_eq!((256 << 10, 4), config.log_layout());
    }
}
