//! A listener whose clients speak TLS with a certificate that is not of the
//! mesh.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mesh_core::carriage::Carriage;
use mesh_runtime::config::{self, ConfigError};
use mesh_tunnel::{Credentials, Stream};
use rustls::{
    ServerConfig,
    server::{Acceptor, ClientHello, NoServerSessionStorage},
};
use tokio::io::AsyncReadExt;
use tokio_rustls::LazyConfigAcceptor;

use super::{
    Clock, H2, HTTP1,
    chosen::{self, Chosen},
    clients,
    metrics::{Handshakes, Outcome, Shown},
    pem::{self, Fresh},
    provider,
    until::Reminder,
};
use crate::{
    config::{
        ListenerTls, ServiceListener,
        transition::{AlpnProtocol, TlsVersion},
    },
    prefixed::Prefixed,
};

/// How long a client may take for its handshake, or for its first byte where it
/// need not have one.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What TLS begins with (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// See the module.
#[derive(Debug)]
pub struct Door {
    listen: SocketAddr,
    tls: ListenerTls,
    credentials: Arc<Credentials>,
    configs: Fresh<Read, Configs>,
    handshakes: Handshakes,
    reminder: Reminder,
}

/// By what is spoken inside.
#[derive(Debug)]
struct Configs {
    /// It offers the protocols of HTTP that it has (RFC 7301).
    http: Arc<ServerConfig>,
    /// It offers none, and takes whatever the client offers for none.
    bytes: Arc<ServerConfig>,
}

/// A client that may come in.
#[derive(Debug)]
pub enum Arrived {
    /// Inside TLS.
    Decrypted(Stream),
    /// Without.
    Plaintext(Stream),
}

/// What its files say.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    pairs: Vec<chosen::Pair>,
    clients: clients::Texts,
}

impl Door {
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub(super) fn load(
        listener: &ServiceListener,
        tls: &ListenerTls,
        credentials: &Arc<Credentials>,
    ) -> Result<Self, ConfigError> {
        let (wanted, believed) = (tls.clone(), credentials.clone());
        let make = move |read: &Read| configs(&wanted, read, &believed);
        let wanted = tls.clone();
        let configs = Fresh::load(move || read(&wanted), make)?;
        let door = Self {
            listen: listener.listen,
            tls: tls.clone(),
            credentials: credentials.clone(),
            configs,
            handshakes: Handshakes::default(),
            reminder: Reminder::default(),
        };
        log::info!(listener:% = listener.listen, service = listener.service.as_str(), until:% = tls.until; "transition TLS: a listener has a certificate that is not of the mesh");
        if tls.plaintext {
            log::warn!(listener:% = listener.listen, until:% = tls.until; "transition TLS: clients may come without TLS, too (`plaintext: true`)");
        }
        Ok(door)
    }

    /// The connection as its client means it. Who gets none is told of in the
    /// log and the metrics, and the client by an alert, if at all.
    pub async fn accept(
        &self,
        carriage: Carriage,
        from: SocketAddr,
        mut stream: Stream,
    ) -> Option<Arrived> {
        if self.tls.until.is_over() {
            self.handshakes.count(Outcome::Ended);
            log::info!(listener:% = self.listen, from:% = from, until:% = self.tls.until; "client is refused: transition TLS has ended");
            stream.abort_on_close();
            return None;
        }
        let arriving = self.arriving(carriage, stream);
        let (outcome, error) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, arriving).await {
            Ok(Ok((arrived, outcome))) => {
                self.handshakes.count(outcome);
                return Some(arrived);
            }
            Ok(Err(error)) => (Outcome::of(&error), error.to_string()),
            Err(_) => (Outcome::Timeout, "no handshake in time".to_owned()),
        };
        self.handshakes.count(outcome);
        log::info!(listener:% = self.listen, from:% = from, outcome = outcome.as_str(), error = error.as_str(); "client is refused: no TLS with it");
        None
    }

    async fn arriving(
        &self,
        carriage: Carriage,
        mut stream: Stream,
    ) -> io::Result<(Arrived, Outcome)> {
        if self.tls.plaintext {
            let first = stream.read_u8().await?;
            stream = Box::new(Prefixed::new(vec![first].into(), stream));
            if first != TLS_HANDSHAKE {
                return Ok((Arrived::Plaintext(stream), Outcome::Plaintext));
            }
        }
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let configs = self.configs.current();
        let http = match carriage {
            Carriage::Http => true,
            Carriage::Detect => self.offers_http(&begun.client_hello()),
            Carriage::Opaque | Carriage::Tls => false,
        };
        let config = if http { &configs.http } else { &configs.bytes };
        let stream = begun.into_stream(config.clone()).await?;
        let outcome = match stream.get_ref().1.peer_certificates() {
            Some(chain)
                if self.tls.mesh_clients && clients::is_of_mesh(&self.credentials, chain) =>
            {
                Outcome::Mesh
            }
            _ => Outcome::Ok,
        };
        Ok((Arrived::Decrypted(Box::new(stream)), outcome))
    }

    fn offers_http(&self, hello: &ClientHello<'_>) -> bool {
        let is_ours = |offered: &[u8]| self.tls.alpn().iter().any(|own| name(*own) == offered);
        hello.alpn().is_some_and(|mut offered| offered.any(is_ours))
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

fn name(protocol: AlpnProtocol) -> &'static [u8] {
    match protocol {
        AlpnProtocol::H2 => H2,
        AlpnProtocol::Http1 => HTTP1,
    }
}

fn read(tls: &ListenerTls) -> Result<Read, ConfigError> {
    let text = |path: &Option<PathBuf>| path.as_deref().map(config::read).transpose();
    let clients = clients::Texts { client_ca: text(&tls.client_ca)?, crl: text(&tls.crl)? };
    Ok(Read { pairs: chosen::read(tls)?, clients })
}

fn configs(
    tls: &ListenerTls,
    read: &Read,
    credentials: &Arc<Credentials>,
) -> Result<Configs, ConfigError> {
    let versions: Vec<_> = tls
        .versions()
        .iter()
        .map(|version| match version {
            TlsVersion::Tls12 => &rustls::version::TLS12,
            TlsVersion::Tls13 => &rustls::version::TLS13,
        })
        .collect();
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_protocol_versions(&versions)
        .map_err(|error| pem::wrong(&tls.certificate, "tls", error))?;
    let builder = match clients::asked_for(tls, &read.clients, credentials)? {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
    };
    let chosen = Chosen::of(&read.pairs, tls)?;
    let mut bytes = builder.with_cert_resolver(Arc::new(chosen));
    // A resumed session would not hear of new files.
    bytes.session_storage = Arc::new(NoServerSessionStorage {});
    bytes.send_tls13_tickets = 0;
    let mut http = bytes.clone();
    http.alpn_protocols = tls.alpn().iter().map(|own| name(*own).to_vec()).collect();
    Ok(Configs { http: Arc::new(http), bytes: Arc::new(bytes) })
}
