//! A seeded world for the engines of `quota-core`: models of the ledger and of Redis, a network that delays, loses and
//! repeats, one clock. Same seed, same world: whatever fails can be replayed.

#![allow(
    clippy::arithmetic_side_effects, // a model may stop the run; no request is served here
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

pub mod mutants;
pub mod rng;
pub mod search;
pub mod sim;
pub mod waste;
pub mod world;
