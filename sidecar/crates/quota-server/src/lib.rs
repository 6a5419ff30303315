//! The data plane of the sidecar: handlers behind a transport, the engine's owner, the usage log's user.

mod outbox;

pub use outbox::Outbox;
