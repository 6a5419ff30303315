//! What the ledger said of tenants, meters and itself, for everything but decisions (those are the engine's).

use std::sync::Arc;

use hashbrown::HashMap;
use quota_core::{Meter, TenantSnapshot};
use quota_proto::{
    Attributes,
    bridge::{Snapshot, command::Action},
    command::watch_hello,
    ledger::{self, WatchHello, WatchWelcome},
    quota::ErrorReason,
    watch::{EARLY_MAX_US, LATE_MAX_US, RecordRules},
};

use crate::{
    pseudonym::{PseudonymKey, is_pseudonym},
    refusal::{Answer, Refusal},
    token::TokenKeys,
};

/// Tenants followed at most, their ancestors left out. Beyond it a new one is answered as if the ledger were away.
const TENANTS_MAX: usize = 40_000;
/// Version of the watch protocol that we speak.
const PROTOCOL_VERSION: u32 = 1;

/// What handlers need of a tenant.
#[derive(Debug)]
pub(crate) struct TenantFacts {
    pub(crate) plan: Arc<str>,
    pub(crate) features: Box<[Box<str>]>,
}

/// What handlers need of a meter.
#[derive(Debug)]
struct MeterFacts {
    /// Attributes that it declares.
    attributes: Box<[Box<str>]>,
    /// Those of them that every record with this meter stores under pseudonyms.
    hidden: Box<[Box<str>]>,
    /// How long before its receive time an event may lie, µs.
    late_us: i64,
    /// How long after it, µs.
    early_us: i64,
}

/// What becomes of an attribute of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// No meter of the record declares it.
    Dropped,
    /// It is stored as it is.
    Plain,
    /// Its pseudonym is stored.
    Hidden,
}

/// Tenants, meters and the state of the watch stream.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Tenants on the watch stream; `None` until their snapshot came.
    tenants: HashMap<Arc<str>, Option<Arc<TenantFacts>>>,
    meters: Option<HashMap<Arc<str>, MeterFacts>>,
    /// Some meter hides attributes.
    hides: bool,
    /// Keys of pseudonyms by tenant; never kept for a restart.
    pseudonym_keys: HashMap<Arc<str>, PseudonymKey>,
    pub(crate) keys: TokenKeys,
    pub(crate) watch_up: bool,
    pub(crate) welcomed: bool,
    timeline: u64,
    witness: Vec<u8>,
    change: u64,
}

impl Directory {
    /// Notes that tenants are to be followed; false, and nothing noted, while the stream is down or no more fit.
    pub(crate) fn follow(&mut self, tenants: &[Arc<str>]) -> bool {
        let fits = self.tenants.len().saturating_add(tenants.len()) <= TENANTS_MAX;
        if !self.watch_up || !fits {
            return false;
        }
        for tenant in tenants {
            self.tenants.entry(Arc::clone(tenant)).or_default();
        }
        true
    }

    /// Notes whether the stream is up. With it go the questions that it did not answer: whoever still wants to know
    /// asks again.
    pub(crate) fn watch_changed(&mut self, up: bool) {
        self.watch_up = up;
        self.tenants.retain(|_, facts| facts.is_some());
    }

    /// Takes in a tenant.
    pub(crate) fn learn(&mut self, snapshot: &TenantSnapshot) {
        let facts = TenantFacts {
            plan: Arc::clone(&snapshot.plan),
            features: snapshot.features.clone(),
        };
        self.tenants
            .insert(Arc::clone(&snapshot.tenant), Some(Arc::new(facts)));
    }

    /// Forgets a tenant that does not exist.
    pub(crate) fn forget(&mut self, tenant: &str) {
        self.tenants.remove(tenant);
        self.pseudonym_keys.remove(tenant);
    }

    /// Takes in the list of meters, and what holds for records of each.
    pub(crate) fn learn_meters(&mut self, meters: &[Meter], rules: &[RecordRules]) {
        let facts = |(meter, rules): (&Meter, &RecordRules)| {
            let facts = MeterFacts {
                attributes: meter.attributes.clone(),
                hidden: rules
                    .hidden
                    .iter()
                    .map(|name| &**name)
                    .map(Box::from)
                    .collect(),
                late_us: rules.late_us,
                early_us: rules.early_us,
            };
            (Arc::clone(&meter.name), facts)
        };
        self.hides = rules.iter().any(|rules| !rules.hidden.is_empty());
        self.meters = Some(meters.iter().zip(rules).map(facts).collect());
    }

