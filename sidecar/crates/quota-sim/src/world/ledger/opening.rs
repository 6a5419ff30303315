//! Making windows: their names, and the keys of their pools.

use std::collections::BTreeMap;

use quota_core::WindowId;

use super::{DAY_US, Identity, Ledger, Standing, Window};
use crate::world::trace::hex;

impl Ledger {
    /// Names a window that ends then.
    pub(super) fn name(&mut self, end_us: i64) -> WindowId {
        self.names += 1;
        let mut id = [0; 16];
        let day = u32::try_from((end_us - 1).div_euclid(DAY_US)).expect("a day");
        id[..4].copy_from_slice(&day.to_be_bytes());
        id[8..].copy_from_slice(&self.names.to_be_bytes());
        WindowId(id)
    }

    /// Adds a window of the present timeline of which nothing is out.
    pub(super) fn add_window(
        &mut self,
        identity: Identity,
        (start_us, end_us): (i64, i64),
        id: WindowId,
        standing: Option<Standing>,
    ) {
        let place = self.rows.windows.len();
        let rule = self.limits.get(&(identity.0.clone(), identity.1.clone()));
        let counts_values = rule.is_some_and(|(rule, _)| self.value_meters.contains(&rule.meter));
        let tag = format!("tk:{{{}.{}}}", self.rows.cursors.len(), identity.1);
        self.rows.ids.insert(id, place);
        self.rows.windows.push(Window {
            identity,
            start_us,
            end_us,
            id,
            standing,
            stored: 0,
            stored_over: 0,
            owed: 0,
            timeline: self.rows.timeline,
            amount: 0,
            amount_version: 0,
            ceiling: 0,
            allotted: 0,
            wanted: 0,
            is_pool_lost: false,
            generations: Vec::new(),
            leases: BTreeMap::new(),
            lost_returns: BTreeMap::new(),
            consumed: BTreeMap::new(),
            given_back: BTreeMap::new(),
            pool_key: format!("{tag}:p:{}", hex(&id.0)).into(),
            holders_key: format!("{tag}:h:{}", hex(&id.0)).into(),
            values_key: format!("{tag}:u:{}", hex(&id.0)).into(),
            channel: format!("{tag}:n").into(),
            counts_values,
        });
    }
}
