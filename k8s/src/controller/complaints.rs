//! What is wrong with objects, told where their owners look: as Events on the
//! object, and as figures.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::mpsc;

use super::model::Problem;

/// Events on their way to the API server; more are only counted.
const WAITING: usize = 256;
/// Objects whose problems are remembered, so that they are told once.
const REMEMBERED: usize = 10_000;
/// The longest note, in bytes (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1000;

/// Clones share it.
#[derive(Clone)]
pub(super) struct Complaints {
    tx: mpsc::Sender<(Event, ObjectReference)>,
    told: Arc<Mutex<BTreeMap<String, String>>>,
    counted: Family<Kind, Counter<u64, AtomicU64>>,
    watches: Family<Kind, Counter<u64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

impl Complaints {
    /// Publishes with `client` for as long as it lives.
    pub(super) fn new(client: Client) -> Self {
        let (tx, mut rx) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        let instance = std::env::var("POD_NAME").ok();
        let reporter = Reporter { controller: "isthmus-controller".into(), instance };
        tokio::spawn(async move {
            while let Some((event, about)) = rx.recv().await {
                // One that remembers counts a second problem of an object as the
                // first again, and its note is lost.
                let recorder = Recorder::new(client.clone(), reporter.clone());
                if let Err(error) = recorder.publish(&event, &about).await {
                    log::warn!(error:%, reason = event.reason.as_str(); "an event is not published");
                }
            }
        });
        let (told, counted, watches) = Default::default();
        Self { tx, told, counted, watches }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Objects with fields that make no sense, by kind";
        registry.register("invalid_objects", help, self.counted.clone());
        let help = "Watches that failed and were begun anew, by kind";
        registry.register("watch_failures", help, self.watches.clone());
    }

    pub(super) fn watch_failed(&self, kind: &str) {
        self.watches.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    pub(super) fn invalid_object(&self, kind: &str) {
        self.counted.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// Tells the problems of an object, once for as long as they are the same.
    pub(super) fn about<K>(&self, object: &K, problems: &[Problem])
    where
        K: Resource<DynamicType = ()> + ResourceExt,
    {
        let note = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        self.say(object, "InvalidField", note);
    }

    /// One thing about an object, once for as long as it is the same; empty
    /// takes it back.
    pub(super) fn say<K>(&self, object: &K, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()> + ResourceExt,
    {
        self.tell(object.object_ref(&()), reason, note);
    }

    /// The same about what is known by name.
    pub(super) fn tell(&self, about: ObjectReference, reason: &str, note: String) {
        let key = format!("{}/{reason}", about.uid.as_deref().unwrap_or_default());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if note.is_empty() {
            told.remove(&key);
            return;
        }
        if told.get(&key) == Some(&note) {
            return;
        }
        if told.len() >= REMEMBERED {
            told.clear();
        }
        told.insert(key, note.clone());
        drop(told);
        let kind = about.kind.as_deref().unwrap_or_default();
        log::warn!(kind, name = about.name.as_deref().unwrap_or_default(),
            namespace = about.namespace.as_deref().unwrap_or_default(), reason; "{note}");
        self.invalid_object(kind);
        let mut end = note.len().min(MAX_NOTE);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note[..end].to_owned()),
            action: "Reading".into(),
            secondary: None,
        };
        // Who is not heard now is counted and in the log.
        let _ = self.tx.try_send((event, about));
    }
}
