//! Searching a seed for each mutant, and replaying the seeds that were found.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use quota_core::Mutant;

use crate::search::{run_many, run_seed, switch};

/// Rules whose finders are tests of their own: `mutants_of_values_are_found` (the first five), `mutants_of_give_back_are_found`
/// (two), `mutants_of_buckets_are_found`, `mutants_of_heirs_are_found` and `mutants_of_several_are_found` (the last two): few
/// schedules of the simulator count values or give back, none jumps a clock of Redis ahead, a restarted one is rarely left
/// alone, and an answer that comes too late for a call breaks none of its rules.
pub const FOUND_BY_TESTS: [Mutant; 11] = [
    Mutant::DeniedValueCounts,
    Mutant::RepeatMarksOthers,
    Mutant::OthersMarkTakenBack,
    Mutant::LostMarksBelieved,
    Mutant::CountedMarkTakenBack,
    Mutant::GivesBackUnused,
    Mutant::UnspendsTwice,
    Mutant::ForwardClockMints,
    Mutant::HeirReturnsAndSpends,
    Mutant::AsideTaken,
    Mutant::AsideKept,
];

/// A mutant and the seed that shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    /// Which.
    pub mutant: Mutant,
    /// The schedule in which it breaks a rule, and in which nothing breaks without it.
    pub seed: u64,
    /// The rule.
    pub rule: String,
}

/// Searches a seed for a mutant for at most `span`; answers the find and the schedules that were run.
#[must_use]
pub fn search(mutant: Mutant, threads: u64, span: Duration) -> (Option<Find>, u64) {
    let begun = Instant::now();
    let (mut first, mut schedules) = (0, 0);
    while begun.elapsed() < span {
        let is_over = || begun.elapsed() >= span;
        let sum = run_many((first, 2_000), threads, 1, Some(mutant), None, &is_over);
        schedules += sum.schedules;
        let mut broken = sum.violations;
        broken.sort_by_key(|(seed, ..)| *seed);
        for (seed, _, violation) in broken {
            if run_seed(seed, false).violation.is_none() {
                let find = Find {
                    mutant,
                    seed,
                    rule: violation.rule.to_owned(),
                };
                return (Some(find), schedules);
            }
            first = first.max(seed + 1);
        }
        if sum.schedules >= 2_000 {
            first += 2_000;
        }
    }
    (None, schedules)
}

/// Whether a find still shows its mutant: a rule breaks with it, and none without.
#[must_use]
pub fn is_shown(find: &Find) -> bool {
    switch(Some(find.mutant));
    let with = run_seed(find.seed, false).violation;
    switch(None);
    with.is_some() && run_seed(find.seed, false).violation.is_none()
}

/// Mutants that schedules must find and that these finds lack.
#[must_use]
pub fn unrecorded(finds: &[Find]) -> Vec<Mutant> {
    let is_recorded = |mutant: &Mutant| finds.iter().any(|find| find.mutant == *mutant);
    let all = Mutant::ALL.iter().copied();
    all.filter(|mutant| !FOUND_BY_TESTS.contains(mutant) && !is_recorded(mutant))
        .collect()
}

/// Finds as JSON, one a line.
#[must_use]
pub fn write(finds: &[Find]) -> String {
    let mut text = String::from("[\n");
    for (place, find) in finds.iter().enumerate() {
        let comma = if place + 1 < finds.len() { "," } else { "" };
        let _ = writeln!(
            text,
            "  {{\"mutant\": \"{}\", \"seed\": {}, \"rule\": \"{}\"}}{comma}",
            find.mutant.name(),
            find.seed,
            find.rule
        );
    }
    text + "]\n"
}

/// Finds from what `write` wrote. A line that is none, or names no mutant, is left out.
#[must_use]
pub fn read(text: &str) -> Vec<Find> {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\": "))?;
        let end = rest.find([',', '}'])?;
        Some(rest[..end].trim_matches('"').to_owned())
    };
    let find = |line: &str| {
        let name = field(line, "mutant")?;
        Some(Find {
            mutant: Mutant::ALL
                .iter()
                .copied()
                .find(|mutant| mutant.name() == name)?,
            seed: field(line, "seed")?.parse().ok()?,
            rule: field(line, "rule")?,
        })
    };
    text.lines().filter_map(find).collect()
}
