//! Two Redis servers, one of them the master: what their functions do, and the ways in which they lose what they had.
//!
//! The functions are models of `tollkeeper.lua`, reply by reply. A replica has what `replicate` last gave it, so every
//! promotion loses a suffix. A server that was demoted, resynchronised and promoted again keeps its `run_id`; its
//! replication id is another one after every promotion.

mod bucket;
mod pool;
mod state;
mod values;

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{
    FunctionCall, FunctionReply,
    mutant::{self, Mutant},
};

pub use self::pool::Extension;
pub(super) use self::pool::window_of;
use self::{
    bucket::{Marker, TokenBucket},
    pool::Pool,
};
use super::fact::{Fact, Log};

/// What a server holds.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pools: BTreeMap<Arc<str>, Pool>,
    /// Values by their key.
    values: BTreeMap<Arc<str>, values::Values>,
    markers: BTreeMap<Arc<str>, Marker>,
    buckets: BTreeMap<Arc<str>, TokenBucket>,
}

#[derive(Clone, Debug, Default)]
struct Server {
    data: Data,
    /// Name of its replication history.
    history: u64,
    /// Its own name, which it keeps.
    run_id: u64,
    /// What its wall clock is ahead, µs.
    clock_us: i64,
}

impl Server {
    /// What a generation is bound to.
    fn fence(&self) -> u64 {
        if mutant::is(Mutant::FenceOnRunId) {
            return self.run_id;
        }
        self.history
    }
}

/// A pair of servers.
#[derive(Debug)]
pub struct Redis {
    servers: [Server; 2],
    master: usize,
    /// The demoted master still takes itself for one.
    pub is_split: bool,
    histories: u64,
    /// Notices published since they were last taken: by which server, on which channel.
    pub notices: Vec<(usize, Arc<str>)>,
    /// Server and channel on which a pool said since then that it is nearly empty.
    pub shorts: Vec<(usize, Arc<str>)>,
    /// What was done, in order, for whoever recomputes the rules; `None` where nobody does.
    pub facts: Option<Log>,
    /// Lines of a trace; `None` where nothing is traced.
    pub trace: Option<Vec<String>>,
}

impl Default for Redis {
    fn default() -> Self {
        let server = |run_id| Server {
            history: 1,
            run_id,
            ..Server::default()
        };
        Self {
            servers: [server(1), server(2)],
            master: 0,
            is_split: false,
            histories: 1,
            notices: Vec::new(),
            shorts: Vec::new(),
            facts: None,
            trace: None,
        }
    }
}

impl Redis {
    /// The server that the ledger and everybody on its side speaks to.
    #[must_use]
    pub const fn master(&self) -> usize {
        self.master
    }

    /// The other one: a replica, or the old master of a split.
    #[must_use]
    pub const fn other(&self) -> usize {
        1 - self.master
    }

    fn new_history(&mut self) -> u64 {
        self.histories += 1;
        self.histories
    }

    /// Loses everything; the replication history goes on.
    pub fn flush(&mut self) {
        self.servers[self.master].data = Data::default();
        self.trace_fault("flush");
    }

    /// Restarts the master without data: another history.
    pub fn restart_empty(&mut self) {
        self.servers[self.master].data = Data::default();
        self.servers[self.master].history = self.new_history();
        self.trace_fault("restart");
    }

    /// Brings the replica to the present. Not while it takes itself for a master.
    pub fn replicate(&mut self) {
        if self.is_split {
            return;
        }
        let (data, history) = {
            let master = &self.servers[self.master];
            (master.data.clone(), master.history)
        };
        let other = &mut self.servers[1 - self.master];
        other.data = data;
        other.history = history;
        self.trace_fault("replicate");
    }

    /// Promotes the replica: whatever came after `replicate` is lost, and the history has another name.
    pub fn fail_over(&mut self) {
        self.heal_split();
        self.master = self.other();
        self.servers[self.master].history = self.new_history();
        self.trace_fault("failover");
    }

    /// Promotes the replica while the old master goes on serving whoever is on its side.
    pub fn split(&mut self) {
        self.fail_over();
        self.is_split = true;
    }

    /// Ends a split: the old master is demoted and resynchronised.
    pub fn heal_split(&mut self) {
        if self.is_split {
            self.is_split = false;
            self.replicate();
        }
    }

    /// Lets the master's wall clock jump.
    pub fn jump(&mut self, span_us: i64) {
        self.servers[self.master].clock_us += span_us;
    }

    /// Free units of the master's pool of this name, for reckoning; 0 where it would not serve.
    #[must_use]
    pub fn pool_free(&self, key: &str) -> u64 {
        let server = &self.servers[self.master];
        let pool = server.data.pools.get(key);
        pool.filter(|pool| pool.serves(server.fence()))
            .map_or(0, Pool::free)
    }

    /// Runs one call at the master.
    pub fn run(&mut self, call: &FunctionCall, real_us: u64) -> FunctionReply {
        self.run_at(self.master, call, real_us)
    }

    /// Runs one call at a server.
    pub fn run_at(&mut self, server: usize, call: &FunctionCall, real_us: u64) -> FunctionReply {
        let reply = match call.function {
            "pool_open" => self.pool_open(server, call),
            "pool_extend" => self.pool_extend(server, call),
            "pool_close" => self.pool_close(server, call),
            "lease_grant" => self.lease_grant(server, call),
            "values_grant" => self.values_grant(server, call),
            "values_return" => self.values_return(server, call),
            "bucket_open" => self.bucket_open(server, call, real_us),
            "bucket_take" => self.bucket_take(server, call, real_us),
            "bucket_give" => self.bucket_give(server, call, real_us),
            "bucket_share" => self.bucket_share(server, call, real_us),
            other => FunctionReply::Error(format!("ERR no function {other}").into()),
        };
        self.trace_call(server, call, real_us, &reply);
        reply
    }

    fn publish(&mut self, server: usize, channel: &str) {
        self.notices.push((server, channel.into()));
    }

    fn note(&mut self, fact: Fact) {
        if let Some(facts) = &self.facts {
            facts.borrow_mut().push(fact);
        }
    }
}

fn ok(numbers: &[u64]) -> FunctionReply {
    let first = std::iter::once("OK".into());
    FunctionReply::Elements(
        first
            .chain(numbers.iter().map(|number| number.to_string().into()))
            .collect(),
    )
}

fn err(reason: &str) -> FunctionReply {
    FunctionReply::Elements(vec!["ERR".into(), reason.into()])
}

fn err_with(reason: &str, number: u64) -> FunctionReply {
    FunctionReply::Elements(vec!["ERR".into(), reason.into(), number.to_string().into()])
}

/// An argument that is a number.
fn number(call: &FunctionCall, place: usize) -> u64 {
    call.arguments[place].parse().expect("a number")
}
