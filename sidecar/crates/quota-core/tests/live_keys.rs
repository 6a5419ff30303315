//! What a live key costs in memory: a key of a limit of which units are held. In a process of its own, so that nothing
//! else is counted. `LONG=1` takes a million.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::{env, fs, sync::Arc};

use quota_core::{
    AllotAnswer, AllotAsk, CheckRequest, Checked, Command, Effect, Engine, EngineConfig, Event,
    Holder, LimitRule, Marked, Meter, Now, TenantSnapshot, WindowId, WindowInfo,
};
use quota_sim::world::{ledger::window_rule, request};

const KEYS: usize = 30_000;
const LONG_KEYS: usize = 1_000_000;
const DAY_US: i64 = 86_400_000_000;
const BYTES_A_KEY_MAX: usize = 2_500;

/// Bytes of memory that this process occupies.
fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn by(user: usize) -> CheckRequest {
    CheckRequest {
        attributes: vec![("user".into(), format!("user-{user}").into())],
        ..request("t", "m", 1)
    }
}

/// An engine whose ledger answers every ask at once with what it would rather have.
struct Served {
    engine: Engine,
    now: Now,
    admitted: usize,
    effects: Vec<Effect>,
}

impl Served {
    fn new() -> Self {
        let config = EngineConfig {
            keys_max: LONG_KEYS,
            keeps: true,
            ..EngineConfig::default()
        };
        let now = Now {
            real_us: 1_000_000,
            ledger_us: 1_000_000,
            speed_milli: 1_000,
        };
        let rule = LimitRule {
            key: Box::new(["user".into()]),
            ..window_rule("limit", "m", 1 << 40)
        };
        let meter = Meter {
            name: "m".into(),
            unit: "units".into(),
            scale: 0,
            attributes: Box::new(["user".into()]),
            value_attribute: "".into(),
        };
        let tenant = TenantSnapshot {
            tenant: Arc::from("t"),
            tenant_id: [1; 16],
            suspended: false,
            parent: None,
            plan: "plan".into(),
            features: Box::default(),
            limits: vec![rule],
            change: 1,
        };
        let mut engine = Engine::new(config, Holder([7; 16]));
        for event in [
            Event::WatchUp,
            Event::Meters(vec![meter]),
            Event::Tenant(tenant),
        ] {
            engine.handle(now, event);
        }
        Self {
            engine,
            now,
            admitted: 0,
            effects: Vec::new(),
        }
    }

    /// Takes a unit of a user's limit.
    fn take(&mut self, user: usize) {
        match self.engine.check(self.now, user as u64, &by(user)) {
            Checked::Decided(decision) => self.admitted += usize::from(decision.reason.allowed()),
            Checked::Waiting => {}
            Checked::Full => panic!("no check waits for long"),
        }
        self.carry();
    }

    fn carry(&mut self) {
        loop {
            self.engine.drain_effects(&mut self.effects);
            if self.effects.is_empty() {
                return;
            }
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Decide { decision, .. } => {
                        self.admitted += usize::from(decision.reason.allowed());
                    }
                    Effect::Command {
                        id,
                        command: Command::Allot { asks, .. },
                        ..
                    } => {
                        let leases = asks.iter().map(lease).collect();
                        self.engine
                            .handle(self.now, Event::Allotted(id, Ok(leases)));
                    }
                    Effect::Keep { id, .. } => {
                        let durable = Event::Marked(id, Marked::Durable);
                        self.engine.handle(self.now, durable);
                    }
                    other => panic!("nobody asked for {other:?}"),
                }
            }
        }
    }
}

fn lease(ask: &AllotAsk) -> AllotAnswer {
    AllotAnswer::Lease {
        window: WindowInfo {
            id: WindowId(ask.key_hash.0),
            start_us: 0,
            end_us: DAY_US,
            round: 0,
            amount: Some(1 << 40),
            amount_version: 1,
            allotted: ask.want,
            timeline: 1,
        },
        give: ask.want,
        granted_cum: ask.want,
        lease_epoch: 0,
        valid_for_us: 0,
    }
}

/// As many keys as are kept by default are held at once, each with units of its own: all of them admit again, and each
/// costs a bounded number of bytes, names and all.
#[test]
fn a_live_key_costs_bounded_memory() {
    let keys = if env::var_os("LONG").is_some() {
        LONG_KEYS
    } else {
        KEYS
    };
    let mut served = Served::new();
    served.take(0);
    let before = resident_bytes();
    for user in 1..keys {
        served.take(user);
    }
    let grown = resident_bytes().saturating_sub(before);
    println!("{} bytes a live key of {keys}", grown / keys);
    assert_eq!(keys, served.admitted);
    assert_eq!(keys, served.engine.figures().keys);
    assert!(grown <= keys * BYTES_A_KEY_MAX, "{} a key", grown / keys);
    for user in (0..keys).step_by(97) {
        let before = served.admitted;
        served.take(user);
        assert_eq!(before + 1, served.admitted, "user {user}");
    }
    assert_eq!(0, served.engine.figures().keys_refused);
}
