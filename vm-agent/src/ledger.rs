//! What one registry session has said and what was answered: turns the state
//! of the services into the requests that make the site's record equal to it.
//! Pure but for the clock that callers pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_api::v1::{
    Deregister, Health, HealthReport, Heartbeat, Leaving, NodeHolds, Register, RegistryError,
    RegistryHello, RegistryReply, RegistryRequest, registry_request::Request,
};
use tokio::time::Instant;

use crate::services::{Local, Services};

/// How long a refused registration rests before it is tried again: the grant
/// or the other node's port may have changed.
const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// What the site has answered about one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Asked, not answered.
    Pending,
    /// Done and durable.
    Registered,
    /// Refused; the reason is for people.
    Refused(String),
}

/// By instance.
pub type Registrations = BTreeMap<String, Registration>;

/// Where this machine is; the same in every registration.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// `ip:port` of the proxy's inbound listener, or empty.
    pub address: String,
    /// Region, zone, host.
    pub locality: mesh_api::v1::Locality,
}

/// One instance as the site knows it from this session.
struct Sent {
    /// Without health.
    register: Register,
    health: Health,
    detail: String,
    /// When a refusal is forgotten.
    retry: Option<Instant>,
}

/// What a request was about.
enum Asked {
    Register(String),
    Deregister(String),
    Other,
}

/// The books of one session.
pub struct Ledger {
    place: Place,
    sequence: u64,
    sent: BTreeMap<String, Sent>,
    /// Answers that are due.
    pending: BTreeMap<u64, Asked>,
    /// What earlier sessions may have registered, and this one did not.
    stale: BTreeSet<String>,
    /// Deregistered, not answered: the site may still have it on record.
    removing: BTreeSet<String>,
    /// For `status`.
    pub registrations: Registrations,
}

impl Ledger {
    /// Nothing said yet; `known` is what earlier sessions may have registered.
    pub fn new(place: Place, known: BTreeSet<String>) -> Self {
        Self {
            place,
            sequence: 0,
            sent: BTreeMap::new(),
            pending: BTreeMap::new(),
            stale: known,
            removing: BTreeSet::new(),
            registrations: BTreeMap::new(),
        }
    }

    /// The session's first message.
    pub fn hello(&mut self, hello: RegistryHello) -> RegistryRequest {
        self.ask(Request::Hello(hello), Asked::Other)
    }

    /// Renews the lease, and lets the site compare clocks.
    pub fn heartbeat(&mut self, time_unix_ms: u64) -> RegistryRequest {
        self.ask(Request::Heartbeat(Heartbeat { time_unix_ms }), Asked::Other)
    }

    /// What this machine verifies with and presents.
    pub fn holds(&mut self, holds: NodeHolds) -> RegistryRequest {
        self.ask(Request::Holds(holds), Asked::Other)
    }

    /// The last message: away, and back within this time.
    pub fn leaving(&mut self, within: Duration) -> RegistryRequest {
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.ask(Request::Leaving(Leaving { within_ms }), Asked::Other)
    }

    /// The last messages: everything ends at once.
    pub fn deregister_all(&mut self) -> Vec<RegistryRequest> {
        self.said().into_iter().map(|instance| self.deregister(instance)).collect()
    }

    /// Instances that the site may have on record, to be kept on disk before
    /// the requests of [`Ledger::changes`] are sent.
    pub fn known(&self) -> BTreeSet<String> {
        self.sent.keys().chain(&self.stale).chain(&self.removing).cloned().collect()
    }

    /// Instances that the site has on record as far as this session has said.
    fn said(&self) -> Vec<String> {
        self.sent.keys().chain(&self.stale).cloned().collect()
    }

    /// Whether every request has been answered.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// The requests that make the site's record equal to `services`.
    pub fn changes(&mut self, services: &Services, now: Instant) -> Vec<RegistryRequest> {
        // Until the files were read nobody knows what is unwanted.
        if services.reads == 0 {
            return Vec::new();
        }
        let mut requests = Vec::new();
        let unwanted = |instance: &String| !services.local.contains_key(instance);
        for instance in self.said().into_iter().filter(unwanted) {
            requests.push(self.deregister(instance));
        }
        for (instance, local) in &services.local {
            // Not before its first check: nobody shall call what never ran.
            if local.health != Health::Unspecified {
                requests.extend(self.change(instance, local, now));
            }
        }
        requests
    }

