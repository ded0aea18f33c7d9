//! Traced requests that pass through gateways. What passes a gateway cannot
//! read, so the source says beside the stream when a request begins and ends
//! in it ([`Passing`]). Each gateway of the path notes that as a span and says
//! it to the next one, with its own span as the parent ([`Passages`]).

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::path::{Connect, Traced};
use mesh_runtime::clock;
use mesh_tunnel::Session;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::{Span, SpanIds, Tag, Told, Tracer, What, new_id};

/// Traced requests in one stream at once; more have no span here.
const MAX_OPEN: usize = 256;

/// A traced request that has gone into a tunnel; its drop is its end.
#[derive(Debug)]
pub struct Passing {
    tunnel: Session,
    traced: Traced,
}

impl Passing {
    /// It goes by the stream `connection` of `tunnel`.
    pub fn begin(tunnel: &Session, connection: &str, SpanIds { trace, span, .. }: SpanIds) -> Self {
        let connection_id = connection.to_owned();
        let traced = Traced { connection_id, trace, request: span, parent: span, ended: false };
        tunnel.trace(&traced);
        Self { tunnel: tunnel.clone(), traced }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.traced.ended = true;
        self.tunnel.trace(&self.traced);
    }
}

/// The streams of one tunnel at a gateway, and the traced requests in them.
#[derive(Debug, Default)]
pub struct Passages(Mutex<FxHashMap<String, Arc<Passage>>>);

/// One stream at a gateway.
#[derive(Debug)]
struct Passage {
    /// What is told of it.
    connect: Connect,
    neighbour: String,
    next: &'static str,
    /// Who is told, too: the next gateway.
    onward: Option<Session>,
    tracer: Option<Tracer>,
    begun: Mutex<FxHashMap<[u8; 8], Begun>>,
}

#[derive(Debug)]
struct Begun {
    ids: SpanIds,
    time: Duration,
    started: Instant,
}

/// A stream is in the table until this is dropped, which ends what has begun.
pub struct Entered<'a> {
    passages: &'a Passages,
    passage: Arc<Passage>,
}

/// What is known of a stream when it opens.
pub struct Stream<'a> {
    /// Its header.
    pub connect: &'a Connect,
    /// Whose it is.
    pub neighbour: &'a dyn fmt::Display,
    /// What it leads to.
    pub next: &'static str,
    /// The tunnel that it goes on in, if a gateway is at its other end.
    pub onward: Option<&'a Session>,
    /// Takes the spans, if they are wanted.
    pub tracer: Option<&'a Tracer>,
}

impl Passages {
    /// Call it before the source can know that the stream is open.
    pub fn enter(&self, stream: &Stream<'_>) -> Option<Entered<'_>> {
        if stream.tracer.is_none() && stream.onward.is_none() {
            return None;
        }
        let passage = Arc::new(Passage {
            connect: stream.connect.clone(),
            neighbour: stream.neighbour.to_string(),
            next: stream.next,
            onward: stream.onward.cloned(),
            tracer: stream.tracer.cloned(),
            begun: Mutex::default(),
        });
        let id = passage.connect.connection_id.clone();
        lock(&self.0).insert(id, passage.clone());
        Some(Entered { passages: self, passage })
    }

    /// Notes what the neighbour says, and says it to the next gateway.
    pub fn hear(&self, traced: Traced) {
        let passage = lock(&self.0).get(&traced.connection_id).cloned();
        if let Some(passage) = passage {
            passage.hear(traced);
        }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let id = &self.passage.connect.connection_id;
        let mut all = lock(&self.passages.0);
        // A neighbour may have given the id to another stream, too.
        if all.get(id).is_some_and(|passage| Arc::ptr_eq(passage, &self.passage)) {
            all.remove(id);
        }
        drop(all);
        let begun = std::mem::take(&mut *lock(&self.passage.begun));
        begun.into_values().for_each(|begun| self.passage.ended(&begun));
    }
}

impl Passage {
    fn hear(self: &Arc<Self>, mut traced: Traced) {
        if traced.ended {
            let begun = lock(&self.begun).remove(&traced.request);
            if let Some(begun) = begun {
                self.ended(&begun);
            }
        } else if let Some(span) = self.begin(&traced) {
            traced.parent = span;
        }
        if let Some(onward) = &self.onward {
            onward.trace(&traced);
        }
    }

