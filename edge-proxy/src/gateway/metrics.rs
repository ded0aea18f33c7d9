//! What a gateway counts.

use std::{fmt, sync::atomic::AtomicU64};

use mesh_core::path::RefusedReason;
use mesh_tunnel::{Transport, admission::Tally};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    relay::{Carried, Ending},
    sessions::Neighbour,
};

/// `neighbour`: `node`, `client`, `link` or `sibling`; `site`: the linked
/// site, empty for the own one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct From {
    neighbour: &'static str,
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tunnel {
    neighbour: &'static str,
    site: String,
    transport: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    neighbour: &'static str,
    site: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    neighbour: &'static str,
    site: String,
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Bytes {
    neighbour: &'static str,
    site: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unwanted {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Joined {
    end: &'static str,
}

type Count = Counter<u64, AtomicU64>;

/// What a gateway counts; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    tunnels: Family<Tunnel, Gauge>,
    opened: Family<Tunnel, Count>,
    unwanted: Family<Unwanted, Count>,
    streams: Family<From, Gauge>,
    ended: Family<Ended, Count>,
    refused: Family<Refused, Count>,
    bytes: Family<Bytes, Count>,
    joins: Family<Joined, Count>,
    /// Who never got through the doors, by code.
    pub(super) turned_away: Tally,
}

/// Shows what the doors have counted.
#[derive(Debug)]
struct TurnedAway(Tally);

impl Collector for TurnedAway {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Strangers turned away at the doors, by code";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("turned_away", help, None, kind)?;
        for (code, n) in self.0.get() {
            let label = [("reason", code)];
            family.encode_family(&label)?.encode_counter::<NoLabelSet, _, u64>(&n, None)?;
        }
        Ok(())
    }
}

impl Metrics {
    /// Shows them under `<prefix of registry>_gateway_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register("tunnels", "Tunnels that are up", self.tunnels.clone());
        registry.register("tunnels_opened", "Tunnels that have come up", self.opened.clone());
        let help = "Tunnels ended at once, by code";
        registry.register("tunnels_refused", help, self.unwanted.clone());
        registry.register("streams", "Streams that are open", self.streams.clone());
        registry.register("streams_ended", "Streams that have ended", self.ended.clone());
        registry.register("streams_refused", "Streams refused, by code", self.refused.clone());
        registry.register("bytes", "Bytes carried in ended streams", self.bytes.clone());
        registry.register("joins", "Conversations at the join door", self.joins.clone());
        registry.register_collector(Box::new(TurnedAway(self.turned_away.clone())));
    }

    pub(super) fn tunnel_up(&self, neighbour: &Neighbour, transport: Transport) {
        let label = tunnel(neighbour, transport);
        self.tunnels.get_or_create(&label).inc();
        self.opened.get_or_create(&label).inc();
    }

    pub(super) fn tunnel_down(&self, neighbour: &Neighbour, transport: Transport) {
        self.tunnels.get_or_create(&tunnel(neighbour, transport)).dec();
    }

    pub(super) fn unwanted(&self, reason: &'static str) {
        self.unwanted.get_or_create(&Unwanted { reason }).inc();
    }

    pub(super) fn refused(&self, from: &Neighbour, reason: RefusedReason) {
        let From { neighbour, site } = label(from);
        let reason = reason.to_string();
        self.refused.get_or_create(&Refused { neighbour, site, reason }).inc();
    }

    pub(super) fn joined(&self, end: Ending) {
        self.joins.get_or_create(&Joined { end: end.code() }).inc();
    }

    /// A stream has been accepted; it counts as open until the answer ends.
    pub(super) fn stream(&self, from: &Neighbour) -> OpenStream<'_> {
        let from = label(from);
        self.streams.get_or_create(&from).inc();
        OpenStream { metrics: self, from }
    }
}

/// One stream that is open.
pub(super) struct OpenStream<'a> {
    metrics: &'a Metrics,
    from: From,
}

impl OpenStream<'_> {
    /// What it has carried, and how it ended.
    pub(super) fn ended(self, carried: &Carried) {
        let From { neighbour, site } = self.from.clone();
        let end = carried.ending.code();
        self.metrics.ended.get_or_create(&Ended { neighbour, site: site.clone(), end }).inc();
        for (direction, bytes) in [("sent", carried.sent), ("received", carried.received)] {
            let label = Bytes { neighbour, site: site.clone(), direction };
            self.metrics.bytes.get_or_create(&label).inc_by(bytes);
        }
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.metrics.streams.get_or_create(&self.from).dec();
    }
}

fn label(neighbour: &Neighbour) -> From {
    let (neighbour, site) = match neighbour {
        Neighbour::Node(..) => ("node", String::new()),
        Neighbour::Client(_) => ("client", String::new()),
        Neighbour::Sibling(_) => ("sibling", String::new()),
        Neighbour::Link(site, _) => ("link", site.to_string()),
    };
    From { neighbour, site }
}

fn tunnel(to: &Neighbour, transport: Transport) -> Tunnel {
    let From { neighbour, site } = label(to);
    Tunnel { neighbour, site, transport: transport.to_string() }
}
