//! Endpoints that have no proxy and want TLS with a certificate that is not of
//! the mesh.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::{Reason, ServiceName};
use mesh_runtime::config::ConfigError;
use mesh_tunnel::Stream;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio_rustls::TlsConnector;

use super::{
    Clock, H2, HTTP1, Until,
    metrics::{Handshakes, Outcome, Shown},
    pem::{self, Fresh, PemFile},
    provider,
    until::Reminder,
};
use crate::inner::mux::Spoken;

/// How long an endpoint may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// TLS towards the endpoints of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginTls {
    /// Which.
    pub service: ServiceName,
    /// Where they are dialled.
    pub targets: Vec<SocketAddr>,
    /// Who they must be.
    pub expected: Expected,
    /// Certificate and key that are shown to them, if they ask.
    pub shown: Option<(PathBuf, PathBuf)>,
    /// From then on there is no handshake.
    pub until: Until,
}

/// Who an endpoint must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Its certificate is for this name, and one of these has issued it.
    Named {
        /// PEM file.
        ca: PathBuf,
        /// It is told, too, where it is a name of DNS (SNI).
        name: ServerName<'static>,
    },
    /// Anybody.
    Anybody {
        /// It is told this name (SNI).
        name: Option<ServerName<'static>>,
    },
}

impl OriginTls {
    /// Whether the same is done with both, whatever service they are of.
    pub fn is_alike(&self, other: &Self) -> bool {
        let Self { expected, shown, until, .. } = self;
        (expected, shown, until) == (&other.expected, &other.shown, &other.until)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum OriginError {
    #[error("transition TLS has ended at {0}; see `tls` of the service")]
    Ended(Until),
    #[error("TLS: {0}")]
    Certificate(io::Error),
    #[error("TLS: {0}")]
    Failed(io::Error),
    #[error("TLS: no handshake in time")]
    Late,
}

impl OriginError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Ended(_) => Outcome::Ended,
            Self::Certificate(_) => Outcome::Certificate,
            Self::Failed(_) => Outcome::Failed,
            Self::Late => Outcome::Timeout,
        }
    }
}

impl From<OriginError> for io::Error {
    fn from(error: OriginError) -> Self {
        let kind = match error {
            OriginError::Ended(_) => io::ErrorKind::PermissionDenied,
            OriginError::Certificate(_) => io::ErrorKind::InvalidData,
            OriginError::Failed(ref error) => error.kind(),
            OriginError::Late => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// Why an application without a proxy has not been reached, as clients and logs
/// are told.
pub fn reason(error: &io::Error) -> Reason {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<OriginError>());
    match inner {
        Some(OriginError::Certificate(_)) => Reason::PeerIdentity,
        Some(_) | None => Reason::AppUnreachable,
    }
}

/// See the module.
#[derive(Debug)]
pub struct Origin {
    tls: OriginTls,
    /// What was told last, until there is a connection again.
    told: Mutex<Option<String>>,
    configs: Fresh<Vec<String>, Configs>,
    handshakes: Handshakes,
    reminder: Reminder,
}

/// By what is spoken inside; RFC 7301 has a name for two of them.
#[derive(Debug)]
struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    bytes: Arc<ClientConfig>,
}

impl Origin {
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub(super) fn load(tls: OriginTls) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        if let Expected::Named { ca, .. } = &tls.expected {
            files.push(PemFile { path: ca.clone(), private: false });
        }
        if let Some((certificate, key)) = &tls.shown {
            files.push(PemFile { path: certificate.clone(), private: false });
            files.push(PemFile { path: key.clone(), private: true });
        }
        let wanted = tls.clone();
        let configs =
            Fresh::load(move || pem::read_all(&files), move |texts| configs(&wanted, texts))?;
        let service = tls.service.as_str();
        log::info!(service = service, until:% = tls.until; "transition TLS: endpoints have certificates that are not of the mesh");
        if let Expected::Anybody { .. } = tls.expected {
            log::warn!(service = service; "transition TLS: whatever certificate its endpoints show is believed (`verify: none`)");
        }
        let (told, handshakes, reminder) = Default::default();
        Ok(Self { tls, told, configs, handshakes, reminder })
    }

