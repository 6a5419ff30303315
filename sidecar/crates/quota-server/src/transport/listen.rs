//! Listening sockets.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Only the owner may connect.
const SOCKET_MODE: u32 = 0o600;

/// Bound listeners, not yet served.
#[derive(Debug)]
pub struct Listeners {
    /// The TCP listener.
    pub tcp: Option<TcpListener>,
    /// The Unix socket.
    pub unix: Option<BoundSocket>,
}

/// A Unix socket that is ours; dropping it removes its path if that is still ours.
#[derive(Debug)]
pub struct BoundSocket {
    /// The listener.
    pub listener: UnixListener,
    /// Where clients find it.
    pub path: PathBuf,
    inode: (u64, u64),
}

impl Listeners {
    /// Binds what is asked for.
    ///
    /// # Errors
    /// An address is in use or not allowed; the message names it.
    pub fn bind(tcp: Option<SocketAddr>, socket: Option<&Path>) -> io::Result<Self> {
        let tcp = tcp.map(bind_tcp).transpose()?;
        let unix = socket.map(BoundSocket::bind).transpose()?;
        Ok(Self { tcp, unix })
    }

    /// Gives the address of the TCP listener.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .map_err(|error| named(&error, &format!("listen address {address}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl BoundSocket {
    /// Binds a socket that nobody but its owner can open at any moment: made beside its path, then moved there.
    ///
    /// # Errors
    /// Somebody listens there, or the path is something else than a socket.
    fn bind(path: &Path) -> io::Result<Self> {
        let name = format!("socket {}", path.display());
        refuse_occupied(path).map_err(|error| named(&error, &name))?;
        let made = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&made);
        let listener = UnixListener::bind(&made).map_err(|error| named(&error, &name))?;
        let moved = fs::set_permissions(&made, fs::Permissions::from_mode(SOCKET_MODE))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| fs::rename(&made, path))
            .and_then(|()| fs::symlink_metadata(path));
        match moved {
            Ok(meta) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode: (meta.dev(), meta.ino()),
            }),
            Err(error) => {
                let _ = fs::remove_file(&made);
                Err(named(&error, &name))
            }
        }
    }

    /// Takes a second handle on the listener.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if still_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A path is free when nothing is there, or a socket that nobody listens on.
fn refuse_occupied(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) => meta,
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path is not a socket; choose another or remove it",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there; stop it or choose another path",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the owner may connect, and nothing is left behind.
    #[test]
    fn sockets_are_private_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let bound = BoundSocket::bind(&path).unwrap();
        assert_eq!(
            0o600,
            fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777
        );
        drop(bound);
        assert_eq!(0, fs::read_dir(folder.path()).unwrap().count());
    }

    /// A socket that a killed process left is replaced; one that somebody listens on is not, nor is a file.
    #[test]
    fn only_stale_sockets_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        let bound = BoundSocket::bind(&path).unwrap();
        assert_eq!(
            io::ErrorKind::AddrInUse,
            BoundSocket::bind(&path).unwrap_err().kind()
        );
        drop(bound);
        fs::write(&path, "mine").unwrap();
        assert_eq!(
            io::ErrorKind::AlreadyExists,
            BoundSocket::bind(&path).unwrap_err().kind()
        );
        assert_eq!("mine", fs::read_to_string(&path).unwrap());
    }

    /// Who stops late doesn't remove the socket of a successor.
    #[test]
    fn successors_keep_their_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let old = BoundSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = BoundSocket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }
}
