//! The data plane of the sidecar: handlers behind a transport, the engine's owner, the usage log's user.
//!
//! ```text
//! transport ──▶ handlers ──▶ hub (engine, clock) ──▶ outbox ──▶ control plane
//!                  │               ▲                               │
//!                  ▼               └──────────── answers ◀─────────┘
//!               journal (usage log) ──▶ shipper ──▶ outbox
//! ```
//!
//! Everything runs on one thread with a current-thread runtime, which never touches Python. Invariants: nothing is
//! acknowledged before the log has it; no lock is held across an await; what a call began is ended whatever its caller
//! does; a denial is an answer, an error is a [`refusal::Refusal`].

// What is shipped must not be able to break a rule on purpose.
const _: () = assert!(
    !quota_core::mutant::ARE_COMPILED,
    "built with the feature `mutants`"
);

mod bell;
pub mod calls;
pub mod clock;
pub mod config;
mod decisions;
mod directory;
mod ended;
mod fingerprint;
mod fresh;
pub mod handlers;
mod headers;
mod hub;
pub mod ids;
pub mod journal;
mod levels;
pub mod load;
mod marks;
mod outbox;
pub mod probe;
mod pseudonym;
mod recent;
mod records;
pub mod refusal;
mod replay;
mod reservations;
mod runtime;
mod service;
pub mod shipper;
mod snapshot;
mod stats;
mod token;
pub mod transport;
mod verdicts;

pub use outbox::Outbox;
pub use runtime::{BadAnswers, DataPlane, StartError};
pub use service::Service;
