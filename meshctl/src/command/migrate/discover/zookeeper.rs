//! As much of the client protocol of `ZooKeeper` as reads nodes: a session, `getChildren`
//! and `getData` (jute records, zookeeper.jute of 3.4 and later; no TLS, no authentication).

use std::{fmt, io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::ask::PATIENCE;

/// For all questions of a session.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(60);
/// How long a session outlives its connection.
const SESSION_MS: i32 = 10_000;
/// Of one answer, in bytes: a list of children may be longer than a node (1 MiB).
const LONGEST: u32 = 16 << 20;
/// Answers to nothing that was asked, one after another.
const MAX_OTHERS: usize = 16;

const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const CLOSE_SESSION: i32 = -11;
const NO_NODE: i32 = -101;
const NO_AUTH: i32 = -102;

/// Why a node is not read.
#[derive(Debug)]
pub(super) enum Error {
    /// It is not there.
    NoNode,
    /// It may not be read, or makes no sense.
    Refused(String),
    /// The server does not answer any more.
    Gone(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode => f.write_str("there is no such node"),
            Self::Refused(why) | Self::Gone(why) => f.write_str(why),
        }
    }
}

/// A session with one server.
#[derive(Debug)]
pub(super) struct Session {
    stream: TcpStream,
    server: String,
    xid: i32,
    until: Instant,
}

impl Session {
    pub(super) async fn connect(host: &str, port: u16) -> Result<Self, Error> {
        let server = format!("{host}:{port}");
        let until = Instant::now() + PATIENCE_FOR_ALL;
        let opened = async {
            let stream = TcpStream::connect((host, port)).await?;
            let mut session = Self { stream, server: server.clone(), xid: 0, until };
            let mut hello = Vec::new();
            hello.extend(0_i32.to_be_bytes());
            hello.extend(0_i64.to_be_bytes());
            hello.extend(SESSION_MS.to_be_bytes());
            hello.extend(0_i64.to_be_bytes());
            put(&mut hello, &[0; 16]);
            // A server that has lost the others may answer, too.
            hello.push(1);
            session.send(&hello).await?;
            let answer = session.frame().await?;
            let mut answer = Record(&answer);
            answer.int()?;
            if answer.int()? <= 0 {
                return Err(io::Error::other("it gives no session"));
            }
            Ok(session)
        };
        let opened = timeout(PATIENCE, opened).await.unwrap_or_else(|_| Err(late()));
        opened.map_err(|error| Error::Gone(format!("zookeeper {server}: {error}")))
    }

    /// Names of the nodes below one.
    pub(super) async fn children(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let answer = self.ask(GET_CHILDREN, path).await?;
        let mut record = Record(&answer);
        record.texts().map_err(|error| self.wrong(path, error))
    }

    /// What a node holds.
    pub(super) async fn data(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        let answer = self.ask(GET_DATA, path).await?;
        let mut record = Record(&answer);
        record.buffer().map(<[u8]>::to_vec).map_err(|error| self.wrong(path, error))
    }

    /// So that the server need not wait for the session to time out.
    pub(super) async fn close(mut self) {
        let mut request = Vec::new();
        request.extend((self.xid + 1).to_be_bytes());
        request.extend(CLOSE_SESSION.to_be_bytes());
        let _ = timeout(PATIENCE, self.send(&request)).await;
    }

    /// The record after the header of the answer.
    async fn ask(&mut self, what: i32, path: &str) -> Result<Vec<u8>, Error> {
        self.xid += 1;
        let mut request = Vec::new();
        request.extend(self.xid.to_be_bytes());
        request.extend(what.to_be_bytes());
        put(&mut request, path.as_bytes());
        // No watch.
        request.push(0);
        let patience = PATIENCE.min(self.until.saturating_duration_since(Instant::now()));
        let asked = async {
            self.send(&request).await?;
            self.answer().await
        };
        let answer = timeout(patience, asked).await.unwrap_or_else(|_| Err(late()));
        match answer {
            Ok((0, record)) => Ok(record),
            Ok((NO_NODE, _)) => Err(Error::NoNode),
            Ok((NO_AUTH, _)) => Err(Error::Refused(format!(
                "zookeeper {}{path}: not everybody may read it",
                self.server
            ))),
            Ok((code, _)) => {
                Err(Error::Refused(format!("zookeeper {}{path}: error {code}", self.server)))
            }
            Err(error) => Err(Error::Gone(format!("zookeeper {}{path}: {error}", self.server))),
        }
    }

    async fn answer(&mut self) -> io::Result<(i32, Vec<u8>)> {
        for _ in 0..MAX_OTHERS {
            let frame = self.frame().await?;
            let mut record = Record(&frame);
            let xid = record.int()?;
            record.take(8)?;
            let code = record.int()?;
            if xid == self.xid {
                return Ok((code, record.0.to_vec()));
            }
        }
        Err(io::Error::other("it answers something else"))
    }

    async fn send(&mut self, record: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(record.len() + 4);
        put(&mut frame, record);
        self.stream.write_all(&frame).await
    }

    /// Memory grows with what comes, not with what is announced.
    async fn frame(&mut self) -> io::Result<Vec<u8>> {
        let length = self.stream.read_u32().await?;
        if length > LONGEST {
            return Err(io::Error::other(format!("an answer of {length} bytes: is it ZooKeeper?")));
        }
        let mut frame = Vec::new();
        (&mut self.stream).take(u64::from(length)).read_to_end(&mut frame).await?;
        if frame.len() < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(frame)
    }

    fn wrong(&self, path: &str, error: io::Error) -> Error {
        Error::Refused(format!("zookeeper {}{path}: {error}", self.server))
    }
}

fn late() -> io::Error {
    io::Error::other("no answer in time")
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

/// What is left of a record.
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let short = || io::Error::other("an answer is cut short");
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> io::Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes(bytes.try_into().map_err(io::Error::other)?))
    }

    /// -1 is none.
    fn buffer(&mut self) -> io::Result<&'a [u8]> {
        let length = self.int()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    fn texts(&mut self) -> io::Result<Vec<String>> {
        let count = self.int()?;
        let mut all = Vec::new();
        for _ in 0..count {
            let text = self.buffer()?;
            all.push(String::from_utf8(text.to_vec()).map_err(io::Error::other)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_are_cut_or_lie_are_refused() {
        let mut list = Vec::new();
        list.extend(2_i32.to_be_bytes());
        put(&mut list, b"a");
        put(&mut list, b"bc");
        assert_eq!(Record(&list).texts().unwrap(), ["a", "bc"]);
        for end in 0..list.len() {
            assert!(Record(&list[..end]).texts().is_err(), "{end}");
        }
        assert!(Record(&i32::MAX.to_be_bytes()).texts().is_err());
        assert!(Record(&(-1_i32).to_be_bytes()).texts().unwrap().is_empty());
        assert!(Record(&(-1_i32).to_be_bytes()).buffer().unwrap().is_empty());
        let mut wrong = 1_i32.to_be_bytes().to_vec();
        put(&mut wrong, &[0xff]);
        assert!(Record(&wrong).texts().is_err());
    }
}
