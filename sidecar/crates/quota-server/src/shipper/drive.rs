//! Drives the shipper: carries its commands to the control plane and their answers back.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use quota_proto::bridge::{answer::Result as Outcome, command::Action};
use tokio::{sync::Notify, time::sleep};
use usage_log::{LogError, NewProducer, UsageLog};

use super::{ShipCommand, ShipReply, Shipper, TIMEOUT_MS};
use crate::outbox::Outbox;

/// Drives until the task is dropped; whatever is in flight then is sent again at the next start.
///
/// `now` gives real time and, once it is known, ledger time. `new_producer` makes random names. `renewed` hears of a
/// new producer. `wake` makes it look at once, for example when a drain begins.
pub async fn drive(
    shipper: Arc<Mutex<Shipper>>,
    log: UsageLog,
    outbox: Arc<Outbox>,
    now: impl Fn() -> (u64, Option<i64>) + Send,
    new_producer: impl Fn() -> Option<NewProducer> + Send,
    renewed: impl Fn([u8; 16]) + Send,
    wake: Arc<Notify>,
) {
    loop {
        let (real_us, ledger_us) = now();
        let command = shipper.lock().poll(real_us, ledger_us);
        match command {
            None => {
                let (wait_us, growth) = {
                    let shipper = shipper.lock();
                    (shipper.wait_us(real_us), shipper.growth(real_us))
                };
                if let Some(growth) = growth {
                    let wake = Arc::clone(&wake);
                    log.on_grown(growth, Box::new(move || wake.notify_one()));
                }
                let wait = Duration::from_micros(wait_us);
                tokio::select! {
                    () = sleep(wait) => {}
                    () = wake.notified() => {}
                }
            }
            Some(ShipCommand::Renew(from_seq)) => {
                let outcome = match new_producer() {
                    Some(new_producer) => renew(log.clone(), new_producer, from_seq).await,
                    None => Err(LogError::Io("no randomness for a new producer".into())),
                };
                if let Ok(recovered) = &outcome {
                    renewed(recovered.producer_id);
                }
                shipper.lock().on_renewed(outcome, from_seq, now().0);
            }
            Some(ShipCommand::Open(bytes)) => {
                ask(&shipper, &outbox, Action::OpenProducer(bytes.into()), &now).await;
            }
            Some(ShipCommand::Append(bytes)) => {
                ask(&shipper, &outbox, Action::AppendUsage(bytes.into()), &now).await;
            }
        }
    }
}

async fn ask(
    shipper: &Mutex<Shipper>,
    outbox: &Outbox,
    action: Action,
    now: &(impl Fn() -> (u64, Option<i64>) + Send),
) {
    let outcome = outbox.ask(TIMEOUT_MS, action).await;
    let reply = match &outcome {
        Ok(Outcome::Ledger(bytes)) => ShipReply::Ledger(bytes),
        Ok(Outcome::Failure(failure)) => ShipReply::Failed(failure),
        Ok(_) | Err(_) => ShipReply::Lost,
    };
    shipper.lock().on_reply(reply, now().0);
}

async fn renew(
    log: UsageLog,
    new_producer: NewProducer,
    from_seq: u64,
) -> Result<usage_log::Recovered, LogError> {
    let renewal = tokio::task::spawn_blocking(move || log.renew(new_producer, from_seq));
    renewal.await.unwrap_or(Err(LogError::Closed))
}
