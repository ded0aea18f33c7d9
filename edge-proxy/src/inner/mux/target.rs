//! What streams are for: said once per session, then by number.

use std::{fmt::Display, str::FromStr, sync::Arc};

use bytes::Bytes;
use mesh_api::v1::{InnerProtocol, InnerTarget};
use mesh_core::{EndpointId, PortName, ServiceName};
use prost::Message;

use super::frame::{MAX_MESSAGE, Violation};

/// Targets that one session knows at once.
pub(super) const MAX_TARGETS: usize = 256;

/// The longest id of a connection.
const MAX_CONNECTION: usize = 64;

/// What is spoken inside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// Requests for an application that speaks HTTP/1.
    Http1,
    /// Requests for an application that speaks HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Spoken {
    /// As logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// What a stream is for. The destination believes none of it: it looks for the
/// service among its own endpoints and asks its policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Which service.
    pub service: ServiceName,
    /// Which of its ports.
    pub port: PortName,
    /// Which of the destination's own endpoints, where it has several.
    pub endpoint: EndpointId,
    /// What is spoken.
    pub protocol: Spoken,
    /// Joins log lines, if the source says so.
    pub connection: Option<Arc<str>>,
}

impl Target {
    pub(super) fn encode(&self) -> Vec<u8> {
        let protocol = match self.protocol {
            Spoken::Http1 => InnerProtocol::Http1,
            Spoken::Http2 => InnerProtocol::Http2,
            Spoken::Tcp => InnerProtocol::Tcp,
        };
        let message = InnerTarget {
            service: self.service.as_str().into(),
            port: self.port.as_str().into(),
            endpoint: self.endpoint.as_str().into(),
            protocol: protocol.into(),
            critical: Vec::new(),
            connection: self.connection.as_deref().unwrap_or_default().into(),
        };
        let bytes = message.encode_to_vec();
        debug_assert!(bytes.len() <= MAX_MESSAGE, "names are short");
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let message = InnerTarget::decode(bytes)
            .map_err(|error| Violation(format!("a target that does not decode: {error}").into()))?;
        if let Some(name) = message.critical.first() {
            return Err(Violation(format!("a target needs {name:.64}, not known here").into()));
        }
        let protocol = match message.protocol() {
            InnerProtocol::Http1 => Spoken::Http1,
            InnerProtocol::Http2 => Spoken::Http2,
            InnerProtocol::Tcp => Spoken::Tcp,
            InnerProtocol::Unspecified => {
                return Err(Violation::new("a target without a known protocol"));
            }
        };
        Ok(Self {
            service: parsed("service", &message.service)?,
            port: parsed("port", &message.port)?,
            endpoint: parsed("endpoint", &message.endpoint)?,
            protocol,
            connection: connection(&message.connection)?,
        })
    }
}

/// It goes to logs as it is.
fn connection(text: &str) -> Result<Option<Arc<str>>, Violation> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match text {
        "" => Ok(None),
        _ if text.len() <= MAX_CONNECTION && text.bytes().all(plain) => Ok(Some(text.into())),
        _ => Err(Violation::new("a target's connection is no id")),
    }
}

fn parsed<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Violation> {
    text.parse().map_err(|error| Violation(format!("a target's {field}: {error}").into()))
}

/// The source's numbers for targets.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    known: Vec<(Arc<Target>, u64)>,
    last: usize,
    clock: u64,
}

impl Numbers {
    /// The number of a target, and whether the peer has to be told first.
    pub(super) fn of(&mut self, target: &Arc<Target>) -> (u16, bool) {
        self.clock += 1;
        let same = |(known, _): &(Arc<Target>, u64)| Arc::ptr_eq(known, target);
        let last = self.known.get(self.last).is_some_and(same).then_some(self.last);
        let found = last
            .or_else(|| self.known.iter().position(same))
            .or_else(|| self.known.iter().position(|(known, _)| known == target));
        if let Some(at) = found {
            self.last = at;
            self.known[at].1 = self.clock;
            return (number(at), false);
        }
        let entry = (target.clone(), self.clock);
        let at = if self.known.len() < MAX_TARGETS {
            self.known.push(entry);
            self.known.len() - 1
        } else {
            let oldest = self.known.iter().enumerate().min_by_key(|(_, (_, used))| *used);
            let at = oldest.map_or(0, |(at, _)| at);
            self.known[at] = entry;
            at
        };
        self.last = at;
        (number(at), true)
    }
}

