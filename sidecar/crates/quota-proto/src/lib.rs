//! Generated messages of the three proto packages, and their conversion to and from the core's types.

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

pub use generated::{bridge::v1 as bridge, ledger::v1 as ledger, quota::v1 as quota};

/// File descriptor set of the packages, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
