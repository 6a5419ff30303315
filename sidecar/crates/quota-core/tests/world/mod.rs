//! A small world to run engines in: one ledger, one Redis, a network that delays, loses and repeats, and one clock.
//!
//! Everything follows from a seed. Nothing here decides about leases; it only carries what the engines ask for.

#![allow(dead_code)] // every test file uses another part

pub mod ledger;
pub mod redis;
pub mod rng;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use quota_core::{
    CheckRequest, Checked, Command, CommandFailure, CommandId, Cost, Decision, Effect, Engine,
    EngineConfig, Event, FailureKind, Holder, LimitRule, Meter, Mode, Now, Reason, TenantSnapshot,
    Ticket,
};

use self::{
    ledger::{Ledger, Plan},
    redis::Redis,
    rng::Rng,
};

/// How bad the network is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Longest way, real µs.
    pub delay_max_us: u64,
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Requests to the ledger that arrive twice, of a thousand.
    pub repeat: u64,
}

#[derive(Debug)]
enum Message {
    Ask {
        node: usize,
        life: u64,
        id: CommandId,
        command: Command,
    },
    Tell {
        node: usize,
        life: u64,
        event: Event,
    },
    Answer {
        node: usize,
        life: u64,
        id: CommandId,
        event: Event,
    },
    Timeout {
        node: usize,
        life: u64,
        id: CommandId,
        event: Event,
    },
    Heartbeat,
}

/// One sidecar.
pub struct Node {
    /// The machine under test.
    pub engine: Engine,
    life: u64,
    holder: Holder,
    pending: BTreeSet<CommandId>,
    channels: BTreeSet<String>,
    watch_up: bool,
    subscriber_up: bool,
    watch_last_us: u64,
    subscriber_last_us: u64,
    due_us: u64,
    cut: bool,
}

/// The world.
pub struct World {
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
    /// The ledger answers.
    pub is_ledger_up: bool,
    /// Redis answers.
    pub is_redis_up: bool,
    /// Randomness.
    pub rng: Rng,
    /// Decisions that came, by ticket.
    pub decisions: BTreeMap<Ticket, Decision>,
    /// Units admitted per (limit, window start) without being marked as beyond it.
    pub admitted: BTreeMap<(String, i64), u64>,
    /// Commands by name.
    pub commands: BTreeMap<&'static str, u64>,
    /// Tells every message on standard error.
    pub is_traced: bool,
    /// Reservations that expired.
    pub expired: Vec<quota_core::ReservationId>,
    asked: BTreeMap<Ticket, (usize, CheckRequest)>,
    tenants: BTreeMap<Arc<str>, TenantSnapshot>,
    meters: BTreeSet<Arc<str>>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    messages: BTreeMap<u64, Message>,
    serial: u64,
    tickets: Ticket,
    lives: u64,
}

