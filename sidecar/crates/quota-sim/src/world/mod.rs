//! A small world to run engines in: one ledger, one Redis, a network that delays, loses and repeats, and one clock.
//!
//! Everything follows from a seed. Nothing here decides about leases; it only carries what the engines ask for.

mod declare;
pub mod disk;
pub mod fact;
mod harm;
pub mod ledger;
mod network;
mod outcomes;
mod records;
pub mod redis;
mod supply;
mod trace;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use crate::rng::Rng;
use quota_core::{
    CheckRequest, Checked, CommandId, Cost, Decision, Effect, Engine, EngineConfig, Event, Holder,
    KeyHash, LimitRule, LimitState, Marked, Mode, Now, Reason, ReservationId, TenantSnapshot,
    Ticket,
};

use self::{
    disk::Disk,
    fact::Fact,
    ledger::{Ledger, Plan},
    network::Message,
    outcomes::Outcome,
    redis::Redis,
};

pub use self::outcomes::Told;

/// How bad the network is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Longest way, real µs.
    pub delay_max_us: u64,
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Requests to the ledger that arrive twice, of a thousand.
    pub repeat: u64,
    /// Requests that arrive up to 400 ms late, when their sender has asked again, of a thousand.
    pub late: u64,
}

/// A decided check.
#[derive(Debug)]
pub struct Verdict {
    /// Where.
    pub node: usize,
    /// By which process.
    pub holder: Holder,
    /// What was asked.
    pub request: CheckRequest,
    /// What was answered.
    pub decision: Decision,
    /// When.
    pub at: Now,
    /// After so many facts of those that were not taken yet.
    pub facts: usize,
}

/// One sidecar.
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
pub struct Node {
    /// The machine under test.
    pub engine: Engine,
    life: u64,
    holder: Holder,
    pending: BTreeSet<CommandId>,
    channels: BTreeSet<Arc<str>>,
    watch_up: bool,
    subscriber_up: bool,
    watch_last_us: u64,
    subscriber_last_us: u64,
    due_us: u64,
    cut: bool,
    /// Speaks to the demoted master of a split.
    is_astray: bool,
    /// What came while it was paused.
    inbox: Vec<Message>,
    /// Does nothing before this real time.
    paused_until_us: u64,
    /// Its ledger time less the ledger's.
    skew_us: i64,
    disk: Disk,
}

/// The world.
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
pub struct World {
    /// Bounds of every sidecar.
    pub config: EngineConfig,
    /// Real µs.
    pub real_us: u64,
    /// Ledger µs at real 0.
    pub origin_us: i64,
    /// Ledger µs per 1,000 real µs.
    pub speed_milli: i64,
    /// Sidecars.
    pub nodes: Vec<Node>,
    /// The ledger.
    pub ledger: Ledger,
    /// Redis.
    pub redis: Redis,
    /// How bad the network is.
    pub weather: Weather,
    /// A group commit takes so long, real µs.
    pub commit_us: u64,
    /// The ledger answers.
    pub is_ledger_up: bool,
    /// Redis answers.
    pub is_redis_up: bool,
    /// The ledger reaches Redis.
    pub is_line_up: bool,
    /// What was asked and decided, by whom, since it was last taken; `None` = `decisions` and `admitted` are kept.
    pub verdicts: Option<Vec<Verdict>>,
    /// Settlements that homes were told of, since they were last taken.
    pub told: Vec<Told>,
    /// Randomness.
    pub rng: Rng,
    /// Decisions that came, by ticket.
    pub decisions: BTreeMap<Ticket, Decision>,
    /// Open reservations by id: owner, its life, units, window start.
    pub reserved: BTreeMap<ReservationId, (usize, u64, u64, i64)>,
    /// Units admitted per (limit, window start) without being marked as beyond it.
    pub admitted: BTreeMap<(String, i64), u64>,
    /// Commands by name.
    pub commands: BTreeMap<&'static str, u64>,
    /// Tells every message on standard error.
    pub is_traced: bool,
    /// Reservations that expired.
    pub expired: Vec<ReservationId>,
    /// The fewest units of the first limit that were there since this was last taken, where verdicts are kept.
    pub least_there: Option<u64>,
    /// Records of levels were lost with the volume that they were on.
    pub has_lost_log: bool,
    asked: BTreeMap<Ticket, (usize, CheckRequest)>,
    tenants: BTreeMap<Arc<str>, TenantSnapshot>,
    meters: BTreeSet<Arc<str>>,
    value_attributes: BTreeMap<Arc<str>, Box<str>>,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    messages: Vec<Option<Message>>,
    vacant: Vec<usize>,
    outcomes: BTreeMap<ReservationId, Outcome>,
    homes: BTreeMap<ReservationId, Holder>,
    ledger_ticked_us: u64,
    /// Key values that were asked for, with their hashes.
    keys: Vec<(Box<str>, KeyHash)>,
    /// Taken and put back by `carry`, so that it is allocated once.
    effects: Vec<Effect>,
    serial: u64,
    tickets: Ticket,
    lives: u64,
}

