//! Switches that break one rule each, so that the simulator can prove that it would notice.
//!
//! Only a build with the feature `mutants` has them; without it [`is`] is `false` for the compiler, and nothing of a
//! mutant is left. What is shipped is built without: `quota-server` refuses to compile otherwise. With it, one mutant
//! may be switched on per thread. The models in `quota-sim` use the same switch.
//!
//! A new rule brings its mutants: add a line to the table below, and where the rule is, `if mutant::is(Mutant::X)`.

/// Whether this build has mutants at all.
pub const ARE_COMPILED: bool = cfg!(feature = "mutants");

macro_rules! mutants {
    ($($(#[doc = $reason:literal])+ $name:ident,)+) => {
        /// A rule that is broken on purpose; each with the reason for which it must be found.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum Mutant {
            $($(#[doc = $reason])+ $name,)+
        }

        impl Mutant {
            /// Every mutant, in the table's order.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name, as `make mutants` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it breaks, and why that must not pass.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => concat!($($reason,)+),)+ }
            }
        }
    };
}

// The finder of all of these is the simulator: a seed of `quota-sim` in which an invariant breaks.
mutants! {
    /// The engine credits a repeated answer again: units are minted.
    RepeatCredited,
    /// A return is sent before the balance is lowered: the same units are spent here and elsewhere.
    ReturnNotLowered,
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Switches one mutant on in this thread, or all off.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    /// Whether this mutant is on in this thread.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }
}

#[cfg(not(feature = "mutants"))]
mod switch {
    use super::Mutant;

    /// Whether this mutant is on: never in this build.
    #[must_use]
    #[inline]
    pub const fn is(_: Mutant) -> bool {
        false
    }
}

pub use switch::*;
