//! Repeats of checks with a `request_id` (escrow.md, step 21).

use std::collections::VecDeque;

use hashbrown::HashMap;
use quota_proto::{
    check::{ParsedCheck, Purpose},
    quota::{CheckQuotaResponse, ErrorReason},
};
use tokio::sync::oneshot;

use crate::{
    fingerprint::Fingerprints,
    refusal::{Answer, Refusal},
};

/// How long an admitted answer is replayed, real µs.
const KEPT_US: u64 = 60_000_000;
/// How many ids are remembered.
const IDS_MAX: usize = 65_536;

type Key = (u64, u64);

#[allow(clippy::large_enum_variant)] // the large one is the common one: boxing it would cost every check an allocation
enum Slot {
    /// Being decided; these wait for the same answer.
    Open(Vec<oneshot::Sender<Answer<CheckQuotaResponse>>>),
    /// Admitted.
    Done(CheckQuotaResponse),
}

struct Remembered {
    content: (u64, u64),
    slot: Slot,
}

/// What a request is to its predecessors.
#[allow(clippy::large_enum_variant)] // the large one is the common one: boxing it would cost every check an allocation
pub(crate) enum Repeat {
    /// The first of its id; [`Replay::finish`] must follow.
    First(Key),
    /// A repeat of one that is being decided.
    Joined(oneshot::Receiver<Answer<CheckQuotaResponse>>),
    /// A repeat of one that was admitted.
    Admitted(CheckQuotaResponse),
}

/// Answers by (tenant, `request_id`).
#[derive(Default)]
pub(crate) struct Replay {
    fingerprints: Fingerprints,
    ids: HashMap<Key, Remembered>,
    /// (since when, which) of admitted answers, oldest first.
    order: VecDeque<(u64, Key)>,
}

impl Replay {
    /// Finds what a request is to its predecessors.
    ///
    /// # Errors
    /// The id came before with other content.
    pub(crate) fn begin(&mut self, check: &ParsedCheck, real_us: u64) -> Answer<Repeat> {
        self.expire(real_us);
        let key = self.fingerprints.of(&(&check.tenant, &check.request_id));
        let content = self.content(check);
        let Some(known) = self.ids.get_mut(&key) else {
            self.ids.insert(
                key,
                Remembered {
                    content,
                    slot: Slot::Open(Vec::new()),
                },
            );
            return Ok(Repeat::First(key));
        };
        if known.content != content {
            return Err(Refusal::new(
                ErrorReason::RequestIdReused,
                "this request_id came before with other content; use a new id for a new request",
            )
            .with("field", "request_id")
            .with("value", &check.request_id)
            .with("bound", "one id for one content")
            .with("remedy", "use a new id for a new request"));
        }
        match &mut known.slot {
            Slot::Done(answer) => Ok(Repeat::Admitted(answer.clone())),
            Slot::Open(waiting) => {
                let (sender, receiver) = oneshot::channel();
                waiting.push(sender);
                Ok(Repeat::Joined(receiver))
            }
        }
    }

    /// Tells those who joined, and remembers the answer if it admits; a denial is decided anew next time.
    pub(crate) fn finish(&mut self, key: Key, answer: &Answer<CheckQuotaResponse>, real_us: u64) {
        let Some(known) = self.ids.get_mut(&key) else {
            return;
        };
        let admitted = answer
            .as_ref()
            .ok()
            .filter(|answer| answer.decision.as_ref().is_some_and(|told| told.allowed));
        let before = match admitted {
            Some(answer) => {
                self.order.push_back((real_us, key));
                std::mem::replace(&mut known.slot, Slot::Done(answer.clone()))
            }
            None => self
                .ids
                .remove(&key)
                .map_or(Slot::Open(Vec::new()), |known| known.slot),
        };
        if let Slot::Open(waiting) = before {
            for sender in waiting {
                let _ = sender.send(answer.clone());
            }
        }
        self.expire(real_us);
    }

