//! Levels and units in flight in one engine, with the test as its ledger.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::sync::Arc;

use quota_core::{
    AllotAnswer, CheckRequest, Checked, Command, CommandFailure, Cost, Decision, DecisionLog,
    Effect, Enforcement, Engine, EngineConfig, Event, FailureKind, FailurePolicy, Holder,
    LimitKind, LimitRule, Meter, Mode, Now, Reason, ReservationId, STANDING_END_US, TenantSnapshot,
    Units, WindowId, WindowInfo, WindowUse,
};

const SECOND_US: u64 = 1_000_000;

/// An engine and a ledger that says what the test tells it to.
struct Desk {
    engine: Engine,
    real_us: u64,
    ticket: u64,
    seen: Vec<Effect>,
}

fn rule(kind: LimitKind) -> LimitRule {
    LimitRule {
        name: "limit".into(),
        meter: "m".into(),
        kind,
        amount: Some(5),
        amount_version: 1,
        enforcement: Enforcement::Hard,
        failure_policy: FailurePolicy::Closed,
        matches: Box::default(),
        key: Box::default(),
        valid_from_us: None,
        valid_to_us: None,
        source: "plan".into(),
        is_shared: false,
        learns: false,
        log: DecisionLog::Denied,
        nominal_us: 86_400_000_000,
        is_rolling: false,
    }
}

fn info(allotted: Units) -> WindowInfo {
    WindowInfo {
        id: WindowId([7; 16]),
        start_us: 0,
        end_us: STANDING_END_US,
        round: 0,
        amount: Some(5),
        amount_version: 1,
        allotted,
        timeline: 1,
    }
}

impl Desk {
    fn new(kind: LimitKind) -> Self {
        let mut desk = Self {
            engine: Engine::new(EngineConfig::default(), Holder([1; 16])),
            real_us: SECOND_US,
            ticket: 0,
            seen: Vec::new(),
        };
        let meter = Meter {
            name: "m".into(),
            unit: "x".into(),
            scale: 0,
            attributes: Box::default(),
            value_attribute: Box::default(),
        };
        desk.tell(Event::WatchUp);
        desk.tell(Event::Meters(vec![meter]));
        desk.tell(Event::Tenant(TenantSnapshot {
            tenant: "t".into(),
            tenant_id: [0; 16],
            suspended: false,
            parent: None,
            plan: "plan".into(),
            features: Box::default(),
            limits: vec![rule(kind)],
            change: 1,
        }));
        desk
    }

    fn now(&self) -> Now {
        Now {
            ledger_us: 1_700_000_000_000_000 + i64::try_from(self.real_us).unwrap(),
            real_us: self.real_us,
            speed_milli: 1_000,
        }
    }

    /// Lets the ask that is under way run into its deadline.
    fn lose_ask(&mut self) {
        let is_ask = |command: &Command| matches!(command, Command::Allot { .. });
        let asked = self.command(is_ask).expect("an ask");
        self.wait(SECOND_US / 2);
        let failure = CommandFailure {
            kind: FailureKind::Deadline,
            reason: "".into(),
        };
        self.tell(Event::Allotted(asked, Err(failure)));
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.engine.handle(now, event);
        self.engine.drain_effects(&mut self.seen);
    }

    /// Lets time pass, with a sign of life of the ledger at its end.
    fn wait(&mut self, us: u64) {
        self.real_us += us;
        let now = self.now();
        self.engine.handle(
            now,
            Event::LedgerAlive {
                sent_us: self.real_us,
            },
        );
        self.engine.advance(now);
        self.engine.drain_effects(&mut self.seen);
    }

    fn check(&mut self, mode: Mode) -> Option<Decision> {
        self.ticket += 1;
        let request = CheckRequest {
            tenant: "t".into(),
            costs: vec![Cost {
                meter: Arc::from("m"),
                units: 1,
            }],
            features: Vec::new(),
            attributes: Vec::new(),
            mode,
            all_limits: false,
        };
        let now = self.now();
        let checked = self.engine.check(now, self.ticket, &request);
        self.engine.drain_effects(&mut self.seen);
        match checked {
            Checked::Decided(decision) => Some(decision),
            _ => None,
        }
    }

    fn reserve(&mut self, name: u8) -> Option<Decision> {
        self.check(Mode::Reserve {
            id: ReservationId([name; 16]),
            expires_us: i64::MAX,
        })
    }

    fn release(&mut self, name: u8) {
        let now = self.now();
        self.engine
            .settle(now, ReservationId([name; 16]), &[])
            .expect("an open reservation");
        self.engine.drain_effects(&mut self.seen);
    }

    /// Answers the last ask with units of this lease.
    fn lease(&mut self, give: Units, granted_cum: Units, lease_epoch: u64) {
        let id = self.command(|command| matches!(command, Command::Allot { .. }));
        self.tell(Event::Allotted(
            id.expect("an ask"),
            Ok(vec![AllotAnswer::Lease {
                window: info(granted_cum),
                give,
                granted_cum,
                lease_epoch,
                valid_for_us: if lease_epoch == 0 { 0 } else { 30 * SECOND_US },
            }]),
        ));
    }

