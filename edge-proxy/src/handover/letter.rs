//! What a process and its successor say to each other, over a pair of
//! `SOCK_SEQPACKET` sockets: who the successor is, a packet for each listening
//! socket with the socket itself (`SCM_RIGHTS`, unix(7)), `end`, and `ready`
//! back.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    str::FromStr,
    time::Duration,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use mesh_tunnel::datagrams::Generation;

use super::sockets::{Given, Sockets, Wanted};

/// Sockets that one process leaves: far more than it can be configured with.
const MAX_SOCKETS: usize = 65_536;
/// Descriptors of one socket.
const MAX_FDS: usize = 2;
/// No packet is longer.
const MAX_PACKET: usize = 128;
const PID: &str = "pid";
const END: &str = "end";
const READY: &str = "ready";

/// What one packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// With it comes this socket.
    Socket(Wanted),
    /// There are no more; which process leaves them.
    End(Generation),
    /// Which process the successor is.
    Pid(u32),
    /// The successor accepts.
    Ready,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(wanted) => wanted.fmt(f),
            Self::End(generation) => write!(f, "{END} {}", generation.0),
            Self::Pid(pid) => write!(f, "{PID} {pid}"),
            Self::Ready => f.write_str(READY),
        }
    }
}

impl FromStr for Said {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(' ') {
            Some((END, number)) => Ok(Self::End(Generation(number.parse().map_err(|_| ())?))),
            Some((PID, number)) => Ok(Self::Pid(number.parse().map_err(|_| ())?)),
            Some(_) => text.parse().map(Self::Socket),
            None if text == READY => Ok(Self::Ready),
            None => Err(()),
        }
    }
}

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

    pub(super) fn write_sockets(
        &self,
        generation: Generation,
        sockets: &[Given],
    ) -> io::Result<()> {
        for (wanted, fds) in sockets {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            self.write(&Said::Socket(*wanted).to_string(), &fds)?;
        }
        self.write(&Said::End(generation).to_string(), &[])
    }

    pub(super) fn read_sockets(&self) -> io::Result<Sockets> {
        let mut sockets = Vec::new();
        while sockets.len() < MAX_SOCKETS {
            let (text, fds) = self.read()?;
            match text.parse() {
                Ok(Said::Socket(wanted)) if fds.len() == wanted.fds() => {
                    sockets.push((wanted, fds));
                }
                Ok(Said::End(generation)) => {
                    return Ok(Sockets::inherited(generation.0, sockets));
                }
                _ => return Err(unexpected(&text)),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "too many sockets"))
    }

    pub(super) fn write_pid(&self, pid: u32) -> io::Result<()> {
        self.write(&Said::Pid(pid).to_string(), &[])
    }

    pub(super) fn read_pid(&self) -> io::Result<u32> {
        let (text, _) = self.read()?;
        match text.parse() {
            Ok(Said::Pid(pid)) => Ok(pid),
            _ => Err(unexpected(&text)),
        }
    }

    pub(super) fn write_ready(&self) -> io::Result<()> {
        self.write(&Said::Ready.to_string(), &[])
    }

    pub(super) fn read_ready(&self) -> io::Result<()> {
        let (text, _) = self.read()?;
        if text.parse() == Ok(Said::Ready) { Ok(()) } else { Err(unexpected(&text)) }
    }

    fn write(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let packet = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn read(&self) -> io::Result<(String, Vec<OwnedFd>)> {
        let mut packet = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let received = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((String::from_utf8_lossy(&packet[..received.bytes]).into_owned(), fds))
    }
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::handover::sockets::Kind;

    #[test]
    fn sockets_arrive_with_what_they_are() {
        let (ours, theirs) = Letter::pair().unwrap();
        let theirs = Letter(theirs);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let wanted = Wanted { kind: Kind::Tcp, addr: "127.0.0.1:0".parse().unwrap() };
        let given = (wanted, vec![listener.into()]);
        ours.write_sockets(Generation(255), &[given]).unwrap();
        let sockets = theirs.read_sockets().unwrap();
        assert_eq!(sockets.generation(), Generation(0));
        let socket = sockets.take(wanted).unwrap().remove(0);
        assert_eq!(TcpListener::from(socket).local_addr().unwrap(), addr);
        assert!(sockets.take(wanted).is_none());
        theirs.write_pid(42).unwrap();
        assert_eq!(ours.read_pid().unwrap(), 42);
        theirs.write_ready().unwrap();
        ours.read_ready().unwrap();
    }

    #[test]
    fn who_is_gone_or_silent_or_talks_nonsense_is_an_error() {
        let (ours, theirs) = Letter::pair().unwrap();
        let theirs = Letter(theirs);
        for text in ["nonsense", "tcp 127.0.0.1:80", "udp x", "end of it"] {
            theirs.write(text, &[]).unwrap();
            assert_eq!(ours.read_sockets().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        theirs.write(END, &[]).unwrap();
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::InvalidData);
        ours.patience(Duration::from_millis(10)).unwrap();
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(ours.read_ready().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(ours.write_ready().is_err());
    }
}
