//! What carries calls between sockets and handlers.
//!
//! Handlers know messages only, so a listener can be replaced by another without touching them.

mod codec;
mod listen;
mod quota;
mod status;
mod tonic;

use std::{io, sync::Arc};

use tokio::sync::watch;

pub use self::{listen::Listeners, tonic::Tonic};
use crate::service::Service;

/// Limits against hostile peers, the same for every transport.
pub mod limits {
    use std::time::Duration;

    /// Streams that one connection may have open.
    pub const CONCURRENT_STREAMS: u32 = 200;
    /// Streams that we reset ourselves before a connection is closed.
    pub const LOCAL_RESETS: usize = 1_024;
    /// Streams that a peer reset before we accepted them.
    pub const PENDING_ACCEPT_RESETS: usize = 20;
    /// Bytes of all headers of one request.
    pub const HEADER_LIST_BYTES: u32 = 16 << 10;
    /// Bytes of one message.
    pub const MESSAGE_BYTES: usize = 1 << 20;
    /// Silence after which a peer is pinged.
    pub const KEEPALIVE: Duration = Duration::from_secs(30);
    /// How long it has to answer.
    pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
}

/// What a server is told from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Health follows readiness.
    Serving,
    /// Health says `NOT_SERVING`; calls are still answered.
    Draining,
    /// No new calls; running ones end.
    Stopped,
}

/// Serves calls on listeners.
pub trait Transport: Send + 'static {
    /// Serves until the phase is [`Phase::Stopped`] and running calls have ended.
    ///
    /// # Errors
    /// A listener can't be used.
    fn serve(
        self,
        listeners: Listeners,
        service: Arc<Service>,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = io::Result<()>> + Send;
}