    /// Answers the last report: the ledger has this lease now.
    fn renewed(&mut self, lease_epoch: u64) -> bool {
        let is_report = |command: &Command| matches!(command, Command::ReportConsumption { .. });
        let Some(id) = self.command(is_report) else {
            return false;
        };
        let fleet = WindowUse {
            consumed: 0,
            over: 0,
            allotted: 2,
            amount: Some(5),
            as_of_us: 0,
            lease_epoch,
        };
        self.tell(Event::Reported(id, Ok(vec![fleet])));
        true
    }

    /// The last command of this kind that was sent and not answered yet.
    fn command(&mut self, is_wanted: impl Fn(&Command) -> bool) -> Option<u64> {
        let place = self.seen.iter().rposition(
            |effect| matches!(effect, Effect::Command { command, .. } if is_wanted(command)),
        )?;
        match self.seen.remove(place) {
            Effect::Command { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The decision of the last check that waited.
    fn told(&self) -> Option<Reason> {
        self.seen.iter().rev().find_map(|effect| match effect {
            Effect::Decide { ticket, decision } if *ticket == self.ticket => Some(decision.reason),
            _ => None,
        })
    }

    /// Units that went back to the ledger in all.
    fn returned(&self) -> Units {
        let of = |effect: &Effect| match effect {
            Effect::Command {
                command: Command::ReturnUnits { entries, .. },
                ..
            } => entries.iter().map(|entry| entry.2).max(),
            _ => None,
        };
        self.seen.iter().filter_map(of).max().unwrap_or(0)
    }
}

/// What is in flight is taken by reservations only, what is stored by records only; looking is free.
#[test]
fn modes_are_what_the_kind_needs() {
    let mut flights = Desk::new(LimitKind::Concurrency);
    let reason = |decision: Option<Decision>| decision.map(|decision| decision.reason);
    assert_eq!(
        Some(Reason::NeedsReservation),
        reason(flights.check(Mode::Consume))
    );
    let id = ReservationId([9; 16]);
    let record = Mode::Record {
        id,
        expires_us: i64::MAX,
    };
    assert_eq!(
        Some(Reason::NeedsReservation),
        reason(flights.check(record))
    );
    let mut seats = Desk::new(LimitKind::Level);
    assert_eq!(
        Some(Reason::NeedsRecord),
        reason(seats.check(Mode::Consume))
    );
    assert_eq!(None, seats.check(record));
    seats.lease(1, 1, 0);
    assert_eq!(Some(Reason::Allowed), seats.told());
}

/// A unit in flight is free again when it lands, and is used again without asking anybody.
#[test]
fn landed_units_fly_again() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    assert_eq!(None, desk.reserve(1));
    desk.lease(1, 1, 1);
    assert_eq!(Some(Reason::Allowed), desk.told());
    desk.release(1);
    let again = desk.reserve(2).expect("decided at once");
    assert_eq!(Reason::Allowed, again.reason);
    assert_eq!(None, again.binding.expect("the limit").reset_after_us);
}

/// A lease counts from when its ask was sent: at 30 s without renewal nothing is given out, a renewal brings it back.
#[test]
fn an_unrenewed_lease_is_fenced_at_30_s() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.real_us += 50_000;
    desk.lease(2, 2, 1);
    desk.real_us += 30 * SECOND_US - 50_001;
    let last = desk.check(Mode::Peek);
    assert_eq!(Some(Reason::Allowed), last.map(|told| told.reason));
    desk.real_us += 1;
    assert_eq!(None, desk.reserve(3));
    assert!(desk.renewed(1), "a fenced lease is renewed at once");
    assert_eq!(Some(Reason::Allowed), desk.told());
}

/// A renewal counts from when it was sent, however late its answer comes.
#[test]
fn a_renewal_counts_from_when_it_was_sent() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.lease(2, 2, 1);
    desk.wait(10 * SECOND_US);
    let sent_us = desk.real_us;
    desk.real_us += 15 * SECOND_US;
    assert!(desk.renewed(1));
    desk.real_us = sent_us + 30 * SECOND_US;
    assert_eq!(None, desk.reserve(2));
}

/// What a reclaimed lease had in flight never comes back to the balance: the ledger has given it to others.
#[test]
fn units_of_a_lost_lease_are_not_freed() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.lease(1, 1, 1);
    desk.wait(45 * SECOND_US);
    assert!(desk.renewed(2), "a lease is renewed while it has units");
    desk.release(1);
    assert_eq!(None, desk.reserve(2));
    desk.lease(1, 2, 2);
    assert_eq!(Some(Reason::Allowed), desk.told());
    assert_eq!(None, desk.reserve(3));
}

/// Who holds everything gives the next freed unit to who lacks one elsewhere, not to its own next caller.
#[test]
fn freed_units_go_first_to_who_lacks_them() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.lease(1, 1, 1);
    desk.tell(Event::Recall {
        tenant: "t".into(),
        limit: "limit".into(),
        key_hash: None,
        units: 1,
    });
    assert_eq!(0, desk.returned());
    desk.release(1);
    assert_eq!(1, desk.returned());
    assert_eq!(None, desk.reserve(2));
}

