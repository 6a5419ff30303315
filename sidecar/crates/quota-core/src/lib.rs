//! Buckets, leases and decisions of the sidecar, pure: no I/O, no clock, no randomness, no runtime.
//!
//! [`Engine`] is one sans-I/O state machine. Its owner feeds it requests and [`Event`]s with the present time and
//! carries out the [`Effect`]s that it leaves behind. It owns every lease decision; whoever carries messages decides
//! nothing. The same machine runs in the sidecar, in the simulator and under the tests' fake clock.

mod anew;
mod book;
mod bucket;
mod caches;
mod check;
mod decided;
mod decision;
mod effect;
mod engine;
mod event;
mod events;
mod explain;
mod hash;
mod id;
mod lease;
mod limit;
mod links;
mod matching;
pub mod mutant;
mod outbox;
mod proof;
mod report;
mod request;
mod reservation;
mod room;
mod slab;
mod tally;
mod tenants;
mod time;
mod timers;
mod upkeep;
mod waiting;

pub use decided::{DecisionCount, DecisionEntry, Decisions};
pub use decision::{Decision, LimitState, Reason};
pub use effect::{
    AllotAsk, Command, CommandId, Effect, FunctionCall, Kept, KeptPart, PoolFault, SourceLeases,
    UseCum, UseReport, WindowLeases,
};
pub use engine::{Engine, EngineConfig, EngineFigures, Ticket};
pub use event::{
    AllotAnswer, CommandFailure, Event, FailureKind, FunctionReply, Marked, STANDING_END_US,
    WindowInfo, WindowUse,
};
pub use explain::{Explanation, PoolView, ProofView, Unmatched};
pub use id::{Holder, KeyHash, ReservationId, ValueHash, WindowId};
pub use lease::standing::{LevelChange, rise};
pub use limit::{
    AttributeMatch, DecisionLog, Enforcement, FailurePolicy, LimitKind, LimitRule, MatchRule,
    Meter, TenantSnapshot,
};
pub use mutant::Mutant;
pub use request::{CheckRequest, Checked, Cost, Mode, UNITS_MAX, Units};
pub use reservation::{Hold, HoldKind, Reservation, SettleRefusal, Settled};
pub use tally::UnitsAsked;
pub use time::Now;
