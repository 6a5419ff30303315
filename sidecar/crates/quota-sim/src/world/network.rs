//! The network: carries what engines ask for, late, twice or never, and heartbeats and notices in order.

use std::{cmp::Reverse, sync::Arc};

use quota_core::{
    AllotAsk, Command, CommandFailure, CommandId, Event, FailureKind, Holder, KeyHash,
    ReservationId,
};

use super::{World, fact::Fact, ledger::Line, redis::window_of};

/// Something under way.
#[derive(Debug)]
pub(super) enum Message {
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
        question: Question,
    },
    Heartbeat,
    /// The ledger tells a home how a reservation ended.
    Outcome {
        node: usize,
        life: u64,
        id: ReservationId,
        actual: u64,
    },
    /// A pause is over: what came meanwhile is heard now, in its order.
    Resume {
        node: usize,
    },
    /// The watch stream is up again: the tenants as they are when it arrives.
    Snapshots {
        node: usize,
        life: u64,
    },
}

/// What a command asks for, so far as its failure must know.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    Allot,
    Return,
    Report,
    Functions,
    Other,
}

impl World {
    pub(super) fn post(&mut self, at_us: u64, message: Message) {
        self.serial += 1;
        let message = Some(message);
        let place = if let Some(place) = self.vacant.pop() {
            self.messages[place] = message;
            place
        } else {
            self.messages.push(message);
            self.messages.len() - 1
        };
        self.queue.push(Reverse((at_us, self.serial, place)));
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.rng.below(self.weather.delay_max_us + 1)
    }

