//! What is sent when, and what it says beside the records.

use super::*;

/// A record is shipped one interval after it was seen, in one batch with its neighbours, and no sooner.
#[test]
fn batches_wait_for_the_interval() {
    let mut world = World::new();
    world.settle();
    let before = world.ledger.batches.len();
    world.write(10);
    assert!(!world.turn(Fate::Works));
    world.pass(INTERVAL_US - 1);
    assert!(!world.turn(Fate::Works));
    world.pass(1);
    assert!(world.turn(Fate::Works));
    assert_eq!(vec![10], world.ledger.batches[before..]);
    world.check();
}

/// A second without usage takes few looks at the log, whatever time has passed since the last batch.
#[test]
fn idleness_takes_few_looks() {
    let mut world = World::new();
    world.settle();
    world.turn(Fate::Works);
    world.pass(1_000_000);
    let (end_us, mut looks) = (world.now_us + 1_000_000, 0);
    while world.now_us < end_us {
        assert!(!world.turn(Fate::Works));
        world.pass(world.shipper.wait_us(world.now_us));
        looks += 1;
    }
    assert_eq!(20, looks);
    assert!(!world.has_grown());
}

/// Looks are rare, and yet a record leaves when its interval is over, and a failed batch when it is to be tried again.
#[test]
fn looks_are_in_time() {
    let mut world = World::new();
    world.settle();
    let wait = |world: &mut World, fate: Fate| {
        let (from_us, mut looks) = (world.now_us, 0);
        while !world.turn(fate) {
            let wait_us = world.shipper.wait_us(world.now_us);
            world.pass(wait_us);
            looks += 1;
        }
        (world.now_us - from_us, looks)
    };
    world.pass(7_000);
    world.write(1);
    assert_eq!((INTERVAL_US, 4), wait(&mut world, Fate::NeverSent));
    assert_eq!((RETRY_US.0, 2), wait(&mut world, Fate::Works));
    world.check();
}

/// What need not wait for a look says so: the first record after idleness, a full batch, whatever is left when a drain
/// begins; and nothing does while the ledger is not to be asked.
#[test]
fn growth_ends_a_wait() {
    let mut world = World::new();
    world.settle();
    assert!(!world.has_grown());
    world.write(1);
    assert!(world.has_grown());
    assert!(!world.turn(Fate::Works));
    assert!(!world.has_grown());
    world.write(1_000);
    assert!(!world.has_grown());
    let before = world.ledger.batches.len();
    world.write(4_000);
    assert!(world.has_grown());
    assert!(world.turn(Fate::NeverSent));
    assert!(!world.has_grown());
    world.settle();
    assert!(world.ledger.batches.len() > before);
    world.shipper.drain();
    world.write(1);
    assert!(world.has_grown());
    assert!(world.turn(Fate::Works));
    world.check();
}

/// A full batch goes at once and no batch exceeds its bounds.
#[test]
fn full_batches_go_at_once() {
    let mut world = World::new();
    world.settle();
    let before = world.ledger.batches.len();
    world.write(12_345);
    world.turn(Fate::Works);
    world.turn(Fate::Works);
    let sizes: Vec<usize> = world.ledger.batches[before..].to_vec();
    assert!(
        sizes.iter().all(|size| (4_000..=5_000).contains(size)),
        "{sizes:?}"
    );
    world.settle();
    assert!(
        world.ledger.largest_bytes <= 512 << 10,
        "{}",
        world.ledger.largest_bytes
    );
    world.check();
}

/// Large records are cut into batches by bytes.
#[test]
fn large_records_are_cut_by_bytes() {
    let mut world = World::new();
    for n in 0..40 {
        let mut large = record(n, world.ledger_us());
        large.attributes = vec![LoggedAttribute {
            name: "big".into(),
            value: format!("{n}{}", "x".repeat(40_000)),
        }];
        let position = world.append(&large);
        world.log.wait_durable(position).unwrap();
        world.written.push(large);
    }
    world.settle();
    assert!(
        world.ledger.largest_bytes <= 512 << 10,
        "{}",
        world.ledger.largest_bytes
    );
    world.check();
}