impl World {
    /// A quiet world with so many sidecars.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let mut world = Self {
            real_us: 1_000_000,
            origin_us: 1_700_000_000_000_000,
            speed_milli: 1_000,
            nodes: Vec::new(),
            ledger: Ledger::default(),
            redis: Redis::default(),
            weather: Weather::default(),
            is_ledger_up: true,
            is_redis_up: true,
            rng: Rng::new(seed),
            decisions: BTreeMap::new(),
            admitted: BTreeMap::new(),
            commands: BTreeMap::new(),
            is_traced: std::env::var_os("QUOTA_TRACE").is_some(),
            expired: Vec::new(),
            asked: BTreeMap::new(),
            tenants: BTreeMap::new(),
            meters: BTreeSet::new(),
            queue: BinaryHeap::new(),
            messages: BTreeMap::new(),
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
            engine: Engine::new(EngineConfig::default(), holder),
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
        }
    }

    /// The present.
    pub fn now(&self) -> Now {
        let elapsed = i128::from(self.real_us) * i128::from(self.speed_milli) / 1_000;
        let ledger_us = self.origin_us + i64::try_from(elapsed).expect("in range");
        Now {
            ledger_us,
            real_us: self.real_us,
            speed_milli: self.speed_milli,
        }
    }

    /// Declares a tenant with these limits and tells everybody at once.
    pub fn declare(&mut self, tenant: &str, parent: Option<&str>, limits: Vec<(LimitRule, Plan)>) {
        let name: Arc<str> = tenant.into();
        for (rule, plan) in &limits {
            self.meters.insert(rule.meter.clone());
            self.ledger
                .limits
                .insert((name.clone(), rule.name.clone()), (rule.clone(), *plan));
        }
        let snapshot = TenantSnapshot {
            tenant: name.clone(),
            tenant_id: [0; 16],
            suspended: false,
            parent: parent.map(Into::into),
            plan: "plan".into(),
            features: Box::new(["export".into()]),
            limits: limits.into_iter().map(|(rule, _)| rule).collect(),
            change: 0,
        };
        self.publish(snapshot);
    }

    /// Tells everybody of a tenant.
    pub fn publish(&mut self, snapshot: TenantSnapshot) {
        self.tenants
            .insert(snapshot.tenant.clone(), snapshot.clone());
        for node in 0..self.nodes.len() {
            self.introduce(node);
            self.handle(node, Event::Tenant(snapshot.clone()));
        }
    }

    /// Changes an amount in the ledger; the snapshots follow.
    pub fn set_amount(&mut self, tenant: &str, limit: &str, amount: u64) {
        self.ledger
            .set_amount(tenant, limit, amount, &mut self.redis);
        let mut snapshot = self.tenants[tenant].clone();
        for rule in snapshot
            .limits
            .iter_mut()
            .filter(|rule| &*rule.name == limit)
        {
            rule.amount = Some(amount);
            rule.amount_version += 1;
        }
        self.publish(snapshot);
        self.spread_notices();
    }

    fn introduce(&mut self, node: usize) {
        if !self.nodes[node].watch_up && !self.nodes[node].cut {
            self.nodes[node].watch_up = true;
            let meter = |name: &Arc<str>| Meter {
                name: name.clone(),
                unit: "x".into(),
                scale: 0,
                attributes: Box::default(),
            };
            let meters = self.meters.iter().map(meter).collect();
            self.handle(node, Event::WatchUp);
            self.handle(node, Event::Meters(meters));
        }
    }

    /// Kills a sidecar and starts another in its place.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node] = self.new_node();
        self.introduce(node);
        for snapshot in self.tenants.values().cloned().collect::<Vec<_>>() {
            self.handle(node, Event::Tenant(snapshot));
        }
        self.asked.retain(|_, (owner, _)| *owner != node);
    }

    /// Cuts a sidecar off from everything, or joins it again.
    pub fn cut(&mut self, node: usize, cut: bool) {
        if self.nodes[node].cut == cut {
            return;
        }
        self.nodes[node].cut = cut;
        let life = self.nodes[node].life;
        if cut {
            // It learns of it a while later.
            self.nodes[node].watch_up = false;
            self.nodes[node].subscriber_up = false;
            self.nodes[node].channels.clear();
            let late = self.real_us + self.rng.between(1, 300_000);
            self.post(
                late,
                Message::Tell {
                    node,
                    life,
                    event: Event::WatchDown,
                },
            );
            self.post(
                late,
                Message::Tell {
                    node,
                    life,
                    event: Event::RedisLost,
                },
            );
        } else {
            let late = self.real_us + 300_001;
            self.nodes[node].watch_last_us = late;
            self.nodes[node].subscriber_last_us = late;
            self.nodes[node].subscriber_up = true;
            self.nodes[node].watch_up = true;
            self.post(
                late,
                Message::Tell {
                    node,
                    life,
                    event: Event::WatchUp,
                },
            );
            for snapshot in self.tenants.values().cloned().collect::<Vec<_>>() {
                self.post(
                    late,
                    Message::Tell {
                        node,
                        life,
                        event: Event::Tenant(snapshot),
                    },
                );
            }
        }
    }

    fn post(&mut self, at_us: u64, message: Message) {
        self.serial += 1;
        self.queue.push(Reverse((at_us, self.serial)));
        self.messages.insert(self.serial, message);
    }

    fn delay(&mut self) -> u64 {
        self.rng.below(self.weather.delay_max_us + 1)
    }

    /// Lets a sidecar decide; answers the ticket.
    pub fn check(&mut self, node: usize, request: &CheckRequest) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        self.asked.insert(ticket, (node, request.clone()));
        let now = self.now();
        let checked = self.nodes[node].engine.check(now, ticket, request);
        if let Checked::Decided(decision) = checked {
            self.decided(ticket, decision);
        }
        self.carry(node);
        ticket
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
        if let Some((_, request)) = self.asked.remove(&ticket)
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
                }
            }
        }
        let before = self.decisions.insert(ticket, decision);
        assert!(before.is_none(), "ticket {ticket} was decided twice");
    }

    /// Tells an engine something.
    pub fn handle(&mut self, node: usize, event: Event) {
        let now = self.now();
        if self.is_traced && !matches!(event, Event::LedgerAlive | Event::RedisAlive) {
            eprintln!("{} node {node} hears {event:?}", self.real_us);
        }
        self.nodes[node].engine.handle(now, event);
        self.carry(node);
    }

    /// Carries out what an engine wants.
    pub fn carry(&mut self, node: usize) {
        let mut effects = Vec::new();
        self.nodes[node].engine.drain_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Decide { ticket, decision } => self.decided(ticket, decision),
                Effect::Expired(id) => self.expired.push(id),
                Effect::Command {
                    id,
                    timeout_ms,
                    command,
                } => self.send(node, id, timeout_ms, command),
            }
        }
        let now = self.now();
        let due_us = self.nodes[node].engine.next_due(now);
        self.nodes[node].due_us = self.real_us + due_us.max(1);
    }

    fn send(&mut self, node: usize, id: CommandId, timeout_ms: u32, command: Command) {
        let life = self.nodes[node].life;
        if self.is_traced {
            eprintln!("{} node {node} asks {id} {command:?}", self.real_us);
        }
        *self.commands.entry(name_of(&command)).or_default() += 1;
        self.nodes[node].pending.insert(id);
        let silence = failure(FailureKind::Deadline, &command, id);
        let timeout_us = self.real_us + u64::from(timeout_ms) * 1_000;
        self.post(
            timeout_us,
            Message::Timeout {
                node,
                life,
                id,
                event: silence,
            },
        );
        if self.nodes[node].cut || self.rng.chance(self.weather.loss) {
            return;
        }
        let is_redis = matches!(
            command,
            Command::Redis(_) | Command::Subscribe(_) | Command::Unsubscribe(_)
        );
        if !is_redis && self.rng.chance(self.weather.repeat) {
            let late = self.real_us + self.delay() * 3;
            self.post(
                late,
                Message::Ask {
                    node,
                    life,
                    id,
                    command: command.clone(),
                },
            );
        }
        let at_us = self.real_us + self.delay();
        self.post(
            at_us,
            Message::Ask {
                node,
                life,
                id,
                command,
            },
        );
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
            .map_or(u64::MAX, |Reverse((at_us, _))| *at_us);
        let (due_us, node) = self
            .nodes
            .iter()
            .enumerate()
            .map(|(place, node)| (node.due_us, place))
            .min()
            .unwrap_or((u64::MAX, 0));
        let at_us = message_us.min(due_us);
        if at_us > until_us {
            return false;
        }
        self.real_us = self.real_us.max(at_us);
        if due_us < message_us {
            let now = self.now();
            self.nodes[node].engine.advance(now);
            self.carry(node);
        } else if let Some(Reverse((_, serial))) = self.queue.pop()
            && let Some(message) = self.messages.remove(&serial)
        {
            self.deliver(message);
        }
        true
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Heartbeat => self.heartbeat(),
            Message::Tell { node, life, event } => {
                if self.nodes[node].life == life {
                    self.handle(node, event);
                }
            }
            Message::Answer {
                node,
                life,
                id,
                event,
            }
            | Message::Timeout {
                node,
                life,
                id,
                event,
            } => {
                if self.nodes[node].life == life && self.nodes[node].pending.remove(&id) {
                    self.handle(node, event);
                }
            }
            Message::Ask {
                node,
                life,
                id,
                command,
            } => {
                let holder = self.nodes[node].holder;
                let is_alive = self.nodes[node].life == life;
                let event = self.serve(node, holder, is_alive, id, &command);
                self.spread_notices();
                if !is_alive || self.nodes[node].cut || self.rng.chance(self.weather.loss) {
                    return;
                }
                let at_us = self.real_us + self.delay();
                self.post(
                    at_us,
                    Message::Answer {
                        node,
                        life,
                        id,
                        event,
                    },
                );
            }
        }
    }

    fn heartbeat(&mut self) {
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            if self.nodes[node].watch_up && self.is_ledger_up {
                let at_us = self.in_order(node, true);
                self.post(
                    at_us,
                    Message::Tell {
                        node,
                        life,
                        event: Event::LedgerAlive,
                    },
                );
            }
            if self.nodes[node].subscriber_up && self.is_redis_up {
                let at_us = self.in_order(node, false);
                self.post(
                    at_us,
                    Message::Tell {
                        node,
                        life,
                        event: Event::RedisAlive,
                    },
                );
            }
        }
        self.post(self.real_us + 40_000, Message::Heartbeat);
    }

    /// When the next message of a connection arrives: after those before it.
    fn in_order(&mut self, node: usize, is_watch: bool) -> u64 {
        let at_us = self.real_us + self.delay();
        let node = &mut self.nodes[node];
        let last = if is_watch {
            &mut node.watch_last_us
        } else {
            &mut node.subscriber_last_us
        };
        *last = at_us.max(*last + 1);
        *last
    }

    fn spread_notices(&mut self) {
        let published = std::mem::take(&mut self.redis.notices);
        let told = std::mem::take(&mut self.ledger.notices);
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            for channel in &published {
                if self.nodes[node].subscriber_up && self.nodes[node].channels.contains(channel) {
                    let at_us = self.in_order(node, false);
                    let event = Event::Notice(channel.as_str().into());
                    self.post(at_us, Message::Tell { node, life, event });
                }
            }
            for (tenant, limit, key_hash) in &told {
                if self.nodes[node].watch_up {
                    let at_us = self.in_order(node, true);
                    let (tenant, limit, key_hash) = (tenant.clone(), limit.clone(), *key_hash);
                    let event = Event::UnitsNotice {
                        tenant,
                        limit,
                        key_hash,
                    };
                    self.post(at_us, Message::Tell { node, life, event });
                }
            }
        }
    }

    fn serve(
        &mut self,
        node: usize,
        holder: Holder,
        is_alive: bool,
        id: CommandId,
        command: &Command,
    ) -> Event {
        let now_us = self.now().ledger_us;
        let is_redis = matches!(
            command,
            Command::Redis(_) | Command::Subscribe(_) | Command::Unsubscribe(_)
        );
        if (is_redis && !self.is_redis_up) || (!is_redis && !self.is_ledger_up) {
            return failure(FailureKind::Unreachable, command, id);
        }
        match command {
            Command::Allot { holder, asks } => {
                let reach = self.is_redis_up && !self.rng.chance(self.weather.loss / 2);
                let answer = |ask| {
                    self.ledger
                        .allot(*holder, ask, &mut self.redis, reach, now_us)
                };
                Event::Allotted(id, Ok(asks.iter().map(answer).collect()))
            }
            Command::ReturnUnits { holder, entries } => {
                let told = entries.iter().map(|(window, source, cum)| {
                    self.ledger.give_back(*holder, *window, *source, *cum)
                });
                Event::Returned(id, Ok(told.collect()))
            }
            Command::ReportConsumption { holder, entries } => {
                let uses = entries.iter().map(|(window, used, over)| {
                    self.ledger.report(*holder, *window, *used, *over, now_us)
                });
                Event::Reported(id, Ok(uses.collect()))
            }
            Command::Redis(calls) => {
                let replies = calls
                    .iter()
                    .map(|call| self.redis.run(call, now_us, self.real_us));
                Event::Functions(id, Ok(replies.collect()))
            }
            Command::Subscribe(channels) => {
                if is_alive && self.nodes[node].subscriber_up {
                    self.nodes[node]
                        .channels
                        .extend(channels.iter().map(ToString::to_string));
                }
                Event::Done(id, Ok(()))
            }
            Command::Unsubscribe(channels) => {
                for channel in channels {
                    self.nodes[node].channels.remove(&**channel);
                }
                Event::Done(id, Ok(()))
            }
            Command::WatchTenants(names) => {
                debug_assert_eq!(holder, self.nodes[node].holder);
                self.answer_watch(node, names);
                Event::Done(id, Ok(()))
            }
        }
    }

    fn answer_watch(&mut self, node: usize, names: &[Arc<str>]) {
        let life = self.nodes[node].life;
        for name in names {
            let known = self.tenants.get(name).cloned();
            let event = known.map_or_else(|| Event::TenantUnknown(name.clone()), Event::Tenant);
            let at_us = self.in_order(node, true);
            self.post(at_us, Message::Tell { node, life, event });
        }
    }
}

fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Allot { .. } => "allot",
        Command::ReturnUnits { .. } => "return",
        Command::ReportConsumption { .. } => "report",
        Command::Redis(_) => "redis",
        Command::Subscribe(_) => "subscribe",
        Command::Unsubscribe(_) => "unsubscribe",
        Command::WatchTenants(_) => "watch",
    }
}

fn failure(kind: FailureKind, command: &Command, id: CommandId) -> Event {
    let failure = CommandFailure {
        kind,
        reason: "".into(),
    };
    match command {
        Command::Allot { .. } => Event::Allotted(id, Err(failure)),
        Command::ReturnUnits { .. } => Event::Returned(id, Err(failure)),
        Command::ReportConsumption { .. } => Event::Reported(id, Err(failure)),
        Command::Redis(_) => Event::Functions(id, Err(failure)),
        _ => Event::Done(id, Err(failure)),
    }
}

/// A check of one meter.
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