    /// Takes in keys of pseudonyms, each in place of the tenant's before; what is no key is left out.
    pub(crate) fn learn_keys(&mut self, keys: &[ledger::PseudonymKey]) {
        for told in keys {
            if let Some(key) = PseudonymKey::read(told) {
                self.pseudonym_keys.insert(told.tenant.as_str().into(), key);
            }
        }
    }

    /// Takes in the ledger's introduction.
    pub(crate) fn welcome(&mut self, welcome: &WatchWelcome) {
        self.witnessed(welcome.timeline, &welcome.witness);
        self.keys = TokenKeys::new(&welcome.token_keys);
        self.welcomed = true;
    }

    /// Takes in what an earlier process heard of the ledger.
    pub(crate) fn remember(&mut self, snapshot: &Snapshot) {
        self.witnessed(snapshot.timeline, &snapshot.witness);
        self.keys = TokenKeys::new(&snapshot.token_keys);
    }

    /// The newest witness with its timeline.
    pub(crate) fn seen(&self) -> (u64, Vec<u8>) {
        (self.timeline, self.witness.clone())
    }

    /// Forgets what was said of tenants; names all of them, to be asked for anew.
    pub(crate) fn begin_anew(&mut self) -> Vec<Arc<str>> {
        (self.change, self.meters) = (0, None);
        self.pseudonym_keys.clear();
        for facts in self.tenants.values_mut() {
            *facts = None;
        }
        self.tenants.keys().map(Arc::clone).collect()
    }

    /// Remembers the newest witness of what Postgres had committed; an older one changes nothing.
    pub(crate) fn witnessed(&mut self, timeline: u64, value: &[u8]) {
        if (timeline, value) > (self.timeline, self.witness.as_slice()) {
            self.timeline = timeline;
            self.witness = value.to_vec();
        }
    }

    /// Notes the last change that the ledger sent.
    pub(crate) fn changed(&mut self, change: u64) {
        self.change = self.change.max(change);
    }

    /// Says what to send first on a new watch stream: only tenants whose snapshot is here may be confirmed by a change
    /// number, the engine asks for others by itself.
    pub(crate) fn introduction(&self, holder: [u8; 16], producer: [u8; 16]) -> Action {
        let hello = WatchHello {
            protocol_version: PROTOCOL_VERSION,
            holder: holder.to_vec(),
            producer_id: producer.to_vec(),
            resume_change: self.change,
            timeline_seen: self.timeline,
            witness_seen: self.witness.clone(),
            tenants: self.served().iter().map(ToString::to_string).collect(),
        };
        watch_hello(hello)
    }

    /// Gives what is known of a tenant.
    pub(crate) fn tenant(&self, tenant: &str) -> Option<Arc<TenantFacts>> {
        self.tenants.get(tenant)?.clone()
    }

    /// Wire ids of the tenants whose snapshot is here.
    pub(crate) fn served(&self) -> Vec<Arc<str>> {
        self.tenants
            .iter()
            .filter(|(_, facts)| facts.is_some())
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    /// Whether a meter exists; `None` before the ledger has said which there are.
    pub(crate) fn meter_exists(&self, meter: &str) -> Option<bool> {
        self.meters
            .as_ref()
            .map(|meters| meters.contains_key(meter))
    }

    /// Refuses a meter that does not exist; `field` names where it stands.
    ///
    /// # Errors
    /// Also where the ledger has not said yet which there are.
    pub(crate) fn require_meter(&self, field: impl FnOnce() -> String, meter: &str) -> Answer<()> {
        if self.meter_exists(meter).ok_or_else(Refusal::starting)? {
            return Ok(());
        }
        let reason = ErrorReason::MeterUnknown;
        Err(Refusal::unknown(reason, "meter", field(), meter))
    }

    /// How long before and after its receive time an event with these meters may lie, µs: what all of them allow.
    pub(crate) fn span<'m>(&self, meters: impl Iterator<Item = &'m str>) -> (i64, i64) {
        self.facts_of(meters)
            .fold((LATE_MAX_US, EARLY_MAX_US), |(late_us, early_us), meter| {
                (late_us.min(meter.late_us), early_us.min(meter.early_us))
            })
    }

