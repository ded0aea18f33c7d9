//! The site file as it is written: all that a proxy without a control plane
//! knows of its mesh. [`super::snapshot`] is what it means.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use mesh_core::{GatewayId, PortName, ServiceName, SiteName, SpiffeId, TrustDomain};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{config::written::parsed, transition::Until};

/// The site file of `edge-proxy` (`snapshot.file`): services and their
/// endpoints, gateways, links, and rules about traffic.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Site")]
#[serde(deny_unknown_fields)]
pub(super) struct SiteFile {
    /// Name of the site that this proxy belongs to.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) site: SiteName,
    /// SPIFFE trust domain of the site, e.g. `west.example`.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) trust_domain: TrustDomain,
    /// Services that can be called, and those whose endpoints this proxy serves.
    #[serde(default)]
    pub(super) services: Vec<ServiceFile>,
    /// Gateways of this and of linked sites.
    #[serde(default)]
    pub(super) gateways: Vec<GatewayFile>,
    /// Linked sites.
    #[serde(default)]
    pub(super) links: Vec<LinkFile>,
    /// Files of rules about traffic (documents of `rules`, separated by `---`),
    /// relative to this file.
    #[serde(default)]
    pub(super) manifests: Vec<PathBuf>,
    /// Rules about traffic: the documents that `meshctl apply` takes. One for
    /// a service that is not in this file is refused.
    #[serde(default)]
    #[schemars(with = "Vec<mesh_manifest::Document>")]
    pub(super) rules: Vec<serde_json::Value>,
}

/// A service of the site file.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Service")]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceFile {
    /// `<name>.<namespace>`, e.g. `orders.shop`.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) name: ServiceName,
    /// What it offers.
    pub(super) ports: Vec<PortFile>,
    /// Address that captured traffic for it is sent to; without one, traffic
    /// for it cannot be captured.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) virtual_address: Option<IpAddr>,
    /// Linked sites whose workloads may call it.
    #[serde(default)]
    pub(super) exported_to: Vec<String>,
    /// Linked sites whose endpoints belong to it too.
    #[serde(default)]
    pub(super) imported_from: Vec<String>,
    /// Who may call: anyone of the list, and whom `rules` allow. Where absent:
    /// whom `rules` allow; without such rules every identity of the own trust
    /// domain and of `exported_to`. An empty list is nobody.
    #[serde(default)]
    pub(super) allow: Option<Vec<PrincipalFile>>,
    /// Its endpoints, which all are in `plaintext`, are spoken to in TLS with
    /// certificates that are not of the mesh; without it, in no TLS at all.
    #[serde(default)]
    pub(super) tls: Option<OriginTlsFile>,
    /// Places that answer for it.
    #[serde(default)]
    pub(super) endpoints: Vec<EndpointFile>,
}

/// TLS towards applications that have no proxy yet, with certificates that are
/// not of the mesh. It has an end. No policy of the mesh knows who answers.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EndpointTls")]
#[serde(deny_unknown_fields)]
pub(super) struct OriginTlsFile {
    /// PEM file, relative to this one: one of these has issued the endpoint's
    /// certificate. It, and the other files, are looked at every 10 s and taken
    /// anew when they change.
    #[serde(default)]
    pub(super) ca: Option<PathBuf>,
    /// What the certificate must be for, and what the endpoint is asked for
    /// (SNI).
    #[serde(default)]
    pub(super) name: Option<String>,
    /// What its certificate must be.
    #[serde(default)]
    #[schemars(extend("default" = "name"))]
    pub(super) verify: VerifyFile,
    /// PEM file: the certificate that is shown to it, then those that issued
    /// it; none where absent.
    #[serde(default)]
    pub(super) certificate: Option<PathBuf>,
    /// PEM file: its key, which not everybody may read; where absent, in the
    /// file of the certificate.
    #[serde(default)]
    pub(super) key: Option<PathBuf>,
    /// From then on no connection is opened: a date (00:00 UTC) or a time
    /// (RFC 3339). Warnings begin 14 days before.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) until: Until,
}

/// What the certificate of an endpoint must be.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Verify")]
#[serde(rename_all = "lowercase")]
pub(super) enum VerifyFile {
    /// For `name`, by `ca`.
    #[default]
    Name,
    /// Anything: whoever answers is believed.
    None,
}

