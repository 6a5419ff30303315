//! Many schedules on all cores: what was run, what broke.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use quota_core::Mutant;

use crate::sim::{Fault, Outcome, Schedule, Violation, run};

/// What many schedules came to.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Schedules run.
    pub schedules: u64,
    /// Steps in all.
    pub steps: u64,
    /// Checks decided.
    pub checks: u64,
    /// Units admitted.
    pub admitted: u128,
    /// Schedules in which a restart took units over.
    pub adopting: u64,
    /// Faults that struck, in the order of [`Fault::ALL`].
    pub faults: Vec<u64>,
    /// Schedules in which a rule broke: seed, step, rule.
    pub violations: Vec<(u64, u64, Violation)>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.schedules += 1;
        self.steps += outcome.steps;
        self.checks += outcome.checks;
        self.admitted += u128::from(outcome.admitted);
        self.adopting += u64::from(outcome.adopted > 0);
        self.faults.resize(Fault::ALL.len(), 0);
        for (sum, count) in self.faults.iter_mut().zip(outcome.faults) {
            *sum += count;
        }
        if let Some((step, violation)) = outcome.violation {
            self.violations.push((outcome.seed, step, violation));
        }
    }

    fn join(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.steps += other.steps;
        self.checks += other.checks;
        self.admitted += other.admitted;
        self.adopting += other.adopting;
        self.faults.resize(Fault::ALL.len(), 0);
        for (sum, count) in self.faults.iter_mut().zip(other.faults) {
            *sum += count;
        }
        self.violations.extend(other.violations);
    }
}

/// Switches a mutant on in this thread, in a build that has them.
///
/// # Panics
/// Where one is asked for and the build has none.
pub fn switch(mutant: Option<Mutant>) {
    #[cfg(feature = "mutants")]
    quota_core::mutant::set(mutant);
    #[cfg(not(feature = "mutants"))]
    assert!(mutant.is_none(), "built without the feature `mutants`");
}

/// Runs the schedule of one seed; an assertion that failed is a broken rule as well.
#[must_use]
pub fn run_seed(seed: u64, is_told: bool) -> Outcome {
    let schedule = Schedule::draw(seed);
    catch_unwind(AssertUnwindSafe(|| run(&schedule, is_told))).unwrap_or_else(|cause| {
        let text = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string));
        let violation = Violation {
            rule: "assertion",
            detail: text.unwrap_or_default(),
        };
        Outcome {
            seed,
            violation: Some((0, violation)),
            ..Outcome::default()
        }
    })
}

/// Runs `count` schedules from `first` on `threads` threads, of these only those about one kind where it is named, and
/// stops early after `violations_max` broken ones, or when `is_over` says so.
#[must_use]
pub fn run_many(
    (first, count): (u64, u64),
    threads: u64,
    violations_max: u64,
    mutant: Option<Mutant>,
    kind: Option<&str>,
    is_over: &(dyn Fn() -> bool + Sync),
) -> Sum {
    let sum = Mutex::new(Sum::default());
    let (broken, is_stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let next = AtomicU64::new(first);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                switch(mutant);
                let mut own = Sum::default();
                while !is_stopped.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    if kind.is_some_and(|kind| Schedule::draw(seed).is_about() != kind) {
                        continue;
                    }
                    let outcome = run_seed(seed, false);
                    if outcome.violation.is_some()
                        && broken.fetch_add(1, Ordering::Relaxed) + 1 >= violations_max
                    {
                        is_stopped.store(true, Ordering::Relaxed);
                    }
                    own.add(outcome);
                    if is_over() {
                        break;
                    }
                }
                sum.lock().expect("no panic holds it").join(own);
            });
        }
    });
    sum.into_inner().expect("no panic holds it")
}
