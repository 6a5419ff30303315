//! A file system in memory that loses what wasn't synced, refuses on command, and forgives nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::storage::{Storage, StorageFile};

/// Bytes that become durable or are lost together.
pub(crate) const PAGE: usize = 512;

#[derive(Default)]
struct Disk {
    files: BTreeMap<PathBuf, Arc<Content>>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Apart from the files that have it too: a file that held its disk would never be freed.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    read_bytes: u64,
    /// Syncs of segments that wrote somewhere for the first time.
    first_syncs: u64,
}

/// What to refuse.
#[derive(Default)]
pub(crate) struct Faults {
    /// Outcomes of the next syncs of segments: true fails. Then all succeed.
    pub(crate) syncs: Vec<bool>,
    /// Writes to segments fail with this.
    pub(crate) writes: Option<io::ErrorKind>,
    /// Syncs and writes of the watermark fail.
    pub(crate) watermark: bool,
    /// Writes of snapshots fail.
    pub(crate) live: bool,
}

/// Copies share their bytes until one of them writes.
#[derive(Default, Clone)]
struct Bytes {
    cached: Arc<Vec<u8>>,
    /// The very bytes of `cached` where nothing was written since they were synced.
    durable: Arc<Vec<u8>>,
    /// Pages that a failed sync marked clean: later syncs don't write them, as on Linux.
    abandoned: BTreeSet<usize>,
    /// Nothing was written from here on, since it was reserved.
    reserved_from: usize,
    /// The next sync writes somewhere for the first time.
    is_first: bool,
}

struct Content {
    name: String,
    bytes: Mutex<Bytes>,
    state: Arc<Mutex<State>>,
}

/// The file system; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Disk>>);

struct Lock(Memory, PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.0.lock().locks.remove(&self.1);
    }
}

impl Memory {
    /// Sets what to refuse.
    pub(crate) fn faults(&self, faults: Faults) {
        self.0.lock().state.lock().faults = faults;
    }

    /// Returns how many bytes were read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.0.lock().state.lock().read_bytes
    }

    /// Returns how many syncs of segments wrote somewhere for the first time.
    pub(crate) fn first_syncs(&self) -> u64 {
        self.0.lock().state.lock().first_syncs
    }

    /// Removes a file, as if it had never been made.
    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().files.retain(|_, file| file.name != name);
    }

    /// Copies everything as it would be after a crash: of each page that differs the choice says whether it was written.
    pub(crate) fn crash(&self, mut written: impl FnMut(&str, usize) -> bool) -> Self {
        let copy = Self::default();
        let disk = self.0.lock();
        copy.0.lock().directories.clone_from(&disk.directories);
        for (path, content) in &disk.files {
            let bytes = content.bytes.lock();
            let after = bytes.after_crash(|page| written(&content.name, page));
            copy.put(path, content.name.clone(), after);
        }
        copy
    }

    /// Copies everything as it is when only the process is killed: what wasn't synced still isn't.
    pub(crate) fn kill(&self) -> Self {
        let copy = self.copy();
        let disk = self.0.lock();
        for (path, content) in &disk.files {
            *copy.0.lock().files[path].bytes.lock() = content.bytes.lock().clone();
        }
        copy
    }

    /// Pages that a crash could lose.
    pub(crate) fn unsynced(&self) -> Vec<(String, usize)> {
        let mut pages = Vec::new();
        self.crash(|name, page| {
            pages.push((name.to_owned(), page));
            true
        });
        pages
    }

    /// Copies everything, with everything durable.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::default();
        let disk = self.0.lock();
        copy.0.lock().directories.clone_from(&disk.directories);
        for (path, content) in &disk.files {
            let cached = Arc::clone(&content.bytes.lock().cached);
            copy.put(path, content.name.clone(), cached);
        }
        copy
    }

    /// Names of files with what is in them.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.0
            .lock()
            .files
            .values()
            .map(|content| {
                let bytes = content.bytes.lock();
                (content.name.clone(), bytes.cached.to_vec())
            })
            .collect()
    }

    /// Changes a file in place, durably.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let disk = self.0.lock();
        let content = disk
            .files
            .values()
            .find(|content| content.name == name)
            .unwrap();
        let mut bytes = content.bytes.lock();
        bytes.durable = Arc::default();
        change(Arc::make_mut(&mut bytes.cached));
        bytes.durable = Arc::clone(&bytes.cached);
    }

    /// Takes over the files of another that aren't here.
    pub(crate) fn adopt(&self, other: &Self) {
        let other = other.0.lock();
        self.0
            .lock()
            .directories
            .extend(other.directories.iter().cloned());
        for (path, content) in &other.files {
            if !self.0.lock().files.contains_key(path) {
                self.put(
                    path,
                    content.name.clone(),
                    Arc::clone(&content.bytes.lock().cached),
                );
            }
        }
    }

    fn put(&self, path: &Path, name: String, bytes: Arc<Vec<u8>>) {
        let mut disk = self.0.lock();
        let content = Content {
            name,
            bytes: Mutex::new(Bytes {
                cached: Arc::clone(&bytes),
                durable: bytes,
                ..Bytes::default()
            }),
            state: Arc::clone(&disk.state),
        };
        disk.files.insert(path.to_path_buf(), Arc::new(content));
    }
}

