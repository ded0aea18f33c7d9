//! What a process and its successor say to each other, over a pair of
//! `SOCK_SEQPACKET` sockets: who the successor is, a packet for each listening
//! socket with the socket itself (`SCM_RIGHTS`, unix(7)), `end`, and `ready`
//! back.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    time::Duration,
};

use rustix::{
    fd::{AsFd, OwnedFd},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::sockets::{HeldSocket, Wanted};

/// Sockets that one process leaves: far more than it can be configured with.
const MAX_SOCKETS: usize = 65_536;
/// No packet is longer.
const MAX_PACKET: usize = 128;
const PID: &str = "pid";
const END: &str = "end";
const READY: &str = "ready";

/// One end of the pair.
#[derive(Debug)]
pub(super) struct Letter(OwnedFd);

impl Letter {
    /// The one that a predecessor has left at standard input.
    pub(super) fn of_stdin() -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?))
    }

    /// Ours and the successor's.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// How long each packet may take in either direction.
    pub(super) fn patience(&self, patience: Duration) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        Ok(set_socket_timeout(&self.0, Timeout::Send, Some(patience))?)
    }

    pub(super) fn write_sockets(&self, sockets: &[HeldSocket]) -> io::Result<()> {
        for (wanted, socket) in sockets {
            self.write(&wanted.to_string(), Some(&**socket))?;
        }
        self.write(END, None)
    }

    pub(super) fn read_sockets(&self) -> io::Result<Vec<(Wanted, OwnedFd)>> {
        let mut sockets = Vec::new();
        while sockets.len() < MAX_SOCKETS {
            let (text, socket) = self.read()?;
            if text == END {
                return Ok(sockets);
            }
            let socket = socket.ok_or_else(|| unexpected(&text))?;
            sockets.push((text.parse().map_err(|_| unexpected(&text))?, socket));
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "too many sockets"))
    }

    pub(super) fn write_pid(&self, pid: u32) -> io::Result<()> {
        self.write(&format!("{PID} {pid}"), None)
    }

    pub(super) fn read_pid(&self) -> io::Result<u32> {
        let (text, _) = self.read()?;
        let pid = text.strip_prefix(PID).and_then(|rest| rest.trim_start().parse().ok());
        pid.ok_or_else(|| unexpected(&text))
    }

    pub(super) fn write_ready(&self) -> io::Result<()> {
        self.write(READY, None)
    }

    pub(super) fn read_ready(&self) -> io::Result<()> {
        let (text, _) = self.read()?;
        if text == READY { Ok(()) } else { Err(unexpected(&text)) }
    }

    fn write(&self, text: &str, socket: Option<&(dyn AsFd + Send + Sync)>) -> io::Result<()> {
        let fds = socket.map(AsFd::as_fd);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = &fds {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        let packet = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn read(&self) -> io::Result<(String, Option<OwnedFd>)> {
        let mut packet = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let received = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((String::from_utf8_lossy(&packet[..received.bytes]).into_owned(), socket))
    }
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc};

    use super::*;
    use crate::handover::sockets::Kind;

    #[test]
    fn sockets_arrive_with_what_they_are() {
        let (ours, theirs) = Letter::pair().unwrap();
        let theirs = Letter(theirs);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let wanted = Wanted { kind: Kind::Tcp, addr: "127.0.0.1:0".parse().unwrap() };
        let held: HeldSocket = (wanted, Arc::new(listener));
        ours.write_sockets(&[held.clone(), held]).unwrap();
        let mut arrived = theirs.read_sockets().unwrap();
        assert_eq!(arrived.len(), 2);
        let (what, socket) = arrived.remove(0);
        assert_eq!(what, wanted);
        assert_eq!(TcpListener::from(socket).local_addr().unwrap(), addr);
        theirs.write_pid(42).unwrap();
        assert_eq!(ours.read_pid().unwrap(), 42);
        theirs.write_ready().unwrap();
        ours.read_ready().unwrap();
    }

    #[test]
    fn who_is_gone_or_silent_or_talks_nonsense_is_an_error() {
        let (ours, theirs) = Letter::pair().unwrap();
        let theirs = Letter(theirs);
        theirs.write("nonsense", None).unwrap();
        assert_eq!(ours.read_sockets().unwrap_err().kind(), io::ErrorKind::InvalidData);
        theirs.write("tcp 127.0.0.1:80", None).unwrap();
        assert_eq!(ours.read_sockets().unwrap_err().kind(), io::ErrorKind::InvalidData);
        theirs.write(END, None).unwrap();
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::InvalidData);
        ours.patience(Duration::from_millis(10)).unwrap();
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(ours.write_ready().is_err());
    }
}