/// After an outage everything arrives once, within 2 s; while it lasts attempts get rarer, and the lag is told.
#[test]
fn outage_is_waited_out() {
    let mut world = World::new();
    world.settle();
    world.write(100);
    let mut attempts = 0;
    for _ in 0..6_000 {
        attempts += usize::from(world.turn(Fate::NeverSent));
        world.pass(10_000);
    }
    assert!((10..70).contains(&attempts), "{attempts}");
    let figures = world.shipper.figures(world.now_us);
    assert_eq!(100, figures.unshipped);
    assert!(
        (59_000_000..61_000_000).contains(&figures.lag_us),
        "{figures:?}"
    );
    let back_us = world.now_us;
    world.settle();
    assert!(world.now_us - back_us <= 2_000_000);
    assert_eq!(
        (0, 0),
        (
            world.shipper.figures(world.now_us).unshipped,
            world.shipper.figures(world.now_us).lag_us
        )
    );
    world.check();
}

/// An idle producer sends a watermark every 10 s; each covers the moment at which it was taken.
#[test]
fn idle_watermarks() {
    let mut world = World::new();
    world.settle();
    world.turn(Fate::Works);
    let before = world.ledger.batches.len();
    for _ in 0..3_100 {
        world.turn(Fate::Works);
        world.pass(10_000);
    }
    assert_eq!(3, world.ledger.batches.len() - before);
    let age_us = world.ledger_us() - world.ledger.watermark_us;
    assert!((0..10_100_000).contains(&age_us), "{age_us}");
}

/// A watermark never claims a record that was received before it and is not in the ledger.
#[test]
fn watermarks_claim_nothing_missing() {
    let mut world = World::new();
    for step in 0..400 {
        if step % 3 != 0 {
            world.write(step % 5);
        }
        world.turn(if step % 7 == 0 {
            Fate::AnswerLost
        } else {
            Fate::Works
        });
        let watermark_us = world.ledger.watermark_us;
        for record in world
            .written
            .iter()
            .filter(|record| record.received_us < watermark_us)
        {
            assert!(
                world.ledger.records.contains_key(&record.id),
                "{} is missing",
                record.id
            );
        }
        world.pass(37_000);
    }
    assert!(world.ledger.watermark_us > LEDGER_US);
}

/// While ledger time is unknown no watermark is claimed.
#[test]
fn no_watermark_without_a_clock() {
    let mut world = World::new();
    let Some(ShipCommand::Open(bytes)) = world.shipper.poll(1, None) else {
        panic!("no open")
    };
    let answer = world.ledger.open(&bytes).unwrap();
    world.shipper.on_reply(ShipReply::Ledger(&answer), 2);
    let Some(ShipCommand::Append(bytes)) = world.shipper.poll(3, None) else {
        panic!("no append")
    };
    assert_eq!(
        0,
        AppendUsageRequest::decode(bytes.as_slice())
            .unwrap()
            .watermark_us
    );
}

/// Tenants are told once each, again to a new producer, and again when the answer was lost.
#[test]
fn tenants_are_told() {
    let mut world = World::new();
    world.shipper.serves("quiet");
    world.turn(Fate::Works);
    world.turn(Fate::AnswerLost);
    world.write(6);
    world.settle();
    world.settle();
    let mut told = world.ledger.tenants.clone();
    told.sort();
    told.dedup();
    assert_eq!(vec!["quiet", "tenant-0", "tenant-1", "tenant-2"], told);
    world.ledger.tenants.clear();
    world.write(6);
    world.settle();
    assert_eq!(Vec::<String>::new(), world.ledger.tenants);
}

/// One command is outstanding at a time, and a reply that nobody waits for changes nothing.
#[test]
fn one_at_a_time() {
    let mut world = World::new();
    world.settle();
    world.write(5);
    world.pass(INTERVAL_US);
    world.shipper.poll(world.now_us, None);
    world.pass(INTERVAL_US);
    let Some(ShipCommand::Append(bytes)) = world.shipper.poll(world.now_us, None) else {
        panic!("no append")
    };
    world.write(5);
    world.pass(60_000_000);
    assert_eq!(None, world.shipper.poll(world.now_us, None));
    let answer = world.ledger.append(&bytes).unwrap();
    world
        .shipper
        .on_reply(ShipReply::Ledger(&answer), world.now_us);
    world.shipper.on_reply(ShipReply::Lost, world.now_us);
    world.settle();
    world.check();
}

/// Draining ships at once and ends with the word that the producer is closed.
#[test]
fn drain_closes() {
    let mut world = World::new();
    world.settle();
    world.write(10_000);
    world.shipper.drain();
    let mut turns = 0;
    while !world.shipper.is_drained() {
        assert!(
            world.turn(Fate::Works),
            "nothing due while records are left"
        );
        turns += 1;
        assert!(turns < 10);
    }
    assert!(world.ledger.closed);
    assert!(!world.turn(Fate::Works));
    world.check();
}
