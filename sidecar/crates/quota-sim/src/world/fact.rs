//! What was done, as it was done: the log from which the rules are recomputed.

use std::{cell::RefCell, rc::Rc};

use quota_core::{Holder, KeptPart, ReservationId, WindowId};

/// What was done by all, in order.
pub type Log = Rc<RefCell<Vec<Fact>>>;

/// One change that the ledger or a pool made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A pool gave units, and took in what came back.
    Granted {
        /// The pool's window.
        window: WindowId,
        /// The pool's generation.
        generation: u64,
        /// The replication history of the server that it was on.
        history: u64,
        /// To whom.
        holder: Holder,
        /// Units given.
        give: u64,
        /// Units taken back.
        returned: u64,
    },
    /// The ledger opened a generation.
    Opened {
        /// Of this window.
        window: WindowId,
        /// Its name.
        generation: u64,
    },
    /// Units went from a window into a generation.
    Allotted {
        /// Out of this window.
        window: WindowId,
        /// Into this generation.
        generation: u64,
        /// How many.
        units: u64,
    },
    /// The ledger leased units to a holder.
    Leased {
        /// Out of this window.
        window: WindowId,
        /// To whom.
        holder: Holder,
        /// How many.
        units: u64,
        /// Of these, how many stand for records that the level had already.
        paid: u64,
    },
    /// Units came back into a window.
    Credited {
        /// Into this window.
        window: WindowId,
        /// From this generation; 0 = leased by the ledger.
        generation: u64,
        /// They had never been granted: the generation was closed.
        is_unspent: bool,
        /// How many.
        units: u64,
    },
    /// Another amount is in force for a window.
    Amount {
        /// For this window.
        window: WindowId,
        /// So many.
        amount: u64,
        /// Units that were out of it then.
        allotted: u64,
    },
    /// A holder said what it has given back of one source so far.
    Returning {
        /// Who.
        holder: Holder,
        /// In whose name.
        from: Holder,
        /// The window.
        window: WindowId,
        /// The source; 0 = the ledger.
        generation: u64,
        /// To the pool itself, not to the ledger.
        is_to_pool: bool,
        /// Cumulative.
        returned_cum: u64,
    },
    /// A process took over what a dead one of its volume had kept.
    Adopted {
        /// Of this window.
        window: WindowId,
        /// Whose units they were.
        from: Holder,
        /// Whose they are.
        holder: Holder,
        /// Where they came from, and how many.
        part: KeptPart,
    },
    /// A process took over what a dead one of its volume owed.
    Owed {
        /// Of this window.
        window: WindowId,
        /// Who owes it now.
        holder: Holder,
        /// How many units.
        units: u64,
    },
    /// A record that the ledger counted made units leave a limit of which no lease stood for them.
    Recorded {
        /// Of this window.
        window: WindowId,
        /// How many.
        units: u64,
        /// By a process that goes on: something was settled above what it held.
        is_owed: bool,
    },
    /// A fall of a level was counted.
    Fell {
        /// Its record.
        id: u64,
        /// How many.
        units: u64,
    },
    /// A fall of a level was put aside: there is not so much to fall.
    FallRefused {
        /// Its record.
        id: u64,
    },
    /// An operator said what a level is.
    LevelSet {
        /// Of this window.
        window: WindowId,
        /// Units out of it from then on.
        allotted: u64,
    },
    /// A reservation's time was up, at its home.
    Expired(ReservationId),
    /// A holder's lease of units in flight was renewed, or given.
    Renewed {
        /// Whose.
        holder: Holder,
        /// When.
        real_us: u64,
    },
    /// A holder reported what it used.
    Used {
        /// Of this window.
        window: WindowId,
        /// Who.
        holder: Holder,
        /// Cumulative.
        consumed_cum: u64,
    },
    /// A token bucket was asked for a slice.
    Took {
        /// By whom.
        holder: Holder,
        /// Units needed at once.
        need: u64,
        /// Units given: none, or those and some ahead.
        give: u64,
        /// Tokens in an interval, as the holder knows the limit.
        rate: u64,
        /// When.
        real_us: u64,
    },
    /// A holder gave tokens back.
    Gave {
        /// Who.
        holder: Holder,
        /// How many.
        units: u64,
        /// Tokens in an interval, as the holder knows the limit.
        rate: u64,
        /// When.
        real_us: u64,
    },
    /// A shard's generation was opened: its buckets begin anew.
    Began {
        /// When.
        real_us: u64,
    },
    /// A sidecar heard of a limit.
    Heard {
        /// Where.
        node: usize,
        /// Its amount.
        amount: u64,
        /// When.
        real_us: u64,
    },
}
