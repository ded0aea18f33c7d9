//! The JSON of Consul's HTTP API, as far as a bridge reads and writes it.
//!
//! Keys that are not here are skipped, since each version has more of them; a list
//! or map that is `null` is empty. What changes all the time (outputs of checks,
//! indexes) is not read, so that equal values mean that nothing changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// `GET /v1/catalog/services`: each name with the tags of all its instances.
pub type ServiceTags = BTreeMap<String, Option<Vec<String>>>;

/// `GET /v1/agent/services`, by id.
pub type AgentServices = BTreeMap<String, Service>;

/// One instance of `GET /v1/health/service/:name`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceEntry {
    /// Where it runs.
    pub node: Node,
    /// What it is.
    pub service: Service,
    /// Of the node and of the instance.
    #[serde(default, deserialize_with = "nullable")]
    pub checks: Vec<Check>,
}

/// A node of the catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Its name, unique in a datacenter.
    #[serde(default)]
    pub node: String,
    /// IP address or host name.
    #[serde(default)]
    pub address: String,
    /// The datacenter; absent in old versions.
    #[serde(default)]
    pub datacenter: String,
    /// `lan`, `wan` and others.
    #[serde(default, deserialize_with = "nullable")]
    pub tagged_addresses: BTreeMap<String, String>,
    /// Free pairs.
    #[serde(default, deserialize_with = "nullable")]
    pub meta: BTreeMap<String, String>,
}

/// A service instance, as `health` and `agent` show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    /// Empty for an application; `connect-proxy`, `mesh-gateway`, …
    #[serde(default)]
    pub kind: String,
    /// Unique on its agent.
    #[serde(rename = "ID", default)]
    pub id: String,
    /// Name of the service.
    #[serde(default)]
    pub service: String,
    /// In the order of the registration.
    #[serde(default, deserialize_with = "nullable")]
    pub tags: Vec<String>,
    /// IP address or host name; empty: the node's.
    #[serde(default)]
    pub address: String,
    /// 0: none.
    #[serde(default)]
    pub port: i64,
    /// Free pairs.
    #[serde(default, deserialize_with = "nullable")]
    pub meta: BTreeMap<String, String>,
    /// `lan`, `wan` and others.
    #[serde(default, deserialize_with = "nullable")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// For DNS and balancers.
    #[serde(default, deserialize_with = "nullable")]
    pub weights: Weights,
}

/// One of the tagged addresses of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaggedAddress {
    /// IP address or host name.
    #[serde(default, alias = "address")]
    pub address: String,
    /// 0: the instance's.
    #[serde(default, alias = "port")]
    pub port: i64,
}

/// Weights by health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// Of an instance whose checks all pass.
    #[serde(default = "one")]
    pub passing: i64,
    /// Of one with a warning.
    #[serde(default = "one")]
    pub warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

fn one() -> i64 {
    1
}

/// A check of a node or of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// Unique on its agent.
    #[serde(rename = "CheckID", default)]
    pub id: String,
    /// `passing`, `warning` or `critical`.
    #[serde(default)]
    pub status: String,
    /// Empty: a check of the node.
    #[serde(rename = "ServiceID", default)]
    pub service_id: String,
}

/// One instance of `GET /v1/catalog/service/:name`, whatever its health.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogEntry {
    /// Name of its node.
    #[serde(default)]
    pub node: String,
    /// Of the node.
    #[serde(default)]
    pub address: String,
    /// The datacenter.
    #[serde(default)]
    pub datacenter: String,
    /// Empty for an application.
    #[serde(default)]
    pub service_kind: String,
    /// Unique on its agent.
    #[serde(rename = "ServiceID", default)]
    pub service_id: String,
    /// Name of the service.
    #[serde(default)]
    pub service_name: String,
    /// In the order of the registration.
    #[serde(default, deserialize_with = "nullable")]
    pub service_tags: Vec<String>,
    /// Empty: the node's.
    #[serde(default)]
    pub service_address: String,
    /// 0: none.
    #[serde(default)]
    pub service_port: i64,
    /// Free pairs.
    #[serde(default, deserialize_with = "nullable")]
    pub service_meta: BTreeMap<String, String>,
    /// For DNS and balancers.
    #[serde(default, deserialize_with = "nullable")]
    pub service_weights: Weights,
}

/// `GET /v1/agent/self`, of which only this is read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSelf {
    /// Of the agent.
    pub config: AgentConfig,
}

/// Who the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentConfig {
    /// Its datacenter.
    pub datacenter: String,
    /// Its node's name.
    #[serde(default)]
    pub node_name: String,
    /// Of Consul.
    #[serde(default)]
    pub version: String,
}

/// Body of `PUT /v1/agent/service/register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// Unique on the agent; the same id replaces.
    #[serde(rename = "ID")]
    pub id: String,
    /// Name of the service.
    pub name: String,
    /// Sent as they are.
    pub tags: Vec<String>,
    /// IP address or host name.
    pub address: String,
    /// Of the instance.
    pub port: u16,
    /// At most 64 pairs; keys of `A-Z a-z 0-9 _ -`.
    pub meta: BTreeMap<String, String>,
    /// For DNS and balancers.
    pub weights: Weights,
    /// Kept alive by whoever registers.
    pub check: TtlCheck,
}

/// A check that fails unless somebody says otherwise in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TtlCheck {
    /// Unique on the agent.
    #[serde(rename = "CheckID")]
    pub id: String,
    /// For people.
    pub name: String,
    /// `15s`.
    #[serde(rename = "TTL")]
    pub ttl: String,
    /// Until it is first updated; `critical` where absent.
    pub status: String,
    /// At least `1m`; Consul looks every half minute.
    pub deregister_critical_service_after: String,
}

/// Body of `PUT /v1/agent/check/update/:id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckUpdate {
    /// `passing`, `warning` or `critical`.
    pub status: &'static str,
    /// For people.
    pub output: String,
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_null_or_absent_is_empty() {
        let text = r#"[{"Node":{"ID":"x","Node":"n1","Address":"10.0.0.5","Meta":null},
            "Service":{"ID":"web-1","Service":"web","Tags":null,"Address":"","Port":80,
                "TaggedAddresses":{"lan":{"address":"10.1.0.5","port":81}},"Weights":null},
            "Checks":null}]"#;
        let entries: Vec<ServiceEntry> = serde_json::from_str(text).unwrap();
        let entry = &entries[0];
        assert!(entry.service.tags.is_empty() && entry.checks.is_empty());
        assert_eq!(entry.service.weights, Weights { passing: 1, warning: 1 });
        let lan = TaggedAddress { address: "10.1.0.5".into(), port: 81 };
        assert_eq!(entry.service.tagged_addresses["lan"], lan);
    }

    #[test]
    fn the_flat_form_of_the_catalogue_is_read() {
        let text = r#"[{"ID":"u","Node":"n1","Address":"10.0.0.5","Datacenter":"dc1",
            "ServiceKind":"","ServiceID":"web-1","ServiceName":"web","ServiceTags":["v1"],
            "ServiceAddress":"","ServicePort":8080,"ServiceMeta":{},
            "ServiceWeights":{"Passing":3,"Warning":1},"ServiceConnect":{},"CreateIndex":1}]"#;
        let entries: Vec<CatalogEntry> = serde_json::from_str(text).unwrap();
        assert_eq!((entries[0].service_port, entries[0].service_weights.passing), (8080, 3));
        let tags: ServiceTags = serde_json::from_str(r#"{"web":["v1"],"consul":null}"#).unwrap();
        assert_eq!(tags["consul"], None);
    }
}
