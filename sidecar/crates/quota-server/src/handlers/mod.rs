//! The calls of `QuotaService`: plain async functions over decoded messages, with no idea of what carries them.

mod check;
pub(crate) mod counted;
mod end;
mod explain;
mod give_back;
mod level;
mod query;
mod record;
mod reserve;
mod stream;
#[cfg(test)]
mod tests;

pub use check::check_quota;
pub(crate) use end::settled_elsewhere;
pub use end::{release_reservation, settle_reservation};
pub use explain::explain_quota;
pub use query::{get_quota, lease_quota};
pub use record::record_usage;
pub use stream::stream_quota;
