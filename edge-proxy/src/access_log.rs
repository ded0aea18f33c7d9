//! One line per request or opaque connection, written by one thread of its
//! own, so that a slow disk never holds up a request.

mod line;

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::IpAddr,
    os::unix::net::UnixDatagram,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use mesh_core::{
    Endpoint, PortName, Reason, ServiceName, SpiffeId,
    message::{Known, RequestHead},
    rule::is_grpc_failure,
};
use prometheus_client::metrics::counter::Counter;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::AccessLogTarget,
    metrics::{Direction, authz::Decided},
};

/// Lines that wait for the writer: a second of a busy proxy, 3 MiB if full.
const QUEUE: usize = 8192;
/// How many lines are written before the buffer is flushed, if more wait.
const BATCH: usize = 256;
/// systemd's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// What is told of one request or opaque connection.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When it began, since the Unix epoch.
    pub time: Duration,
    /// Which way.
    pub direction: Direction,
    /// `http1`, `http2` or `tcp`, as the client spoke.
    pub protocol: &'static str,
    /// What was called.
    pub service: Option<ServiceName>,
    /// Which port of it.
    pub port: Option<PortName>,
    /// Where it came from, if it came from outside.
    pub client: Option<IpAddr>,
    /// Of a request, where somebody will read it.
    pub asked: Option<Arc<Asked>>,
    /// Of a response; 0 if there was none.
    pub status: u16,
    /// Bytes of bodies, or of the connection, from the caller.
    pub received: u64,
    /// Bytes of bodies, or of the connection, to the caller.
    pub sent: u64,
    /// From first to last byte.
    pub duration: Duration,
    /// `direct`, `via gateway` or `reverse`.
    pub path_kind: &'static str,
    /// Where it went.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The verified other end: the callee outbound, the caller inbound.
    pub peer: Option<SpiffeId>,
    /// The rule that it fell under.
    pub route: Option<Arc<str>>,
    /// Of an answer over gRPC.
    pub grpc_status: Option<u32>,
    /// What the rule says of the answer; `None` where it says nothing.
    pub failure: Option<bool>,
    /// What the policy of an own service has said.
    pub decided: Option<Decided>,
    /// The code, if it was refused or failed.
    pub reason: Option<Reason>,
    /// Joins the lines of every hop of an inner session.
    pub connection: Option<Arc<str>>,
    /// Attempts made, if more than one.
    pub attempts: u32,
}

/// What a request asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Of the request.
    pub method: http::Method,
    /// As the client has sent it.
    pub authority: Box<str>,
    /// Without the query, which may hold secrets.
    pub path: Box<str>,
    /// Who says to ask.
    pub user_agent: Box<str>,
    /// What the request is known by elsewhere: of `traceparent`,
    /// `x-b3-traceid`, or `x-request-id`.
    pub trace_id: Box<str>,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// One JSON object each.
    #[default]
    Json,
    /// Apache's common format, then reason and connection in quotes.
    Common,
}

impl Asked {
    /// What `head` asks for.
    pub fn of(head: &RequestHead) -> Self {
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into();
        let fields = &head.fields;
        let of_w3c = || fields.known(Known::TraceParent).and_then(|value| value.get(3..35));
        let named = || fields.get("x-b3-traceid").or_else(|| fields.known(Known::XRequestId));
        Self {
            method: head.method.clone(),
            authority: head.authority.as_str().into(),
            path: head.path().into(),
            user_agent: text(fields.known(Known::UserAgent)),
            trace_id: text(of_w3c().or_else(named)),
        }
    }
}

impl Entry {
    /// Whether it is a connection of opaque bytes.
    pub fn is_opaque(&self) -> bool {
        self.protocol == "tcp"
    }

    /// Whether it has gone well: the one rule for figures, traces and people. A
    /// failure is what a client cannot mend.
    pub fn is_success(&self) -> bool {
        let usual = || self.status >= 500 || self.grpc_status.is_some_and(is_grpc_failure);
        self.reason.is_none() && !self.failure.unwrap_or_else(usual)
    }
}

/// What the writer is told.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all are entries")]
enum Message {
    Entry(Box<Entry>),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

/// Takes entries; cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

impl AccessLog {
    /// Takes nothing.
    pub fn off() -> Self {
        Self { queue: None, dropped: Counter::default() }
    }

    /// Starts the writer. It ends when the last clone is dropped.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread started.
    pub fn open(
        target: &AccessLogTarget,
        format: AccessLogFormat,
        dropped: Counter,
    ) -> io::Result<Self> {
        let sink = match target {
            AccessLogTarget::Off => return Ok(Self::off()),
            AccessLogTarget::Stdout => Sink::Stream(Box::new(io::stdout())),
            AccessLogTarget::Stderr => Sink::Stream(Box::new(io::stderr())),
            AccessLogTarget::Journald => Sink::journal()?,
            AccessLogTarget::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let named = |error: io::Error| {
                    let text = format!("access log {}: {error}", path.display());
                    io::Error::new(error.kind(), text)
                };
                Sink::Stream(Box::new(file.map_err(named)?))
            }
        };
        let (queue, messages) = sync_channel(QUEUE);
        let builder = std::thread::Builder::new().name("access-log".into());
        builder.spawn(move || write_all(sink, format, &messages))?;
        Ok(Self { queue: Some(queue), dropped })
    }

