//! The last that the ledger said, on disk: what a sidecar starts from while neither ledger nor Redis can be reached.
//!
//! Limits, keys of tokens and the time are in it; units are not. Those are in the usage log, where a start takes them
//! over once, so neither an old snapshot nor a copied one brings a unit back. It counts on the boot that it was written
//! on, because on another one nobody knows what time it is. Written beside the log, whole or not at all: a new file that
//! is synced and then renamed. Layout: magic, version, payload length, payload, SHA-256 over all of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;
use prost::Message as _;
use quota_proto::{
    bridge::Snapshot,
    ledger::{TokenKey, WatchWelcome},
    watch::WatchNews,
};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use crate::{hub::Hub, marks::BootId};

const MAGIC: [u8; 8] = *b"TKSNAP\r\n";
const VERSION: u32 = 1;
/// Magic, version and payload length.
const HEAD_BYTES: usize = 20;
const DIGEST_BYTES: usize = 32;
/// Tenants in a snapshot at most; beyond it newly followed ones are left out.
const TENANTS_MAX: usize = 100_000;
/// Pause after a change, so that many make one snapshot.
const GATHER: Duration = Duration::from_millis(200);
/// A snapshot that took long to write is followed by a pause of this many times as long, up to a bound.
const PAUSE_SHARE: u32 = 10;
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a sidecar does not start from a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// None was ever written here.
    #[error("there is no snapshot")]
    Missing,
    /// The file is there but can't be read.
    #[error("the snapshot can't be read: {0}")]
    Unreadable(String),
    /// Cut off, changed, or not a snapshot at all.
    #[error("the snapshot is damaged")]
    Damaged,
    /// Of a version that this program does not read.
    #[error("the snapshot has version {0}, this program reads {VERSION}")]
    Version(u32),
    /// Nobody knows how long ago it was written.
    #[error("the snapshot is of another boot of the machine")]
    OtherBoot,
    /// Its clock does not run at real speed, which counts in the embedded setup only.
    #[error("the snapshot has a scaled clock")]
    Scaled,
}

impl SnapshotError {
    /// Its stable name.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "NONE",
            Self::Unreadable(_) => "UNREADABLE",
            Self::Damaged => "DAMAGED",
            Self::Version(_) => "VERSION",
            Self::OtherBoot => "OTHER_BOOT",
            Self::Scaled => "SCALED",
        }
    }
}

/// Names the file beside the log.
pub(crate) fn path(log_folder: &Path) -> PathBuf {
    log_folder.join("snapshot")
}

/// Reads the snapshot of this boot.
///
/// # Errors
/// See [`SnapshotError`]; nothing of a refused one is used.
pub(crate) fn read(path: &Path, boot_id: Option<BootId>) -> Result<Snapshot, SnapshotError> {
    let bytes = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SnapshotError::Missing,
        _ => SnapshotError::Unreadable(error.to_string()),
    })?;
    let snapshot = decode(&bytes)?;
    if boot_id.is_none_or(|boot_id| *snapshot.boot_id != boot_id) {
        return Err(SnapshotError::OtherBoot);
    }
    Ok(snapshot)
}

/// Writes a snapshot in place of the one before. Blocks.
///
/// # Errors
/// The disk's; the one before is still there then.
fn write(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // It holds keys: nobody else reads it.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&encode(snapshot))?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let payload = snapshot.encode_to_vec();
    let mut bytes = Vec::with_capacity(payload.len().saturating_add(HEAD_BYTES + DIGEST_BYTES));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&payload);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let split = |at: usize| bytes.split_at_checked(at).ok_or(SnapshotError::Damaged);
    let (signed, digest) = split(bytes.len().saturating_sub(DIGEST_BYTES))?;
    if *Sha256::digest(signed) != *digest {
        return Err(SnapshotError::Damaged);
    }
    let (head, payload) = signed
        .split_at_checked(HEAD_BYTES)
        .ok_or(SnapshotError::Damaged)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let (version, length) = rest.split_at(size_of::<u32>());
    if magic != MAGIC {
        return Err(SnapshotError::Damaged);
    }
    let version = version.try_into().map_or(0, u32::from_le_bytes);
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let length = length.try_into().map_or(u64::MAX, u64::from_le_bytes);
    if usize::try_from(length) != Ok(payload.len()) {
        return Err(SnapshotError::Damaged);
    }
    Snapshot::decode(payload).map_err(|_| SnapshotError::Damaged)
}