    fn change(&mut self, instance: &str, local: &Local, now: Instant) -> Option<RegistryRequest> {
        let register = Register {
            address: self.place.address.clone(),
            locality: Some(self.place.locality.clone()),
            ..local.spec.wire()
        };
        let Some(sent) = self.sent.get_mut(instance).filter(|sent| sent.register == register)
        else {
            return Some(self.register(instance, register, local));
        };
        match sent.retry {
            Some(retry) if now < retry => return None,
            Some(_) => return Some(self.register(instance, register, local)),
            None => {}
        }
        if sent.health == local.health && sent.detail == local.detail {
            return None;
        }
        (sent.health, sent.detail) = (local.health, local.detail.clone());
        let report = HealthReport {
            instance: instance.to_owned(),
            health: local.health.into(),
            detail: local.detail.clone(),
        };
        Some(self.ask(Request::Health(report), Asked::Other))
    }

    fn register(&mut self, instance: &str, register: Register, local: &Local) -> RegistryRequest {
        let sent = Sent {
            register: register.clone(),
            health: local.health,
            detail: local.detail.clone(),
            retry: None,
        };
        self.sent.insert(instance.to_owned(), sent);
        self.stale.remove(instance);
        self.removing.remove(instance);
        self.registrations.insert(instance.to_owned(), Registration::Pending);
        let register = Register { health: local.health.into(), ..register };
        self.ask(Request::Register(register), Asked::Register(instance.to_owned()))
    }

    fn deregister(&mut self, instance: String) -> RegistryRequest {
        self.sent.remove(&instance);
        self.registrations.remove(&instance);
        self.stale.remove(&instance);
        self.removing.insert(instance.clone());
        let request = Deregister { instance: instance.clone() };
        self.ask(Request::Deregister(request), Asked::Deregister(instance))
    }

    fn ask(&mut self, request: Request, about: Asked) -> RegistryRequest {
        self.sequence += 1;
        self.pending.insert(self.sequence, about);
        RegistryRequest { sequence: self.sequence, request: Some(request) }
    }

    /// One answer; the error is a refusal of the session itself.
    pub fn answered(&mut self, reply: RegistryReply, now: Instant) -> Result<(), String> {
        // A code of a later version is a refusal too.
        let refused = reply.error != i32::from(RegistryError::Unspecified);
        match self.pending.remove(&reply.sequence) {
            Some(Asked::Register(instance)) => {
                self.registered(instance, refused.then_some(reply.detail), now);
                Ok(())
            }
            Some(Asked::Deregister(instance)) => {
                // A refusal means that it is not there.
                self.removing.remove(&instance);
                Ok(())
            }
            Some(Asked::Other) if refused => Err(reply.detail),
            Some(Asked::Other) => Ok(()),
            None => {
                Err(format!("federation answered request {}, which was not asked", reply.sequence))
            }
        }
    }

