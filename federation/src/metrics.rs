//! Figures of the authority, read when somebody scrapes, and what was refused.

use std::{fmt, sync::atomic::AtomicU64};

use mesh_api::v1::{ConsulInfo, LinkInfo, ProxyInfo, Revision};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::{Registry, Unit},
};

use crate::{admin::AdminService, tokens};

/// Registers what is read from a site, and what is counted.
pub fn register(registry: &mut Registry, admin: &AdminService, at_door: &Refused) {
    let registry = registry.sub_registry_with_prefix("isthmus_federation");
    let help = "Registrations refused, by code";
    registry.register("registrations_refused", help, admin.registry.refused().0.clone());
    let help = "Callers turned away at the gRPC port, by code";
    registry.register("handshakes_refused", help, at_door.0.clone());
    registry.register_collector(Box::new(Figures(admin.clone())));
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
struct Figures(AdminService);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in self.records().into_iter().chain(self.certificates()) {
            let gauge = ConstGauge::new(value);
            let metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        self.followers(&mut encoder)?;
        self.links(&mut encoder)?;
        self.consuls(&mut encoder)
    }
}

type Figure = (&'static str, &'static str, Option<Unit>, i64);

impl Figures {
    /// What the authority log says.
    fn records(&self) -> Vec<Figure> {
        let authority = &self.0.site.authority;
        let (state, now) = (authority.state(), authority.clock().unix_s());
        let open = state.tokens.values().filter(|token| tokens::describe(token, now) == "open");
        let duplicated = state.nodes.values().filter(|node| node.duplicated.is_some());
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let writable = i64::from(authority.failing().is_none());
        vec![
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
                authority.store().size().cast_signed(),
            ),
        ]
    }

    fn certificates(&self) -> [Figure; 3] {
        let site = &self.0.site;
        let now = site.authority.clock().unix_s();
        let own = site.credentials.svid().map_or(0, |svid| svid.not_after.as_secs().cast_signed());
        let seconds = Some(Unit::Seconds);
        [
            (
                "root_left",
                "Life left of the root",
                seconds.clone(),
                site.ca.root_not_after_unix_s() - now,
            ),
            (
                "issuing_ca_left",
                "Life left of the issuing CA",
                seconds.clone(),
                site.ca.issuing_not_after_unix_s() - now,
            ),
            ("certificate_left", "Life left of federation's own certificate", seconds, own - now),
        ]
    }

    /// How far what is published has come.
    fn followers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = &self.0.view;
        let proxies = self.0.discovery.proxies();
        let none = Revision::default();
        let lag = |proxy: &ProxyInfo| view.lag(proxy.acked.as_ref().unwrap_or(&none));
        let lags: Vec<f64> = proxies.iter().map(|proxy| lag(proxy).as_secs_f64()).collect();
        let behind = lags.iter().filter(|lag| **lag > 0.0).count();
        let refusing = proxies.iter().filter(|proxy| !proxy.nack.is_empty()).count();
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(
                name,
                help,
                unit.as_ref(),
                gauge.metric_type(),
            )?)
        };
        gauge("proxies", "Proxies that follow discovery", None, lags.len() as f64)?;
        let help = "Proxies that have not acknowledged the newest revision";
        gauge("proxies_behind", help, None, behind as f64)?;
        let help = "Proxies that refuse what they were told last";
        gauge("proxies_refusing", help, None, refusing as f64)?;
        let help = "For how long a proxy has not acknowledged a change, of the slowest";
        let longest = lags.into_iter().fold(0.0, f64::max);
        gauge("delta_lag", help, Some(Unit::Seconds), longest)?;
        let rotation = self.0.rotation.status();
        let waits = rotation.blockers.len() as f64 + f64::from(rotation.more_blockers);
        let help = "Phase of the rotation of the root: 0 none, 1 publish, 2 turn over";
        gauge("root_rotation_phase", help, None, f64::from(rotation.phase))?;
        let help = "Nodes, proxies, linked sites and certificates that the rotation waits for";
        gauge("root_rotation_blockers", help, None, waits)?;
        let held = self.0.view.mass_lapse().unwrap_or_default();
        let help = "Silent nodes that are kept because too many fell silent at once";
        gauge("nodes_held", help, None, held as f64)?;
        let lapses = ConstCounter::new(view.lapses());
        let help = "Nodes taken out because nobody heard of them";
        lapses.encode(encoder.encode_descriptor("lapses", help, None, lapses.metric_type())?)
    }

    fn links(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let links = self.0.links.list().links;
        let mut family = |name: &str, help: &str, unit, value: &dyn Fn(&LinkInfo) -> f64| {
            let mut metrics = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for link in &links {
                metrics
                    .encode_family(&[("site", link.site.as_str())])?
                    .encode_gauge(&value(link))?;
            }
            Ok(())
        };
        let help = "1 while the federation of a linked site is heard";
        family("link_up", help, None, &|link| f64::from(u8::from(link.state == "up")))?;
        let help = "Since a linked site was heard last";
        let unit = Some(&Unit::Seconds);
        family("link_silence", help, unit, &|link| link.last_heard_ms as f64 / 1000.0)
    }

    /// How it stands with each Consul beside the site.
    fn consuls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let consuls = self.0.consuls.list();
        if consuls.is_empty() {
            return Ok(());
        }
        let mut family = |name: &str, help: &str, unit, value: &dyn Fn(&ConsulInfo) -> f64| {
            let mut metrics = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for consul in &consuls {
                let labels = [("consul", consul.address.as_str())];
                metrics.encode_family(&labels)?.encode_gauge(&value(consul))?;
            }
            Ok(())
        };
        let help = "1 while what is known of a Consul is as of its last answers";
        family("consul_fresh", help, None, &|c| f64::from(u8::from(c.state == "fresh")))?;
        let (help, unit) = ("Since a Consul is not believed, or asked in vain", Unit::Seconds);
        family("consul_stale", help, Some(&unit), &|c| c.stale_ms as f64 / 1000.0)?;
        let help = "X-Consul-Index of the last list that was answered";
        family("consul_index", help, None, &|c| c.index as f64)?;
        let help = "Services of a Consul that are registered here";
        family("consul_imported_services", help, None, &|c| f64::from(c.imported_services))?;
        let help = "Instances of a Consul that are registered here";
        family("consul_imported_instances", help, None, &|c| f64::from(c.imported_instances))?;
        let help = "What a rule lets in and is not registered here";
        family("consul_not_imported", help, None, &|c| f64::from(c.not_imported))?;
        let help = "Instances that are shown in a Consul";
        family("consul_exported_instances", help, None, &|c| f64::from(c.exported))?;
        let help = "Instances that cannot be shown in a Consul";
        family("consul_not_exported", help, None, &|c| f64::from(c.not_exported))?;
        let help = "Calls to a Consul that failed, by kind";
        let mut errors =
            encoder.encode_descriptor("consul_errors", help, None, MetricType::Counter)?;
        for consul in &consuls {
            for error in &consul.errors {
                let labels = [("consul", consul.address.as_str()), ("kind", error.kind.as_str())];
                ConstCounter::new(error.count).encode(errors.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