    fn expire(&mut self, real_us: u64) {
        while let Some((since, key)) = self.order.front().copied() {
            if self.order.len() <= IDS_MAX && real_us.saturating_sub(since) < KEPT_US {
                return;
            }
            self.order.pop_front();
            self.ids.remove(&key);
        }
    }

    /// Detail and headers are about the telling, not about the request.
    fn content(&self, check: &ParsedCheck) -> (u64, u64) {
        let purpose = match check.purpose {
            Purpose::Consume { record_usage } => (0, i64::from(record_usage)),
            Purpose::Peek => (1, 0),
            Purpose::Reserve { ttl_us } => (2, ttl_us),
            Purpose::GiveBack => (3, 0),
        };
        let costs: Vec<(&str, u64)> = check
            .costs
            .iter()
            .map(|cost| (&*cost.meter, cost.units))
            .collect();
        self.fingerprints
            .of(&(costs, &check.features, &check.attributes, purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quota_proto::quota::{CheckQuotaRequest, Cost, Decision};

    fn check(id: &str, units: i64) -> ParsedCheck {
        let costs = vec![Cost {
            meter: "m".into(),
            units,
        }];
        CheckQuotaRequest {
            tenant: "t".into(),
            request_id: id.into(),
            costs,
            ..Default::default()
        }
        .try_into()
        .unwrap()
    }

    fn answer(allowed: bool) -> CheckQuotaResponse {
        CheckQuotaResponse {
            decision: Some(Decision {
                allowed,
                ..Default::default()
            }),
            reservation: None,
        }
    }

    fn first(replay: &mut Replay, id: &str, at: u64) -> Key {
        match replay.begin(&check(id, 1), at).unwrap() {
            Repeat::First(key) => key,
            _ => panic!("not the first"),
        }
    }

    /// An admitted answer is replayed for 60 s and then decided anew.
    #[test]
    fn admitted_answers_replay_for_a_minute() {
        let mut replay = Replay::default();
        let key = first(&mut replay, "a", 0);
        replay.finish(key, &Ok(answer(true)), 0);
        assert!(matches!(
            replay.begin(&check("a", 1), KEPT_US - 1),
            Ok(Repeat::Admitted(_))
        ));
        first(&mut replay, "a", KEPT_US);
    }

    /// A denial is decided anew at once.
    #[test]
    fn denials_are_decided_anew() {
        let mut replay = Replay::default();
        let key = first(&mut replay, "a", 0);
        replay.finish(key, &Ok(answer(false)), 0);
        first(&mut replay, "a", 0);
    }

    /// A repeat in flight gets the first one's answer, error or not.
    #[test]
    fn repeats_in_flight_join_the_first() {
        let mut replay = Replay::default();
        let key = first(&mut replay, "a", 0);
        let Ok(Repeat::Joined(mut joined)) = replay.begin(&check("a", 1), 0) else {
            panic!("not joined")
        };
        replay.finish(key, &Err(Refusal::full()), 0);
        assert_eq!(Err(Refusal::full()), joined.try_recv().unwrap());
    }

    /// Other content under the same id is refused, in flight and afterwards.
    #[test]
    fn other_content_is_refused() {
        let mut replay = Replay::default();
        let key = first(&mut replay, "a", 0);
        let reason = |outcome: Answer<Repeat>| outcome.err().map(|refusal| refusal.reason);
        assert_eq!(
            Some(ErrorReason::RequestIdReused),
            reason(replay.begin(&check("a", 2), 0))
        );
        replay.finish(key, &Ok(answer(true)), 0);
        assert_eq!(
            Some(ErrorReason::RequestIdReused),
            reason(replay.begin(&check("a", 2), 0))
        );
    }

    /// No more ids than the bound are remembered; the oldest go first.
    #[test]
    fn oldest_ids_are_forgotten_first() {
        let mut replay = Replay::default();
        for index in 0..=IDS_MAX {
            let key = first(&mut replay, &index.to_string(), 0);
            replay.finish(key, &Ok(answer(true)), 0);
        }
        assert_eq!(IDS_MAX, replay.ids.len());
        first(&mut replay, "0", 0);
    }
}
