//! Where one run of the demo lives: a private directory, and a /24 of loopback
//! addresses that no other run uses.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::failure::{Exit, Failure};

/// Longest path of a Unix socket, in bytes (`sun_path`, with its final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// The longest name that the demo puts below its directory.
const LONGEST_SOCKET: &str = "/west/gateway-identity.sock";
/// Blocks tried before giving up.
const MAX_TRIES: usize = 64;

/// The ports that processes of the mesh use by default; a block is free if all
/// can be bound on it.
const PORTS: &[u16] = &[4140, 4143, 4191, 8443, 8446, 8448];

/// A private directory that is removed with this value.
#[derive(Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    keep: bool,
}

impl Room {
    /// `isthmus-demo-<pid>` in the directory for temporary files, mode 0700.
    pub(crate) fn new() -> Result<Self, Failure> {
        let pid = std::process::id();
        let base = std::env::temp_dir();
        for suffix in 0..MAX_TRIES {
            let name = match suffix {
                0 => format!("isthmus-demo-{pid}"),
                n => format!("isthmus-demo-{pid}-{n}"),
            };
            let dir = base.join(name);
            if dir.as_os_str().len() + LONGEST_SOCKET.len() > MAX_SOCKET_PATH {
                return Err(Failure::config(format!(
                    "{}: too long for Unix sockets",
                    dir.display()
                ))
                .remedy("TMPDIR=/tmp meshctl demo"));
            }
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self { dir, keep: false }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure::new(format!("{}: {error}", dir.display()))),
            }
        }
        Err(Failure::new(format!("{}: no free name", base.display())))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory where it is.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// 127.a.b.0/24, held as long as this value lives.
#[derive(Debug)]
pub(crate) struct Block {
    a: u8,
    b: u8,
    _hold: TcpListener,
}

/// Host part of the address that marks a block as taken.
const HOLDER: u8 = 1;
/// Where block after block is probed.
const PROBED: u8 = 2;

impl Block {
    /// Finds a free one, beginning anywhere.
    pub(crate) fn claim() -> Result<Self, Failure> {
        let mut last = String::new();
        for _ in 0..MAX_TRIES {
            let (a, b) = (rand::random_range(10..250_u8), rand::random_range(1..250_u8));
            match Self::try_claim(a, b) {
                Ok(block) => return Ok(block),
                Err(error) => last = error.to_string(),
            }
        }
        Err(Failure::new(format!("no free 127.x.y.0/24: {last}")).exit(Exit::Failed).remedy(
            "stop what listens on 0.0.0.0 at one of 4140, 4143, 4191, 8443, 8446, 8448 (ss -ltnup)",
        ))
    }

    fn try_claim(a: u8, b: u8) -> std::io::Result<Self> {
        let at = |host, port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, a, b, host)), port);
        // Whoever comes second to a block fails here.
        let hold = TcpListener::bind(at(HOLDER, PORTS[0]))?;
        for &port in PORTS {
            TcpListener::bind(at(PROBED, port))?;
            UdpSocket::bind(at(PROBED, port))?;
        }
        Ok(Self { a, b, _hold: hold })
    }

    /// An address of the block.
    pub(crate) fn addr(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, self.a, self.b, host)), port)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_room_is_private_and_goes_with_its_value() {
        let room = Room::new().expect("a directory");
        let dir = room.dir().to_owned();
        let mode = fs::metadata(&dir).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::create_dir_all(dir.join("west/state")).expect("a directory");
        let second = Room::new().expect("another directory");
        assert_ne!(second.dir(), dir);
        drop(room);
        assert!(!dir.exists());
    }

    #[test]
    fn a_block_is_taken_once() {
        let block = Block::claim().expect("a block");
        assert!(Block::try_claim(block.a, block.b).is_err());
        let (a, b) = (block.a, block.b);
        drop(block);
        assert!(Block::try_claim(a, b).is_ok());
    }
}
