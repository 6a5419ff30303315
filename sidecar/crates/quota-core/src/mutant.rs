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

// The finder of all of these is the simulator: a seed of `quota-sim` in which a rule breaks.
mutants! {
    // Buckets: returns, shares, clocks. Their finder is `mutants_of_buckets_are_found`.
    /// A return is worth all its units although the bucket was full in the meantime: tokens are minted.
    ReturnOverflows,
    /// Every holder is lent the whole standing share.
    ShareOfEach,
    /// A server's clock that jumps ahead brings the tokens of a time that never passed.
    ForwardClockMints,
    // Engine: token buckets. Their finder is the same.
    /// Tokens are given back to the shard and spent here as well.
    TokensReturnedAndKept,
    /// Tokens that were given back can be given back again: more come back than were spent.
    UnspendsTwice,
    /// The standing share saves up a whole burst while nothing is heard.
    ShareUnbounded,
    // Engine: units.
    /// A return does not lower the balance first: the same units are spent here and elsewhere.
    ReturnNotLowered,
    /// A pool's unconfirmed return is settled with the ledger as well: the units come back twice.
    ReturnSettledElsewhere,
    /// A reservation that expired refunds its units, though whoever used them may settle yet.
    ExpiryRefunds,
    /// Units of a window that is over are carried into the next one.
    OldUnitsCarried,
    /// A refund goes to the bucket's present window instead of the one that it was taken from.
    RefundIntoNewWindow,
    /// More is taken back than was ever used here: units that another process spent are spent again.
    GivesBackUnused,
    /// What was used beyond a reservation is never paid.
    DebtForgotten,
    /// A value for which there was no unit counts as one that has its unit.
    DeniedValueCounts,
    /// A repeated answer, which says nothing of other values than it marked, is taken for a mark of theirs.
    RepeatMarksOthers,
    /// A mark that another sidecar was told of is taken back: two values are admitted on one unit.
    OthersMarkTakenBack,
    /// A mark that a failover brought back is believed, though it may have been taken back in what was lost.
    LostMarksBelieved,
    /// A mark on which an admitted call counts is taken back: the same.
    CountedMarkTakenBack,
    /// A mark is lowered before it is durable: what a restart takes over is spent already.
    MarkAfterUse,
    /// A settlement is carried out each time that it is told.
    SettledTwice,
    /// What a dead process had reserved is refunded by the one that found it in the log.
    DeadRefunded,
    /// A call of a child takes nothing from its parent's limit.
    AncestorUncharged,
    /// A parent's limits are not asked.
    AncestorUnasked,
    /// A call that one limit denies takes from the others all the same.
    DeniedTakes,
    // Engine: waiting. Their finder is `mutants_of_several_are_found`.
    /// What a waiting call found is taken by calls that came later: it goes round and is denied though everybody answers.
    AsideTaken,
    /// What was set aside for a call stays so when the call is decided or gone: others wait out their time for nothing.
    AsideKept,
    // Engine: levels and units in flight.
    /// A lease of units in flight is used beyond its time.
    FenceIgnored,
    /// A fall of a level frees units here as well as in the ledger.
    FallFreesHere,
    // Engine: proof.
    /// A refusal of a pool that isn't final counts as proof.
    ProofFromPoolNotFinal,
    /// A refusal counts as proof though nobody would say when it ends.
    ProofWithoutSubscription,
    /// Units kept apart are freed and stay apart: they are spent twice.
    StandbySpentTwice,
    /// A notice does not end a proof.
    NoticeIgnored,
    /// A pool's fault is not told to the ledger: nobody opens the next generation.
    FaultNotReported,
    // Pools.
    /// A generation is bound to the server's own name, which a demoted and re-promoted master keeps.
    FenceOnRunId,
    /// A pool of another replication history serves.
    FenceUnchecked,
    /// A pool serves requests of another generation.
    GenerationUnchecked,
    /// Opening a generation is repeated where its outcome is unknown: what was granted is forgotten.
    OpenRepeated,
    /// Extending makes a pool where there is none.
    ExtendCreates,
    /// An extension's cumulative figure is added.
    ExtendAdds,
    /// A cumulative return is credited whole each time.
    ReturnAddedWhole,
    /// A pool gives what it does not have.
    GivesBeyondFree,
    /// A closed pool goes on granting.
    CloseStillServes,
    /// A pool tells nobody that what it refused is there.
    PoolNoticeForgotten,
    /// A pool marks a value for which it has no unit.
    MarkWithoutUnit,
    // Token buckets.
    /// Units lent ahead do not lower the cap: a burst comes on top of them.
    AheadUncapped,
    /// A wall clock that goes back mints tokens.
    BackwardClockMints,
    /// A bucket that was lost begins full.
    LostBucketIsFull,
    /// A bucket that a restored ledger knows nothing of begins full.
    RestoredBucketIsFull,
    // Volumes: the log's marks.
    /// A copied volume's units are taken over, and its original spends them as well.
    CloneAdopted,
    /// A copied volume says that its original has ended: what that one holds of levels is given to others.
    CloneNamesEnded,
    /// Marks stay after their units are taken over: the next start takes them again.
    MarksTakenTwice,
    /// What a dead process kept is returned and spent as well.
    HeirReturnsAndSpends,
    // Ledger.
    /// A record of a level counts each time that it comes.
    RecordRepeated,
    /// What an ended process had leased of a level is taken back before its log is committed to its end.
    EndedEarly,
    /// A lease of units in flight is reclaimed while its holder may use it.
    ReclaimTooEarly,
    /// The ledger tells a reservation's home once how it ended, heard or not.
    OutcomeToldOnce,
    /// Two first uses make two windows.
    TwoFirstWindows,
    /// A lease does not count as having left the limit.
    LeaseUncounted,
    /// A holder may give the ledger more than it got.
    ReturnAboveGranted,
    /// A cumulative return to the ledger is credited whole each time.
    LedgerReturnRepeats,
    /// A lost generation's number is used again.
    GenerationReused,
    /// A limit that was lowered goes on giving out the old amount.
    AmountNotFollowed,
    /// The pool of a lowered limit is extended instead of closed.
    LoweredPoolStaysOpen,
    /// A closed pool's rest is credited at each attempt.
    CloseCreditsAgain,
    /// A closed pool is credited with what it had granted.
    CloseCreditsAll,
    /// A pool is called final while the limit has units.
    FinalTooSoon,
    /// The ledger tells nobody that what it denied is there.
    LedgerNoticeForgotten,
    /// A pool that may not have heard where it stands is never told again.
    UntoldForgotten,
    /// A lease is taken back by the clock from a holder that was silent.
    ReclaimByTime,
    /// After a restore the ledger goes on giving out windows of which it forgot what was out.
    RestoreNotFrozen,
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