/// A level's reservation that expires was never recorded: its units are free, and a late settlement owes them.
#[test]
fn an_expired_level_holds_nothing() {
    let mut desk = Desk::new(LimitKind::Level);
    let expires_us = desk.now().ledger_us + 1_000;
    let id = ReservationId([1; 16]);
    desk.check(Mode::Reserve { id, expires_us });
    desk.lease(1, 1, 0);
    desk.wait(2_000);
    assert!(desk.seen.contains(&Effect::Expired(id)));
    let used = [Cost {
        meter: "m".into(),
        units: 1,
    }];
    let now = desk.now();
    assert!(desk.engine.settle(now, id, &used).expect("late").expired);
    // The unit went to the late settlement: the next call needs another one.
    assert_eq!(None, desk.reserve(2));
}

/// A fenced lease gives nothing out while the ledger can't be reached, though units have landed meanwhile.
#[test]
fn a_fenced_lease_gives_nothing_while_nobody_answers() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.lease(1, 1, 1);
    desk.real_us += 31 * SECOND_US;
    desk.tell(Event::WatchDown);
    desk.release(1);
    assert_eq!(None, desk.reserve(2));
    desk.real_us += SECOND_US;
    let now = desk.now();
    desk.engine.advance(now);
    desk.engine.drain_effects(&mut desk.seen);
    assert_eq!(Some(Reason::AuthorityUnreachable), desk.told());
}

/// What a lost answer brought is fetched and goes back, though nobody waits for it any more.
#[test]
fn units_of_a_lost_answer_go_back() {
    for kind in [LimitKind::Level, LimitKind::Concurrency] {
        let mut desk = Desk::new(kind);
        let id = ReservationId([1; 16]);
        let expires_us = i64::MAX;
        assert_eq!(None, desk.check(Mode::Reserve { id, expires_us }));
        let epoch = u64::from(kind == LimitKind::Concurrency);
        desk.lease(1, 1, epoch);
        let id = ReservationId([2; 16]);
        assert_eq!(None, desk.check(Mode::Reserve { id, expires_us }));
        desk.lose_ask();
        desk.wait(SECOND_US);
        desk.wait(SECOND_US);
        desk.lease(1, 2, epoch);
        desk.wait(3 * SECOND_US);
        assert_eq!(1, desk.returned(), "{kind:?}");
    }
}

/// Units that a repeated ask brought, of which no answer told, are counted with the next answer and go back.
#[test]
fn units_of_a_repeated_ask_are_not_lost() {
    let mut desk = Desk::new(LimitKind::Level);
    let id = ReservationId([1; 16]);
    let expires_us = i64::MAX;
    desk.check(Mode::Reserve { id, expires_us });
    desk.lease(1, 3, 0);
    assert_eq!(Some(Reason::Allowed), desk.told());
    desk.wait(3 * SECOND_US);
    assert_eq!(2, desk.returned());
}

/// A renewal that was under way for a lease which the ledger has reclaimed keeps nobody from renewing the one after it.
#[test]
fn a_renewal_of_a_lost_lease_holds_up_no_other() {
    let mut desk = Desk::new(LimitKind::Concurrency);
    desk.reserve(1);
    desk.lease(1, 1, 1);
    assert_eq!(None, desk.reserve(2));
    desk.lose_ask();
    desk.release(1);
    // Asked again for nobody, and reported; the answer to the one tells of another lease, that to the other comes late.
    desk.wait(SECOND_US);
    desk.wait(SECOND_US);
    desk.lease(0, 1, 2);
    while desk.renewed(2) {}
    desk.wait(31 * SECOND_US);
    assert_eq!(None, desk.reserve(3));
    assert!(desk.renewed(2), "the lease is renewed");
    desk.lease(1, 2, 2);
    assert_eq!(Some(Reason::Allowed), desk.told());
}

/// That a repeat of the first ask never left says nothing of the first one: what that may have brought is fetched and goes
/// back.
#[test]
fn a_repeat_that_never_left_forgets_no_lost_answer() {
    let mut desk = Desk::new(LimitKind::Level);
    let is_ask = |command: &Command| matches!(command, Command::Allot { .. });
    for kind in [FailureKind::Deadline, FailureKind::Unreachable] {
        let id = ReservationId([1; 16]);
        let expires_us = i64::MAX;
        assert_eq!(None, desk.check(Mode::Reserve { id, expires_us }));
        let asked = desk.command(is_ask).expect("an ask");
        desk.wait(SECOND_US / 2);
        let failure = CommandFailure {
            kind,
            reason: "".into(),
        };
        desk.tell(Event::Allotted(asked, Err(failure)));
        desk.wait(SECOND_US / 4);
    }
    desk.wait(3 * SECOND_US);
    desk.wait(3 * SECOND_US);
    desk.lease(1, 1, 0);
    desk.wait(3 * SECOND_US);
    assert_eq!(1, desk.returned());
}
