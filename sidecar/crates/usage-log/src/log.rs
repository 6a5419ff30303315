//! The handle that everyone else uses.

use std::{path::PathBuf, sync::Arc, thread::JoinHandle};

use parking_lot::Mutex;

use crate::{
    api::{
        Append, Batch, Committed, Config, ContentHash, Damage, Growth, Hash, Hole, LogError,
        NewProducer, Position, Recovered, Stats,
    },
    directory::{Directory, PARTIAL, RETIRED},
    front::{Front, Grown, Notify, Renewal},
    index::Index,
    reader::{Bounds, read},
    recover::{Recovery, read_kept, recover},
    renew::retire,
    scrub::Scrub,
    storage::{Disk, Storage},
    writer::Writer,
};

/// A handle on an open log; clones share it. The last one dropped closes it.
#[derive(Clone)]
pub struct UsageLog {
    shared: Arc<Shared>,
}

struct Shared {
    front: Arc<Front>,
    index: Arc<Mutex<Index>>,
    hash: ContentHash,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Present when no thread runs: tests drive it by hand.
    writer: Mutex<Option<Writer>>,
    /// Likewise.
    scrub: Mutex<Option<Scrub>>,
    /// Freed when the writer has ended.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl UsageLog {
    /// Opens the folder's producer, or makes one; recovers, raises the incarnation durably and starts the writer.
    ///
    /// Reads the segments since the last snapshot; the others are checked by a thread while records come in, and
    /// [`LogError::Scanning`] answers who would read there before that is done.
    ///
    /// # Errors
    /// [`LogError::Locked`], [`LogError::Unusable`], [`LogError::Io`].
    pub fn open(config: Config, content_hash: ContentHash) -> Result<(Self, Recovered), LogError> {
        let (log, recovered) =
            Self::open_on(&(Arc::new(Disk) as Arc<dyn Storage>), config, content_hash)?;
        log.start()?;
        Ok((log, recovered))
    }

    /// Lets a thread do the writer's work from now on.
    pub(crate) fn start(&self) -> Result<(), LogError> {
        let writer = self.shared.writer.lock().take();
        if let Some(writer) = writer {
            self.spawn("usage-log", move || writer.run())?;
        }
        let scrub = self.shared.scrub.lock().take();
        if let Some(mut scrub) = scrub {
            let front = Arc::clone(&self.shared.front);
            self.spawn("usage-log-scrub", move || {
                while !front.lock().is_closing() {
                    let Some(next) = scrub.step() else { return };
                    scrub = next;
                }
            })?;
        }
        Ok(())
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        let thread = thread.map_err(|error| LogError::Io(error.to_string()))?;
        self.shared.threads.lock().push(thread);
        Ok(())
    }

    /// Opens on any storage, without a thread: [`Self::pump`] does its work.
    pub(crate) fn open_on(
        storage: &Arc<dyn Storage>,
        config: Config,
        hash: ContentHash,
    ) -> Result<(Self, Recovered), LogError> {
        let lock = take_lock(storage, &config)?;
        let (directory, damage, created) = open_producer(storage, &config)?;
        let mut recovery = recover(&directory, &hash)?;
        recovery.fold.damage.splice(0..0, damage);
        let recovered = describe(&directory, &recovery, created);
        let front = Arc::new(Front::new(&config, directory.segment_bytes()));
        front.rebase(recovery.fold.last_seq, recovery.watermark.committed_seq);
        front.add_damage(recovered.damage.clone());
        let index = Arc::new(Mutex::new(Index::new(directory.meta.identity, 0)));
        let scrub = Scrub::after(&recovery, directory.count(), &hash, &front, &index);
        let writer = Writer::new(
            directory,
            config,
            Arc::clone(&hash),
            Arc::clone(&front),
            Arc::clone(&index),
            recovery,
        );
        let shared = Shared {
            front,
            index,
            hash,
            threads: Mutex::default(),
            writer: Mutex::new(Some(writer)),
            scrub: Mutex::new(scrub),
            lock: Mutex::new(Some(lock)),
        };
        Ok((
            Self {
                shared: Arc::new(shared),
            },
            recovered,
        ))
    }

    /// Appends an entry to the group that is gathering; returns before it is durable.
    ///
    /// Cheap: a copy under a lock. Entries become durable in the order of their positions.
    ///
    /// # Errors
    /// [`LogError::Full`] (from 95 % on for all but `Usage` with `ends` and `Expire`), [`LogError::Busy`],
    /// [`LogError::Io`], [`LogError::TooLong`], [`LogError::Closed`]. Nothing was appended then.
    pub fn append(&self, entry: Append<'_>) -> Result<Position, LogError> {
        let positions = self.append_all(&[entry])?;
        positions.first().copied().ok_or(LogError::Closed)
    }

