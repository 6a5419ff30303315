//! What waiters hear of records that the ledger did not store, whatever happens to its answers.

use std::sync::Mutex;

use proptest::prelude::*;
use quota_proto::quota::RecordOutcome;

use super::*;

type Heard = Arc<Mutex<Vec<(usize, Option<RecordOutcome>)>>>;

impl World {
    /// Makes the ledger have these records of another producer: the same where `same`, else others of their ids.
    fn had(&mut self, numbers: impl Iterator<Item = usize>, same: bool) {
        for number in numbers {
            let mut known = record(number, LEDGER_US);
            if !same {
                known.tenant.push('x');
            }
            self.ledger.records.insert(known.id.clone(), known);
        }
    }

    /// Appends records and has their waiters look for the verdict at the very moment that they hear of the commit.
    fn wait_for(&self, numbers: std::ops::Range<usize>, heard: &Heard) {
        for number in numbers {
            let position = self.append(&record(number, LEDGER_US));
            let (heard, verdicts) = (Arc::clone(heard), self.shipper.verdicts.clone());
            self.log.on_committed(
                position,
                Box::new(move |outcome| {
                    outcome.unwrap();
                    let verdict = verdicts.on(position.record_number());
                    heard
                        .lock()
                        .unwrap()
                        .push((number, verdict.map(|verdict| verdict.outcome)));
                }),
            );
        }
    }
}

fn expected(number: usize) -> Option<RecordOutcome> {
    match number % 4 {
        1 => Some(RecordOutcome::Duplicate),
        2 => Some(RecordOutcome::Conflict),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Whoever waits for the ledger hears its own verdict, at once with the commit: answers lost or garbled, batches
    /// cut anew, however long the log was before this process.
    #[test]
    fn waiters_hear_the_verdict(
        before in 0_usize..40,
        groups in proptest::collection::vec((1_usize..60, 0_u8..4, any::<bool>()), 1..8),
    ) {
        let mut world = World::new();
        world.write(before);
        world.settle();
        world.restart();
        let total: usize = before + groups.iter().map(|group| group.0).sum::<usize>();
        world.had((before..total).filter(|number| number % 4 == 1), true);
        world.had((before..total).filter(|number| number % 4 == 2), false);
        let heard = Heard::default();
        let mut next = before;
        for (count, fate, cut) in groups {
            world.wait_for(next..next + count, &heard);
            next += count;
            world.log.wait_durable(world.append(&record(100_000 + next, LEDGER_US))).unwrap();
            let fate = [Fate::Works, Fate::AnswerLost, Fate::Garbled, Fate::NeverSent][usize::from(fate)];
            for _ in 0..8 {
                world.turn(fate);
                world.pass(100_000);
            }
            if cut {
                world.shipper.records_max = 7;
            }
        }
        world.settle();
        let mut heard = heard.lock().unwrap().clone();
        heard.sort_unstable_by_key(|one| one.0);
        let all: Vec<_> = (before..next).map(|number| (number, expected(number))).collect();
        prop_assert_eq!(all, heard);
    }
}

/// A ledger that says at an open how far it is, beyond what this process has heard of, is asked again what became of
/// the records in between.
#[test]
fn an_open_alone_tells_no_verdict() {
    let mut world = World::new();
    world.settle();
    world.had(0..30, false);
    let heard = Heard::default();
    world.wait_for(0..30, &heard);
    world
        .log
        .wait_durable(world.append(&record(1_000, LEDGER_US)))
        .unwrap();
    while world.ledger.batches.iter().sum::<usize>() < 31 {
        world.turn(Fate::AnswerLost);
        world.pass(100_000);
    }
    world.shipper.state = State::Opening;
    world.settle();
    let heard = heard.lock().unwrap();
    assert_eq!(30, heard.len());
    assert!(
        heard
            .iter()
            .all(|one| one.1 == Some(RecordOutcome::Conflict)),
        "{heard:?}"
    );
    assert!(world.shipper.figures(0).answers_lost > 0);
}
