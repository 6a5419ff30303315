//! A producer's directory: its description, its watermark slots and its ring of segment files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    api::{Config, Damage, LogError, NewProducer},
    chain::chain_start,
    fold::LiveMap,
    format::{
        Identity, META_BYTES, Meta, SEGMENT_HEADER, SLOT_BYTES, SLOT_STRIDE, SegmentHeader,
        Watermark, is_other_format, narrow, wide,
    },
    snapshot::{SNAPSHOT_HEADER, SnapshotHeader, encode},
    storage::{Storage, StorageFile},
};

const META: &str = "meta";
const WATERMARK: &str = "watermark";
const LIVE: &str = "live";
/// A directory of this ending is not finished and of no worth.
pub(crate) const PARTIAL: &str = ".partial";
/// A directory of this ending has handed over to a successor and is of no worth.
pub(crate) const RETIRED: &str = ".retired";

/// An open directory.
pub(crate) struct Directory {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) path: PathBuf,
    pub(crate) meta: Meta,
    files: Vec<Arc<dyn StorageFile>>,
    slots: Arc<dyn StorageFile>,
    /// Two places for snapshots of what lives on; none where there was no room for the file.
    live: Option<Arc<dyn StorageFile>>,
}

impl Directory {
    /// Makes a producer's directory under its unfinished name, with everything durable but the name.
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        config: &Config,
        new: NewProducer,
        predecessor: [u8; 16],
    ) -> Result<Self, LogError> {
        let path = config.root.join(format!("{}{PARTIAL}", hex(&new.id)));
        check_shape(config)?;
        let made = || -> io::Result<Self> {
            if storage
                .list(&config.root)?
                .iter()
                .any(|name| path.ends_with(name))
            {
                storage.remove_directory(&path)?;
            }
            storage.make_directory(&path)?;
            let (boot_id, device, inode) = storage.place(&path)?;
            let meta = Meta {
                identity: Identity {
                    producer: new.id,
                    salt: new.salt,
                },
                segments: config.segments,
                segment_bytes: config.segment_bytes,
                boot_id,
                device,
                inode,
                predecessor,
            };
            let slots = storage.open(&path.join(WATERMARK), true)?;
            slots.allocate(wide(SLOT_STRIDE.saturating_mul(2)))?;
            let live = storage.open(&path.join(LIVE), true)?;
            live.allocate(snapshot_room(config.segment_bytes).saturating_mul(2))?;
            let mut files = Vec::new();
            for slot in 0..config.segments {
                let file = storage.open(&path.join(segment_name(slot)), true)?;
                file.allocate(u64::from(config.segment_bytes))?;
                files.push(file);
            }
            let made = Self {
                storage: Arc::clone(storage),
                path,
                meta,
                files,
                slots,
                live: Some(live),
            };
            made.begin()?;
            Ok(made)
        };
        made().map_err(|error| LogError::Io(format!("making {}: {error}", hex(&new.id))))
    }

    /// Writes the first segment's header, both slots and the description.
    fn begin(&self) -> io::Result<()> {
        let producer = self.meta.identity.producer;
        let h = chain_start(&producer);
        let header = SegmentHeader {
            identity: self.meta.identity,
            number: 1,
            first_seq: 1,
            previous_h: h,
            previous_end: 0,
        };
        self.file(1).write_at(&header.encode(), 0)?;
        self.file(1).sync()?;
        let first = Watermark {
            producer,
            counter: 0,
            incarnation: 0,
            committed_seq: 0,
            committed_h: h,
            safe_seq: 0,
            scan_segment: 1,
            scan_first_seq: 1,
            scan_h: h,
            oldest_segment: 1,
        };
        self.write_slot(&first)?;
        self.write_slot(&Watermark {
            counter: 1,
            ..first
        })?;
        self.write_meta()?;
        self.storage.sync_directory(&self.path)
    }

    /// Gives a finished directory its name, durably.
    pub(crate) fn publish(&mut self) -> Result<(), LogError> {
        let root = self
            .path
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        let path = root.join(hex(&self.meta.identity.producer));
        self.storage
            .rename(&self.path, &path)
            .and_then(|()| self.storage.sync_directory(&root))
            .map_err(|error| LogError::Io(format!("naming {}: {error}", path.display())))?;
        self.path = path;
        Ok(())
    }

    /// Opens an existing directory; a damaged description is made again from the segments.
    pub(crate) fn open(
        storage: &Arc<dyn Storage>,
        path: &Path,
    ) -> Result<(Self, Vec<Damage>), LogError> {
        let opened = || -> io::Result<Result<(Self, Vec<Damage>), LogError>> {
            let mut damage = Vec::new();
            let count = storage
                .list(path)?
                .iter()
                .filter(|name| name.starts_with("segment-"))
                .count();
            let mut files = Vec::new();
            for slot in 0..u32::try_from(count).unwrap_or(u32::MAX) {
                files.push(storage.open(&path.join(segment_name(slot)), false)?);
            }
            let slots = storage.open(&path.join(WATERMARK), false)?;
            let mut bytes = [0; META_BYTES];
            let read = storage
                .open(&path.join(META), false)
                .and_then(|file| file.read_at(&mut bytes, 0));
            if is_other_format(&bytes) {
                return Ok(Err(LogError::Unusable(
                    "it was made by a newer version; use that one".into(),
                )));
            }
            let described = read.ok().and_then(|()| Meta::decode(&bytes));
            let Some(meta) = described.or_else(|| meta_from_segments(&files)) else {
                return Ok(Err(LogError::Unusable(format!(
                    "{} has no readable description",
                    path.display()
                ))));
            };
            let made = Self {
                storage: Arc::clone(storage),
                path: path.to_path_buf(),
                meta,
                files,
                slots,
                live: open_live(storage, path, meta.segment_bytes),
            };
            if described.is_none() {
                damage.push(damaged(
                    META,
                    0,
                    META_BYTES,
                    "the description doesn't validate, made again",
                ));
                made.write_meta()?;
            }
            if made.files.len() != narrow(u64::from(meta.segments)) {
                return Ok(Err(LogError::Unusable(format!(
                    "{count} segments instead of {}",
                    meta.segments
                ))));
            }
            Ok(Ok((made, damage)))
        };
        opened().map_err(|error| LogError::Io(format!("opening {}: {error}", path.display())))?
    }

    /// Tells whether the directory is not the one that it was made as: a copy, or on another device.
    pub(crate) fn is_moved(&self) -> bool {
        self.storage
            .place(&self.path)
            .is_ok_and(|(boot_id, device, inode)| {
                inode != self.meta.inode
                    || (boot_id == self.meta.boot_id && device != self.meta.device)
            })
    }

    /// Returns the file of a segment.
    pub(crate) fn file(&self, number: u64) -> &Arc<dyn StorageFile> {
        let slot = number.checked_rem(self.count()).unwrap_or(0);
        &self.files[narrow(slot)]
    }

    /// Names the file of a segment.
    pub(crate) fn file_name(&self, number: u64) -> String {
        file_name(number, self.count())
    }

    /// Returns the number of segments.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.meta.segments.max(1))
    }

    /// Returns the bytes of a segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.meta.segment_bytes)
    }

    /// Reads a whole segment.
    pub(crate) fn image(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut image = vec![0; narrow(self.segment_bytes())];
        self.file(number).read_at(&mut image, 0)?;
        Ok(image)
    }

    /// Reads a segment's header, if it is valid and of this number or of any that its file can have.
    pub(crate) fn header(&self, slot: u64) -> Option<SegmentHeader> {
        let mut bytes = [0; SEGMENT_HEADER];
        self.file(slot).read_at(&mut bytes, 0).ok()?;
        let header = SegmentHeader::decode(&bytes)?;
        let here = header.number.checked_rem(self.count()) == slot.checked_rem(self.count());
        (here && header.number > 0 && header.identity == self.meta.identity).then_some(header)
    }

    /// Writes one watermark slot in its turn and syncs it.
    pub(crate) fn write_slot(&self, watermark: &Watermark) -> io::Result<()> {
        let at = if watermark.counter & 1 == 0 {
            0
        } else {
            wide(SLOT_STRIDE)
        };
        self.slots.write_at(&watermark.encode(), at)?;
        self.slots.sync()
    }

    /// Reads the newer valid slot.
    pub(crate) fn read_slots(&self, damage: &mut Vec<Damage>) -> Option<Watermark> {
        let mut best: Option<Watermark> = None;
        for at in [0, SLOT_STRIDE] {
            let mut bytes = [0; SLOT_BYTES];
            let read = self.slots.read_at(&mut bytes, wide(at));
            let slot = read.ok().and_then(|()| Watermark::decode(&bytes));
            match slot.filter(|slot| slot.producer == self.meta.identity.producer) {
                Some(slot) if best.is_none_or(|best| best.counter < slot.counter) => {
                    best = Some(slot);
                }
                Some(_) => {}
                None => damage.push(damaged(
                    WATERMARK,
                    wide(at),
                    SLOT_BYTES,
                    "a watermark slot doesn't validate",
                )),
            }
        }
        best
    }

    /// Writes what lives on at the end of the segment before one that begins so, where it fits, and syncs it.
    pub(crate) fn write_snapshot(&self, live: &LiveMap, next: &SegmentHeader) -> io::Result<()> {
        let room = snapshot_room(self.meta.segment_bytes);
        match (&self.live, encode(live, next, room)) {
            (Some(file), Some(bytes)) => {
                file.write_at(&bytes, snapshot_place(next.number.saturating_sub(1), room))?;
                file.sync()
            }
            _ => Ok(()),
        }
    }

    /// Finds the last segment, from one on, whose end has an intact snapshot that the next segment's header confirms,
    /// and what lives on there.
    pub(crate) fn read_snapshot(
        &self,
        from: u64,
        header: impl Fn(u64) -> Option<SegmentHeader>,
    ) -> Option<(u64, LiveMap)> {
        let room = snapshot_room(self.meta.segment_bytes);
        let file = self.live.as_ref()?;
        let decode = |slot: u64| {
            let mut bytes = [0; SNAPSHOT_HEADER];
            file.read_at(&mut bytes, snapshot_place(slot, room)).ok()?;
            let found = SnapshotHeader::decode(&bytes)?;
            let next = header(found.segment.checked_add(1)?)?;
            (found.segment >= from && found.segment & 1 == slot && found.precedes(&next))
                .then_some(found)
        };
        let mut found: Vec<SnapshotHeader> = (0..2).filter_map(decode).collect();
        found.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.segment));
        found.iter().find_map(|snapshot| {
            let length = Some(snapshot.entry_bytes()).filter(|bytes| *bytes <= room)?;
            let mut bytes = vec![0; narrow(length)];
            let at = snapshot_place(snapshot.segment, room).saturating_add(wide(SNAPSHOT_HEADER));
            file.read_at(&mut bytes, at).ok()?;
            let live = snapshot.entries(&bytes, &self.meta.identity)?;
            Some((snapshot.segment, live))
        })
    }

    fn write_meta(&self) -> io::Result<()> {
        let temporary = self.path.join("meta.new");
        let file = self.storage.open(&temporary, true)?;
        file.write_at(&self.meta.encode(), 0)?;
        file.sync()?;
        self.storage.rename(&temporary, &self.path.join(META))?;
        self.storage.sync_directory(&self.path)
    }
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Makes a line of damage.
pub(crate) fn damaged(file: &str, offset: u64, bytes: usize, what: &'static str) -> Damage {
    Damage {
        file: file.to_owned(),
        offset,
        bytes: wide(bytes),
        what,
    }
}

