//! What is counted of transition TLS, and when it ends. Read at each scrape.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use mesh_api::v1::TransitionTls;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{Transition, Until};

/// What came of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There is a connection, with a peer of the old kind.
    Ok,
    /// There is one, and its client has shown a certificate of the mesh.
    Mesh,
    /// There is one without TLS.
    Plaintext,
    /// A certificate was not good, on either side.
    Certificate,
    /// Something else was not.
    Failed,
    /// It took too long.
    Timeout,
    /// It was not begun: its time is over.
    Ended,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Mesh,
        Self::Plaintext,
        Self::Certificate,
        Self::Failed,
        Self::Timeout,
        Self::Ended,
    ];

    /// As the metric names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Mesh => "mesh",
            Self::Plaintext => "plaintext",
            Self::Certificate => "certificate",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Ended => "ended",
        }
    }

    /// Of a handshake that has failed.
    pub(super) fn of(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Self::Certificate
            }
            // RFC 8446 section 6.2: bad_certificate to certificate_unknown,
            // unknown_ca, access_denied, decrypt_error (a CA of the same name),
            // certificate_required.
            Some(rustls::Error::AlertReceived(alert))
                if matches!(u8::from(*alert), 42..=46 | 48 | 49 | 51 | 116) =>
            {
                Self::Certificate
            }
            Some(_) | None => Self::Failed,
        }
    }
}

/// Handshakes by what came of them.
#[derive(Debug, Default)]
pub(super) struct Handshakes([AtomicU64; Outcome::ALL.len()]);

impl Handshakes {
    pub(super) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// One line of the metrics.
pub(super) struct Shown<'a> {
    /// Name and value of the label that tells it from others.
    pub(super) label: (&'static str, String),
    pub(super) until: Until,
    pub(super) handshakes: &'a Handshakes,
}

impl Shown<'_> {
    pub(super) fn told(&self) -> TransitionTls {
        let (kind, name) = &self.label;
        TransitionTls {
            kind: (*kind).to_owned(),
            name: name.clone(),
            until_unix_s: i64::try_from(self.until.unix_seconds()).unwrap_or(i64::MAX),
        }
    }
}

impl Collector for Transition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut result = Ok(());
        self.show(&mut |all| result = encode(all, &mut encoder));
        result
    }
}

fn encode(all: &[Shown<'_>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    let mut gauge = encoder.encode_descriptor(
        "isthmus_transition_tls_until_seconds",
        "When TLS with certificates that are not of the mesh ends, since the Unix epoch",
        None,
        MetricType::Gauge,
    )?;
    for Shown { label, until, .. } in all {
        let labels = [label.clone()];
        gauge.encode_family(&labels)?.encode_gauge(&(until.unix_seconds() as f64))?;
    }
    let mut counter = encoder.encode_descriptor(
        "isthmus_transition_tls_handshakes",
        "Handshakes with certificates that are not of the mesh",
        None,
        MetricType::Counter,
    )?;
    for Shown { label, handshakes, .. } in all {
        for outcome in Outcome::ALL {
            let labels = [label.clone(), ("outcome", outcome.as_str().to_owned())];
            let count = handshakes.0[outcome as usize].load(Ordering::Relaxed);
            ConstCounter::new(count).encode(counter.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
