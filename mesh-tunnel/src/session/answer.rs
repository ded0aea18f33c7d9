//! The answer to a `Connect`, while it is awaited.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use mesh_api::v1;
use prost::Message;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::oneshot,
    time::Sleep,
};

use super::{MAX_EARLY, OpenError, carrier::Raw, wire::PREFIX};

/// Whether the answer has come.
#[derive(Debug)]
pub(super) enum Answer {
    /// Yes; or it is we who were asked.
    Given,
    /// Not yet.
    Awaited(Box<Awaited>),
    /// It was no, or it never came.
    No(OpenError),
}

/// Which half of the stream waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Half {
    Reader,
    Writer,
}

/// Why a `Connect` was not accepted.
#[derive(Debug)]
pub(super) enum NoAnswer {
    Refused(v1::Refused),
    Late(Duration),
    /// The stream ended where the answer should be, or it makes no sense.
    Broken(io::Error),
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            OpenError::Closed => io::ErrorKind::ConnectionReset,
            OpenError::Timeout(_) => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// What an error of a stream says of the answer to its `Connect`; `None` if it
/// is about something else.
pub fn refusal(error: &io::Error) -> Option<OpenError> {
    let inner = error.get_ref()?;
    match inner.downcast_ref::<io::Error>() {
        Some(error) => refusal(error),
        None => inner.downcast_ref::<OpenError>().cloned(),
    }
}

/// See the module.
pub(super) struct Awaited {
    /// What has come of the reply.
    reply: Vec<u8>,
    /// Bytes that may still travel ahead of it.
    pub(super) early: usize,
    within: Duration,
    deadline: Pin<Box<Sleep>>,
    halves: Arc<Halves>,
    /// Dropped with the rest: that is the news.
    told: Option<oneshot::Sender<()>>,
}

impl Awaited {
    pub(super) fn new(within: Duration) -> Self {
        Self {
            reply: Vec::new(),
            early: MAX_EARLY,
            within,
            deadline: Box::pin(tokio::time::sleep(within)),
            halves: Arc::default(),
            told: None,
        }
    }

    /// Completes once the answer has come, or cannot come any more.
    pub(super) fn news(&mut self) -> oneshot::Receiver<()> {
        let (told, news) = oneshot::channel();
        self.told = Some(told);
        news
    }

    /// Reads the answer and not a byte more. Both halves may wait for it, in
    /// different tasks.
    pub(super) fn poll(
        &mut self,
        raw: &mut Raw,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), NoAnswer>> {
        self.halves.of(half).register(cx.waker());
        let waker = Waker::from(self.halves.clone());
        let mut cx = Context::from_waker(&waker);
        let reply = match self.poll_reply(raw, &mut cx) {
            Poll::Ready(reply) => reply.map_err(NoAnswer::Broken),
            Poll::Pending => {
                ready!(self.deadline.as_mut().poll(&mut cx));
                Err(NoAnswer::Late(self.within))
            }
        };
        // The other half may wait as well.
        self.halves.wake_by_ref();
        Poll::Ready(match reply?.reply {
            Some(v1::connect_reply::Reply::Accepted(_)) => Ok(()),
            Some(v1::connect_reply::Reply::Refused(refused)) => Err(NoAnswer::Refused(refused)),
            None => Err(NoAnswer::Broken(io::Error::other("an empty reply"))),
        })
    }

    fn poll_reply(
        &mut self,
        raw: &mut Raw,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<v1::ConnectReply>> {
        loop {
            let wanted = match self.reply[..] {
                [high, low, ..] => PREFIX + usize::from(u16::from_be_bytes([high, low])),
                _ => PREFIX,
            };
            let have = self.reply.len();
            if have >= PREFIX && have == wanted {
                let reply = v1::ConnectReply::decode(&self.reply[PREFIX..]);
                return Poll::Ready(
                    reply.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
                );
            }
            self.reply.resize(wanted, 0);
            let mut space = ReadBuf::new(&mut self.reply[have..]);
            let read = Pin::new(&mut *raw).poll_read(cx, &mut space);
            let more = space.filled().len();
            self.reply.truncate(have + more);
            ready!(read)?;
            if more == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awaited").field("early", &self.early).finish_non_exhaustive()
    }
}

/// Who waits for the answer: it is read by whichever half asks, and the
/// transport remembers only the last one who did.
#[derive(Default)]
struct Halves {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Halves {
    fn of(&self, half: Half) -> &AtomicWaker {
        match half {
            Half::Reader => &self.reader,
            Half::Writer => &self.writer,
        }
    }
}

impl Wake for Halves {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}