/// Names the file of a segment, of so many.
pub(crate) fn file_name(number: u64, count: u64) -> String {
    segment_name(u32::try_from(number.checked_rem(count).unwrap_or(0)).unwrap_or(0))
}

fn segment_name(slot: u32) -> String {
    format!("segment-{slot:04}")
}

/// Bytes that a snapshot may have.
fn snapshot_room(segment_bytes: u32) -> u64 {
    u64::from(segment_bytes / 4)
}

/// Where the snapshot of a segment's end stands: they take turns.
fn snapshot_place(segment: u64, room: u64) -> u64 {
    (segment & 1).saturating_mul(room)
}

/// Opens the file for snapshots, or makes it in a directory of an older version; none where that can't be done.
fn open_live(
    storage: &Arc<dyn Storage>,
    path: &Path,
    segment_bytes: u32,
) -> Option<Arc<dyn StorageFile>> {
    let path = path.join(LIVE);
    let bytes = snapshot_room(segment_bytes).saturating_mul(2);
    let there = storage.open(&path, false).ok();
    let whole = there.filter(|file| file.length().is_ok_and(|length| length >= bytes));
    whole.or_else(|| {
        let file = storage.open(&path, true).ok()?;
        file.allocate(bytes).ok()?;
        Some(file)
    })
}

fn check_shape(config: &Config) -> Result<(), LogError> {
    if config.segments < 4 || config.segment_bytes < 4_096 || config.segment_bytes % 4_096 != 0 {
        return Err(LogError::Unusable(format!(
            "{} segments of {} bytes: at least 4 of a multiple of 4,096 are needed",
            config.segments, config.segment_bytes
        )));
    }
    Ok(())
}

fn meta_from_segments(files: &[Arc<dyn StorageFile>]) -> Option<Meta> {
    let header = files.iter().find_map(|file| {
        let mut bytes = [0; SEGMENT_HEADER];
        file.read_at(&mut bytes, 0).ok()?;
        SegmentHeader::decode(&bytes)
    })?;
    Some(Meta {
        identity: header.identity,
        segments: u32::try_from(files.len()).ok()?,
        segment_bytes: u32::try_from(files.first()?.length().ok()?).ok()?,
        boot_id: [0; 16],
        device: 0,
        inode: 0,
        predecessor: [0; 16],
    })
}
