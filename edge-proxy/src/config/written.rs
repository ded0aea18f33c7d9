//! `proxy.yaml` as it is written; [`super::file`] is what it means.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    str::FromStr,
};

use mesh_core::{Cidr, GatewayId, PortName, ServiceName, TrustDomain};
use mesh_manifest::duration::ManifestDuration;
use mesh_runtime::config::HumanDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    DtabOverride, Forwarded, ListenerTls, SniListener,
    manner::{Errors, Paths, Underscores},
    tracing::TracingFile,
};
use crate::access_log::AccessLogFormat;

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let addr = text.parse();
        addr.map(|addr| Self(Some(addr)))
            .map_err(|_| format!("{text:?}: write <ip>:<port>, e.g. 127.0.0.1:4140, or off"))
    }
}

/// Reads anything that is written as a string.
pub(crate) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err: Display>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Visitor(std::marker::PhantomData))
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// The same of services that requests may choose.
fn overrides<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DtabOverride>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "parsed")] DtabOverride);
    let all = Vec::<One>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|One(one)| one).collect())
}

/// The same of a list.
fn blocks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cidr>, D::Error> {
    #[derive(Deserialize)]
    struct Block(#[serde(deserialize_with = "parsed")] Cidr);
    let blocks = Vec::<Block>::deserialize(deserializer)?;
    Ok(blocks.into_iter().map(|Block(block)| block).collect())
}

/// The configuration of `edge-proxy`: `proxy.yaml`, or `gateway.yaml`.
/// Everything may be left out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Proxy")]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    /// What this proxy is for.
    #[schemars(extend("default" = "node"))]
    pub(super) role: RoleFile,
    /// Where certificate and key come from. Where absent: the socket
    /// `/run/isthmus/identity.sock` (role gateway: `gateway-identity.sock`
    /// there); with `snapshot`: none, which does for endpoints in `plaintext`.
    pub(super) identity: Option<IdentityFile>,
    /// Services and endpoints from a file; from the site's federation where
    /// absent.
    pub(super) snapshot: Option<SnapshotFile>,
    /// Threads that carry traffic, 1 to 64; one per core, at most 4, where
    /// absent.
    pub(super) workers: Option<usize>,
    /// `<ip>:<port>` where applications send HTTP for any service, or `off`;
    /// `off` in role gateway.
    #[schemars(with = "Option<String>", extend("default" = "127.0.0.1:4140"))]
    pub(super) http_listener: Option<Listen>,
    /// `<ip>:<port>` where captured traffic arrives (nftables `redirect` or
    /// `dnat`), or `off`. At 127.0.0.1 it is `[::1]`, too. What is for no
    /// service goes on to where it was bound for.
    #[schemars(with = "Option<String>", extend("default" = "off"))]
    pub(super) transparent: Option<Listen>,
    /// `<ip>:<port>` where the mesh calls this proxy's applications, or `off`.
    #[schemars(with = "Option<String>", extend("default" = "off"))]
    pub(super) inbound: Option<Listen>,
    /// Listeners for clients that are not of the mesh, in plaintext: for one
    /// port of one of this proxy's own services each, at most 256. Whom they let
    /// in says a Server (`all-unauthenticated`, `cluster-unauthenticated`,
    /// `audit`) or an AuthorizationPolicy with nothing but a
    /// NetworkAuthentication; without one nobody.
    pub(super) inbound_plaintext: Vec<ListenerFile>,
    /// Listeners for one port of one service each, at most 256.
    pub(super) listeners: Vec<ListenerFile>,
    /// Listeners for TLS to any service, at most 16; the client names it (SNI).
    pub(super) sni_listeners: Vec<SniListener>,
    /// What becomes of `X-Forwarded-*` and `Forwarded` of clients.
    pub(super) forwarded: Forwarded,
    /// Others serve at the addresses of this proxy when it ends: clients are let
    /// go before, as it is in any case where the service manager has its sockets.
    pub(super) has_successor: bool,
    /// Tells applications of callers' certificates with
    /// `X-Forwarded-Client-Cert` (By, Hash, URI), as Envoy writes it; what
    /// callers say under that name is removed in any case.
    pub(super) forwarded_client_cert: bool,
    /// `<ip>:<port>` of `/metrics`, `/live` and `/ready`, or `off`.
    #[schemars(with = "Option<String>", extend("default" = "127.0.0.1:4191"))]
    pub(super) admin: Option<Listen>,
    /// One line per request to `stdout`, `stderr`, `journald`, a file (a path
    /// with a `/` in it, appended to), or `off`.
    #[schemars(extend("default" = "stdout"))]
    pub(super) access_log: Option<String>,
    /// How lines of the access log are written.
    #[schemars(extend("default" = "json"))]
    pub(super) access_log_format: AccessLogFormat,
    /// Where spans of requests go; without it, headers of traces pass as they
    /// are.
    pub(super) tracing: Option<TracingFile>,
    /// `<ip>:<port>` (UDP) that takes figures of requests as statsd has them.
    #[schemars(with = "Option<String>")]
    pub(super) statsd: Option<SocketAddr>,
    /// Path of the Unix socket where this user and root look at requests
    /// (`meshctl tap`, `meshctl top`); none where absent.
    pub(super) control_socket: Option<PathBuf>,
    /// Mebibytes that this process may hold before it takes in no new
    /// connection and no new request; four fifths of what its machine or its
    /// control group has where absent.
    pub(super) memory_limit_mib: Option<NonZeroU32>,
    /// How long requests may finish after SIGTERM; who of the mesh has nowhere
    /// else to go is served meanwhile.
    #[schemars(with = "Option<ManifestDuration>", extend("default" = "20s"))]
    pub(super) drain_timeout: Option<HumanDuration>,
    /// How long opaque connections may go on after SIGTERM; as `drain_timeout`
    /// where absent.
    #[schemars(with = "Option<ManifestDuration>")]
    pub(super) opaque_drain_timeout: Option<HumanDuration>,
    /// How long connections may go on here after SIGHUP or SIGUSR2, when a
    /// successor has taken over; then they end as after SIGTERM.
    #[schemars(with = "Option<ManifestDuration>", extend("default" = "15m"))]
    pub(super) handover_timeout: Option<HumanDuration>,
    /// Directory that holds the last snapshot and the last identity;
    /// `/var/lib/isthmus/proxy` (role gateway: `/var/lib/isthmus/gateway`)
    /// where absent. Nothing is written where both come from files.
    pub(super) state: Option<PathBuf>,
    /// File in which this proxy keeps names of services and their virtual
    /// addresses for `vm-agent dns`; none where absent.
    pub(super) names_file: Option<PathBuf>,
    /// Where this proxy is, for nearness; what its machine says where absent.
    pub(super) locality: LocalityFile,
    /// The doors of a gateway; for role gateway only, and needed there.
    pub(super) gateway: Option<GatewayFile>,
    /// `<ip>:<port>` where captured traffic to the applications of this host
    /// arrives (nftables `redirect`), or `off`: of clients that are not of the
    /// mesh. To a port of an own service the policy lets them in, as at
    /// `inbound_plaintext`; to any other they go on.
    #[schemars(with = "Option<String>", extend("default" = "off"))]
    pub(super) inbound_transparent: Option<Listen>,
    /// What the platform asks applications to see how they do; it is let in at
    /// `inbound_transparent` and `inbound_plaintext` whatever policies say.
    pub(super) inbound_probes: Vec<Probe>,
    /// Addresses and CIDR blocks whose clients may use an `http_listener` or
    /// `sni_listeners` off loopback; loopback always may.
    #[serde(deserialize_with = "blocks")]
    #[schemars(with = "Vec<String>")]
    pub(super) allow_from: Vec<Cidr>,
    /// Services that a request at `http_listener` may choose instead of the one that
    /// it names, by `l5d-dtab` or `l5d-ctx-dtab` (`/svc/<service> => /svc/<service>`),
    /// as applications behind Linkerd 1.x do: `<name>.<namespace>`, `*.<namespace>` or
    /// `*`. Without it those headers pass as they are.
    #[serde(deserialize_with = "overrides")]
    #[schemars(with = "Vec<String>")]
    pub(super) dtab_overrides: Vec<DtabOverride>,
}

