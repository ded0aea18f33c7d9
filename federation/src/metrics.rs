//! Figures of the authority, read when somebody scrapes, and what was refused.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{site::Site, tokens};

/// Registers what is read from a site, and what is counted.
pub fn register(registry: &mut Registry, site: Site, refused: &Refused, at_door: &Refused) {
    let registry = registry.sub_registry_with_prefix("isthmus_federation");
    let help = "Registrations refused, by code";
    registry.register("registrations_refused", help, refused.0.clone());
    let help = "Callers turned away at the gRPC port, by code";
    registry.register("handshakes_refused", help, at_door.0.clone());
    registry.register_collector(Box::new(Figures(site)));
}

/// What was refused, by code. Clones share the figures.
#[derive(Debug, Clone, Default)]
pub struct Refused(Family<Reason, Counter<u64, AtomicU64>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

impl Refused {
    /// One more for this code.
    pub fn count(&self, reason: String) {
        self.0.get_or_create(&Reason { reason }).inc();
    }
}

#[derive(Clone)]
struct Figures(Site);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.0.authority.state();
        let now = self.0.authority.clock().unix_s();
        let open = state.tokens.values().filter(|token| tokens::describe(token, now) == "open");
        let duplicated = state.nodes.values().filter(|node| node.duplicated.is_some());
        let own =
            self.0.credentials.svid().map_or(0, |svid| svid.not_after.as_secs().cast_signed());
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let writable = i64::from(self.0.authority.failing().is_none());
        let figures = [
            ("writable", "1 unless the last change could not be made durable", None, writable),
            ("nodes", "Joined machines", None, count(state.nodes.len())),
            ("nodes_duplicated", "Machines held to exist twice", None, count(duplicated.count())),
            ("registrations", "Registered instances", None, count(state.registrations.len())),
            ("links", "Linked sites", None, count(state.links.len())),
            ("tokens_open", "Tokens that can be used", None, count(open.count())),
            (
                "revision",
                "Newest record of the authority log",
                None,
                state.revision.n.cast_signed(),
            ),
            (
                "log",
                "Size of the authority log",
                Some(Unit::Bytes),
                self.0.authority.store().size().cast_signed(),
            ),
            (
                "root_left",
                "Life left of the root",
                Some(Unit::Seconds),
                self.0.ca.root_not_after_unix_s() - now,
            ),
            (
                "issuing_ca_left",
                "Life left of the issuing CA",
                Some(Unit::Seconds),
                self.0.ca.issuing_not_after_unix_s() - now,
            ),
            (
                "certificate_left",
                "Life left of federation's own certificate",
                Some(Unit::Seconds),
                own - now,
            ),
        ];
        for (name, help, unit, value) in figures {
            let gauge = ConstGauge::new(value);
            let metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
