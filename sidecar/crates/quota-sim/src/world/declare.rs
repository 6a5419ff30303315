//! What tenants and limits there are, and how sidecars hear of it.

use std::sync::Arc;

use quota_core::{Event, LimitRule, Meter, TenantSnapshot};

use super::{
    World,
    ledger::{Line, Plan},
    network::Message,
};

impl World {
    /// Declares a tenant with these limits and tells everybody at once.
    pub fn declare(&mut self, tenant: &str, parent: Option<&str>, limits: Vec<(LimitRule, Plan)>) {
        let name: Arc<str> = tenant.into();
        for (rule, plan) in &limits {
            self.meters.insert(rule.meter.clone());
            self.ledger
                .limits
                .insert((name.clone(), rule.name.clone()), (rule.clone(), *plan));
            if let Some(trace) = &mut self.redis.trace {
                self.ledger.trace_limit(tenant, &rule.name, trace);
            }
        }
        let snapshot = TenantSnapshot {
            tenant: name.clone(),
            tenant_id: [0; 16],
            suspended: false,
            parent: parent.map(Into::into),
            plan: "plan".into(),
            features: Box::new(["export".into()]),
            limits: limits.into_iter().map(|(rule, _)| rule).collect(),
            change: 0,
        };
        self.publish(&snapshot);
    }

    /// Tells everybody of a tenant.
    pub fn publish(&mut self, snapshot: &TenantSnapshot) {
        self.tenants
            .insert(snapshot.tenant.clone(), snapshot.clone());
        for node in 0..self.nodes.len() {
            self.introduce(node);
            if self.verdicts.is_none() {
                self.handle(node, Event::Tenant(snapshot.clone()));
            } else if !self.nodes[node].cut {
                let life = self.nodes[node].life;
                let at_us = self.in_order(node, true);
                let event = Event::Tenant(snapshot.clone());
                self.post(at_us, Message::Tell { node, life, event });
            }
        }
    }

    /// Suspends a tenant.
    pub fn suspend(&mut self, tenant: &str) {
        let mut snapshot = self.tenants[tenant].clone();
        snapshot.suspended = true;
        self.publish(&snapshot);
    }

    /// Changes an amount in the ledger; the snapshots follow.
    pub fn set_amount(&mut self, tenant: &str, limit: &str, amount: u64) {
        let is_sent = self.is_ledger_up && self.is_redis_up;
        let mut line = Line {
            redis: &mut self.redis,
            is_sent,
            is_answered: is_sent,
            real_us: self.real_us,
            speed_milli: self.speed_milli.unsigned_abs(),
        };
        self.ledger.set_amount(tenant, limit, amount, &mut line);
        let mut snapshot = self.tenants[tenant].clone();
        for rule in snapshot
            .limits
            .iter_mut()
            .filter(|rule| &*rule.name == limit)
        {
            rule.amount = Some(amount);
            rule.amount_version += 1;
        }
        self.publish(&snapshot);
        self.spread_notices();
    }

    /// The amount of a limit in the ledger; 0 where there is none.
    #[must_use]
    pub fn amount(&self, tenant: &str, limit: &str) -> u64 {
        let rule = self.ledger.limits.get(&(tenant.into(), limit.into()));
        rule.and_then(|(rule, _)| rule.amount).unwrap_or(0)
    }

    pub(super) fn introduce(&mut self, node: usize) {
        if !self.nodes[node].watch_up && !self.nodes[node].cut {
            self.nodes[node].watch_up = true;
            let meter = |name: &Arc<str>| Meter {
                name: name.clone(),
                unit: "x".into(),
                scale: 0,
                attributes: Box::default(),
                value_attribute: self.value_attributes.get(name).cloned().unwrap_or_default(),
            };
            let meters = self.meters.iter().map(meter).collect();
            self.handle(node, Event::WatchUp);
            self.handle(node, Event::Meters(meters));
        }
    }
}