/// What the platform asks an application.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Where the application listens.
    pub port: u16,
    /// Of a request with GET or HEAD, or of gRPC's health check; where absent
    /// a connection is all that is asked for.
    pub path: Option<String>,
}

/// What a proxy is for.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Role")]
#[serde(rename_all = "lowercase")]
pub(super) enum RoleFile {
    /// All workloads of one identity on one machine.
    #[default]
    Node,
    /// One workload.
    Sidecar,
    /// A site's border.
    Gateway,
}

/// Where certificate and key come from: one of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Identity")]
#[serde(deny_unknown_fields, default)]
pub(super) struct IdentityFile {
    /// Path of the `WorkloadIdentity` socket of vm-agent or federation.
    pub(super) socket: Option<PathBuf>,
    /// PEM files, looked at every 10 s and taken anew when they change.
    pub(super) files: Option<IdentityFilesFile>,
    /// A token of the platform, shown to federation: for pods of Kubernetes.
    pub(super) attest: Option<AttestFile>,
}

/// How a proxy proves who it is where no agent vouches for it.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Attest")]
#[serde(deny_unknown_fields)]
pub(super) struct AttestFile {
    /// The token, e.g. a projected one of a service account; read anew for each
    /// certificate.
    pub(super) token: PathBuf,
    /// Roots of the own trust domain, PEM.
    pub(super) roots: PathBuf,
    /// `<host>:<port>` of federation's gRPC listener.
    pub(super) federation: String,
    /// The own trust domain.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) trust_domain: TrustDomain,
}

