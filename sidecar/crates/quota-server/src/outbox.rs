//! Commands on their way to the control plane, and who waits for their answers.

use std::{
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use prost::Message as _;
use quota_core::CommandId;
use quota_proto::{
    bridge::{Answer, Command, CommandBatch, answer::Result as Outcome, command::Action},
    command::AnswerKind,
};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::bell::{self, Bell};

/// Real milliseconds that a command of the watch stream may take.
pub(crate) const WATCH_TIMEOUT_MS: u32 = 5_000;

/// Who waits for an answer.
enum Waiter {
    /// The engine, under its own command id.
    Engine(CommandId, AnswerKind),
    /// Somebody else; gone when nobody cares any more.
    Other(oneshot::Sender<Outcome>),
    /// Nobody.
    Nobody,
}

/// An answer with the command of the engine that it belongs to.
pub(crate) struct EngineAnswer {
    pub(crate) id: CommandId,
    pub(crate) kind: AnswerKind,
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Default)]
struct Queue {
    next_id: u64,
    commands: Vec<Command>,
    waiters: HashMap<u64, Waiter>,
}

/// Readable from when it is rung until it is silenced.
struct Eventfd(OwnedFd);

impl Bell for Eventfd {
    fn ring(&self) {
        // Fails only when the counter is full, and then the reader is awake anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let mut counter = [0_u8; 8];
        // Nothing to read means that nobody woke us; commands may wait all the same.
        let _ = rustix::io::read(&self.0, &mut counter);
    }
}

/// The queue of commands, with an eventfd that is readable while commands wait.
///
/// Bounded by its users: the engine keeps one command per identity in flight, the shipper one batch.
pub struct Outbox {
    queue: Mutex<Queue>,
    wake: Eventfd,
    late_answers: AtomicU64,
}

impl Outbox {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// The system has no eventfd to give.
    pub fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            queue: Mutex::new(Queue::default()),
            wake: Eventfd(wake),
            late_answers: AtomicU64::new(0),
        })
    }

    /// Asks the control plane; the answer comes through the receiver, which fails when the data plane stops.
    ///
    /// Dropping the receiver does not take the command back.
    pub fn ask(&self, timeout_ms: u32, action: Action) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.push(timeout_ms, action, Waiter::Other(sender));
        receiver
    }

    /// Sends a command whose answer nobody waits for.
    pub(crate) fn tell(&self, timeout_ms: u32, action: Action) {
        self.push(timeout_ms, action, Waiter::Nobody);
    }

    /// Sends a command of the engine.
    pub(crate) fn ask_for_engine(
        &self,
        id: CommandId,
        timeout_ms: u32,
        action: Action,
        kind: AnswerKind,
    ) {
        self.push(timeout_ms, action, Waiter::Engine(id, kind));
    }

    /// Returns the eventfd.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.wake.0.as_raw_fd()
    }

    /// Takes every waiting command as an encoded `CommandBatch`; empty when there is none.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        let commands = bell::take(&self.queue, &self.wake, |queue| {
            std::mem::take(&mut queue.commands)
        });
        if commands.is_empty() {
            Vec::new()
        } else {
            CommandBatch { commands }.encode_to_vec()
        }
    }

    /// Finds who waits for an answer; gives it back when that is the engine.
    pub(crate) fn settle(&self, answer: Answer) -> Option<EngineAnswer> {
        let waiter = self.queue.lock().waiters.remove(&answer.id);
        match (waiter, answer.result) {
            (Some(Waiter::Engine(id, kind)), outcome) => {
                return Some(EngineAnswer { id, kind, outcome });
            }
            (Some(Waiter::Other(sender)), Some(outcome)) => drop(sender.send(outcome)),
            (Some(Waiter::Other(_) | Waiter::Nobody), _) => {}
            (None, _) => {
                self.late_answers.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }

    /// Commands whose answers are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.queue.lock().waiters.len()
    }

    /// Answers that belonged to no command.
    #[must_use]
    pub fn late_answers(&self) -> u64 {
        self.late_answers.load(Ordering::Relaxed)
    }

    fn push(&self, timeout_ms: u32, action: Action, waiter: Waiter) {
        bell::put(&self.queue, &self.wake, |queue| {
            queue.next_id = queue.next_id.wrapping_add(1);
            let id = queue.next_id;
            queue.waiters.insert(id, waiter);
            queue.commands.push(Command {
                id,
                timeout_ms,
                action: Some(action),
            });
            queue.commands.len() == 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quota_proto::bridge::Channels;

    fn readable(outbox: &Outbox) -> bool {
        let mut counter = [0_u8; 8];
        rustix::io::read(&outbox.wake.0, &mut counter).is_ok()
    }

    fn subscribe() -> Action {
        Action::Subscribe(Channels {
            channels: vec!["c".into()],
        })
    }

    /// The eventfd is readable exactly while commands wait, and taking empties both.
    #[test]
    fn eventfd_follows_the_queue() {
        let outbox = Outbox::new().unwrap();
        assert!(outbox.take().is_empty());
        outbox.tell(1, subscribe());
        outbox.tell(1, subscribe());
        let batch = CommandBatch::decode(outbox.take().as_slice()).unwrap();
        assert_eq!(
            vec![1, 2],
            batch
                .commands
                .iter()
                .map(|command| command.id)
                .collect::<Vec<_>>()
        );
        assert!(!readable(&outbox));
        outbox.tell(1, subscribe());
        assert!(readable(&outbox));
    }

    /// A repeated answer finds nobody and is counted; the first reached its waiter.
    #[test]
    fn answers_reach_their_waiter_once() {
        let outbox = Outbox::new().unwrap();
        let mut receiver = outbox.ask(1, subscribe());
        outbox.ask_for_engine(77, 1, subscribe(), AnswerKind::Done);
        let answer = |id| Answer {
            id,
            result: Some(Outcome::Done(true)),
            ..Answer::default()
        };
        assert!(outbox.settle(answer(1)).is_none());
        assert_eq!(Ok(Outcome::Done(true)), receiver.try_recv());
        assert_eq!(Some(77), outbox.settle(answer(2)).map(|answer| answer.id));
        assert!(outbox.settle(answer(2)).is_none());
        assert_eq!((0, 1), (outbox.outstanding(), outbox.late_answers()));
    }
}
