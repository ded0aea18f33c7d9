//! `io.l5d.consul`: the catalogue, or health where the namer asks for it.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use mesh_migrate::{
    linkerd1::{config::Namer, name::Name, reach::Reach},
    request::Endpoint,
    yaml::Node,
};
use serde::Deserialize;

use super::{
    Names,
    ask::{AT_ONCE, Asker, Wrong, encoded, flag, place, text},
};

/// The data centre of the agent that is asked.
const LOCAL: &str = ".local";
/// Services of one data centre that are asked for, at most.
const MAX_SERVICES: usize = 10_000;

struct Consul {
    asker: Asker,
    includes_tag: bool,
    /// Where health counts, statuses that are good enough.
    statuses: Option<Vec<String>>,
    prefers_service: bool,
    weights: BTreeMap<String, f64>,
    /// What every question ends with.
    mode: String,
}

/// One instance, of either list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Instance {
    address: String,
    service_address: String,
    service_port: u64,
    service_tags: Option<Vec<String>>,
    node: serde_json::Value,
    service: Option<Service>,
    checks: Vec<Check>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    address: String,
    port: u64,
    tags: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    #[serde(rename = "Status")]
    status: String,
}

pub(super) async fn read(namer: &Namer, reach: &Reach, names: &mut Names) -> Result<(), Wrong> {
    let consul = Consul::of(&namer.node)?;
    let centres: Vec<String> = consul.asker.json("/v1/catalog/datacenters").await?;
    let below = |name: &str| namer.prefix.join(&Name::of([name]));
    let mut wanted: Vec<String> =
        centres.into_iter().filter(|centre| reach.leads(&below(centre))).collect();
    // Where any may be asked for, the others have its names already.
    if reach
        .below(&namer.prefix)
        .iter()
        .any(|name| name.labels().first().is_some_and(|l| l == LOCAL))
    {
        wanted.push(LOCAL.to_owned());
    }
    wanted.sort();
    for centre in wanted {
        match consul.centre(&centre, &below(&centre), reach, names).await {
            Err(wrong) if wrong.is_gone() => return Err(wrong),
            Err(wrong) => names.lose(wrong),
            Ok(()) => {}
        }
    }
    Ok(())
}

impl Consul {
    fn of(node: &Node) -> Result<Self, Wrong> {
        let token = text(node, "token")?;
        let statuses = match node.at("healthStatuses") {
            Some(list) => {
                let list = list.list().map_err(Wrong::new)?;
                list.iter().map(Node::text).collect::<Result<_, _>>().map_err(Wrong::new)?
            }
            None => vec!["passing".to_owned()],
        };
        let mode = match text(node, "consistencyMode")?.as_deref() {
            Some(mode @ ("stale" | "consistent")) => format!("&{mode}"),
            _ => String::new(),
        };
        Ok(Self {
            asker: Asker::of(node, "localhost", 8500)?.with("x-consul-token", token),
            includes_tag: flag(node, "includeTag", false)?,
            statuses: flag(node, "useHealthCheck", false)?.then_some(statuses),
            prefers_service: flag(node, "preferServiceAddress", true)?,
            weights: weights(node)?,
            mode,
        })
    }

