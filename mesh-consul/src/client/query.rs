//! The lists that can be asked for, and waited for.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::wire::{CatalogEntry, ServiceEntry, ServiceTags};

/// A list of Consul: `GET` with `X-Consul-Index`.
pub trait Query {
    /// What it answers.
    type Data: DeserializeOwned + Listing + PartialEq + Send + Sync + 'static;
    /// Below `/v1`.
    fn path(&self) -> Vec<&str>;
    /// Of the query string.
    fn parameters(&self) -> Vec<(&'static str, String)>;
    /// Sorts what comes in no order, so that equal lists are equal.
    fn settle(data: &mut Self::Data);
}

/// What can be empty.
pub trait Listing {
    /// Whether nothing is in it.
    fn is_empty(&self) -> bool;
}

impl<T> Listing for Vec<T> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

impl<K, V> Listing for BTreeMap<K, V> {
    fn is_empty(&self) -> bool {
        BTreeMap::is_empty(self)
    }
}

/// `GET /v1/catalog/services`: names, and the tags of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// The agent's own where absent.
    pub dc: Option<String>,
}

/// `GET /v1/health/service/:name`: instances with their checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthOf {
    /// As Consul writes it.
    pub service: String,
    /// Instances that have all of them.
    pub tags: Vec<String>,
    /// The agent's own where absent.
    pub dc: Option<String>,
}

/// `GET /v1/catalog/service/:name`: instances, whatever their health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogOf {
    /// As Consul writes it.
    pub service: String,
    /// Instances that have all of them.
    pub tags: Vec<String>,
    /// The agent's own where absent.
    pub dc: Option<String>,
}

impl Query for Services {
    type Data = ServiceTags;

    fn path(&self) -> Vec<&str> {
        vec!["catalog", "services"]
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        parameters(self.dc.as_ref(), &[])
    }

    fn settle(data: &mut Self::Data) {
        data.values_mut().flatten().for_each(|tags| tags.sort());
    }
}

impl Query for HealthOf {
    type Data = Vec<ServiceEntry>;

    fn path(&self) -> Vec<&str> {
        vec!["health", "service", &self.service]
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        parameters(self.dc.as_ref(), &self.tags)
    }

    fn settle(data: &mut Self::Data) {
        data.sort_by(|a, b| (&a.node.node, &a.service.id).cmp(&(&b.node.node, &b.service.id)));
        for entry in data {
            entry.checks.sort_by(|a, b| a.id.cmp(&b.id));
        }
    }
}

impl Query for CatalogOf {
    type Data = Vec<CatalogEntry>;

    fn path(&self) -> Vec<&str> {
        vec!["catalog", "service", &self.service]
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        parameters(self.dc.as_ref(), &self.tags)
    }

    fn settle(data: &mut Self::Data) {
        data.sort_by(|a, b| (&a.node, &a.service_id).cmp(&(&b.node, &b.service_id)));
    }
}

fn parameters(dc: Option<&String>, tags: &[String]) -> Vec<(&'static str, String)> {
    let dc = dc.map(|dc| ("dc", dc.clone()));
    dc.into_iter().chain(tags.iter().map(|tag| ("tag", tag.clone()))).collect()
}