    /// Says what becomes of an attribute of a record with these meters: hidden by one of them it is hidden, whatever the
    /// others declare.
    pub(crate) fn standing<'m>(
        &self,
        meters: &(impl Iterator<Item = &'m str> + Clone),
        name: &str,
    ) -> Standing {
        let has = |names: &[Box<str>]| names.iter().any(|other| **other == *name);
        if self.hides
            && self
                .facts_of(meters.clone())
                .any(|meter| has(&meter.hidden))
        {
            Standing::Hidden
        } else if self
            .facts_of(meters.clone())
            .any(|meter| has(&meter.attributes))
        {
            Standing::Plain
        } else {
            Standing::Dropped
        }
    }

    /// Leaves the attributes that a record with these meters stores, hidden ones as their pseudonyms.
    ///
    /// # Errors
    /// One is hidden and the tenant's key has not come; the attributes are of no use then.
    pub(crate) fn stored<'m>(
        &self,
        tenant: &str,
        meters: &(impl Iterator<Item = &'m str> + Clone),
        attributes: &mut Attributes,
    ) -> Answer<()> {
        attributes.retain(|(name, _)| self.standing(meters, name) != Standing::Dropped);
        for (name, value) in attributes {
            if self.standing(meters, name) == Standing::Hidden {
                *value = self.pseudonym(tenant, name, value)?.into();
            }
        }
        Ok(())
    }

    /// Gives those attributes of a tenant's call that a meter declares, hidden ones as their pseudonyms; without the
    /// tenant's key these are left out.
    pub(crate) fn told(&self, tenant: &str, meter: &str, attributes: Attributes) -> Attributes {
        let meters = std::iter::once(meter);
        let told = |(name, value): (Box<str>, Box<str>)| match self.standing(&meters, &name) {
            Standing::Dropped => None,
            Standing::Plain => Some((name, value)),
            Standing::Hidden => {
                let hidden = self.pseudonym(tenant, &name, &value).ok()?;
                Some((name, hidden.into()))
            }
        };
        attributes.into_iter().filter_map(told).collect()
    }

    /// Hides those of a reservation's attributes that one of the meters hides and that are no pseudonyms already; the
    /// others stay as they were signed.
    ///
    /// # Errors
    /// As [`Directory::stored`].
    pub(crate) fn stored_reserved<'m>(
        &self,
        tenant: &str,
        meters: &(impl Iterator<Item = &'m str> + Clone),
        attributes: &mut Attributes,
    ) -> Answer<()> {
        for (name, value) in attributes {
            if !is_pseudonym(value) && self.standing(meters, name) == Standing::Hidden {
                *value = self.pseudonym(tenant, name, value)?.into();
            }
        }
        Ok(())
    }

    /// Gives the pseudonym of a tenant's attribute.
    ///
    /// # Errors
    /// The tenant's key has not come.
    pub(crate) fn pseudonym(&self, tenant: &str, name: &str, value: &str) -> Answer<String> {
        let key = self.pseudonym_keys.get(tenant);
        key.map(|key| key.pseudonym(name, value))
            .ok_or_else(|| Refusal::no_pseudonyms(tenant))
    }

    /// Whether a record with these meters and attributes can't be stored, since the tenant's key has not come.
    pub(crate) fn lacks_key<'m, 'n>(
        &self,
        tenant: &str,
        meters: &(impl Iterator<Item = &'m str> + Clone),
        mut names: impl Iterator<Item = &'n str>,
    ) -> bool {
        self.hides
            && !self.pseudonym_keys.contains_key(tenant)
            && names.any(|name| self.standing(meters, name) == Standing::Hidden)
    }

    fn facts_of<'m>(
        &self,
        meters: impl Iterator<Item = &'m str>,
    ) -> impl Iterator<Item = &MeterFacts> {
        meters.filter_map(|meter| self.meters.as_ref()?.get(meter))
    }
}
