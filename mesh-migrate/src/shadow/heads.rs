//! Requests out of segments of TCP that somebody else exchanges.
//!
//! What is seen cannot be asked for again. Segments are taken in the order in which they
//! come; bytes that were seen already are passed over, and after bytes that were missed
//! a flow cannot be read until a segment begins with a request.

mod body;
mod flow;
mod parse;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use flow::Stream;

/// One direction of a connection: from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who connects.
    pub client: SocketAddr,
    /// Who accepts.
    pub server: SocketAddr,
}

/// A segment of TCP (RFC 9293, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its addresses: the source as the client, the destination as the server.
    pub flow: Flow,
    /// Sequence number of its first byte, or of SYN.
    pub sequence: u32,
    /// What it carries, as far as it was captured.
    pub payload: &'a [u8],
    /// Begins a connection.
    pub syn: bool,
    /// The client has nothing more to say.
    pub fin: bool,
    /// The connection is no more.
    pub rst: bool,
}

/// The head of a request of HTTP/1.0 or 1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// As it is sent.
    pub method: String,
    /// As it is sent: mostly path and query, but a whole URI towards a forward proxy.
    pub target: String,
    /// HTTP/1.0.
    pub is_http10: bool,
    /// In order, names as they are sent, values without the spaces around them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What follows the head.
    pub body: Body,
}

impl Head {
    /// The first `Host`.
    pub fn host(&self) -> Option<&str> {
        let host = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
        host.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// The body of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    Empty,
    /// All of it.
    Whole(Vec<u8>),
    /// There is one; it is longer than what was asked for, or chunked.
    NotKept,
}

/// What may be held: at most `flows` × (`head` + `body`) bytes, and what the allocator
/// adds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Flows at a time; of more, the one that was silent longest is forgotten.
    pub flows: usize,
    /// Bytes of a head.
    pub head: usize,
    /// Bytes of a body that is kept; 0 keeps none.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 1024, head: 32 << 10, body: 0 }
    }
}

/// What was seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests.
    pub requests: u64,
    /// Flows given up: TLS.
    pub tls: u64,
    /// Flows given up: HTTP/2.
    pub http2: u64,
    /// Flows given up: a tunnel after `CONNECT`.
    pub tunnels: u64,
    /// How often there was something else where a request should begin.
    pub other: u64,
    /// How often bytes were missing that mattered.
    pub gaps: u64,
    /// Flows forgotten while they were open, to make room.
    pub forgotten: u64,
}

/// All flows that are followed.
#[derive(Debug)]
pub struct Flows {
    limits: Limits,
    streams: HashMap<Flow, (u64, Stream)>,
    /// Flows by when they were last heard of.
    order: BTreeMap<u64, Flow>,
    turn: u64,
    seen: Seen,
}

impl Flows {
    /// Of none yet.
    pub fn new(limits: Limits) -> Self {
        let (streams, order) = Default::default();
        Self { limits, streams, order, turn: 0, seen: Seen::default() }
    }

    /// Counts since the beginning.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// What of `segment`, which goes from a client to a server, ends a request. A request
    /// whose body is kept is told with the end of the body, each other with the end of
    /// its head.
    pub fn take(&mut self, segment: &Segment<'_>) -> Vec<Head> {
        let mut found = Vec::new();
        let is_known = self.streams.contains_key(&segment.flow);
        let says_nothing = segment.payload.is_empty() && !segment.syn;
        if self.limits.flows == 0 || (!is_known && says_nothing) {
            return found;
        }
        self.turn += 1;
        let stream = match self.streams.remove(&segment.flow) {
            Some((turn, stream)) => {
                self.order.remove(&turn);
                Some(stream)
            }
            None => {
                self.make_room();
                None
            }
        };
        let mut stream = stream.unwrap_or_default();
        stream.take(segment, &self.limits, &mut self.seen, &mut found);
        self.seen.requests += found.len() as u64;
        self.order.insert(self.turn, segment.flow);
        self.streams.insert(segment.flow, (self.turn, stream));
        found
    }

    fn make_room(&mut self) {
        while self.streams.len() >= self.limits.flows {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            if let Some((_, stream)) = self.streams.remove(&oldest) {
                self.seen.forgotten += u64::from(!stream.is_over());
            }
        }
    }
}
