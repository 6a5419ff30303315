//! The real file system and the real thread.

use std::{fs, path::Path, sync::mpsc};

use super::*;

fn real(root: &Path) -> Config {
    Config {
        root: root.to_path_buf(),
        ..config()
    }
}

fn start(root: &Path) -> (UsageLog, Recovered) {
    UsageLog::open(real(root), content()).unwrap()
}

/// Callers on many threads get their records durable, in the order of their positions, each told once.
#[test]
fn many_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (log, recovered) = start(folder.path());
    assert!(recovered.created && !recovered.moved);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (log, sender) = (log.clone(), sender.clone());
            scope.spawn(move || {
                for n in 0..200 {
                    let position = usage(&log, format!("{thread}/{n}").as_bytes()).unwrap();
                    let sender = sender.clone();
                    log.on_durable(
                        position,
                        Box::new(move |outcome| sender.send((thread, n, outcome)).unwrap()),
                    );
                }
            });
        }
    });
    let mut last = [0; 4];
    for _ in 0..800 {
        let (thread, n, outcome): (usize, i32, _) = receiver.recv().unwrap();
        assert_eq!(Ok(()), outcome);
        assert!(n == 0 || n > last[thread]);
        last[thread] = n;
    }
    assert!(receiver.try_recv().is_err());
    assert_eq!(800, read_all(&log, 1).len());
    assert_eq!(800, log.stats().durable_seq);
}

/// After closing, records are there, the lock is free, and appends are refused.
#[test]
fn close_and_open() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = start(folder.path());
    usage(&log, b"one").unwrap();
    assert!(matches!(
        UsageLog::open(real(folder.path()), content()),
        Err(LogError::Locked(_))
    ));
    log.close().unwrap();
    assert_eq!(Err(LogError::Closed), usage(&log, b"two"));
    let (log, recovered) = start(folder.path());
    assert_eq!(
        (2, 2, false, false),
        (
            recovered.incarnation,
            recovered.next_seq,
            recovered.created,
            recovered.moved
        )
    );
    assert_eq!(vec![Some(b"one".to_vec())], payloads(&read_all(&log, 1)));
}

/// A copied directory says that it is one.
#[test]
fn a_copy_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (log, recovered) = start(&folder.path().join("a"));
    let position = usage(&log, b"one").unwrap();
    log.wait_durable(position).unwrap();
    let name = crate::directory::hex(&recovered.producer_id);
    let copy = folder.path().join("b").join(&name);
    fs::create_dir_all(&copy).unwrap();
    for file in fs::read_dir(folder.path().join("a").join(&name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let (log, copied) = start(&folder.path().join("b"));
    assert!(copied.moved);
    assert_eq!(recovered.producer_id, copied.producer_id);
    assert_eq!(1, read_all(&log, 1).len());
}

/// Segments recycle while a reader ships and threads append; nothing is missed, h never breaks.
#[test]
fn shipping_while_writing() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = start(folder.path());
    let total = 20_000_u64;
    let last = std::thread::scope(|scope| {
        let writer = log.clone();
        let writing = scope.spawn(move || {
            let (mut n, mut last) = (0, None);
            while n < total {
                match usage(&writer, format!("record {n} {}", "p".repeat(60)).as_bytes()) {
                    Ok(position) => (n, last) = (n + 1, Some(position)),
                    Err(LogError::Full { .. } | LogError::Busy { .. }) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
            last.unwrap()
        });
        let mut seq = 0;
        let mut h = chain_start(&[1; 16]);
        while seq < total {
            let batch = log.read_from(seq + 1, 500, 50_000).unwrap();
            assert_eq!(h, batch.h_before);
            for entry in &batch.entries {
                seq += 1;
                assert_eq!(seq, entry.seq);
            }
            h = batch.h_after;
            log.set_committed(Committed {
                seq,
                h,
                safe_seq: seq,
                now_us: 0,
            });
        }
        writing.join().unwrap()
    });
    // The index has an entry a moment before the figures do; who waits for it hears after both.
    log.wait_durable(last).unwrap();
    assert_eq!(total, log.stats().durable_seq);
    let used = log.stats().used_bytes;
    assert!(used <= log.stats().capacity_bytes, "{used}");
}

/// A start with many segments behind it takes records while its thread checks them; then all of them ship, in order.
#[test]
fn records_come_in_while_the_scrub_runs() {
    let folder = tempfile::tempdir().unwrap();
    let text = |n: u64| format!("record {n} {}", "p".repeat(60)).into_bytes();
    let (log, _) = start(folder.path());
    let mut last = None;
    for n in 1..=2_500 {
        last = Some(usage(&log, &text(n)).unwrap());
    }
    log.wait_durable(last.unwrap()).unwrap();
    drop(log);
    let (log, recovered) = start(folder.path());
    assert_eq!(2_501, recovered.next_seq);
    let last = usage(&log, &text(2_501)).unwrap();
    log.wait_durable(last).unwrap();
    let mut seq = 1;
    while seq <= 2_501 {
        match log.read_from(seq, 500, 50_000) {
            Ok(batch) => {
                for entry in batch.entries {
                    assert_eq!((seq, EntryBody::Usage(text(seq))), (entry.seq, entry.body));
                    seq += 1;
                }
            }
            Err(LogError::Scanning { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((0, 0), (log.stats().unchecked_bytes, log.stats().damaged));
}

/// A new producer takes over on the real file system too.
#[test]
fn renewed_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = start(folder.path());
    usage(&log, b"one").unwrap();
    let position = usage(&log, b"two").unwrap();
    log.wait_durable(position).unwrap();
    log.renew(producer(9), 2).unwrap();
    assert_eq!(vec![Some(b"two".to_vec())], payloads(&read_all(&log, 1)));
    assert_eq!(([9; 16], 1), log.producer());
    drop(log);
    let (log, recovered) = start(folder.path());
    assert_eq!(([9; 16], 2), (recovered.producer_id, recovered.next_seq));
    drop(log);
    assert_eq!(2, fs::read_dir(folder.path()).unwrap().count());
}
