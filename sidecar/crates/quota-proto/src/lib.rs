//! Generated messages of the three proto packages, and their conversion to and from the core's types.
//!
//! Outside data becomes a domain type here, once: a bad field is a [`FieldError`], a bad message of our own ledger or
//! control plane a [`MessageError`]. Nothing is dropped or read as a default.

/// Generated code, as `proto-gen` wrote it.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    pub mod bridge {
        pub mod v1 {
            include!("gen/tollkeeper.bridge.v1.rs");
        }
    }
    pub mod ledger {
        pub mod v1 {
            include!("gen/tollkeeper.ledger.v1.rs");
        }
    }
    pub mod quota {
        pub mod v1 {
            include!("gen/tollkeeper.quota.v1.rs");
        }
    }
}

pub mod answer;
pub mod check;
pub mod command;
pub mod content;
pub mod decision;
pub mod decisions;
mod field;
mod limits;
pub mod logged;
pub mod raw;
pub mod results;
pub mod usage;
pub mod watch;
pub mod wire;

pub use field::{Attributes, FieldError, FieldResult, attributes, reason_name, text, units};
pub use generated::{bridge::v1 as bridge, ledger::v1 as ledger, quota::v1 as quota};
pub use limits::MessageError;

/// File descriptor set of the packages, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
