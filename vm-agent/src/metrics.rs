//! Figures for Prometheus, read from the agent's state at every scrape.

use std::{fmt, sync::Arc};

use mesh_api::v1::Health;
use mesh_runtime::clock;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{gauge::ConstGauge, info::Info},
    registry::Registry,
};

use crate::{agent::Agent, ledger::Registration};

/// Figures of one agent.
pub fn registry(agent: Arc<Agent>) -> Registry {
    let mut registry = Registry::with_prefix("isthmus_agent");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of the agent", version);
    registry.register_collector(Box::new(Figures(agent)));
    registry
}

struct Figures(Arc<Agent>);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let agent = &*self.0;
        let member = agent.member();
        let connected = agent.uplink.borrow().channel.is_some();
        gauge(
            &mut encoder,
            "joined",
            "Whether this machine is a member of a site",
            member.is_some().into(),
        )?;
        gauge(&mut encoder, "connected", "Whether federation is reached", connected.into())?;
        if let Some(member) = member {
            let left = member.node().remaining(clock::now_unix()).unwrap_or_default();
            let left = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let help = "Time until the node's certificate ends";
            gauge(&mut encoder, "certificate_remaining_seconds", help, left)?;
        }
        self.services(&mut encoder)
    }
}

impl Figures {
    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let services = self.0.services.borrow().clone();
        let registrations = self.0.registrations.borrow().clone();
        let broken = i64::try_from(services.broken.len()).unwrap_or(i64::MAX);
        gauge(encoder, "service_files_broken", "Service files that describe no service", broken)?;
        let registered =
            |instance: &String| registrations.get(instance) == Some(&Registration::Registered);
        family(encoder, "service_registered", "Whether a service is registered", {
            services.local.iter().map(|(instance, local)| {
                (instance.as_str(), local.spec.service.as_str(), registered(instance))
            })
        })?;
        family(encoder, "service_healthy", "Whether a service passes its health check", {
            services.local.iter().map(|(instance, local)| {
                (instance.as_str(), local.spec.service.as_str(), local.health == Health::Healthy)
            })
        })
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

/// One yes or no per (instance, service).
fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'a str, &'a str, bool)>,
) -> fmt::Result {
    let kind = ConstGauge::new(0i64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (instance, service, yes) in values {
        let labels = [("instance", instance), ("service", service)];
        ConstGauge::new(i64::from(yes)).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
