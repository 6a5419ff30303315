//! What is done to sidecars: killed, cut off, paused, led to the wrong server.

use quota_core::{
    CheckRequest, Event, Mode,
    mutant::{self, Mutant},
};

use super::{World, disk::Disk, fact::Fact, network::Message};

impl World {
    /// Kills a sidecar and starts another in its place, on the same volume.
    pub fn crash(&mut self, node: usize) {
        self.note_end(node);
        let disk = std::mem::take(&mut self.nodes[node].disk);
        self.start_on(node, disk);
    }

    /// Units that a sidecar's volume keeps for a restart.
    #[must_use]
    pub fn kept(&self, node: usize) -> u64 {
        self.nodes[node].disk.units()
    }

    /// Kills a sidecar and starts another in its place, on a copy of a third one's volume. That one goes on.
    pub fn clone_volume(&mut self, from: usize, node: usize) {
        let mut disk = self.nodes[from].disk.copy(&mut self.rng);
        if mutant::is(Mutant::CloneNamesEnded) {
            disk.ended.push(self.nodes[from].holder);
        }
        let lost = &self.nodes[node].disk;
        self.has_lost_log |= lost.shipped < lost.records.len();
        self.start_on(node, disk);
    }

    /// Notes what the log keeps of a reservation before its caller hears of it. No effect for calls of other kinds.
    pub(super) fn log_reservation(&mut self, node: usize, request: &CheckRequest) {
        if let Mode::Reserve { id, .. } = request.mode
            && self.config.keeps
            && let Some(reservation) = self.nodes[node].engine.reservation(id).cloned()
        {
            self.nodes[node].disk.open.insert(id, reservation);
        }
    }

    fn start_on(&mut self, node: usize, mut disk: Disk) {
        self.nodes[node] = self.new_node();
        if self.config.keeps {
            let holder = self.nodes[node].holder;
            for (from, kept) in disk.restart(&mut self.rng) {
                if let Some(facts) = &self.ledger.facts {
                    let adopted = kept.parts.iter().map(|part| Fact::Adopted {
                        window: kept.window,
                        from,
                        holder,
                        part: *part,
                    });
                    facts.borrow_mut().extend(adopted);
                    facts.borrow_mut().push(Fact::Owed {
                        window: kept.window,
                        holder,
                        units: kept.debt,
                    });
                }
                self.nodes[node].engine.adopt(kept);
            }
            for reservation in disk.open.values() {
                self.nodes[node]
                    .engine
                    .restore_reservation(reservation.clone());
            }
            self.nodes[node].disk = disk;
            self.succeed(node);
        }
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
            self.post(late, Message::Snapshots { node, life });
        }
    }

    /// Stops a sidecar for a while, as a suspended machine does: it does nothing, and hears all of it late.
    pub fn pause(&mut self, node: usize, span_us: u64) {
        let until_us = self.real_us + span_us;
        self.nodes[node].paused_until_us = self.nodes[node].paused_until_us.max(until_us);
    }

    /// How long it takes until nobody is paused, real µs.
    #[must_use]
    pub fn paused_us(&self) -> u64 {
        let until_us = self.nodes.iter().map(|node| node.paused_until_us).max();
        until_us.unwrap_or(0).saturating_sub(self.real_us)
    }

    /// Whether a sidecar is paused now.
    #[must_use]
    pub fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].paused_until_us > self.real_us
    }

    /// Breaks a sidecar's connection to Redis, as a server that is demoted or restarts does: subscriptions are void.
    pub fn reconnect(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.nodes[node].channels.clear();
        let at_us = self.in_order(node, false);
        let event = Event::RedisLost;
        self.post(at_us, Message::Tell { node, life, event });
    }

    /// Whether a sidecar is on the side of the old master in a split.
    #[must_use]
    pub fn is_astray(&self, node: usize) -> bool {
        self.nodes[node].is_astray
    }

    /// Puts a sidecar on the side of the old master in a split, or back.
    pub fn lead_astray(&mut self, node: usize, is_astray: bool) {
        self.nodes[node].is_astray = is_astray;
    }
}
