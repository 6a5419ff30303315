//! Lost answers, restarts, restores, copies, damage and poison: every record arrives once.

use proptest::prelude::*;

use super::*;

/// A ledger that was restored gets everything again that it lost, whether it says so at open, by GAP, or in an answer.
#[test]
fn restored_ledger_is_refilled() {
    for restart in [false, true] {
        let mut world = World::new();
        world.ledger.safe_seq = 0;
        world.write(50);
        world.settle();
        let backup = world.ledger.clone();
        world.write(70);
        world.settle();
        world.ledger = backup;
        if restart {
            world.restart();
        } else {
            world.write(1);
        }
        world.settle();
        world.check();
        assert_eq!(1, world.shipper.figures(0).rewinds);
        assert_eq!(1, world.producers, "no new producer is needed");
    }
}

/// An idle shipper notices a restored ledger by its next watermark.
#[test]
fn restored_ledger_is_noticed_when_idle() {
    let mut world = World::new();
    world.ledger.safe_seq = 0;
    let backup = world.ledger.clone();
    world.write(70);
    world.settle();
    world.ledger = backup;
    world.pass(10_000_000);
    for _ in 0..20 {
        world.turn(Fate::Works);
        world.pass(100_000);
    }
    world.check();
}

/// Two processes on copies of one volume: one of them is fenced or forked, makes a new producer, and every record of
/// both is stored exactly once.
#[test]
fn copied_volume() {
    for held_back in [0, 40] {
        let mut world = World::new();
        world.write(30);
        world.settle();
        world.write(held_back);
        world.log.close().unwrap();
        copy(
            &world.folder.path().join("log"),
            &world.folder.path().join("copy"),
        );
        let (log, shipper) = start(&world.folder.path().join("copy"), 50, 200);
        world.restart();
        let mut other = World {
            folder: folder(),
            log,
            shipper,
            ledger: Ledger::default(),
            now_us: 1,
            written: Vec::new(),
            producers: 100,
            holders: 200,
        };
        for round in 0..30 {
            world.write(3);
            let n = other.written.len();
            let mine = LoggedUsage {
                id: format!("other-{n}"),
                ..record(n, round)
            };
            other.log.wait_durable(other.append(&mine)).unwrap();
            other.written.push(mine);
            for _ in 0..20 {
                world.turn(Fate::Works);
                world.pass(20_000);
                std::mem::swap(&mut world.ledger, &mut other.ledger);
                other.turn(Fate::Works);
                other.pass(20_000);
                std::mem::swap(&mut world.ledger, &mut other.ledger);
            }
        }
        world.settle();
        std::mem::swap(&mut world.ledger, &mut other.ledger);
        other.settle();
        std::mem::swap(&mut world.ledger, &mut other.ledger);
        let figures = [world.shipper.figures(0), other.shipper.figures(0)];
        assert_eq!(
            1,
            figures
                .iter()
                .map(|figures| figures.fenced + figures.forked)
                .sum::<u64>(),
            "{figures:?}"
        );
        world.written.append(&mut other.written);
        world.check();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A ledger set back beyond what the log still has: what is here goes to a new producer, what is gone is counted.
#[test]
fn ledger_lost_more_than_the_log_has() {
    let mut world = World::with(128 << 10);
    world.write(3_000);
    world.settle();
    world.write(3_000);
    world.settle();
    world.ledger = Ledger {
        safe_seq: u64::MAX,
        ..Ledger::default()
    };
    world.write(10);
    world.settle();
    let figures = world.shipper.figures(world.now_us);
    assert!(figures.lost > 0);
    assert_eq!(
        world.written.len() as u64,
        world.ledger.records.len() as u64 + figures.lost,
        "{figures:?}"
    );
}

/// A batch that can't be read is cut down to the bad entry, which goes as its digest; all others arrive, later ones at
/// once, and the history stays one.
#[test]
fn unreadable_entry_is_skipped() {
    let mut world = World::new();
    world.settle();
    world.ledger.poison = Some(("id-700".into(), "BATCH_MALFORMED"));
    world.write(1_000);
    world.settle();
    assert_eq!(
        (999, vec![(701, 701)]),
        (world.ledger.records.len(), world.ledger.holes.clone())
    );
    world.write(100);
    world.restart();
    world.settle();
    let figures = world.shipper.figures(0);
    assert_eq!((0, 0), (figures.refused_seq, figures.forked));
    assert_eq!(1_099, world.ledger.records.len());
}

/// A batch that is refused for another reason is named by its first entry and kept: nothing is skipped over it.
#[test]
fn other_refusals_skip_nothing() {
    let mut world = World::new();
    world.settle();
    world.ledger.poison = Some(("id-700".into(), "PERMISSION_DENIED"));
    world.write(1_000);
    for _ in 0..2_000 {
        world.turn(Fate::Works);
        world.pass(50_000);
    }
    let figures = world.shipper.figures(0);
    assert_eq!(
        (700, 701, 0),
        (
            world.ledger.records.len(),
            figures.refused_seq,
            figures.skipped
        )
    );
    world.ledger.poison = None;
    world.settle();
    assert_eq!(0, world.shipper.figures(0).refused_seq);
    world.check();
}

/// Damaged entries are sent as holes in their place; everything else arrives.
#[test]
fn holes_are_shipped() {
    let mut world = World::new();
    world.write(300);
    world.log.close().unwrap();
    let directory = world.folder.path().join("log").join("01".repeat(16));
    let file = directory.join("segment-0001");
    let mut bytes = std::fs::read(&file).unwrap();
    for id in ["id-100", "id-101", "id-200"] {
        let at = bytes
            .windows(id.len())
            .position(|window| window == id.as_bytes())
            .unwrap();
        bytes[at] ^= 1;
    }
    std::fs::write(&file, bytes).unwrap();
    let (log, shipper) = start(&world.folder.path().join("log"), 1, 2);
    (world.log, world.shipper) = (log, shipper);
    world.settle();
    // Neighbours are one hole or two, as the group commits fell when they were written.
    let holes = &world.ledger.holes;
    let lost: Vec<u64> = holes
        .iter()
        .flat_map(|&(first, last)| first..=last)
        .collect();
    assert_eq!(vec![101, 102, 201], lost);
    for id in [100, 101, 200].into_iter().rev() {
        world.written.remove(id);
    }
    world.check();
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    Turn(Fate),
    Pass(u32),
    Restart,
    Backup,
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        5 => Just(Fate::Works),
        1 => Just(Fate::NeverSent),
        2 => Just(Fate::AnswerLost),
        1 => Just(Fate::Garbled),
    ];
    let step = prop_oneof![
        4 => any::<u8>().prop_map(Step::Write),
        10 => fate.prop_map(Step::Turn),
        6 => (0..400_000_u32).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Backup),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Through lost, garbled and late answers, restarts and restores of the ledger, every record written is stored
    /// exactly once and unchanged.
    #[test]
    fn everything_arrives_once(steps in steps()) {
        let mut world = World::new();
        world.ledger.safe_seq = 0;
        let mut backup = world.ledger.clone();
        for step in steps {
            match step {
                Step::Write(count) => world.write(usize::from(count) % 40),
                Step::Turn(fate) => drop(world.turn(fate)),
                Step::Pass(real_us) => world.pass(real_us.into()),
                Step::Restart => world.restart(),
                Step::Backup => backup = world.ledger.clone(),
                Step::Restore => world.ledger = backup.clone(),
            }
        }
        world.write(1);
        world.settle();
        world.check();
    }
}