/// What the next snapshot is made of.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The installation that the ledger belongs to; empty before anybody said.
    pub(crate) installation_id: Vec<u8>,
    keys: Vec<TokenKey>,
    meters: Vec<u8>,
    tenants: HashMap<Arc<str>, Box<[u8]>>,
}

impl Memory {
    /// Takes in the ledger's introduction.
    pub(crate) fn welcome(&mut self, welcome: &WatchWelcome) {
        self.installation_id.clone_from(&welcome.installation_id);
        self.keys.clone_from(&welcome.token_keys);
    }

    /// Takes in news with the bytes that brought them; answers whether a snapshot has to say something else now.
    pub(crate) fn hear(&mut self, news: &WatchNews, bytes: &[u8]) -> bool {
        match news {
            WatchNews::Meters(..) => self.meters = bytes.to_vec(),
            WatchNews::Tenant(tenant) => {
                let is_room = self.tenants.len() < TENANTS_MAX;
                if is_room || self.tenants.contains_key(&tenant.tenant) {
                    self.tenants
                        .insert(Arc::clone(&tenant.tenant), Box::from(bytes));
                }
            }
            WatchNews::Unknown(tenant) => return self.tenants.remove(tenant).is_some(),
            // What a restart of the ledger does not know any more has to be told by somebody.
            WatchNews::Welcome(_) | WatchNews::Clock(_) => {}
            _ => return false,
        }
        true
    }

    /// Forgets what another installation's ledger said.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Fills in what the ledger said; `None` before it has said enough to start from.
    pub(crate) fn fill(&self, mut snapshot: Snapshot) -> Option<Snapshot> {
        if self.meters.is_empty() || self.keys.is_empty() {
            return None;
        }
        snapshot.installation_id = self.installation_id.clone().into();
        snapshot.token_keys.clone_from(&self.keys);
        snapshot.meters = self.meters.clone().into();
        snapshot.tenants = self
            .tenants
            .values()
            .map(|bytes| bytes.to_vec().into())
            .collect();
        Some(snapshot)
    }
}

/// Writes a snapshot whenever there is something new to say, for as long as the process lives.
pub(crate) async fn keep(hub: Arc<Hub>, path: PathBuf, boot_id: BootId) {
    loop {
        hub.cold.moved.notified().await;
        sleep(GATHER).await;
        let Some(snapshot) = hub.snapshot(boot_id) else {
            continue;
        };
        let started = Instant::now();
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&target, &snapshot)).await;
        let is_written = matches!(written, Ok(Ok(())));
        hub.cold.written(is_written);
        let pause = started.elapsed().saturating_mul(PAUSE_SHARE);
        sleep(pause.min(PAUSE_MAX)).await;
        if !is_written {
            // What could not be written now may be later.
            hub.cold.moved.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            boot_id: vec![7; 16].into(),
            real_us: 5,
            tenants: vec![vec![1, 2, 3].into()],
            ..Snapshot::default()
        }
    }

    /// A snapshot comes back as it was written, replaces the one before, and is for its owner's eyes only.
    #[test]
    fn it_comes_back_as_it_was_written() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        assert_eq!(Err(SnapshotError::Missing), read(&path, Some([7; 16])));
        write(&path, &Snapshot::default()).unwrap();
        write(&path, &snapshot()).unwrap();
        assert_eq!(Ok(snapshot()), read(&path, Some([7; 16])));
        assert_eq!(
            0o600,
            fs::metadata(&path).unwrap().permissions().mode() & 0o777
        );
    }

    /// On another boot, or where nobody names the boot, it is refused by name.
    #[test]
    fn another_boots_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        write(&path, &snapshot()).unwrap();
        assert_eq!(Err(SnapshotError::OtherBoot), read(&path, Some([8; 16])));
        assert_eq!(Err(SnapshotError::OtherBoot), read(&path, None));
    }

    /// Every file that is cut off anywhere, and every one with any byte changed, is refused.
    #[test]
    fn damage_is_refused() {
        let whole = encode(&snapshot());
        for length in 0..whole.len() {
            assert_eq!(Err(SnapshotError::Damaged), decode(&whole[..length]));
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x40;
            assert_eq!(Err(SnapshotError::Damaged), decode(&bytes), "byte {place}");
        }
        assert_eq!(Ok(snapshot()), decode(&whole));
    }

    /// A sound file of a later version is refused as that, not as damaged.
    #[test]
    fn later_versions_are_refused_by_name() {
        let mut bytes = encode(&snapshot());
        bytes.truncate(bytes.len() - DIGEST_BYTES);
        bytes[8] = 2;
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        assert_eq!(Err(SnapshotError::Version(2)), decode(&bytes));
    }
}