    fn registered(&mut self, instance: String, refusal: Option<String>, now: Instant) {
        // Answered too late: it was deregistered meanwhile.
        let Some(sent) = self.sent.get_mut(&instance) else { return };
        let registration = match refusal {
            None => {
                log::info!(instance = instance.as_str(), service = sent.register.service.as_str(); "registered");
                Registration::Registered
            }
            Some(detail) => {
                sent.retry = Some(now + RETRY_REFUSED);
                log::error!(instance = instance.as_str(); "registration refused: {detail}");
                Registration::Refused(detail)
            }
        };
        self.registrations.insert(instance, registration);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::services::file;

    fn services(entries: &[(&str, u16, Health)]) -> Services {
        let local = entries.iter().map(|(instance, port, health)| {
            let text = format!("service: {instance}\nnamespace: shop\nport: {port}\n");
            let spec = Arc::new(file::parse(&text, instance, "test").unwrap());
            (instance.to_string(), Local { spec, health: *health, detail: String::new() })
        });
        Services { local: local.collect(), reads: 1, ..Services::default() }
    }

    fn shown(requests: &[RegistryRequest]) -> Vec<String> {
        let line = |request: &RegistryRequest| match request.request.as_ref().unwrap() {
            Request::Register(r) => {
                format!("register {}:{} {:?}", r.instance, r.ports[0].number, r.health())
            }
            Request::Deregister(d) => format!("deregister {}", d.instance),
            Request::Health(h) => format!("health {} {:?}", h.instance, h.health()),
            other => format!("{other:?}"),
        };
        requests.iter().map(line).collect()
    }

    fn answer(ledger: &mut Ledger, requests: &[RegistryRequest], now: Instant) {
        for request in requests {
            let reply = RegistryReply { sequence: request.sequence, ..RegistryReply::default() };
            ledger.answered(reply, now).unwrap();
        }
    }

    #[test]
    fn only_differences_are_said() {
        use Health::{Healthy, Unhealthy, Unspecified};
        let now = mesh_runtime::clock::monotonic();
        let mut ledger = Ledger::new(Place::default(), BTreeSet::new());
        type Step = (&'static [(&'static str, u16, Health)], &'static [&'static str]);
        let steps: [Step; 8] = [
            (&[("a", 80, Unspecified)], &[]),
            (&[("a", 80, Healthy)], &["register a:80 Healthy"]),
            (&[("a", 80, Healthy)], &[]),
            (&[("a", 80, Unhealthy)], &["health a Unhealthy"]),
            (&[("a", 81, Unspecified)], &[]),
            (&[("a", 81, Healthy)], &["register a:81 Healthy"]),
            (&[("b", 80, Unhealthy)], &["deregister a", "register b:80 Unhealthy"]),
            (&[], &["deregister b"]),
        ];
        for (state, expected) in steps {
            let requests = ledger.changes(&services(state), now);
            assert_eq!(shown(&requests), expected, "{state:?}");
            answer(&mut ledger, &requests, now);
            assert!(ledger.is_settled());
        }
        assert!(ledger.known().is_empty() && ledger.registrations.is_empty());
    }

    #[test]
    fn what_an_earlier_session_left_behind_is_removed() {
        let now = mesh_runtime::clock::monotonic();
        let known: BTreeSet<String> = ["old", "a"].map(String::from).into();
        let mut ledger = Ledger::new(Place::default(), known);
        assert!(ledger.changes(&Services::default(), now).is_empty(), "files not read yet");
        let requests = ledger.changes(&services(&[("a", 80, Health::Healthy)]), now);
        assert_eq!(shown(&requests), ["deregister old", "register a:80 Healthy"]);
        assert_eq!(ledger.known().into_iter().collect::<Vec<_>>(), ["a", "old"]);
        let again = ledger.changes(&services(&[("a", 80, Health::Healthy)]), now);
        assert!(again.is_empty(), "said once: {again:?}");
        answer(&mut ledger, &requests, now);
        assert_eq!(ledger.known().into_iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!(ledger.registrations["a"], Registration::Registered);
    }

    #[test]
    fn a_refusal_is_kept_and_tried_again_later() {
        let now = mesh_runtime::clock::monotonic();
        let state = services(&[("a", 80, Health::Healthy)]);
        let mut ledger = Ledger::new(Place::default(), BTreeSet::new());
        let requests = ledger.changes(&state, now);
        let refusal = RegistryReply {
            sequence: requests[0].sequence,
            error: RegistryError::NotGranted.into(),
            detail: "not granted".into(),
            ..RegistryReply::default()
        };
        ledger.answered(refusal, now).unwrap();
        assert_eq!(ledger.registrations["a"], Registration::Refused("not granted".into()));
        assert!(ledger.changes(&state, now).is_empty());
        let worse = services(&[("a", 80, Health::Unhealthy)]);
        assert!(ledger.changes(&worse, now).is_empty(), "health of what is not there");
        let later = ledger.changes(&state, now + RETRY_REFUSED);
        assert_eq!(shown(&later), ["register a:80 Healthy"]);
        let changed = services(&[("a", 81, Health::Healthy)]);
        assert_eq!(shown(&ledger.changes(&changed, now)), ["register a:81 Healthy"]);
    }

    #[test]
    fn a_code_of_a_later_version_is_a_refusal() {
        let now = mesh_runtime::clock::monotonic();
        let mut ledger = Ledger::new(Place::default(), BTreeSet::new());
        let requests = ledger.changes(&services(&[("a", 80, Health::Healthy)]), now);
        let refusal = RegistryReply {
            sequence: requests[0].sequence,
            error: 4711,
            detail: "a new rule".into(),
            ..RegistryReply::default()
        };
        ledger.answered(refusal, now).unwrap();
        assert_eq!(ledger.registrations["a"], Registration::Refused("a new rule".into()));
    }

    #[test]
    fn answers_to_nothing_and_refused_sessions_end_the_session() {
        let now = mesh_runtime::clock::monotonic();
        let mut ledger = Ledger::new(Place::default(), BTreeSet::new());
        let hello = ledger.hello(RegistryHello::default());
        let unasked = RegistryReply { sequence: 99, ..RegistryReply::default() };
        assert!(ledger.answered(unasked, now).is_err());
        let refusal = RegistryReply {
            sequence: hello.sequence,
            error: RegistryError::Invalid.into(),
            detail: "upgrade".into(),
            ..RegistryReply::default()
        };
        assert_eq!(ledger.answered(refusal, now), Err("upgrade".into()));
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_was_removed() {
        let now = mesh_runtime::clock::monotonic();
        let mut ledger = Ledger::new(Place::default(), BTreeSet::new());
        let register = ledger.changes(&services(&[("a", 80, Health::Healthy)]), now);
        let deregister = ledger.changes(&services(&[]), now);
        answer(&mut ledger, &register, now);
        assert!(ledger.registrations.is_empty());
        answer(&mut ledger, &deregister, now);
        assert!(ledger.known().is_empty());
    }
}