    fn begin(&self, traced: &Traced) -> Option<[u8; 8]> {
        self.tracer.as_ref()?;
        let mut begun = lock(&self.begun);
        if begun.len() >= MAX_OPEN {
            return None;
        }
        let span = new_id();
        let ids = SpanIds { trace: traced.trace, span, parent: Some(traced.parent) };
        let (time, started) = (clock::now_unix(), clock::monotonic());
        begun.insert(traced.request, Begun { ids, time, started });
        Some(span)
    }

    fn ended(self: &Arc<Self>, begun: &Begun) {
        let Some(tracer) = &self.tracer else { return };
        let duration = begun.started.elapsed();
        let passed = Passed { time: begun.time, duration, passage: self.clone() };
        tracer.export(Span { ids: begun.ids, what: What::Passed(passed) });
    }
}

/// A traced request that has passed.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) time: Duration,
    pub(super) duration: Duration,
    passage: Arc<Passage>,
}

impl Passed {
    pub(super) fn told(&self) -> Told<'_> {
        let Passage { connect, neighbour, next, .. } = &*self.passage;
        let endpoint = connect.endpoint.as_ref().map_or("", |id| id.as_str());
        let tags = vec![
            ("isthmus.service", Tag::Text(connect.service.as_str())),
            ("isthmus.port", Tag::Text(connect.port.as_str())),
            ("isthmus.endpoint", Tag::Text(endpoint)),
            ("isthmus.site", Tag::Text(connect.site.as_str())),
            ("isthmus.connection", Tag::Text(&connect.connection_id)),
            ("isthmus.neighbour", Tag::Text(neighbour)),
            ("isthmus.next", Tag::Text(next)),
        ];
        Told { name: "forward".to_owned(), server: true, tags, error: None }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::config::{Tracing, tracing::TracingProtocol};

    fn tracer() -> Tracer {
        let endpoint = http::Uri::from_static("http://127.0.0.1:1");
        let protocol = TracingProtocol::Zipkin;
        let tracing = Tracing { endpoint, protocol, sample: 0.0, service_name: None };
        Tracer::new(&tracing, Counter::default())
    }

    fn connect() -> Connect {
        Connect {
            site: "east".parse().unwrap(),
            service: "orders.shop".parse().unwrap(),
            port: "http".parse().unwrap(),
            endpoint: Some("o-1".parse().unwrap()),
            hops: 0,
            connection_id: "c1".into(),
        }
    }

    fn word(connection: &str, request: u64, ended: bool) -> Traced {
        let connection_id = connection.to_owned();
        let request = request.to_be_bytes();
        Traced { connection_id, trace: [1; 16], request, parent: [2; 8], ended }
    }

    /// What a neighbour says is bounded, and about its own streams only.
    #[tokio::test]
    async fn a_neighbour_has_spans_of_its_own_streams_and_not_without_end() {
        let (tracer, passages, connect) = (tracer(), Passages::default(), connect());
        let stream = Stream {
            connect: &connect,
            neighbour: &"west",
            next: "endpoint",
            onward: None,
            tracer: Some(&tracer),
        };
        let entered = passages.enter(&stream).unwrap();
        for request in 1..=1000 {
            passages.hear(word("c1", request, false));
            passages.hear(word("of another tunnel", request, false));
        }
        let mut spans = tracer.spans.lock().unwrap().take().unwrap();
        passages.hear(word("c1", 1, true));
        passages.hear(word("c1", 1, true));
        passages.hear(word("c1", 1000, true));
        assert_eq!(spans.len(), 1, "what ended, once, and what had no room is none");
        let span = spans.recv().await.unwrap();
        assert_eq!((span.ids.trace, span.ids.parent), ([1; 16], Some([2; 8])));
        drop(entered);
        assert_eq!(spans.len(), MAX_OPEN - 1, "the stream's end ends the rest");
        passages.hear(word("c1", 2000, false));
        passages.hear(word("c1", 2000, true));
        assert_eq!(spans.len(), MAX_OPEN - 1);
    }
}
