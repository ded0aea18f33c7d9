//! Certificates held, peers verified, and TLS configurations made of both.
//!
//! TLS 1.3 only, aws-lc-rs, X25519MLKEM768 first, no resumption, no early
//! data. Peers are verified by `mesh_core::verify_peer` and nothing else.

use std::sync::Arc;

use mesh_core::{Allowed, PeerIdentity, SpiffeId, TrustBundles, VerifyError, identity::Revocations};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

/// A certificate with its key.
#[derive(Debug)]
pub struct Svid {
    /// Whom it names.
    pub id: SpiffeId,
    /// Leaf first, then the issuing CA. For the join door the root follows.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// End of the leaf.
    pub not_after: UnixTime,
}

/// What this process can prove and whom it believes; both are replaced while
/// sessions run, and every new handshake sees the newest.
#[derive(Debug)]
pub struct Credentials {}

/// Whom it believes.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Roots per trust domain.
    pub bundles: Arc<TrustBundles>,
    /// What is no longer accepted.
    pub revocations: Arc<Revocations>,
}

impl Credentials {
    /// Starts with an SVID (if there is one already) and a trust.
    pub fn new(_svid: Option<Svid>, _trust: Trust) -> Arc<Self> {
        unimplemented!()
    }

    /// Replaces the SVID.
    pub fn replace_svid(&self, _svid: Svid) {
        unimplemented!()
    }

    /// Replaces the trust; sessions whose peer is no longer believed are cut
    /// by their owners, who watch [`Credentials::changed`].
    pub fn replace_trust(&self, _trust: Trust) {
        unimplemented!()
    }

    /// The current SVID.
    pub fn svid(&self) -> Option<Arc<Svid>> {
        unimplemented!()
    }

    /// The current trust.
    pub fn trust(&self) -> Trust {
        unimplemented!()
    }

    /// Wakes on every replacement of SVID or trust.
    pub fn changed(&self) -> tokio::sync::watch::Receiver<u64> {
        unimplemented!()
    }

    /// A TLS client that presents the SVID and accepts only `allowed`.
    pub fn client(self: &Arc<Self>, _alpn: &[u8], _allowed: Allowed) -> Arc<rustls::ClientConfig> {
        unimplemented!()
    }

    /// A TLS server that requires a client certificate of `allowed`.
    pub fn server(self: &Arc<Self>, _alpn: &[&[u8]], _allowed: Allowed) -> Arc<rustls::ServerConfig> {
        unimplemented!()
    }

    /// A TLS server for the join door: no client certificate, root in the
    /// chain.
    pub fn join_server(self: &Arc<Self>) -> Arc<rustls::ServerConfig> {
        unimplemented!()
    }

    /// Verifies again what a session's peer once proved: its certificate may
    /// have ended, been revoked, or lost its bundle.
    pub fn recheck(&self, _peer: &PeerIdentity, _chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
        unimplemented!()
    }
}

/// A TLS client for joining: no certificate of its own; the server's chain
/// must hold a root whose SubjectPublicKeyInfo has this SHA-256, and lead to
/// an identity in `allowed` under it.
pub fn pinned_client(
    _alpn: &[u8],
    _root_spki_sha256: [u8; 32],
    _allowed: Allowed,
) -> Arc<rustls::ClientConfig> {
    unimplemented!()
}

/// A new P-256 key and a PKCS#10 request for it (names are the CA's business).
pub fn new_key_and_csr() -> Result<(PrivateKeyDer<'static>, Vec<u8>), rcgen::Error> {
    unimplemented!()
}