    /// Names of one data centre, below `prefix`.
    async fn centre(
        &self,
        centre: &str,
        prefix: &Name,
        reach: &Reach,
        names: &mut Names,
    ) -> Result<(), Wrong> {
        // Whoever is asked for none says what its own has.
        let centre =
            if centre == LOCAL { String::new() } else { format!("dc={}", encoded(centre)) };
        let asked = format!("{centre}{}", self.mode);
        let services: BTreeMap<String, Vec<String>> =
            self.asker.json(&format!("/v1/catalog/services?{asked}")).await?;
        // Names are asked for in lower case.
        let below = |labels: &[&str]| {
            prefix.join(&Name::of(labels.iter().map(|label| label.to_lowercase())))
        };
        let keys = |service: &str, tags: &[String]| -> Vec<(Option<String>, Name)> {
            let all: Vec<_> = if self.includes_tag {
                tags.iter().map(|tag| (Some(tag.clone()), below(&[tag, service]))).collect()
            } else {
                vec![(None, below(&[service]))]
            };
            all.into_iter().filter(|(_, name)| reach.leads(name)).collect()
        };
        let wanted: Vec<_> = (services.iter())
            .map(|(service, tags)| (service, keys(service, tags)))
            .filter(|(_, keys)| !keys.is_empty())
            .collect();
        if wanted.len() > MAX_SERVICES {
            names.lose(format!("only {MAX_SERVICES} services of {} were asked for", wanted.len()));
        }
        let asked = asked.as_str();
        let all = wanted
            .into_iter()
            .take(MAX_SERVICES)
            .map(|(service, keys)| async move { (keys, self.instances(service, asked).await) });
        let mut answers = stream::iter(all).buffered(AT_ONCE);
        while let Some((keys, answer)) = answers.next().await {
            match answer {
                Ok(instances) => {
                    for (tag, name) in keys {
                        names.add(name, self.endpoints(&instances, tag.as_deref()));
                    }
                }
                Err(wrong) => {
                    keys.into_iter().for_each(|(_, name)| names.add_unknown(name));
                    if wrong.is_gone() {
                        return Err(wrong);
                    }
                    names.lose(wrong);
                }
            }
        }
        Ok(())
    }

    async fn instances(&self, service: &str, asked: &str) -> Result<Vec<Instance>, Wrong> {
        let list = if self.statuses.is_some() { "health" } else { "catalog" };
        let path = format!("/v1/{list}/service/{}?{asked}", encoded(service));
        self.asker.json(&path).await
    }

    fn endpoints(&self, instances: &[Instance], tag: Option<&str>) -> Vec<(Endpoint, f64)> {
        let good = instances.iter().filter(|instance| {
            let has = |tag: &str| instance.tags().iter().any(|t| t.eq_ignore_ascii_case(tag));
            let healthy = |good: &Vec<String>| good.iter().any(|good| good == instance.status());
            tag.is_none_or(has) && self.statuses.as_ref().is_none_or(healthy)
        });
        good.filter_map(|instance| {
            Some((instance.place(self.prefers_service)?, self.weight(instance)))
        })
        .collect()
    }

    /// That of its heaviest tag.
    fn weight(&self, instance: &Instance) -> f64 {
        let of_tags = instance.tags().iter().filter_map(|tag| self.weights.get(tag).copied());
        of_tags.reduce(f64::max).unwrap_or(1.0)
    }
}

fn weights(node: &Node) -> Result<BTreeMap<String, f64>, Wrong> {
    let Some(list) = node.at("weights") else { return Ok(BTreeMap::new()) };
    let one = |node: &Node| {
        let tag = text(node, "tag")?.unwrap_or_default();
        let weight = node.at("weight").map_or(Ok(1.0), Node::number);
        Ok((tag, weight.map_err(Wrong::new)?))
    };
    list.list().map_err(Wrong::new)?.iter().map(one).collect()
}

impl Instance {
    fn tags(&self) -> &[String] {
        let tags = self.service.as_ref().map_or(&self.service_tags, |service| &service.tags);
        tags.as_deref().unwrap_or_default()
    }

    fn place(&self, prefers_service: bool) -> Option<Endpoint> {
        let (own, host, port) = match &self.service {
            Some(service) => {
                let host = self.node["Address"].as_str().unwrap_or_default();
                (&service.address, host, service.port)
            }
            None => (&self.service_address, self.address.as_str(), self.service_port),
        };
        let host = if prefers_service && !own.is_empty() { own } else { host };
        place(host, port)
    }

    /// The worst of its checks; none is a good one.
    fn status(&self) -> &str {
        let maintains = |check: &Check| {
            check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance")
        };
        if self.checks.iter().any(maintains) {
            return "maintenance";
        }
        let is = |status: &str| self.checks.iter().any(|check| check.status == status);
        ["critical", "warning"].into_iter().find(|status| is(status)).unwrap_or("passing")
    }
}
