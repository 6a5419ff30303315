//! Sends unary calls of any method as bytes and times them: so many in flight at once, or begun at a steady pace.
//!
//! What an answer says is not read here, only counted by its length: who plans calls counts their effect at its source.
#![allow(clippy::float_arithmetic)] // a measuring client, not the request path

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, BufMut as _, Bytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::probe::{ProbeError, endpoint};

const AT_ONCE_DEFAULT: usize = 32;

/// Unary calls of one method with one message, over a connection of their own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    /// `unix:PATH` or `host:port`.
    pub target: String,
    /// Path of the method, `/package.Service/Method`.
    pub method: String,
    /// The encoded message in base64.
    #[serde(default)]
    pub message: String,
    /// Calls in all; 0 = as many as there is time for.
    #[serde(default)]
    pub calls: u64,
    /// Calls a second, begun when they are due whatever became of earlier ones; 0 = as answers come.
    #[serde(default)]
    pub rate: f64,
    /// Calls without an answer at once where there is no rate; 0 = 32.
    #[serde(default)]
    pub in_flight: usize,
}

/// What became of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Called {
    /// Calls that failed, by their status code.
    pub errors: BTreeMap<String, u64>,
    /// Calls that were answered, by the length of the answer in bytes.
    pub answers: BTreeMap<usize, u64>,
    /// From the first call to the last answer.
    pub took_us: u64,
    /// Of each answered call, from when it was due (with a rate) or sent (without) to its answer.
    pub latencies_us: Vec<u64>,
}

/// What is sent and heard, shared by the calls in flight.
struct Caller {
    channel: Channel,
    method: PathAndQuery,
    message: Bytes,
    called: Mutex<Called>,
}

impl Calls {
    /// Makes the calls; they end after `span`, done or not.
    ///
    /// # Errors
    /// A method or message that is none, a server that can't be reached. A call that fails is counted.
    pub(crate) async fn run(&self, span: Duration) -> Result<Called, ProbeError> {
        let bad = |what: &str| ProbeError::Calls(format!("{what} of {}", self.method));
        let message = STANDARD
            .decode(&self.message)
            .map_err(|_| bad("the message is no base64"))?;
        let channel = endpoint(&self.target)?.connect().await;
        let caller = Arc::new(Caller {
            channel: channel.map_err(|error| ProbeError::Connect(self.target.clone(), error))?,
            method: PathAndQuery::try_from(self.method.as_str())
                .map_err(|_| bad("no path in the name"))?,
            message: message.into(),
            called: Mutex::default(),
        });
        let started = Instant::now();
        let mut running = JoinSet::new();
        if self.rate > 0.0 {
            self.at_a_pace(&caller, started, span, &mut running).await?;
        } else {
            self.as_answers_come(&caller, started, span, &mut running);
        }
        while running.join_next().await.is_some() {}
        let mut outcome = std::mem::take(&mut *caller.called.lock());
        outcome.took_us = micros(started.elapsed());
        Ok(outcome)
    }

    async fn at_a_pace(
        &self,
        caller: &Arc<Caller>,
        started: Instant,
        span: Duration,
        running: &mut JoinSet<()>,
    ) -> Result<(), ProbeError> {
        let mut due = self.due_from(started, span)?;
        while let Some(since) = due.recv().await {
            let caller = Arc::clone(caller);
            running.spawn(async move {
                caller
                    .call(&mut Grpc::new(caller.channel.clone()), since)
                    .await;
            });
        }
        Ok(())
    }

    /// Tells of each call when it is due. A thread does: the runtime's timers wake only each millisecond.
    fn due_from(
        &self,
        started: Instant,
        span: Duration,
    ) -> io::Result<mpsc::UnboundedReceiver<Instant>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let calls = self.clone();
        thread::Builder::new().spawn(move || {
            for number in 0..calls.count() {
                let after = calls.due(number);
                let Some(due) = started.checked_add(after).filter(|_| after < span) else {
                    return;
                };
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if sender.send(due).is_err() {
                    return;
                }
            }
        })?;
        Ok(receiver)
    }

    fn as_answers_come(
        &self,
        caller: &Arc<Caller>,
        started: Instant,
        span: Duration,
        running: &mut JoinSet<()>,
    ) {
        let begun = Arc::new(AtomicU64::new(0));
        let at_once = match self.in_flight {
            0 => AT_ONCE_DEFAULT,
            count => count,
        };
        let count = self.count();
        for _ in 0..at_once {
            let (caller, begun) = (Arc::clone(caller), Arc::clone(&begun));
            running.spawn(async move {
                let mut grpc = Grpc::new(caller.channel.clone());
                while begun.fetch_add(1, Ordering::Relaxed) < count && started.elapsed() < span {
                    caller.call(&mut grpc, Instant::now()).await;
                }
            });
        }
    }

    fn count(&self) -> u64 {
        match self.calls {
            0 => u64::MAX,
            calls => calls,
        }
    }

    /// Tells how long after the start a call is due.
    fn due(&self, number: u64) -> Duration {
        #[allow(clippy::cast_precision_loss)] // a load of more than 2^53 calls is none
        Duration::try_from_secs_f64(number as f64 / self.rate).unwrap_or(Duration::MAX)
    }
}

impl Caller {
    /// Makes one call; its latency counts from `since`.
    async fn call(&self, grpc: &mut Grpc<Channel>, since: Instant) {
        let answered = self.answered(grpc).await;
        let taken_us = micros(since.elapsed());
        let mut called = self.called.lock();
        let count = match answered {
            Ok(bytes) => {
                called.latencies_us.push(taken_us);
                called.answers.entry(bytes).or_default()
            }
            Err(status) => called
                .errors
                .entry(format!("{:?}", status.code()))
                .or_default(),
        };
        *count = count.saturating_add(1);
    }

    async fn answered(&self, grpc: &mut Grpc<Channel>) -> Result<usize, Status> {
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let request = Request::new(self.message.clone());
        let answer = grpc.unary(request, self.method.clone(), Raw).await?;
        Ok(answer.into_inner())
    }
}

/// Gives whole µs.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Messages as bytes; of answers only the length.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = buffer.remaining();
        buffer.advance(bytes);
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(rate: f64, count: u64) -> Calls {
        Calls {
            target: "unix:/s".into(),
            method: "/a.B/C".into(),
            message: String::new(),
            calls: count,
            rate,
            in_flight: 0,
        }
    }

    /// Calls are due at an even pace from the start, and no count means no end.
    #[test]
    fn calls_are_due_at_their_pace() {
        assert_eq!(500, calls(4.0, 9).due(2).as_millis());
        assert_eq!(
            (9, u64::MAX),
            (calls(4.0, 9).count(), calls(0.0, 0).count())
        );
    }

    /// A plan with a message that can't be read is refused before anything is connected to.
    #[tokio::test]
    async fn an_unreadable_message_is_refused() {
        let calls = Calls {
            message: "%".into(),
            ..calls(0.0, 1)
        };
        let error = calls.run(Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("base64"), "{error}");
    }

    /// Each call is told of once it is due and not before, and none after the end.
    #[tokio::test]
    async fn calls_begin_when_they_are_due() {
        let started = Instant::now();
        let mut due = calls(1_000.0, 0)
            .due_from(started, Duration::from_millis(3))
            .unwrap();
        let mut told = Vec::new();
        while let Some(at) = due.recv().await {
            assert!(Instant::now() >= at);
            told.push(at.duration_since(started).as_millis());
        }
        assert_eq!(vec![0, 1, 2], told);
    }
}
