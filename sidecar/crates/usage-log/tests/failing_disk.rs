//! The log in a real process on a real file system whose calls fail: `LD_PRELOAD`, built here with `cc`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod support;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{append, records, start};
use usage_log::{LogError, UsageLog};

const CONTROL: &str = "FAILING_DISK";
const ROOT: &str = "FAILING_DISK_ROOT";
const PATIENCE: Duration = Duration::from_secs(60);
const EIO: i32 = 5;
const EROFS: i32 = 30;

/// Runs the scenario of this name in a process of its own, which ends as by a crash, and gives the texts that it says
/// were acknowledged and what the log has afterwards.
fn crashed(name: &str) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let shim = folder.path().join("failing_disk.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([
            shim.as_path(),
            Path::new(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/shim/failing_disk.c"
            )),
        ])
        .args(["-ldl", "-lpthread"])
        .status()
        .expect("cc, which Rust needs as well");
    assert!(built.success());
    let (control, root) = (folder.path().join("control"), folder.path().join("log"));
    fs::write(&control, "").unwrap();
    let told = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("LD_PRELOAD", &shim)
        .env(CONTROL, &control)
        .env(ROOT, &root)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let out = String::from_utf8(told.stdout).unwrap();
    assert!(out.contains("\nover, "), "{:?}: {out}", told.status);
    assert!(!told.status.success(), "it ended as by a crash");
    let acknowledged = out
        .lines()
        .filter_map(|line| line.strip_prefix("acknowledged "))
        .map(str::to_owned)
        .collect();
    let (log, recovered) = start(&root).unwrap();
    assert_eq!(0, recovered.damage.len(), "{:?}", recovered.damage);
    (acknowledged, records(&log, 1))
}

/// The process that is inside: the log, and what to break.
struct Inside {
    log: UsageLog,
    refused: usize,
}

impl Inside {
    /// None outside.
    fn new() -> Option<Self> {
        let root = env::var_os(ROOT)?;
        let (log, _) = start(Path::new(&root)).unwrap();
        Some(Self { log, refused: 0 })
    }

    /// Appends, and says so where it was acknowledged. Whatever is refused is refused as I/O.
    fn append(&mut self, text: &str) -> bool {
        match append(&self.log, text) {
            Ok(()) => {
                println!("\nacknowledged {text}");
                true
            }
            Err(LogError::Io(_)) => {
                self.refused += 1;
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Appends records with this prefix until one is acknowledged.
    fn until_written(&mut self, prefix: &str) {
        let began = Instant::now();
        let mut number = 0_u32;
        while !self.append(&format!("{prefix} {number}")) {
            number += 1;
            assert!(began.elapsed() < PATIENCE, "it never goes on by itself");
            std::thread::yield_now();
        }
    }
}

/// Says what calls of this process are to fail.
fn disk(words: &str) {
    fs::write(env::var_os(CONTROL).unwrap(), words).unwrap();
}

/// Ends this process with the log open.
fn crash(inside: &Inside) -> ! {
    println!("\nover, {} refused", inside.refused);
    std::process::abort()
}

/// Every acknowledged text is there once, in order; beside them only what was refused may be.
fn check(acknowledged: &[String], found: &[String]) {
    let mut left = found.iter();
    for text in acknowledged {
        assert!(left.any(|one| one == text), "{text} is missing: {found:?}");
    }
    let mut once = found.to_vec();
    once.sort();
    once.dedup();
    assert_eq!(found.len(), once.len(), "twice: {found:?}");
}

/// One `fdatasync` that fails costs nobody anything: the group is written elsewhere and acknowledged; after a crash it is
/// there.
#[test]
fn one_failed_sync_is_written_elsewhere() {
    let Some(mut inside) = Inside::new() else {
        let (acknowledged, found) = crashed("one_failed_sync_is_written_elsewhere");
        assert_eq!(vec!["before", "during", "after"], acknowledged);
        return assert_eq!(acknowledged, found);
    };
    assert!(inside.append("before"));
    disk(&format!("fdatasync {EIO} 1"));
    assert!(inside.append("during"));
    assert!(inside.append("after"));
    crash(&inside);
}

/// While every `fdatasync` fails nothing is acknowledged and what there is can be read; when it works again recording
/// goes on by itself, and after a crash all that was acknowledged is there, each once.
#[test]
fn nothing_is_acknowledged_while_syncs_fail() {
    let Some(mut inside) = Inside::new() else {
        let (acknowledged, found) = crashed("nothing_is_acknowledged_while_syncs_fail");
        assert_eq!(Some("before"), acknowledged.first().map(String::as_str));
        assert!(acknowledged.len() > 2, "{acknowledged:?}");
        return check(&acknowledged, &found);
    };
    assert!(inside.append("before"));
    disk(&format!("fdatasync {EIO} 0"));
    for number in 0..5 {
        assert!(!inside.append(&format!("refused {number}")));
    }
    assert_eq!(5, inside.refused);
    assert_eq!(vec!["before"], records(&inside.log, 1), "shipping goes on");
    disk("");
    inside.until_written("again");
    assert!(inside.append("after"));
    crash(&inside);
}

/// An open log on a file system that becomes read-only refuses by type, can be read, and goes on when it may be written.
#[test]
fn an_open_log_survives_a_volume_that_becomes_read_only() {
    let Some(mut inside) = Inside::new() else {
        let name = "an_open_log_survives_a_volume_that_becomes_read_only";
        let (acknowledged, found) = crashed(name);
        assert_eq!(Some("before"), acknowledged.first().map(String::as_str));
        assert!(acknowledged.len() > 2, "{acknowledged:?}");
        return check(&acknowledged, &found);
    };
    assert!(inside.append("before"));
    disk(&format!("pwrite64 {EROFS} 0"));
    for number in 0..5 {
        assert!(!inside.append(&format!("refused {number}")));
    }
    assert_eq!(vec!["before"], records(&inside.log, 1), "shipping goes on");
    disk("");
    inside.until_written("again");
    assert!(inside.append("after"));
    crash(&inside);
}
