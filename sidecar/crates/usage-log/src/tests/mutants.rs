//! Proof that these tests are not blind: each broken rule is found by the power cut.

use std::sync::Mutex;

use super::*;
use crate::mutant::{self, Mutant};

/// Appends three groups, the second with a sync that fails, cuts the power, and tells which acknowledged records are
/// gone.
fn acknowledged_and_gone() -> Vec<Vec<u8>> {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for group in 0..3 {
        for n in 0..4 {
            let payload = format!("record {group}/{n}").into_bytes();
            let position = usage(&log, &payload).unwrap();
            let acknowledged = Arc::clone(&acknowledged);
            let told = move |outcome: Result<(), LogError>| {
                if outcome.is_ok() {
                    acknowledged.lock().unwrap().push(payload);
                }
            };
            log.on_durable(position, Box::new(told));
        }
        memory.faults(memory::Faults {
            syncs: vec![group == 1],
            ..memory::Faults::default()
        });
        log.pump();
    }
    std::mem::forget(log);
    let (log, _) = open(&memory.crash(|_, _| false), config());
    let there = payloads(&read_all(&log, 1));
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(!acknowledged.is_empty(), "nothing was acknowledged");
    acknowledged
        .into_iter()
        .filter(|payload| !there.contains(&Some(payload.clone())))
        .collect()
}

/// What was acknowledged outlives a power cut, a failed sync in between included.
#[test]
fn acknowledged_outlives_a_power_cut() {
    mutant::set(None);
    assert_eq!(Vec::<Vec<u8>>::new(), acknowledged_and_gone());
}

/// Each rule of acknowledging, broken on purpose, loses an acknowledged record to the power cut.
#[test]
fn every_mutant_of_the_log_is_found() {
    for broken in [Mutant::AcknowledgedBeforeSync, Mutant::FailedSyncPasses] {
        mutant::set(Some(broken));
        let gone = acknowledged_and_gone();
        mutant::set(None);
        assert!(!gone.is_empty(), "{broken:?} is not found");
    }
}