    /// Whether anybody will read.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands a line to the writer; counts it as dropped if there is no room.
    pub fn put(&self, entry: Entry) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            queue.try_send(Message::Entry(Box::new(entry)))
        {
            self.dropped.inc();
        }
    }

    /// Waits until what was put is written, at most `patience`. Blocks: for
    /// the end of a process.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.try_send(Message::Flush(done)).is_ok()
        {
            let _late = written.recv_timeout(patience);
        }
    }
}

/// Where lines go.
enum Sink {
    Stream(Box<dyn Write + Send>),
    Journal(UnixDatagram),
}

impl Sink {
    fn journal() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(JOURNAL).map_err(|error| {
            let text = format!("access log: {JOURNAL}: {error}; configure stdout or a file");
            io::Error::new(error.kind(), text)
        })?;
        Ok(Self::Journal(socket))
    }
}

fn write_all(sink: Sink, format: AccessLogFormat, messages: &Receiver<Message>) {
    let mut failing = false;
    let mut written = match sink {
        Sink::Stream(stream) => Writer::Stream(BufWriter::new(stream)),
        Sink::Journal(socket) => Writer::Journal(socket),
    };
    while let Ok(first) = messages.recv() {
        let rest = messages.try_iter().take(BATCH);
        let result = std::iter::once(first)
            .chain(rest)
            .try_for_each(|message| match message {
                Message::Entry(entry) => written.line(&line::written(&entry, format)?),
                Message::Flush(done) => written.flush().map(|()| {
                    let _given_up = done.try_send(());
                }),
            })
            .and_then(|()| written.flush());
        match result {
            Err(error) if !failing => {
                log::error!(error:% = error; "access log cannot be written; lines are lost");
                failing = true;
            }
            Ok(()) => failing = false,
            Err(_) => {}
        }
    }
}

enum Writer {
    Stream(BufWriter<Box<dyn Write + Send>>),
    Journal(UnixDatagram),
}

impl Writer {
    fn line(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.write_all(line.as_bytes())?;
                stream.write_all(b"\n")
            }
            Self::Journal(socket) => {
                // It holds no newline, so the simple form of a field will do.
                let fields =
                    format!("SYSLOG_IDENTIFIER=isthmus-access\nPRIORITY=6\nMESSAGE={line}\n");
                socket.send(fields.as_bytes()).map(|_| ())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.flush(),
            Self::Journal(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            time: Duration::ZERO,
            direction: Direction::Inbound,
            protocol: "http1",
            service: Some("orders.shop".parse().unwrap()),
            port: Some("http".parse().unwrap()),
            client: Some([127, 0, 0, 1].into()),
            asked: Some(Arc::new(Asked {
                method: http::Method::GET,
                authority: "orders.shop".into(),
                path: "/a".into(),
                user_agent: "curl/8".into(),
                trace_id: "".into(),
            })),
            status: 200,
            received: 0,
            sent: 7,
            duration: Duration::from_micros(1500),
            path_kind: "direct",
            endpoint: None,
            route: None,
            grpc_status: None,
            failure: None,
            decided: None,
            peer: Some("spiffe://a/ns/b/sa/c".parse().unwrap()),
            reason: None,
            connection: None,
            attempts: 1,
        }
    }

    #[test]
    fn lines_are_json_and_hide_queries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let target = AccessLogTarget::File(path.clone());
        let log = AccessLog::open(&target, AccessLogFormat::Json, Counter::default()).unwrap();
        log.put(entry());
        log.flush(Duration::from_secs(10));
        let text = std::fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["path"], "/a");
        assert_eq!(line["duration_us"], 1500);
        assert_eq!(line["peer"], "spiffe://a/ns/b/sa/c");
        assert_eq!(line.get("reason"), None);
    }

    #[test]
    fn the_common_format_is_that_of_apache_with_reason_and_connection() {
        let mut entry = entry();
        entry.reason = Some(Reason::Timeout);
        entry.connection = Some("0a1b".into());
        let written = line::written(&entry, AccessLogFormat::Common).unwrap();
        let wanted = "127.0.0.1 spiffe://a/ns/b/sa/c - [01/Jan/1970:00:00:00 +0000] \
                      \"GET /a HTTP/1.1\" 200 7 \"timeout\" \"0a1b\"";
        assert_eq!(written, wanted);
        (entry.asked, entry.protocol, entry.status) = (None, "tcp", 0);
        let written = line::written(&entry, AccessLogFormat::Common).unwrap();
        assert!(written.contains("\"TCP orders.shop http\" - 7"), "{written}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, entries) = sync_channel(1);
        let log = AccessLog { queue: Some(queue), dropped: Counter::default() };
        log.put(entry());
        log.put(entry());
        assert_eq!(log.dropped.get(), 1);
        drop(entries);
    }
}