    pub(super) fn tls(&self) -> &OriginTls {
        &self.tls
    }

    /// # Errors
    ///
    /// Its time is over.
    pub fn check(&self) -> io::Result<()> {
        if !self.is_over() {
            return Ok(());
        }
        Err(self.failed(OriginError::Ended(self.tls.until)))
    }

    /// Whether its time is over.
    pub fn is_over(&self) -> bool {
        self.tls.until.is_over()
    }

    /// A connection inside TLS.
    ///
    /// # Errors
    ///
    /// The endpoint is not who it must be, does not believe us, does not speak
    /// what is asked for, or takes too long.
    pub async fn connect(
        &self,
        target: SocketAddr,
        spoken: Spoken,
        stream: Stream,
    ) -> io::Result<Stream> {
        let handshake = self.handshake(target, spoken, stream);
        let error = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                self.handshakes.count(Outcome::Ok);
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Ok(stream);
            }
            Ok(Err(error)) if Outcome::of(&error) == Outcome::Certificate => {
                OriginError::Certificate(error)
            }
            Ok(Err(error)) => OriginError::Failed(error),
            Err(_) => OriginError::Late,
        };
        Err(self.failed(error))
    }

    /// Who cannot be reached is tried again and again: it is told once.
    fn failed(&self, error: OriginError) -> io::Error {
        self.handshakes.count(error.outcome());
        let text = error.to_string();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&text) {
            log::warn!(service = self.tls.service.as_str(), error = text.as_str(); "an endpoint is not reached in transition TLS");
            *told = Some(text);
        }
        error.into()
    }

    async fn handshake(
        &self,
        target: SocketAddr,
        spoken: Spoken,
        stream: Stream,
    ) -> io::Result<Stream> {
        let configs = self.configs.current();
        let config = match spoken {
            Spoken::Http1 => &configs.http1,
            Spoken::Http2 => &configs.http2,
            Spoken::Tcp => &configs.bytes,
        };
        let name = match &self.tls.expected {
            Expected::Named { name, .. } | Expected::Anybody { name: Some(name) } => name.clone(),
            // An address is nothing to ask for (RFC 6066 section 3).
            Expected::Anybody { name: None } => ServerName::IpAddress(target.ip().into()),
        };
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        // RFC 9113 section 3.2: over TLS it is chosen, and never just begun.
        if spoken == Spoken::Http2 && stream.get_ref().1.alpn_protocol() != Some(H2) {
            let text = "it has not chosen HTTP/2 (ALPN)";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Box::new(stream))
    }

    pub(super) fn look_again(&self) {
        let what = format!("endpoints of service {}", self.tls.service);
        self.reminder.remind(&what, self.tls.until);
        self.configs.look_again(&what);
    }

    pub(super) fn shown(&self) -> Shown<'_> {
        let label = ("service", self.tls.service.to_string());
        Shown { label, until: self.tls.until, handshakes: &self.handshakes }
    }
}

fn configs(tls: &OriginTls, texts: &[String]) -> Result<Configs, ConfigError> {
    let place = format!("service {}", tls.service);
    let wrong = |problem: String| ConfigError::meaning(&place, "tls", problem);
    let mut texts = texts.iter();
    let mut next = || texts.next().map(String::as_str).unwrap_or_default();
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = match &tls.expected {
        Expected::Named { ca, .. } => builder.with_root_certificates(pem::roots(ca, next())?),
        Expected::Anybody { .. } => builder
            .dangerous() // rustls' word for a verifier of one's own
            .with_custom_certificate_verifier(Arc::new(BelievesAnybody(provider()))),
    };
    let mut bytes = match &tls.shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = pem::certificates(certificate, next())?;
            let key = pem::key(key, next())?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(error.to_string()))?
        }
    };
    // A resumed session would not hear of new files.
    bytes.resumption = Resumption::disabled();
    let with = |alpn: &[u8]| {
        let mut config = bytes.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    };
    Ok(Configs { http1: with(HTTP1), http2: with(H2), bytes: Arc::new(bytes.clone()) })
}

/// `verify: none`: who answers has the key of what it shows, and no more is
/// known of it.
#[derive(Debug)]
struct BelievesAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for BelievesAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
