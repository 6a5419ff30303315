//! The log in a process that has no file descriptors left: a binary of its own, for the limit is the whole process'.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs::File, os::fd::AsRawFd as _};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{append, is_io, records, start};
use usage_log::LogError;

/// Without file descriptors an open log goes on, through all of its segments; a new one is refused typed and starts once
/// there are some again.
#[test]
fn a_process_without_descriptors_goes_on_recording() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = start(&folder.path().join("log")).unwrap();
    let before = getrlimit(Resource::Nofile);
    let free = File::open("/dev/null").unwrap();
    let lowest = u64::try_from(free.as_raw_fd()).unwrap();
    drop(free);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(lowest),
            ..before
        },
    )
    .unwrap();
    let other = start(&folder.path().join("other"));
    let sent: Vec<String> = (0..150)
        .map(|n| format!("{n} {}", "y".repeat(900)))
        .collect();
    let outcome: Result<Vec<()>, LogError> = sent.iter().map(|text| append(&log, text)).collect();
    let found = records(&log, 1);
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(is_io(&other), "no descriptor for another log");
    assert_eq!(Ok(vec![(); sent.len()]), outcome);
    assert_eq!(sent, found);
    let (other, _) = start(&folder.path().join("other")).unwrap();
    append(&other, "now there are some").unwrap();
}
