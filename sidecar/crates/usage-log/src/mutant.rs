//! Switches that break one rule of the log each, so that its tests can prove that they would notice.
//!
//! Only a test build of this crate has them; in any other [`is`] is `false` for the compiler, and nothing is left.

pub(crate) use switch::*;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(test), allow(dead_code))] // the switch is compiled away, its names stay
pub(crate) enum Mutant {
    /// Acknowledged before `fdatasync`: what a power cut takes was promised to a caller.
    AcknowledgedBeforeSync,
    /// A sync that failed counts as one: the page cache may have dropped what was never written.
    FailedSyncPasses,
    /// A snapshot counts for whatever segment bears the next number: what was opened or ended since is forgotten.
    SnapshotOfAnotherEnd,
    /// What a start has not read may be shipped, with h as the segments' headers have it.
    HeadersAreTrusted,
}

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Switches one mutant on in this thread, or all off.
    pub(crate) fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    /// Whether this mutant is on in this thread.
    pub(crate) fn is(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }
}

#[cfg(not(test))]
mod switch {
    use super::Mutant;

    /// Whether this mutant is on: never in this build.
    #[inline]
    pub(crate) const fn is(_: Mutant) -> bool {
        false
    }
}
