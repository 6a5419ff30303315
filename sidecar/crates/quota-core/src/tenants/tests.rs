//! Names that nobody declared.

use super::*;
use std::hash::BuildHasher as _;

fn now(real_us: u64) -> Now {
    Now {
        ledger_us: 0,
        real_us,
        speed_milli: 1_000,
    }
}

/// Whoever makes up names, and whether the ledger answers, is silent, or answers late: no more than the bound is
/// kept, and a tenant that is known stays known.
#[test]
fn made_up_names_take_bounded_memory() {
    let state = FixedState::with_seed(7);
    let mut rng = state.hash_one("answers");
    let waiter = crate::slab::Slab::new().insert(());
    let mut catalog = Catalog::new(state.clone());
    let known: Arc<str> = Arc::from("known");
    let mut fetch = Vec::new();
    catalog.look_up(now(0), &known, &mut fetch);
    let snapshot = TenantSnapshot {
        tenant: Arc::clone(&known),
        tenant_id: [0; 16],
        suspended: false,
        parent: None,
        plan: "".into(),
        features: Box::default(),
        limits: Vec::new(),
        change: 1,
    };
    catalog.set_tenant(now(0), snapshot);
    fetch.clear();
    for number in 0..4 * STRANGERS_MAX as u64 {
        let name: Arc<str> = Arc::from(format!("made-up-{number}"));
        let found = catalog.look_up(now(number), &name, &mut fetch);
        if let Lookup::Fetching(place) = found {
            catalog.wait_for(place, waiter);
        }
        rng = state.hash_one(rng);
        if rng % 3 == 0 {
            let late = fetch.swap_remove((rng >> 8) as usize % fetch.len());
            catalog.set_unknown(now(number), &late);
            catalog.take_waiters(&late);
        }
    }
    assert!(
        catalog.len() <= STRANGERS_MAX + 2,
        "{} names are kept",
        catalog.len()
    );
    let found = catalog.look_up(now(1), &known, &mut fetch);
    assert!(matches!(found, Lookup::Known(_)), "{found:?}");
}