    pub(super) fn send(&mut self, node: usize, id: CommandId, timeout_ms: u32, command: Command) {
        let life = self.nodes[node].life;
        if self.is_traced {
            eprintln!("{} node {node} asks {id} {command:?}", self.real_us);
        }
        *self.commands.entry(name_of(&command)).or_default() += 1;
        self.note_returns(node, &command);
        self.nodes[node].pending.insert(id);
        let question = question_of(&command);
        let silent_us = self.real_us + u64::from(timeout_ms) * 1_000;
        self.post(
            silent_us,
            Message::Timeout {
                node,
                life,
                id,
                question,
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
        let mut at_us = self.real_us + self.delay();
        if self.weather.late > 0 && self.rng.chance(self.weather.late) {
            at_us += self.rng.below(400_000);
        }
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

    /// Notes what a command says was given back, as of its sending.
    fn note_returns(&mut self, node: usize, command: &Command) {
        let holder = self.nodes[node].holder;
        let Some(facts) = &self.ledger.facts else {
            return;
        };
        let mut facts = facts.borrow_mut();
        match command {
            Command::ReturnUnits {
                holder: from,
                entries,
            } => {
                facts.extend(entries.iter().map(|(window, generation, returned_cum)| {
                    Fact::Returning {
                        holder,
                        from: *from,
                        window: *window,
                        generation: *generation,
                        is_to_pool: false,
                        returned_cum: *returned_cum,
                    }
                }));
            }
            Command::ReportConsumption { entries, .. } => {
                facts.extend(entries.iter().map(|entry| Fact::Used {
                    window: entry.window,
                    holder,
                    consumed_cum: entry.used.consumed,
                }));
            }
            Command::Redis(calls) => {
                let grants = calls.iter().filter(|call| {
                    matches!(
                        call.function,
                        "lease_grant" | "values_grant" | "values_return"
                    )
                });
                facts.extend(grants.map(|call| {
                    Fact::Returning {
                        holder,
                        from: holder,
                        window: window_of(&call.keys[0]),
                        generation: call.arguments[0].parse().expect("a number"),
                        is_to_pool: true,
                        returned_cum: call.arguments
                            [if call.function == "lease_grant" { 5 } else { 3 }]
                        .parse()
                        .expect("a number"),
                    }
                }));
            }
            _ => {}
        }
    }

    pub(super) fn deliver(&mut self, message: Message) {
        if let Message::Tell { node, .. }
        | Message::Answer { node, .. }
        | Message::Timeout { node, .. }
        | Message::Outcome { node, .. }
        | Message::Snapshots { node, .. } = message
            && (self.is_paused(node) || !self.nodes[node].inbox.is_empty())
        {
            if self.nodes[node].inbox.is_empty() {
                self.post(self.nodes[node].paused_until_us, Message::Resume { node });
            }
            return self.nodes[node].inbox.push(message);
        }
        match message {
            Message::Resume { node } => self.resume(node),
            Message::Snapshots { node, life } => {
                if self.nodes[node].life == life {
                    for snapshot in self.tenants.values().cloned().collect::<Vec<_>>() {
                        self.handle(node, Event::Tenant(snapshot));
                    }
                }
            }
            Message::Outcome {
                node,
                life,
                id,
                actual,
            } => self.hear_outcome(node, life, id, actual),
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
            } => {
                if self.awaits(node, life, id) {
                    self.handle(node, event);
                }
            }
            Message::Timeout {
                node,
                life,
                id,
                question,
            } => {
                if self.awaits(node, life, id) {
                    self.handle(node, failure(FailureKind::Deadline, question, id));
                }
            }
            Message::Ask {
                node,
                life,
                id,
                command,
            } => {
                self.answer(node, life, id, &command);
            }
        }
    }

    /// Lets a sidecar hear what came while it was paused, where it is not paused anew.
    fn resume(&mut self, node: usize) {
        if self.is_paused(node) {
            return self.post(self.nodes[node].paused_until_us, Message::Resume { node });
        }
        for message in std::mem::take(&mut self.nodes[node].inbox) {
            self.deliver(message);
        }
    }

    /// Whether this process still waits for the answer to a command, which it hears now.
    fn awaits(&mut self, node: usize, life: u64, id: CommandId) -> bool {
        self.nodes[node].life == life && self.nodes[node].pending.remove(&id)
    }

    /// Carries out what a sidecar asks, and sends the answer off where the line still is there.
    fn answer(&mut self, node: usize, life: u64, id: CommandId, command: &Command) {
        let holder = self.nodes[node].holder;
        let is_alive = self.nodes[node].life == life;
        let event = self.serve(node, holder, is_alive, id, command);
        self.note_least();
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

    pub(super) fn heartbeat(&mut self) {
        let sent_us = self.real_us;
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            if self.nodes[node].watch_up && self.is_ledger_up {
                let at_us = self.in_order(node, true);
                self.post(
                    at_us,
                    Message::Tell {
                        node,
                        life,
                        event: Event::LedgerAlive { sent_us },
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
                        event: Event::RedisAlive { sent_us },
                    },
                );
            }
        }
        self.ship_ends();
        self.ship_records();
        if self.real_us >= self.ledger_ticked_us + 1_000_000 && self.is_ledger_up {
            self.ledger_ticked_us = self.real_us;
            self.tick_ledger();
            self.tell_outcomes();
        }
        self.post(self.real_us + 40_000, Message::Heartbeat);
    }

    /// Lets the ledger do what it does every second.
    pub(super) fn tick_ledger(&mut self) {
        let now_us = self.now().ledger_us;
        let mut line = Line {
            is_sent: self.is_redis_up && self.is_line_up,
            is_answered: self.is_redis_up && self.is_line_up,
            real_us: self.real_us,
            speed_milli: self.speed_milli.unsigned_abs(),
            redis: &mut self.redis,
        };
        self.ledger.tick(&mut line, now_us);
        self.spread_notices();
    }

    /// When the next message of a connection arrives: after those before it.
    pub(super) fn in_order(&mut self, node: usize, is_watch: bool) -> u64 {
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

    pub(super) fn spread_notices(&mut self) {
        let published = std::mem::take(&mut self.redis.notices);
        let shorts = std::mem::take(&mut self.redis.shorts);
        let told = std::mem::take(&mut self.ledger.notices);
        let recalled = std::mem::take(&mut self.ledger.recalls);
        let lacking = std::mem::take(&mut self.ledger.lacking);
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            let server = self.server_of(node);
            let published = published.iter().map(|told| (told, false));
            let shorts = shorts.iter().map(|told| (told, true));
            for ((by, channel), is_short) in published.chain(shorts) {
                let is_followed = self.nodes[node].channels.contains(channel);
                if *by == server && self.nodes[node].subscriber_up && is_followed {
                    let at_us = self.in_order(node, false);
                    let event = if is_short {
                        Event::Short(channel.clone())
                    } else {
                        Event::Notice(channel.clone())
                    };
                    self.post(at_us, Message::Tell { node, life, event });
                }
            }
            if !self.nodes[node].watch_up {
                continue;
            }
            for (tenant, limit, key_hash) in &told {
                let at_us = self.in_order(node, true);
                let (tenant, limit, key_hash) = (tenant.clone(), limit.clone(), *key_hash);
                let event = Event::UnitsNotice {
                    tenant,
                    limit,
                    key_hash,
                };
                self.post(at_us, Message::Tell { node, life, event });
            }
            for ((tenant, limit, key_hash), by, units) in &lacking {
                if *by == self.nodes[node].holder {
                    continue;
                }
                let at_us = self.in_order(node, true);
                let event = Event::Recall {
                    tenant: tenant.clone(),
                    limit: limit.clone(),
                    key_hash: Some(*key_hash),
                    units: *units,
                };
                self.post(at_us, Message::Tell { node, life, event });
            }
            for (tenant, limit, key_hash) in &recalled {
                let at_us = self.in_order(node, true);
                let event = Event::Recall {
                    tenant: tenant.clone(),
                    limit: limit.clone(),
                    key_hash: Some(*key_hash),
                    units: 0,
                };
                self.post(at_us, Message::Tell { node, life, event });
            }
        }
    }

    /// The server that a sidecar takes for the master.
    fn server_of(&self, node: usize) -> usize {
        if self.redis.is_split && self.nodes[node].is_astray {
            self.redis.other()
        } else {
            self.redis.master()
        }
    }

    pub(super) fn serve(
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
            return failure(FailureKind::Unreachable, question_of(command), id);
        }
        if let Command::Redis(calls) = command {
            let server = self.server_of(node);
            let real_us = self.real_us;
            let replies = calls
                .iter()
                .map(|call| self.redis.run_at(server, call, real_us));
            return Event::Functions(id, Ok(replies.collect()));
        }
        let is_sent =
            self.is_redis_up && self.is_line_up && !self.rng.chance(self.weather.loss / 2);
        let is_answered = is_sent && !self.rng.chance(self.weather.loss / 2);
        let mut line = Line {
            redis: &mut self.redis,
            is_sent,
            is_answered,
            real_us: self.real_us,
            speed_milli: self.speed_milli.unsigned_abs(),
        };
        let ledger = &mut self.ledger;
        match command {
            Command::Allot { holder, asks } => {
                learn_keys(&mut self.keys, asks);
                let answers = asks
                    .iter()
                    .map(|ask| ledger.allot(*holder, ask, &mut line, now_us));
                Event::Allotted(id, Ok(answers.collect()))
            }
            Command::ReturnUnits { holder, entries } => {
                let told = entries.iter().map(|(window, source, cum)| {
                    ledger.give_back(*holder, *window, *source, *cum, &mut line)
                });
                Event::Returned(id, Ok(told.collect()))
            }
            Command::ReportConsumption { holder, entries } => {
                let uses = entries.iter().map(|entry| {
                    let renewal = (entry.lease_epoch, entry.in_flight);
                    let (window, used) = (entry.window, entry.used);
                    ledger.report(*holder, window, used, renewal, &mut line, now_us)
                });
                Event::Reported(id, Ok(uses.collect()))
            }
            Command::ReportLeases { holder, entries } => {
                ledger.learn(*holder, entries);
                Event::Reported(id, Ok(Vec::new()))
            }
            other => self.serve_subscriber(node, holder, is_alive, id, other),
        }
    }

    fn serve_subscriber(
        &mut self,
        node: usize,
        holder: Holder,
        is_alive: bool,
        id: CommandId,
        command: &Command,
    ) -> Event {
        match command {
            Command::Subscribe(channels) => {
                if is_alive && self.nodes[node].subscriber_up {
                    self.nodes[node].channels.extend(channels.iter().cloned());
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
            _ => Event::Done(id, Ok(())),
        }
    }

    pub(super) fn answer_watch(&mut self, node: usize, names: &[Arc<str>]) {
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
        Command::ReportLeases { .. } => "leases",
        Command::Redis(_) => "redis",
        Command::Subscribe(_) => "subscribe",
        Command::Unsubscribe(_) => "unsubscribe",
        Command::WatchTenants(_) => "watch",
    }
}

fn question_of(command: &Command) -> Question {
    match command {
        Command::Allot { .. } => Question::Allot,
        Command::ReturnUnits { .. } => Question::Return,
        Command::ReportConsumption { .. } | Command::ReportLeases { .. } => Question::Report,
        Command::Redis(_) => Question::Functions,
        Command::Subscribe(_) | Command::Unsubscribe(_) | Command::WatchTenants(_) => {
            Question::Other
        }
    }
}

fn failure(kind: FailureKind, question: Question, id: CommandId) -> Event {
    let failure = CommandFailure {
        kind,
        reason: "".into(),
    };
    match question {
        Question::Allot => Event::Allotted(id, Err(failure)),
        Question::Return => Event::Returned(id, Err(failure)),
        Question::Report => Event::Reported(id, Err(failure)),
        Question::Functions => Event::Functions(id, Err(failure)),
        Question::Other => Event::Done(id, Err(failure)),
    }
}

/// Remembers the hashes of key values that somebody asked with.
fn learn_keys(known: &mut Vec<(Box<str>, KeyHash)>, asks: &[AllotAsk]) {
    for ask in asks {
        if let Some(value) = ask.key_values.first()
            && !known.iter().any(|(one, _)| one == value)
        {
            known.push((value.clone(), ask.key_hash));
        }
    }
}