impl Bytes {
    /// What a crash leaves: of each page that differs `written` says whether it was written.
    fn after_crash(&self, mut written: impl FnMut(usize) -> bool) -> Arc<Vec<u8>> {
        if Arc::ptr_eq(&self.cached, &self.durable) {
            return Arc::clone(&self.cached);
        }
        let mut after = self.durable.to_vec();
        after.resize(self.cached.len(), 0);
        for page in 0..after.len().div_ceil(PAGE) {
            let range = page * PAGE..((page + 1) * PAGE).min(after.len());
            if after[range.clone()] != self.cached[range.clone()] && written(page) {
                after[range.clone()].copy_from_slice(&self.cached[range]);
            }
        }
        Arc::new(after)
    }

    /// Makes what was written durable, but for abandoned pages; or abandons it where the sync fails.
    fn sync(&mut self, fails: bool) {
        if !fails && self.abandoned.is_empty() {
            self.durable = Arc::clone(&self.cached);
            return;
        }
        let length = self.cached.len();
        let durable = Arc::make_mut(&mut self.durable);
        durable.resize(length, 0);
        for page in 0..length.div_ceil(PAGE) {
            let range = page * PAGE..((page + 1) * PAGE).min(length);
            if self.cached[range.clone()] == durable[range.clone()]
                || self.abandoned.contains(&page)
            {
                continue;
            }
            if fails {
                self.abandoned.insert(page);
            } else {
                durable[range.clone()].copy_from_slice(&self.cached[range]);
            }
        }
    }
}

struct Handle(Arc<Content>);

impl Handle {
    fn is_segment(&self) -> bool {
        self.0.name.starts_with("segment-")
    }
}

impl StorageFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.state.lock().read_bytes += buffer.len() as u64;
        let bytes = self.0.bytes.lock();
        let from = offset as usize;
        let part = bytes
            .cached
            .get(from..from + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let state = self.0.state.lock();
        match state.faults.writes {
            Some(kind) if self.is_segment() => return Err(kind.into()),
            _ if state.faults.live && self.0.name == "live" => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            _ => {}
        }
        drop(state);
        let mut bytes = self.0.bytes.lock();
        let end = offset as usize + data.len();
        let cached = Arc::make_mut(&mut bytes.cached);
        if self.is_segment() {
            assert!(end <= cached.len(), "a segment would grow");
        } else if cached.len() < end {
            cached.resize(end, 0);
        }
        cached[offset as usize..end].copy_from_slice(data);
        if end > bytes.reserved_from {
            (bytes.reserved_from, bytes.is_first) = (end.next_multiple_of(PAGE), true);
        }
        for page in offset as usize / PAGE..end.div_ceil(PAGE) {
            bytes.abandoned.remove(&page);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let fails = if self.is_segment() {
            !state.faults.syncs.is_empty() && state.faults.syncs.remove(0)
        } else {
            self.0.name == "watermark" && state.faults.watermark
        };
        let mut bytes = self.0.bytes.lock();
        let is_first = std::mem::take(&mut bytes.is_first);
        state.first_syncs += u64::from(is_first && self.is_segment());
        drop(state);
        bytes.sync(fails);
        if fails {
            Err(io::Error::other("sync refused"))
        } else {
            Ok(())
        }
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut bytes = self.0.bytes.lock();
        Arc::make_mut(&mut bytes.cached).resize(size as usize, 0);
        Arc::make_mut(&mut bytes.durable).resize(size as usize, 0);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.bytes.lock().cached.len() as u64)
    }
}

impl Storage for Memory {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn StorageFile>> {
        let found = self.0.lock().files.get(path).cloned();
        if found.is_none() {
            if !create {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.put(
                path,
                path.file_name().unwrap().to_string_lossy().into_owned(),
                Arc::default(),
            );
        }
        Ok(Arc::new(Handle(Arc::clone(&self.0.lock().files[path]))))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        if !self.0.lock().locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock(self.clone(), path.to_path_buf())))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.0.lock().directories.insert(path.to_path_buf());
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let disk = self.0.lock();
        let below = disk
            .files
            .keys()
            .chain(&disk.directories)
            .filter(|name| name.parent() == Some(path));
        Ok(below
            .map(|name| name.file_name().unwrap().to_string_lossy().into_owned())
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        let moved = |path: &PathBuf| {
            path.strip_prefix(from)
                .map_or_else(|_| path.clone(), |rest| joined(to, rest))
        };
        disk.directories = disk.directories.iter().map(moved).collect();
        let files = std::mem::take(&mut disk.files);
        let (from_files, others): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|(path, _)| path.starts_with(from));
        disk.files = others.into_iter().collect();
        for (path, content) in from_files {
            let path = moved(&path);
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let bytes = Mutex::new(content.bytes.lock().clone());
            let content = if name == content.name {
                content
            } else {
                Arc::new(Content {
                    name,
                    bytes,
                    state: Arc::clone(&disk.state),
                })
            };
            disk.files.insert(path, content);
        }
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.files.retain(|name, _| !name.starts_with(path));
        disk.directories.retain(|name| !name.starts_with(path));
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn place(&self, _: &Path) -> io::Result<([u8; 16], u64, u64)> {
        Ok(([7; 16], 1, 2))
    }
}

fn joined(to: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() {
        to.to_path_buf()
    } else {
        to.join(rest)
    }
}