    /// Appends entries, all of them or none, one after the other; gives their positions.
    ///
    /// One lock and one wake-up for all: they become durable in one group where one holds them.
    ///
    /// # Errors
    /// As [`Self::append`]; the last 5 % are for them where each of them ends a reservation. Nothing was appended then.
    pub fn append_all(&self, entries: &[Append<'_>]) -> Result<Vec<Position>, LogError> {
        self.shared.front.append_all(entries)
    }

    /// Calls back once the entry is durable, or can no longer become so; at once when that is known already.
    ///
    /// The callback runs on the writer's thread (or the caller's): it must be short and must not wait for the log.
    pub fn on_durable(&self, position: Position, notify: Notify) {
        self.shared.front.on_durable(position, notify);
    }

    /// Blocks until the entry is durable. For tests and shutdown.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Closed`].
    pub fn wait_durable(&self, position: Position) -> Result<(), LogError> {
        self.shared.front.wait_durable(position)
    }

    /// Calls back once the ledger has committed everything up to this entry (ack `LEDGER`); at once when it has.
    ///
    /// Survives a change of producer. Called with [`LogError::Closed`] when the log closes before.
    pub fn on_committed(&self, position: Position, notify: Notify) {
        self.shared.front.on_committed(position, notify);
    }

    /// Calls back once the log has grown so far; at once when it has. One may wait: a later call takes its place.
    ///
    /// Never called for numbers of a producer that was left, nor when the log closes before.
    pub fn on_grown(&self, growth: Growth, notify: Grown) {
        self.shared.front.on_grown(growth, notify);
    }

    /// Tells which usage record of this process has a sequence number now, as [`Position::record_number`]; none where
    /// another process appended it.
    #[must_use]
    pub fn record_number(&self, seq: u64) -> Option<u64> {
        self.shared.front.record_number(seq)
    }

    /// Reads durable entries from a sequence number on: at most so many, and until their payloads reach so many bytes
    /// (at least one entry).
    ///
    /// # Errors
    /// [`LogError::Gone`] below the oldest or above the next number, [`LogError::Scanning`], [`LogError::Io`].
    pub fn read_from(
        &self,
        seq: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Batch, LogError> {
        let bounds = Bounds {
            seq,
            records: max_records,
            bytes: max_bytes,
        };
        let outcome = read(&self.shared.index, &self.shared.hash, bounds);
        if let Err(LogError::Scanning { seq: missing }) = outcome {
            if !self.shared.index.lock().scrubbing {
                self.shared.front.request_rescan(missing.min(seq));
            }
        }
        outcome
    }

    /// Computes h at a durable sequence number, to compare with the ledger's.
    ///
    /// # Errors
    /// As [`Self::read_from`]; [`LogError::Gone`] also inside a hole.
    pub fn h_at(&self, seq: u64) -> Result<Hash, LogError> {
        Ok(self.read_from(seq.saturating_add(1), 0, 0)?.h_before)
    }

    /// Notes what the ledger has; the writer thread then moves the watermark and recycles segments.
    ///
    /// The caller has compared h. A number that went back is fine: entries are kept until they are safe.
    pub fn set_committed(&self, committed: Committed) {
        self.shared.front.set_committed(committed);
    }

    /// Makes a new producer and appends to it, with the same content, every entry from `from_seq` on and everything
    /// still open; the old directory is removed when the new one is durable. Blocks; call it off the async threads.
    ///
    /// Positions stay valid. Idempotent after a crash: an unfinished successor is removed at the next start.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Closed`]: the old producer stays in force.
    pub fn renew(&self, new_producer: NewProducer, from_seq: u64) -> Result<Recovered, LogError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let reply = Box::new(move |outcome| {
            let _ = sender.send(outcome);
        });
        self.shared.front.request_renewal(Renewal {
            new_producer,
            from_seq,
            reply,
        })?;
        self.pump();
        receiver.recv().map_err(|_| LogError::Closed)?
    }

    /// Returns the producer and the incarnation that number the entries now.
    #[must_use]
    pub fn producer(&self) -> ([u8; 16], u64) {
        let index = self.shared.index.lock();
        (index.identity.producer, index.incarnation)
    }

    /// Returns what didn't validate at this start and in the scrub after it.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.shared.front.lock().damage().to_vec()
    }