/// PEM files that hold an identity and whom it believes.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "IdentityFiles")]
#[serde(deny_unknown_fields)]
pub(super) struct IdentityFilesFile {
    /// The certificate with the SPIFFE ID, then its issuing CA's.
    pub(super) certificate: PathBuf,
    /// Its key, PKCS#8, readable by its owner alone (mode 0600).
    pub(super) key: PathBuf,
    /// Roots by trust domain: `<domain>: <file>`; at least the own one.
    pub(super) bundles: BTreeMap<String, PathBuf>,
}

/// A static snapshot.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Snapshot")]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotFile {
    /// The site file, relative to this one; read once.
    pub(super) file: PathBuf,
}

/// A listener for one port of one service.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Listener")]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerFile {
    /// `<ip>:<port>`; each only once.
    #[schemars(with = "String")]
    pub(super) listen: SocketAddr,
    /// `<name>.<namespace>`.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) service: ServiceName,
    /// Name of one of the service's ports.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub(super) port: PortName,
    /// For clients that speak TLS with certificates that are not of the mesh;
    /// plaintext where absent. Only in `listeners`.
    #[serde(default)]
    pub(super) tls: Option<ListenerTls>,
    /// What rules and applications see of paths; as they are sent where absent.
    /// Only in `listeners`.
    #[serde(default)]
    pub(super) paths: Option<Paths>,
    /// Instead of the proxy's `forwarded`. Only in `listeners`.
    #[serde(default)]
    pub(super) forwarded: Option<Forwarded>,
    /// What becomes of headers with `_` in their names, which applications may
    /// take for those with `-`. Only in `listeners`.
    #[serde(default)]
    pub(super) headers_with_underscores: Underscores,
    /// What answers of this proxy itself say to clients. Only in `listeners`.
    #[serde(default)]
    pub(super) errors: Errors,
}

impl ListenerFile {
    pub(super) fn plain(listen: SocketAddr, service: ServiceName, port: PortName) -> Self {
        let (tls, paths, forwarded) = (None, None, None);
        let (headers_with_underscores, errors) = (Underscores::default(), Errors::default());
        Self { listen, service, port, tls, paths, forwarded, headers_with_underscores, errors }
    }
}

/// Where a proxy is, for nearness.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Locality")]
#[serde(deny_unknown_fields, default)]
pub(super) struct LocalityFile {
    /// At most 64 bytes.
    pub(super) region: String,
    /// At most 64 bytes.
    pub(super) zone: String,
    /// At most 64 bytes.
    pub(super) host: String,
}

/// The doors of a gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Gateway")]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayFile {
    /// Its id in its site, e.g. `gw-1`; known to the identity source where
    /// absent, and needed with identity from files.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) id: Option<GatewayIdFile>,
    /// `<ip>:<port>` (UDP) for tunnels over QUIC, or `off`.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("default" = "off"))]
    pub(super) quic: Option<Listen>,
    /// `<ip>:<port>` (TCP) for tunnels over TLS, and for joining.
    #[schemars(with = "String")]
    pub(super) tls: SocketAddr,
}

/// JSON Schema of the file.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(ConfigFile)
}

#[derive(Debug)]
pub(super) struct GatewayIdFile(pub(super) GatewayId);

impl<'de> Deserialize<'de> for GatewayIdFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}
