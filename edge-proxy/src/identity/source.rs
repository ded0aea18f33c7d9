//! Who issues: vm-agent or federation on a Unix socket of this host, who know
//! this proxy by its user; or federation, to whom the platform's token says
//! who this is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_api::v1::workload_identity_client::WorkloadIdentityClient;
use mesh_core::TrustBundle;
use mesh_tunnel::{
    Credentials, Net, Trust,
    control::{self, Route},
    unix,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::IdentityError;
use crate::config::Attest;

/// How often an agent is asked what this proxy is: how soon it is noticed that
/// the machine has left its site, or was asleep and its certificate is due.
const LOOK: Duration = Duration::from_secs(5);
/// How often federation is: the platform reviews a token each time, and ends
/// the proxies of what is no more by itself.
const LOOK_FAR: Duration = Duration::from_secs(300);
/// The longest token, in bytes.
const MAX_TOKEN: u64 = 8 * 1024;
/// The longest file of roots, in bytes.
const MAX_ROOTS: u64 = 1 << 20;

/// A conversation with who issues.
pub(super) type Client = WorkloadIdentityClient<InterceptedService<Channel, Bearer>>;

/// Who issues.
pub(super) enum Issuer {
    Socket(PathBuf),
    Federation(Attest),
}

impl Issuer {
    pub(super) fn look(&self) -> Duration {
        match self {
            Self::Socket(_) => LOOK,
            Self::Federation(_) => LOOK_FAR,
        }
    }

    pub(super) async fn connect(&self, net: &Arc<dyn Net>) -> Result<Client, IdentityError> {
        match self {
            Self::Socket(socket) => {
                let channel = unix::channel_over(net.clone(), socket).await;
                let who = if is_gateway_socket(socket) { "isthmus-federation" } else { "vm-agent" };
                let unreachable = |source| IdentityError::Unreachable { who, source };
                Ok(client(channel.map_err(unreachable)?, Bearer(None)))
            }
            Self::Federation(attest) => {
                let token = Bearer(Some(token(&attest.token)?));
                // Only the file's roots: what a linked site's could vouch for
                // is not our federation.
                let credentials = Credentials::new(None, roots(attest)?);
                let route = Route::DirectJoin(net.clone(), attest.federation.clone());
                let channel = control::channel(route, &credentials, &attest.trust_domain);
                let federation = || attest.federation.clone();
                let unreachable =
                    |source| IdentityError::NoFederation { federation: federation(), source };
                Ok(client(channel.await.map_err(unreachable)?, token))
            }
        }
    }
}

fn client(channel: Channel, bearer: Bearer) -> Client {
    WorkloadIdentityClient::with_interceptor(channel, bearer)
}

/// Adds the token to every call.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

fn token(path: &Path) -> Result<MetadataValue<Ascii>, IdentityError> {
    let wrong = |problem: String| file("token", path, problem);
    let text = read(path, MAX_TOKEN).map_err(&wrong)?;
    let text = String::from_utf8(text).map_err(|_| wrong("is not text".into()))?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
        .parse()
        .map_err(|_| wrong("is not one line of ASCII".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn roots(attest: &Attest) -> Result<Trust, IdentityError> {
    let wrong = |problem: String| file("roots", &attest.roots, problem);
    let pem = read(&attest.roots, MAX_ROOTS).map_err(&wrong)?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(|error| wrong(format!("not PEM: {error}")))?;
    if roots.is_empty() {
        return Err(wrong("holds no PEM certificate".into()));
    }
    let domain = attest.trust_domain.clone();
    let bundle = Arc::new(TrustBundle::of_roots(domain.clone(), roots));
    let bundles = [(domain, bundle)].into_iter().collect();
    Ok(Trust { bundles: Arc::new(bundles), ..Trust::default() })
}

fn file(what: &'static str, path: &Path, problem: String) -> IdentityError {
    IdentityError::File { what, path: path.to_owned(), problem }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;

    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(limit + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > limit {
        return Err(format!("is longer than {limit} bytes"));
    }
    Ok(text)
}

fn is_gateway_socket(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("gateway"))
}
