//! What the engine's sources may not name, so that it has no memory orderings to get wrong.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{fs, path::Path};

const SHARING: [&str; 8] = [
    "Atomic",
    "Mutex",
    "RwLock",
    "RefCell",
    "UnsafeCell",
    "OnceLock",
    "thread::",
    "static mut",
];
const WORLD: [&str; 5] = ["SystemTime", "Instant::", "std::net", "std::fs", "tokio::"];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push((
                path.display().to_string(),
                fs::read_to_string(&path).unwrap(),
            ));
        }
    }
}

/// The engine shares nothing between threads and reaches nothing outside: no atomic, lock, cell, clock or file. The switch
/// of mutants is the tests' own.
#[test]
fn the_engine_shares_nothing() {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    found.retain(|(path, _)| !path.ends_with("mutant.rs"));
    assert!(found.len() > 30, "{} files", found.len());
    for (path, text) in &found {
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for (at, line) in code.enumerate() {
            for name in SHARING.iter().chain(&WORLD) {
                assert!(!line.contains(name), "{path}, code line {at}: {name}");
            }
        }
    }
}
