//! Getting units, and giving them back.

pub(crate) mod giving;
pub(crate) mod keeping;
pub(crate) mod learning;
pub(crate) mod ledger;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod pursue;
pub(crate) mod shard;
pub(crate) mod standing;
pub(crate) mod tokens;
pub(crate) mod turn;
pub(crate) mod unclaimed;
pub(crate) mod unsure;
pub(crate) mod values;