    /// Returns the damaged sequence numbers that are known, of what is still in the log.
    #[must_use]
    pub fn holes(&self) -> Vec<Hole> {
        self.shared.index.lock().holes.values().cloned().collect()
    }

    /// Returns the figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.front.lock().stats
    }

    /// Writes what is pending, moves the watermark and stops the writer. Later appends are refused.
    ///
    /// # Errors
    /// [`LogError::Io`]: something pending could not be written.
    pub fn close(&self) -> Result<(), LogError> {
        self.shared.close()
    }

    /// Does the scrub's and the writer's work once where no thread does; false when closed.
    pub(crate) fn pump(&self) -> bool {
        let mut scrub = self.shared.scrub.lock();
        *scrub = scrub.take().and_then(Scrub::step);
        drop(scrub);
        self.shared
            .writer
            .lock()
            .as_mut()
            .is_none_or(|writer| writer.step(false))
    }
}

impl Shared {
    fn close(&self) -> Result<(), LogError> {
        self.front.close();
        if let Some(mut writer) = self.writer.lock().take() {
            while writer.step(false) {}
        }
        self.scrub.lock().take();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The last handle may be dropped by a callback, on the writer's own thread, which then ends by itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                return Err(LogError::Io("the writer's thread ended by a panic".into()));
            }
        }
        self.lock.lock().take();
        match self.front.lock().failure() {
            Some(failure) if *failure != LogError::Closed => Err(failure.clone()),
            _ => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

fn take_lock(
    storage: &Arc<dyn Storage>,
    config: &Config,
) -> Result<Box<dyn Send + Sync>, LogError> {
    let shown = config.root.display().to_string();
    storage
        .make_directory(&config.root)
        .map_err(|error| LogError::Io(format!("making {shown}: {error}")))?;
    storage
        .lock(&config.root.join("lock"))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => LogError::Locked(shown),
            _ => LogError::Io(format!("locking {shown}: {error}")),
        })
}

/// Finds the producer in force, clears away what a crash left of others, or makes the first one.
fn open_producer(
    storage: &Arc<dyn Storage>,
    config: &Config,
) -> Result<(Directory, Vec<Damage>, bool), LogError> {
    let root = &config.root;
    let names = storage
        .list(root)
        .map_err(|error| LogError::Io(format!("listing {}: {error}", root.display())))?;
    for name in names
        .iter()
        .filter(|name| name.ends_with(PARTIAL) || name.ends_with(RETIRED))
    {
        let removed = storage.remove_directory(&root.join(name));
        removed.map_err(|error| LogError::Io(format!("removing {name}: {error}")))?;
    }
    let is_producer =
        |name: &&String| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let paths: Vec<PathBuf> = names
        .iter()
        .filter(is_producer)
        .map(|name| root.join(name))
        .collect();
    let mut opened = Vec::new();
    for path in &paths {
        opened.push(Directory::open(storage, path)?);
    }
    let replaced: Vec<[u8; 16]> = opened
        .iter()
        .map(|(directory, _)| directory.meta.predecessor)
        .collect();
    let (old, mut current): (Vec<_>, Vec<_>) = opened
        .into_iter()
        .partition(|(directory, _)| replaced.contains(&directory.meta.identity.producer));
    for (directory, _) in &old {
        retire(directory);
    }
    match (current.pop(), current.is_empty()) {
        (None, _) => {
            let mut directory = Directory::create(storage, config, config.new_producer, [0; 16])?;
            directory.publish()?;
            Ok((directory, Vec::new(), true))
        }
        (Some((directory, damage)), true) => Ok((directory, damage, false)),
        (Some(_), false) => Err(LogError::Unusable(format!(
            "{} holds more than one producer",
            root.display()
        ))),
    }
}

fn describe(directory: &Directory, recovery: &Recovery, created: bool) -> Recovered {
    let (open, marks) = read_kept(directory, &recovery.fold);
    Recovered {
        producer_id: directory.meta.identity.producer,
        incarnation: recovery.watermark.incarnation,
        next_seq: recovery.fold.last_seq.saturating_add(1),
        committed_seq: recovery.watermark.committed_seq,
        safe_seq: recovery.watermark.safe_seq,
        open,
        marks,
        holes: recovery.fold.index.holes.values().cloned().collect(),
        damage: recovery.fold.damage.clone(),
        torn_bytes: recovery.torn,
        created,
        moved: !created && directory.is_moved(),
    }
}