/// A port of a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Port")]
#[serde(deny_unknown_fields)]
pub(super) struct PortFile {
    /// How endpoints, listeners and rules name it.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) name: PortName,
    /// The number that clients dial, 1 to 65535.
    pub(super) port: u16,
    /// What is spoken there.
    #[serde(default)]
    #[schemars(extend("default" = "detect"))]
    pub(super) protocol: ProtocolFile,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Protocol")]
#[serde(rename_all = "lowercase")]
pub(super) enum ProtocolFile {
    /// HTTP/1, HTTP/2, or bytes, by the first that a client sends.
    #[default]
    Detect,
    /// HTTP/1, and HTTP/2 with prior knowledge.
    Http,
    /// HTTP/2 with prior knowledge.
    Grpc,
    /// Bytes, not looked at.
    Tcp,
    /// The same, of TLS: rules may look at whom the client asks for.
    Tls,
}

/// Who may call; an absent part is any.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Principal")]
#[serde(deny_unknown_fields, default)]
pub(super) struct PrincipalFile {
    /// Trust domain of the caller; the own one where absent.
    pub(super) trust_domain: String,
    /// Namespace of the caller; any where absent.
    pub(super) namespace: String,
    /// Account of the caller; any where absent.
    pub(super) account: String,
}

/// One place that answers for one port of a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Endpoint")]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointFile {
    /// Unique in its site; from service and place in the list where absent.
    #[serde(default)]
    pub(super) id: String,
    /// Name of the service's port.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) port: PortName,
    /// Site where it runs; the own one where absent.
    #[serde(default)]
    pub(super) site: String,
    /// SPIFFE ID that its proxy must prove; not with `plaintext`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) identity: Option<SpiffeIdFile>,
    /// It is an application without a proxy, dialled at `target` without TLS of
    /// the mesh: no identity proves who answers, and no policy is asked.
    #[serde(default)]
    pub(super) plaintext: bool,
    /// `<ip>:<port>` of its proxy's inbound listener; absent where a gateway
    /// leads there.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) proxy: Option<SocketAddr>,
    /// `<ip>:<port>` of the application, as its proxy (or, with `plaintext`,
    /// this proxy) dials it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) target: Option<SocketAddr>,
    /// Its part of the requests, beside other endpoints; 0 takes none.
    #[serde(default = "one")]
    pub(super) weight: u32,
    /// Requests at once that it is good for; 0 is unknown.
    #[serde(default)]
    pub(super) capacity: u32,
    /// 0 first; one of a higher number takes requests only while nobody of a
    /// lower one can.
    #[serde(default)]
    pub(super) priority: u32,
    /// Where it is, for nearness.
    #[serde(default)]
    pub(super) region: String,
    /// Where it is, for nearness.
    #[serde(default)]
    pub(super) zone: String,
    /// UUID of its machine, if that holds a session with a gateway.
    #[serde(default)]
    pub(super) node: String,
    /// Ids of the gateways that its machine holds sessions with.
    #[serde(default)]
    pub(super) via: Vec<String>,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
pub(super) struct SpiffeIdFile(#[serde(deserialize_with = "parsed")] pub(super) SpiffeId);

/// A gateway of this or of a linked site.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SiteGateway")]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayFile {
    /// Its id in its site, e.g. `gw-1`.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) id: GatewayId,
    /// Its site; the own one where absent.
    #[serde(default)]
    pub(super) site: String,
    /// `<host>:<port>` where it takes tunnels over QUIC (UDP).
    #[serde(default)]
    pub(super) quic: Vec<String>,
    /// `<host>:<port>` where it takes tunnels over TLS (TCP).
    #[serde(default)]
    pub(super) tls: Vec<String>,
}

/// A linked site.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Link")]
#[serde(deny_unknown_fields)]
pub(super) struct LinkFile {
    /// The other site.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) site: SiteName,
    /// Its trust domain.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) trust_domain: TrustDomain,
    /// Our gateways dial theirs; one side of a link says so.
    #[serde(default)]
    pub(super) dial: bool,
    /// What tunnels between the gateways use.
    #[serde(default)]
    #[schemars(extend("default" = "raced"))]
    pub(super) transport: TransportFile,
}

/// What tunnels between gateways use.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Transport")]
#[serde(rename_all = "lowercase")]
pub(super) enum TransportFile {
    /// QUIC first, TLS 250 ms later; who is there first is used.
    #[default]
    Raced,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tls,
}
