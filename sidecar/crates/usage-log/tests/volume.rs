//! The log on a real volume that has no room or may not be written.
//!
//! Needs root for its mounts; without it these tests are told as ignored, not as passed. That is why they have a `main` of
//! their own: the usual one can't tell so while it runs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

mod support;

use std::{env, fs, process::Command};

use support::{append, is_io, records, start};
use usage_log::{Committed, LogError};

/// A small file system of memory, gone at the end.
struct Mount(tempfile::TempDir);

impl Mount {
    /// Mounts 1 MiB; none where that is not allowed.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(folder))
    }

    fn remount(&self, how: &str) {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.0.path())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn fill(&self) {
        let mut bytes = 1 << 20;
        while bytes > 0 {
            let path = self.0.path().join(format!("filler-{bytes}"));
            if fs::write(&path, vec![1; bytes]).is_err() {
                bytes /= 2;
            }
        }
    }

    fn empty(&self) {
        for file in fs::read_dir(self.0.path()).unwrap() {
            let path = file.unwrap().path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("filler"))
            {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// A volume without room: a log that has its room goes on as if nothing were, to its own end and round again as the
/// ledger takes records; a new one is refused typed, leaves nothing behind, and starts once there is room.
fn a_full_volume_stops_no_log_that_has_its_room(mount: &Mount) {
    let root = mount.0.path().join("log");
    let (log, _) = start(&root).unwrap();
    append(&log, "before").unwrap();
    mount.fill();
    assert!(
        is_io(&start(&mount.0.path().join("other"))),
        "no room for another log"
    );
    let mut sent = vec!["before".to_owned()];
    let mut seen = Vec::new();
    let mut refused = 0;
    while refused < 5 {
        let text = format!("{} {}", sent.len(), "x".repeat(900));
        match append(&log, &text) {
            Ok(()) => sent.push(text),
            Err(LogError::Full {
                used_bytes,
                capacity_bytes,
            }) => {
                assert!(used_bytes <= capacity_bytes);
                refused += 1;
                // The ledger takes all there is: the log must empty although the volume has no byte to give.
                seen.extend(records(&log, seen.len() as u64 + 1));
                let seq = seen.len() as u64;
                let h = log.h_at(seq).unwrap();
                log.set_committed(Committed {
                    seq,
                    h,
                    safe_seq: seq,
                    now_us: 0,
                });
                while log.stats().used_bytes > log.stats().capacity_bytes / 2 {
                    std::thread::yield_now();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    seen.extend(records(&log, seen.len() as u64 + 1));
    assert_eq!(sent, seen);
    log.close().unwrap();
    assert!(start(&root).is_ok(), "and it starts again without room");
    mount.empty();
    let (other, _) = start(&mount.0.path().join("other")).unwrap();
    append(&other, "now there is room").unwrap();
}

/// On a volume that may only be read the log is refused typed and stays as it is; once it may be written everything is
/// there.
fn a_read_only_volume_is_refused_and_harms_nothing(mount: &Mount) {
    let root = mount.0.path().join("log");
    let (log, _) = start(&root).unwrap();
    append(&log, "kept").unwrap();
    log.close().unwrap();
    drop(log);
    mount.remount("ro");
    assert!(is_io(&start(&root)));
    mount.remount("rw");
    let (log, recovered) = start(&root).unwrap();
    assert_eq!((2, 0), (recovered.next_seq, recovered.damage.len()));
    append(&log, "and on").unwrap();
    assert_eq!(vec!["kept", "and on"], records(&log, 1));
}

type Test = fn(&Mount);

const TESTS: [(&str, Test); 2] = [
    (
        "a_full_volume_stops_no_log_that_has_its_room",
        a_full_volume_stops_no_log_that_has_its_room,
    ),
    (
        "a_read_only_volume_is_refused_and_harms_nothing",
        a_read_only_volume_is_refused_and_harms_nothing,
    ),
];

fn main() {
    let wanted: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    for (name, test) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part)) {
            continue;
        }
        match Mount::new() {
            Some(mount) => {
                test(&mount);
                println!("test {name} ... ok");
            }
            None => println!("test {name} ... IGNORED: no right to mount a file system here"),
        }
    }
}
