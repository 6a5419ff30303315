//! The few file operations that the log needs, as a trait so that tests can lie about them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use rustix::fs::{FallocateFlags, FlockOperation};

/// An open file.
pub(crate) trait StorageFile: Send + Sync {
    /// Fills the buffer from an offset; an end of file before that is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes at an offset.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Reserves disk for so many bytes, reading as zeros.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Returns its length.
    fn length(&self) -> io::Result<u64>;
}

/// A file system.
pub(crate) trait Storage: Send + Sync {
    /// Opens for reading and writing.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn StorageFile>>;
    /// Takes the exclusive lock; `WouldBlock` when another has it. Held until dropped.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Makes a directory and its parents.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Lists names.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Renames.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a directory with everything in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes names of a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Names the directory on this machine: boot id, device, inode.
    fn place(&self, path: &Path) -> io::Result<([u8; 16], u64, u64)>;
}

/// The real one.
pub(crate) struct Disk;

struct DiskFile(File);

impl StorageFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.fill(bytes)?,
            other => other?,
        }
        self.0.sync_all()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl DiskFile {
    /// Writes zeros, where the file system cannot reserve.
    fn fill(&self, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            let step = zeros
                .len()
                .min(crate::format::narrow(bytes.saturating_sub(at)));
            self.0
                .write_all_at(zeros.get(..step).unwrap_or_default(), at)?;
            at = at.saturating_add(crate::format::wide(step));
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn place(&self, path: &Path) -> io::Result<([u8; 16], u64, u64)> {
        let metadata = fs::metadata(path)?;
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut boot_id = [0; 16];
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        for (byte, pair) in boot_id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .unwrap_or(0);
        }
        Ok((boot_id, metadata.dev(), metadata.ino()))
    }
}
