//! A listener whose clients speak TLS with a certificate that is not of the
//! mesh.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use mesh_core::carriage::Carriage;
use mesh_runtime::config::ConfigError;
use mesh_tunnel::Stream;
use rustls::{
    ServerConfig,
    server::{Acceptor, ClientHello, NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    Clock, H2, HTTP1,
    metrics::{Handshakes, Outcome, Shown},
    pem::{self, Fresh, PemFile},
    provider,
    until::Reminder,
};
use crate::config::{ListenerTls, ServiceListener};

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Door {
    listen: SocketAddr,
    tls: ListenerTls,
    configs: Fresh<Configs>,
    handshakes: Handshakes,
    reminder: Reminder,
}

/// By what is spoken inside.
#[derive(Debug)]
struct Configs {
    /// It offers the protocols of HTTP (RFC 7301).
    http: Arc<ServerConfig>,
    /// It offers none, and takes whatever the client offers for none.
    bytes: Arc<ServerConfig>,
}

impl Door {
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub(super) fn load(listener: &ServiceListener, tls: &ListenerTls) -> Result<Self, ConfigError> {
        let key = tls.key.as_ref().unwrap_or(&tls.certificate);
        let file = |path: &Path, private| PemFile { path: path.to_owned(), private };
        let mut files = vec![file(&tls.certificate, key == &tls.certificate), file(key, true)];
        files.extend(tls.client_ca.as_ref().map(|path| file(path, false)));
        let wanted = tls.clone();
        let configs = Fresh::load(files, move |texts| configs(&wanted, texts))?;
        let door = Self {
            listen: listener.listen,
            tls: tls.clone(),
            configs,
            handshakes: Handshakes::default(),
            reminder: Reminder::default(),
        };
        log::info!(listener:% = listener.listen, service = listener.service.as_str(), until:% = tls.until; "transition TLS: a listener has a certificate that is not of the mesh");
        Ok(door)
    }

    /// The connection inside TLS. Who gets none is told of in the log and the
    /// metrics, and the client by an alert, if at all.
    pub async fn accept(
        &self,
        carriage: Carriage,
        from: SocketAddr,
        mut stream: Stream,
    ) -> Option<Stream> {
        if self.tls.until.is_over() {
            self.handshakes.count(Outcome::Ended);
            log::info!(listener:% = self.listen, from:% = from, until:% = self.tls.until; "client is refused: transition TLS has ended");
            stream.abort_on_close();
            return None;
        }
        let handshake = self.handshake(carriage, stream);
        let (outcome, error) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                self.handshakes.count(Outcome::Ok);
                return Some(stream);
            }
            Ok(Err(error)) => (Outcome::of(&error), error.to_string()),
            Err(_) => (Outcome::Timeout, "no handshake in time".to_owned()),
        };
        self.handshakes.count(outcome);
        log::info!(listener:% = self.listen, from:% = from, outcome = outcome.as_str(), error = error.as_str(); "client is refused: no TLS with it");
        None
    }

    async fn handshake(&self, carriage: Carriage, stream: Stream) -> io::Result<Stream> {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let configs = self.configs.current();
        let http = match carriage {
            Carriage::Http => true,
            Carriage::Detect => offers_http(&begun.client_hello()),
            Carriage::Opaque | Carriage::Tls => false,
        };
        let config = if http { &configs.http } else { &configs.bytes };
        Ok(Box::new(begun.into_stream(config.clone()).await?))
    }

    pub(super) fn look_again(&self) {
        let what = format!("listener {}", self.listen);
        self.reminder.remind(&what, self.tls.until);
        self.configs.look_again(&what);
    }

    pub(super) fn shown(&self) -> Shown<'_> {
        let label = ("listener", self.listen.to_string());
        Shown { label, until: self.tls.until, handshakes: &self.handshakes }
    }
}

fn offers_http(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.any(|one| one == H2 || one == HTTP1))
}

fn configs(tls: &ListenerTls, texts: &[String]) -> Result<Configs, ConfigError> {
    let [certificate, key, client_ca @ ..] = texts else {
        return Err(pem::wrong(&tls.certificate, "files", "nothing was read"));
    };
    let chain = pem::certificates(&tls.certificate, certificate)?;
    let key_path = tls.key.as_ref().unwrap_or(&tls.certificate);
    let key = pem::key(key_path, key)?;
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_safe_default_protocol_versions()
        .map_err(|error| pem::wrong(&tls.certificate, "tls", error))?;
    let builder = match (&tls.client_ca, client_ca) {
        (None, _) => builder.with_no_client_auth(),
        (Some(path), [text]) => {
            let roots = pem::roots(path, text)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| pem::wrong(path, "client_ca", error))?;
            builder.with_client_cert_verifier(verifier)
        }
        (Some(path), _) => return Err(pem::wrong(path, "client_ca", "was not read")),
    };
    let mut bytes = builder
        .with_single_cert(chain, key)
        .map_err(|error| pem::wrong(&tls.certificate, "certificate and key", error))?;
    // A resumed session would not hear of new files.
    bytes.session_storage = Arc::new(NoServerSessionStorage {});
    bytes.send_tls13_tickets = 0;
    let mut http = bytes.clone();
    http.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    Ok(Configs { http: Arc::new(http), bytes: Arc::new(bytes) })
}
