//! One JSON line per request or opaque connection, written by one thread of
//! its own, so that a slow disk never holds up a request.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::net::UnixDatagram,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::Duration,
};

use mesh_core::{EndpointId, PortName, Reason, ServiceName, SiteName, SpiffeId};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::{config::AccessLogTarget, metrics::Direction};

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
    /// Of a request.
    pub method: Option<http::Method>,
    /// Of a request; without the query, which may hold secrets.
    pub path: Option<Box<str>>,
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
    pub endpoint: Option<EndpointId>,
    /// Where that runs.
    pub site: Option<SiteName>,
    /// The verified other end: the callee outbound, the caller inbound.
    pub peer: Option<SpiffeId>,
    /// The code, if it was refused or failed.
    pub reason: Option<Reason>,
    /// Joins the lines of every hop of an inner session.
    pub connection: Option<std::sync::Arc<str>>,
    /// Attempts made, if more than one.
    pub attempts: u32,
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
    pub fn open(target: &AccessLogTarget, dropped: Counter) -> io::Result<Self> {
        let sink = match target {
            AccessLogTarget::Off => return Ok(Self::off()),
            AccessLogTarget::Stdout => Sink::Stream(Box::new(io::stdout())),
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
        builder.spawn(move || write_all(sink, &messages))?;
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

fn write_all(sink: Sink, messages: &Receiver<Message>) {
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
                Message::Entry(entry) => written.line(&entry),
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
    fn line(&mut self, entry: &Entry) -> io::Result<()> {
        let line = Line::of(entry);
        match self {
            Self::Stream(stream) => {
                serde_json::to_writer(&mut *stream, &line)?;
                stream.write_all(b"\n")
            }
            Self::Journal(socket) => {
                // JSON holds no raw newline, so the simple form of a field will do.
                let text = serde_json::to_string(&line)?;
                let fields =
                    format!("SYSLOG_IDENTIFIER=isthmus-access\nPRIORITY=6\nMESSAGE={text}\n");
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

/// An entry as it is written. Empty parts are left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    port: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    status: u16,
    received: u64,
    sent: u64,
    duration_us: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    via: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    site: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    connection: &'a str,
    #[serde(skip_serializing_if = "is_one")]
    attempts: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(attempts: &u32) -> bool {
    *attempts <= 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(status: &u16) -> bool {
    *status == 0
}

impl<'a> Line<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            time: timestamp(entry.time),
            direction: entry.direction.as_str(),
            protocol: entry.protocol,
            service: entry.service.as_ref().map_or("", ServiceName::as_str),
            port: entry.port.as_ref().map_or("", PortName::as_str),
            method: entry.method.as_ref().map_or("", http::Method::as_str),
            path: entry.path.as_deref().unwrap_or_default(),
            status: entry.status,
            received: entry.received,
            sent: entry.sent,
            duration_us: u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX),
            via: entry.path_kind,
            site: entry.site.as_ref().map_or("", SiteName::as_str),
            endpoint: entry.endpoint.as_ref().map_or("", EndpointId::as_str),
            peer: entry.peer.as_ref().map_or("", SpiffeId::as_str),
            reason: entry.reason.map_or("", Reason::code),
            connection: entry.connection.as_deref().unwrap_or_default(),
            attempts: entry.attempts,
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_epoch.subsec_millis()
    )
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar,
/// counted in eras of 400 years that begin on the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_where_calendars_are_odd() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, wanted) in cases {
            assert_eq!(timestamp(Duration::from_secs(seconds)), wanted);
        }
        assert_eq!(timestamp(Duration::from_millis(1_042)), "1970-01-01T00:00:01.042Z");
    }

    fn entry() -> Entry {
        Entry {
            time: Duration::ZERO,
            direction: Direction::Inbound,
            protocol: "http1",
            service: Some("orders.shop".parse().unwrap()),
            port: Some("http".parse().unwrap()),
            method: Some(http::Method::GET),
            path: Some("/a".into()),
            status: 200,
            received: 0,
            sent: 7,
            duration: Duration::from_micros(1500),
            path_kind: "direct",
            endpoint: None,
            site: None,
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
        let log = AccessLog::open(&target, Counter::default()).unwrap();
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
    fn a_full_queue_drops_and_counts() {
        let (queue, entries) = sync_channel(1);
        let log = AccessLog { queue: Some(queue), dropped: Counter::default() };
        log.put(entry());
        log.put(entry());
        assert_eq!(log.dropped.get(), 1);
        drop(entries);
    }
}