impl World {
    /// A quiet world with so many sidecars, none of which has a volume.
    #[must_use]
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self::with_config(seed, nodes, EngineConfig::default())
    }

    /// A world where messages take 0.3 ms at most, of the tenant `t` with one limit.
    #[must_use]
    pub fn quiet(seed: u64, nodes: usize, rule: LimitRule, plan: Plan) -> Self {
        let mut world = Self::new(seed, nodes);
        world.declare("t", None, vec![(rule, plan)]);
        world.weather.delay_max_us = 300;
        world
    }

    /// A quiet world with so many sidecars of these bounds; where they keep units, each has a volume.
    #[must_use]
    pub fn with_config(seed: u64, nodes: usize, config: EngineConfig) -> Self {
        let mut world = Self {
            config,
            real_us: 1_000_000,
            origin_us: 1_700_000_000_000_000,
            speed_milli: 1_000,
            nodes: Vec::new(),
            ledger: Ledger::default(),
            redis: Redis::default(),
            weather: Weather::default(),
            commit_us: 2_000,
            is_ledger_up: true,
            is_redis_up: true,
            is_line_up: true,
            verdicts: None,
            told: Vec::new(),
            rng: Rng::new(seed),
            decisions: BTreeMap::new(),
            reserved: BTreeMap::new(),
            admitted: BTreeMap::new(),
            commands: BTreeMap::new(),
            is_traced: std::env::var_os("QUOTA_TRACE").is_some(),
            expired: Vec::new(),
            least_there: None,
            has_lost_log: false,
            asked: BTreeMap::new(),
            tenants: BTreeMap::new(),
            meters: BTreeSet::new(),
            value_attributes: BTreeMap::new(),
            queue: BinaryHeap::new(),
            messages: Vec::new(),
            vacant: Vec::new(),
            outcomes: BTreeMap::new(),
            homes: BTreeMap::new(),
            ledger_ticked_us: 0,
            keys: Vec::new(),
            effects: Vec::new(),
            serial: 0,
            tickets: 0,
            lives: 0,
        };
        for _ in 0..nodes {
            let node = world.new_node();
            world.nodes.push(node);
        }
        world.post(world.real_us + 40_000, Message::Heartbeat);
        world
    }

    fn new_node(&mut self) -> Node {
        self.lives += 1;
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.lives.to_be_bytes());
        let holder = Holder(name);
        Node {
            engine: Engine::new(self.config.clone(), holder),
            life: self.lives,
            holder,
            pending: BTreeSet::new(),
            channels: BTreeSet::new(),
            watch_up: false,
            subscriber_up: true,
            watch_last_us: 0,
            subscriber_last_us: 0,
            due_us: 0,
            cut: false,
            is_astray: false,
            inbox: Vec::new(),
            paused_until_us: 0,
            skew_us: 0,
            disk: Disk::default(),
        }
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Now {
        let real_us = i64::try_from(self.real_us).expect("in range");
        let ledger_us = self.origin_us + real_us * self.speed_milli / 1_000;
        Now {
            ledger_us,
            real_us: self.real_us,
            speed_milli: self.speed_milli,
        }
    }

    /// The present as a sidecar knows it: its ledger time may be behind.
    #[must_use]
    pub fn now_of(&self, node: usize) -> Now {
        let now = self.now();
        Now {
            ledger_us: now.ledger_us + self.nodes[node].skew_us,
            ..now
        }
    }

    /// Lets ledger time jump forward; sidecars hear of it when `tell_time` says so.
    pub fn jump(&mut self, span_us: i64) {
        self.origin_us += span_us;
        for node in &mut self.nodes {
            node.skew_us -= span_us;
        }
    }

    /// Tells a sidecar the ledger's time.
    pub fn tell_time(&mut self, node: usize) {
        self.nodes[node].skew_us = 0;
        let now = self.now();
        self.nodes[node].engine.advance(now);
        self.carry(node);
    }

    /// The process that runs at a node.
    #[must_use]
    pub fn holder(&self, node: usize) -> Holder {
        self.nodes[node].holder
    }

    /// Whether a sidecar's ledger time is not the ledger's.
    #[must_use]
    pub fn is_behind(&self, node: usize) -> bool {
        self.nodes[node].skew_us != 0
    }

    /// Whether a sidecar is cut off.
    #[must_use]
    pub fn is_cut(&self, node: usize) -> bool {
        self.nodes[node].cut
    }

    /// The node at which a process runs; `None` once it is dead.
    #[must_use]
    pub fn node_of(&self, holder: Holder) -> Option<usize> {
        self.nodes.iter().position(|node| node.holder == holder)
    }

    /// Stops a sidecar cleanly: what it holds goes back.
    pub fn stop(&mut self, node: usize) {
        let now = self.now_of(node);
        self.nodes[node].engine.drain(now);
        self.carry(node);
    }

    /// The key of a limit's state, as the ledger knows it.
    #[must_use]
    pub fn key_of(&self, state: &LimitState) -> KeyHash {
        let value = state.key.first().map(|(_, value)| &**value);
        self.keys
            .iter()
            .find(|(known, _)| Some(&**known) == value)
            .map_or_else(KeyHash::default, |(_, hash)| *hash)
    }

    /// Whether a restore stopped the window that is on.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.ledger.is_frozen(self.now().ledger_us)
    }

    /// Makes a meter count the distinct values of an attribute; before its limits are declared.
    pub fn count_values(&mut self, meter: &str, attribute: &str) {
        self.value_attributes.insert(meter.into(), attribute.into());
        self.ledger.value_meters.insert(meter.into());
    }

    /// Facts that nobody has taken yet.
    fn facts_noted(&self) -> usize {
        let facts = self.ledger.facts.as_ref();
        facts.map_or(0, |facts| facts.borrow().len())
    }

    /// Lets a sidecar decide; answers the ticket.
    pub fn check(&mut self, node: usize, request: &CheckRequest) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        self.asked.insert(ticket, (node, request.clone()));
        let now = self.now_of(node);
        let checked = self.nodes[node].engine.check(now, ticket, request);
        if let Checked::Decided(decision) = checked {
            self.decided(ticket, decision);
        }
        self.carry(node);
        ticket
    }

    /// Lets a sidecar decide and the world run until it has, where verdicts are kept: the reason.
    pub fn decide_to(&mut self, node: usize, request: &CheckRequest) -> Option<Reason> {
        let before = self.verdicts.as_ref().map_or(0, Vec::len);
        self.check(node, request);
        for _ in 0..10_000 {
            if let Some(verdict) = self.verdicts.as_ref().and_then(|all| all.get(before)) {
                return Some(verdict.decision.reason);
            }
            self.step(self.real_us + 1_000_000);
        }
        None
    }

    /// Lets a sidecar decide and the world run until it has.
    pub fn decide(&mut self, node: usize, request: &CheckRequest) -> Decision {
        let ticket = self.check(node, request);
        let mut steps = 0;
        while !self.decisions.contains_key(&ticket) {
            assert!(
                self.step(self.real_us + 1_000_000),
                "nothing happens any more"
            );
            steps += 1;
            assert!(steps < 100_000, "never decided");
        }
        self.decisions[&ticket].clone()
    }

    fn decided(&mut self, ticket: Ticket, decision: Decision) {
        let at = self.now();
        if self.verdicts.is_some() {
            let (node, request) = self.asked.remove(&ticket).expect("decided once");
            self.log_reservation(node, &request);
            self.log_rise(node, request.mode, decision.reason);
            let facts = self.facts_noted();
            let verdicts = self.verdicts.get_or_insert_default();
            verdicts.push(Verdict {
                node,
                holder: self.nodes[node].holder,
                request,
                decision,
                at,
                facts,
            });
            return;
        }
        if let Some((node, request)) = self.asked.remove(&ticket)
            && decision.reason == Reason::Allowed
            && request.mode != Mode::Peek
        {
            let now = self.now().ledger_us;
            let tenant = self.tenants.get(&request.tenant).cloned();
            let limits = tenant.map_or(Vec::new(), |tenant| tenant.limits);
            for cost in &request.costs {
                for rule in limits.iter().filter(|rule| rule.meter == cost.meter) {
                    let (_, plan) =
                        self.ledger.limits[&(request.tenant.clone(), rule.name.clone())];
                    let start_us = now.div_euclid(plan.length_us) * plan.length_us;
                    *self
                        .admitted
                        .entry((rule.name.to_string(), start_us))
                        .or_default() += cost.units;
                    if let Mode::Reserve { id, .. } = request.mode {
                        let life = self.nodes[node].life;
                        self.reserved.insert(id, (node, life, cost.units, start_us));
                    }
                }
            }
        }
        let before = self.decisions.insert(ticket, decision);
        assert!(before.is_none(), "ticket {ticket} was decided twice");
    }

    /// Settles an open reservation of the only limit; what goes back is not admitted any more.
    pub fn settle(&mut self, id: ReservationId, actual: &[Cost]) {
        let Some((node, life, _, start_us)) = self.reserved.remove(&id) else {
            return;
        };
        if self.nodes[node].life != life {
            return;
        }
        let now = self.now_of(node);
        let settled = self.nodes[node].engine.settle(now, id, actual);
        let settled = settled.expect("an open reservation");
        for ((_, admitted_us), units) in &mut self.admitted {
            if *admitted_us == start_us {
                *units -= settled.refunded.iter().map(|cost| cost.units).sum::<u64>();
            }
        }
        self.carry(node);
    }

    /// Tells an engine something.
    pub fn handle(&mut self, node: usize, event: Event) {
        let now = self.now_of(node);
        if self.is_traced && !matches!(event, Event::LedgerAlive { .. } | Event::RedisAlive { .. })
        {
            eprintln!("{} node {node} hears {event:?}", self.real_us);
        }
        if let Event::Marked(id, _) = event {
            self.nodes[node].disk.sync(id);
        }
        if let Event::Tenant(snapshot) = &event
            && let Some(facts) = &self.ledger.facts
            && let Some(limit) = snapshot.limits.first()
        {
            facts.borrow_mut().push(Fact::Heard {
                node,
                amount: limit.amount.unwrap_or(0),
                real_us: self.real_us,
            });
        }
        self.nodes[node].engine.handle(now, event);
        self.carry(node);
    }

    /// Carries out what an engine wants.
    pub fn carry(&mut self, node: usize) {
        let mut effects = std::mem::take(&mut self.effects);
        self.nodes[node].engine.drain_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Decide { ticket, decision } => self.decided(ticket, decision),
                Effect::Expired(id) => {
                    self.expired.push(id);
                    if let Some(facts) = &self.ledger.facts {
                        facts.borrow_mut().push(Fact::Expired(id));
                    }
                }
                Effect::Keep { id, window, kept } => {
                    *self.commands.entry("keep").or_default() += 1;
                    let holder = self.nodes[node].holder;
                    self.nodes[node].disk.write(id, holder, window, kept);
                    let event = Event::Marked(id, Marked::Durable);
                    let life = self.nodes[node].life;
                    // Group commits end in order.
                    let late = self.real_us + self.commit_us;
                    self.post(late, Message::Tell { node, life, event });
                }
                Effect::Command {
                    id,
                    timeout_ms,
                    command,
                } => self.send(node, id, timeout_ms, command),
            }
        }
        self.effects = effects;
        let now = self.now_of(node);
        let due_us = self.nodes[node].engine.next_due(now);
        self.nodes[node].due_us = self.real_us + due_us.max(1);
    }

    /// Runs to a moment.
    pub fn run_until(&mut self, real_us: u64) {
        while self.step(real_us) {}
        self.real_us = self.real_us.max(real_us);
    }

    /// Runs for so long.
    pub fn run_for(&mut self, span_us: u64) {
        self.run_until(self.real_us + span_us);
    }

    /// Does the next thing that happens before a moment.
    pub fn step(&mut self, until_us: u64) -> bool {
        let message_us = self
            .queue
            .peek()
            .map_or(u64::MAX, |Reverse((at_us, ..))| *at_us);
        let (due_us, node) = self
            .nodes
            .iter()
            .enumerate()
            .map(|(place, node)| (node.due_us.max(node.paused_until_us), place))
            .min()
            .unwrap_or((u64::MAX, 0));
        let at_us = message_us.min(due_us);
        if at_us > until_us {
            return false;
        }
        self.real_us = self.real_us.max(at_us);
        if due_us < message_us {
            let now = self.now_of(node);
            self.nodes[node].engine.advance(now);
            self.carry(node);
        } else if let Some(Reverse((_, _, place))) = self.queue.pop()
            && let Some(message) = self.messages[place].take()
        {
            self.vacant.push(place);
            self.deliver(message);
        }
        true
    }
}

/// A check of one meter.
#[must_use]
pub fn request(tenant: &str, meter: &str, units: u64) -> CheckRequest {
    CheckRequest {
        tenant: tenant.into(),
        costs: vec![Cost {
            meter: meter.into(),
            units,
        }],
        features: Vec::new(),
        attributes: Vec::new(),
        mode: Mode::Consume,
        all_limits: false,
    }
}

/// A reservation of the tenant `t` on the meter `m`, until `expires_us` of the ledger's time.
#[must_use]
pub fn reserve(units: u64, id: u8, expires_us: i64) -> CheckRequest {
    let mode = Mode::Reserve {
        id: ReservationId([id; 16]),
        expires_us,
    };
    CheckRequest {
        mode,
        ..request("t", "m", units)
    }
}