fn number(at: usize) -> u16 {
    u16::try_from(at).expect("MAX_TARGETS fits")
}

/// What the source's numbers mean, at the destination.
#[derive(Debug, Default)]
pub(super) struct Meanings(Vec<Option<Arc<Target>>>);

impl Meanings {
    pub(super) fn set(&mut self, id: u16, message: &Bytes) -> Result<(), Violation> {
        let at = usize::from(id);
        if at >= MAX_TARGETS {
            return Err(Violation::new("a target's number beyond the table"));
        }
        let target = Target::decode(message)?;
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = Some(Arc::new(target));
        Ok(())
    }

    pub(super) fn get(&self, id: u16) -> Result<&Arc<Target>, Violation> {
        let known = self.0.get(usize::from(id)).and_then(Option::as_ref);
        known.ok_or(Violation::new("a stream for a target that was not named"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: &str) -> Arc<Target> {
        Arc::new(Target {
            service: "orders.shop".parse().unwrap(),
            port: port.parse().unwrap(),
            endpoint: "e-1".parse().unwrap(),
            protocol: Spoken::Http1,
            connection: Some("c-1".into()),
        })
    }

    #[test]
    fn a_target_is_told_once_and_the_least_used_is_forgotten() {
        let mut numbers = Numbers::default();
        let targets: Vec<_> = (0..=MAX_TARGETS).map(|n| target(&format!("p{n}"))).collect();
        for (n, target) in targets.iter().take(MAX_TARGETS).enumerate() {
            assert_eq!(numbers.of(target), (number(n), true));
            assert_eq!(numbers.of(target), (number(n), false));
        }
        // Equal is as good as the same.
        assert_eq!(numbers.of(&target("p0")), (0, false));
        assert_eq!(numbers.of(&targets[MAX_TARGETS]), (1, true));
        assert_eq!(numbers.of(&targets[1]), (2, true));
        assert_eq!(numbers.of(&targets[0]), (0, false));
    }

    #[test]
    fn what_is_told_is_understood() {
        let mut meanings = Meanings::default();
        assert!(meanings.get(0).is_err());
        for protocol in [Spoken::Http1, Spoken::Http2, Spoken::Tcp] {
            let told = Target { protocol, ..(*target("http")).clone() };
            meanings.set(3, &told.encode().into()).unwrap();
            assert_eq!(**meanings.get(3).unwrap(), told);
        }
        assert!(meanings.get(2).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let good = InnerTarget {
            service: "orders.shop".into(),
            port: "http".into(),
            endpoint: "e-1".into(),
            protocol: InnerProtocol::Tcp.into(),
            critical: Vec::new(),
            connection: "c-1".into(),
        };
        let cases = [
            (InnerTarget { service: "Orders".into(), ..good.clone() }, "service"),
            (InnerTarget { port: String::new(), ..good.clone() }, "port"),
            (InnerTarget { endpoint: "\u{0}".into(), ..good.clone() }, "endpoint"),
            (InnerTarget { protocol: 9, ..good.clone() }, "protocol"),
            (InnerTarget { connection: "a\nb".into(), ..good.clone() }, "connection"),
            (InnerTarget { connection: "a".repeat(65), ..good.clone() }, "connection"),
            (InnerTarget { critical: vec!["mirror".into()], ..good.clone() }, "mirror"),
        ];
        let mut meanings = Meanings::default();
        for (message, named) in cases {
            let error = meanings.set(0, &message.encode_to_vec().into()).unwrap_err();
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
        let error = meanings.set(256, &good.encode_to_vec().into()).unwrap_err();
        assert!(error.to_string().contains("table"), "{error}");
        assert!(meanings.set(255, &good.encode_to_vec().into()).is_ok());
        assert!(meanings.set(0, &Bytes::from_static(b"\xff")).is_err());
    }
}
