//! A producer hands over to a new one.

use super::*;

fn filled() -> (Memory, UsageLog, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let records: Vec<Vec<u8>> = (0..500)
        .map(|n| format!("record {n}").into_bytes())
        .collect();
    reserve(&log, [4; 16], b"open").unwrap();
    reserve(&log, [5; 16], b"ends").unwrap();
    log.append(Append::Mark {
        key: [6; 16],
        payload: b"mark",
    })
    .unwrap();
    for payload in &records {
        usage(&log, payload).unwrap();
    }
    settle(&log, b"settled", [5; 16]).unwrap();
    flush(&log);
    let all = records.into_iter().chain([b"settled".to_vec()]).collect();
    (memory, log, all)
}

fn kept(recovered: &Recovered) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let payload = |kept: &crate::Kept| kept.payload.clone();
    (
        recovered.open.iter().map(payload).collect(),
        recovered.marks.iter().map(payload).collect(),
    )
}

/// The successor numbers every record that the ledger lacks from 1, with the same content, and holds what is open;
/// the old directory is gone; waiters of before are told by the new numbers.
#[test]
fn successor_has_everything() {
    let (memory, log, all) = filled();
    let position = usage(&log, b"pending").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_committed(
        position,
        Box::new(move |outcome| sender.send(outcome).unwrap()),
    );
    let recovered = log.renew(producer(2), 101).unwrap();
    assert_eq!(([2; 16], 1), (recovered.producer_id, recovered.incarnation));
    assert_eq!(
        (vec![b"open".to_vec()], vec![b"mark".to_vec()]),
        kept(&recovered)
    );
    flush(&log);
    let mut expected: Vec<_> = all[100..].iter().cloned().map(Some).collect();
    expected.push(Some(b"pending".to_vec()));
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    let records: Vec<_> = expected.iter().flatten().cloned().collect();
    assert_eq!(
        chain_of(&[2; 16], &records),
        log.h_at(records.len() as u64).unwrap()
    );
    commit(&log, records.len() as u64 - 1);
    assert!(receiver.try_recv().is_err());
    commit(&log, records.len() as u64);
    assert_eq!(Ok(Ok(())), receiver.try_recv());
    log.close().unwrap();
    let (_, recovered) = open(&memory, config());
    assert_eq!(
        ([2; 16], 2, false),
        (
            recovered.producer_id,
            recovered.incarnation,
            recovered.created
        )
    );
    assert_eq!(
        (vec![b"open".to_vec()], vec![b"mark".to_vec()]),
        kept(&recovered)
    );
}

/// Holes go over as holes of the same length.
#[test]
fn holes_go_over() {
    let (memory, log, all) = filled();
    log.close().unwrap();
    memory.change("segment-0001", |bytes| {
        for text in [b"record 40".as_slice(), b"record 41", b"record 300"] {
            let at = bytes
                .windows(text.len())
                .position(|window| window == text)
                .unwrap();
            bytes[at] = b'X';
        }
    });
    let (log, _) = open(&memory, config());
    log.renew(producer(2), 11).unwrap();
    let found = read_all(&log, 1);
    let numbers: Vec<_> = found
        .iter()
        .filter_map(|(seq, body)| match body {
            EntryBody::Hole(hole) => Some((*seq, hole.last_seq)),
            EntryBody::Usage(payload) => {
                assert_eq!(&all[*seq as usize + 9], payload);
                None
            }
        })
        .collect();
    assert_eq!(vec![(31, 32), (291, 291)], numbers);
    let h = log.h_at(491).unwrap();
    log.close().unwrap();
    let (log, recovered) = open(&memory, config());
    assert_eq!((2, 492), (recovered.holes.len(), recovered.next_seq));
    assert_eq!(h, log.h_at(491).unwrap());
}

/// A renewal that fails leaves the old producer in force, and its remains are cleared at the next start.
#[test]
fn failed_renewal_changes_nothing() {
    let (memory, log, all) = filled();
    memory.faults(memory::Faults {
        syncs: vec![false, false, true, true],
        ..memory::Faults::default()
    });
    assert!(matches!(log.renew(producer(2), 1), Err(LogError::Io(_))));
    memory.faults(memory::Faults::default());
    usage(&log, b"after").unwrap();
    flush(&log);
    log.close().unwrap();
    let (log, recovered) = open(&memory, config());
    assert_eq!([1; 16], recovered.producer_id);
    let expected: Vec<_> = all
        .into_iter()
        .chain([b"after".to_vec()])
        .map(Some)
        .collect();
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    log.renew(producer(2), 1).unwrap();
    assert_eq!(expected, payloads(&read_all(&log, 1)));
}

/// When a crash leaves both directories the successor is in force, because it was complete when it got its name.
#[test]
fn crash_between_name_and_removal() {
    let (memory, log, all) = filled();
    let old = memory.copy();
    log.renew(producer(2), 1).unwrap();
    log.close().unwrap();
    let both = memory.copy();
    both.adopt(&old);
    let (log, recovered) = open(&both, config());
    assert_eq!([2; 16], recovered.producer_id);
    let names = both.list(std::path::Path::new("/log")).unwrap();
    assert_eq!(
        vec!["02".repeat(16)],
        names
            .into_iter()
            .filter(|name| name != "lock")
            .collect::<Vec<_>>()
    );
    assert_eq!(all.len(), read_all(&log, 1).len());
    drop(log);
    let (_, again) = open(&both, config());
    assert_eq!([2; 16], again.producer_id);
}
