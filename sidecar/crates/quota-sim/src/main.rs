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
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use quota_core::Mutant;
use quota_sim::{
    mutants::{FOUND_BY_TESTS, is_shown, read, search, unrecorded, write},
    search::{run_many, run_seed},
    sim::{Fault, Schedule, trace},
    waste::{LLM_COSTS, Load, share_admitted},
};

/// A schedule is thousands of small messages: a fifth of its time was spent in the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let kind = options.get("kind").filter(|kind| !kind.is_empty());
    let sum = run_many(
        (first, count),
        threads(),
        number(options, "stop", 20),
        None,
        kind.map(String::as_str),
        &|| false,
    );
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} schedules, {} steps, {} checks, {} units admitted, {} with units taken over by restarts in {seconds:.1} s: {:.0} schedules/s",
        sum.schedules,
        sum.steps,
        sum.checks,
        sum.admitted,
        sum.adopting,
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
    if let Some(name) = wanted {
        match Mutant::ALL.iter().find(|mutant| mutant.name() == name) {
            None => {
                eprintln!("no mutant is called {name}; all there are:");
                for mutant in Mutant::ALL {
                    eprintln!("  {:<26} {}", mutant.name(), mutant.reason().trim());
                }
                return ExitCode::from(2);
            }
            Some(mutant) if FOUND_BY_TESTS.contains(mutant) => {
                println!("{name} is found by a test, not by schedules: `make sim-replay` runs it");
                return ExitCode::SUCCESS;
            }
            Some(_) => (),
        }
    }
    let all = unrecorded(&[]).into_iter();
    let all = all.filter(|mutant| wanted.is_none_or(|name| name == mutant.name()));
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
    let unrecorded = unrecorded(&finds);
    for mutant in &unrecorded {
        println!(
            "{} has no recorded seed: `make mutants` searches one",
            mutant.name()
        );
    }
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
    if lost.is_empty() && unrecorded.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the share of a limit that is admitted before the first false denial.
fn waste(options: &BTreeMap<String, String>) -> ExitCode {
    let seeds = number(options, "seeds", 20);
    let mean = LLM_COSTS.iter().sum::<u64>() / LLM_COSTS.len() as u64;
    let mut is_kept = true;
    for (name, amount, costs, kills, bounds) in [
        ("cost 1", 20_000, &[1][..], 0, (0.999, 0.0)),
        ("LLM costs", 50_000 * mean, &LLM_COSTS[..], 0, (0.999, 0.0)),
        (
            "cost 1, 10 of 50 killed",
            20_000,
            &[1][..],
            10,
            (0.995, 0.99),
        ),
        (
            "LLM costs, 10 of 50 killed",
            50_000 * mean,
            &LLM_COSTS[..],
            10,
            (0.995, 0.99),
        ),
    ] {
        let load = Load {
            amount,
            costs,
            kills,
        };
        let next = AtomicU64::new(0);
        let shares = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            return;
                        }
                        let share = share_admitted(seed, load);
                        shares.lock().expect("no panic holds it").push(share);
                    }
                });
            }
        });
        let shares = shares.into_inner().expect("no panic holds it");
        let all = shares.iter().sum::<f64>() / shares.len() as f64;
        let worst = shares.iter().copied().fold(1.0, f64::min);
        println!(
            "{name:<28} {:.3} % of the limit admitted before the first false denial, worst of {seeds} seeds {:.3} %",
            all * 100.0,
            worst * 100.0
        );
        is_kept &= all >= bounds.0 && worst >= bounds.1;
    }
    if is_kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the trace of one schedule, or writes the first lines of many, a file `seed-N` each.
fn write_traces(options: &BTreeMap<String, String>) -> ExitCode {
    let Some(folder) = options.get("out") else {
        for line in trace(&Schedule::draw_plain(number(options, "seed", 0))) {
            println!("{line}");
        }
        return ExitCode::SUCCESS;
    };
    let first = number(options, "first", 0);
    let end = first + number(options, "seeds", 1_000);
    let lines_max = usize::try_from(number(options, "lines", u64::MAX)).unwrap_or(usize::MAX);
    let next = AtomicU64::new(first);
    thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let mut lines = trace(&Schedule::draw_plain(seed));
                    lines.truncate(lines_max);
                    std::fs::write(format!("{folder}/seed-{seed}"), lines.join("\n"))
                        .expect("a file in the folder");
                }
            });
        }
    });
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| ()));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = options(words.get(1..).unwrap_or_default());
    match words.first().map(String::as_str) {
        Some("run") => run(&options),
        Some("waste") => waste(&options),
        Some("mutants") => mutants(&options),
        Some("replay") => replay(&options),
        Some("trace") => write_traces(&options),
        _ => {
            eprintln!(
                "quota-sim run|trace|mutants|replay [--seeds N] [--first N] [--seed N] [--trace 1] [--lines N] [--out PATH] [--finds FILE]"
            );
            ExitCode::from(2)
        }
    }
}
