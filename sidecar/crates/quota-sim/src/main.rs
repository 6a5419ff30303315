//! `quota-sim run|mutants|replay|trace|waste`: see README.md.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::float_arithmetic,
    clippy::cast_precision_loss
)] // a tool of the tests, which prints rates

use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use quota_core::Mutant;
use quota_sim::{
    mutants::{FOUND_BY_TESTS, is_shown, read, search, write},
    search::{run_many, run_seed},
    sim::{Fault, Schedule, trace},
};

/// `--name value` pairs after the command.
fn options(words: &[String]) -> BTreeMap<String, String> {
    let pairs = words.chunks(2).filter(|pair| pair.len() == 2);
    pairs
        .map(|pair| (pair[0].trim_start_matches('-').to_owned(), pair[1].clone()))
        .collect()
}

fn number(options: &BTreeMap<String, String>, name: &str, default: u64) -> u64 {
    options
        .get(name)
        .filter(|text| !text.is_empty())
        .map_or(default, |text| text.parse().expect("a number"))
}

fn threads() -> u64 {
    thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// Runs many schedules, or one step by step.
fn run(options: &BTreeMap<String, String>) -> ExitCode {
    if let Some(seed) = options.get("seed").filter(|seed| !seed.is_empty()) {
        let seed = seed.parse().expect("a number");
        let is_told = options.contains_key("trace");
        println!("{:?}", Schedule::draw(seed));
        let outcome = run_seed(seed, is_told);
        println!("{outcome:?}");
        return if outcome.violation.is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let (first, count) = (
        number(options, "first", 0),
        number(options, "seeds", 10_000),
    );
    let begun = Instant::now();
    let sum = run_many(
        first,
        count,
        threads(),
        number(options, "stop", 20),
        None,
        &|| false,
    );
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} schedules, {} steps, {} checks, {} units admitted in {seconds:.1} s: {:.0} schedules/s",
        sum.schedules,
        sum.steps,
        sum.checks,
        sum.admitted,
        sum.schedules as f64 / seconds
    );
    let faults: Vec<String> = Fault::ALL
        .iter()
        .zip(&sum.faults)
        .map(|(fault, count)| format!("{} {count}", fault.name()))
        .collect();
    println!("faults: {}", faults.join(", "));
    println!("violations: {}", sum.violations.len());
    for (seed, step, violation) in &sum.violations {
        println!(
            "seed {seed} step {step}: {} {}",
            violation.rule, violation.detail
        );
        println!("  replay: make sim SEED={seed} TRACE=1");
    }
    if sum.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Searches every mutant, or one, and writes what was found.
fn mutants(options: &BTreeMap<String, String>) -> ExitCode {
    let span = Duration::from_secs(number(options, "seconds", 60));
    let wanted = options.get("mutant").filter(|name| !name.is_empty());
    let all = Mutant::ALL
        .iter()
        .copied()
        .filter(|mutant| !FOUND_BY_TESTS.contains(mutant))
        .filter(|mutant| wanted.is_none_or(|name| name == mutant.name()));
    let mut finds = Vec::new();
    let (mut searched, mut missed) = (0, Vec::new());
    for mutant in all {
        searched += 1;
        let begun = Instant::now();
        let (find, schedules) = search(mutant, threads(), span);
        let seconds = begun.elapsed().as_secs_f64();
        let (name, reason) = (mutant.name(), mutant.reason().trim());
        if let Some(find) = &find {
            let (seed, rule) = (find.seed, &find.rule);
            println!("{name:<26} seed {seed:<7} {seconds:>5.1} s  {rule:<14} {reason}");
        } else {
            println!("{name:<26} NOT FOUND in {schedules} schedules  {reason}");
            missed.push(name);
        }
        finds.extend(find);
    }
    println!(
        "{} of {searched} mutants found; not found: {}",
        finds.len(),
        missed.join(", ")
    );
    if let Some(path) = options.get("out") {
        std::fs::write(path, write(&finds)).expect("the file of finds");
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Replays recorded finds.
fn replay(options: &BTreeMap<String, String>) -> ExitCode {
    let path = options.get("finds").expect("--finds FILE");
    let finds = read(&std::fs::read_to_string(path).expect("the file of finds"));
    let begun = Instant::now();
    let lost: Vec<_> = finds.iter().filter(|find| !is_shown(find)).collect();
    for find in &lost {
        println!(
            "{} is no longer shown by seed {}: `make mutants` searches anew",
            find.mutant.name(),
            find.seed
        );
    }
    println!(
        "{} recorded mutants replayed in {:.1} s, {} shown by their seeds",
        finds.len(),
        begun.elapsed().as_secs_f64(),
        finds.len() - lost.len()
    );
    if lost.is_empty() && !finds.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| ()));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = options(words.get(1..).unwrap_or_default());
    match words.first().map(String::as_str) {
        Some("run") => run(&options),
        Some("mutants") => mutants(&options),
        Some("replay") => replay(&options),
        Some("trace") => {
            for line in trace(&Schedule::draw(number(&options, "seed", 0))) {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "quota-sim run|trace|mutants|replay [--seeds N] [--first N] [--seed N] [--trace 1] [--out FILE] [--finds FILE]"
            );
            ExitCode::from(2)
        }
    }
}
