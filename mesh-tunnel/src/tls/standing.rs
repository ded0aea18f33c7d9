//! What the peer of a session has proved, and proves anew while it lasts.
//!
//! A session does not outlive the certificate that proved its peer, and
//! certificates are renewed long before they end. So each side shows a new
//! chain of its own inside the session, with a signature by that chain's key
//! over what only the two ends of this TLS connection know: an exporter value
//! (RFC 8446 section 7.5), as exported authenticators (RFC 9261) have it. Who
//! does not know these messages is believed until its first leaf ends.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_api::v1;
use mesh_core::{Allowed, PeerIdentity, VerifyError};
use rustls::{ConnectionCommon, SignatureScheme, pki_types::CertificateDer};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Credentials, Svid, expired, left, provider};

/// For the exporter; what is exported depends on who is to prove himself.
const LABEL: &[u8] = b"EXPORTER-isthmus-proof";
/// Before what is signed: such a signature is good for nothing else.
const CONTEXT: &[u8] = b"isthmus proof of a renewed certificate\0";
/// What our keys sign, and what is accepted.
const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];
/// A leaf and what lies between it and the root.
const MAX_CHAIN: usize = 4;
/// Between two proofs that are sent.
const PAUSE: Duration = Duration::from_secs(2);
/// Proofs that come sooner after each other are not looked at: verifying costs
/// more than sending.
const SOONEST: Duration = Duration::from_secs(1);

/// What ties proofs to one TLS connection, and to one of its sides.
pub struct Binding {
    ours: [u8; 32],
    theirs: [u8; 32],
}

impl Binding {
    /// Of a finished handshake; `dialled` says on which side this is.
    pub fn of_tls<D>(connection: &ConnectionCommon<D>, dialled: bool) -> std::io::Result<Self> {
        Self::of(dialled, |side| {
            let exported = connection.export_keying_material([0; 32], LABEL, Some(side));
            exported.map_err(std::io::Error::other)
        })
    }

    /// The same of a QUIC connection.
    pub(crate) fn of_quic(connection: &quinn::Connection, dialled: bool) -> std::io::Result<Self> {
        Self::of(dialled, |side| {
            let mut exported = [0; 32];
            let failed = |_| std::io::Error::other("nothing to be exported");
            connection.export_keying_material(&mut exported, LABEL, side).map_err(failed)?;
            Ok(exported)
        })
    }

    fn of(
        dialled: bool,
        export: impl Fn(&[u8]) -> std::io::Result<[u8; 32]>,
    ) -> std::io::Result<Self> {
        let (dialler, acceptor) = (export(b"dialler")?, export(b"acceptor")?);
        let (ours, theirs) = if dialled { (dialler, acceptor) } else { (acceptor, dialler) };
        Ok(Self { ours, theirs })
    }
}

/// A handshake that is about to begin: what changes from here on is noticed.
pub struct Before {
    credentials: Arc<Credentials>,
    presented: Option<Arc<Svid>>,
    changed: watch::Receiver<u64>,
}

impl Before {
    /// What is presented in it is this SVID, or a later one.
    pub fn handshake(credentials: &Arc<Credentials>) -> Self {
        let changed = credentials.changed();
        Self { credentials: credentials.clone(), presented: credentials.svid(), changed }
    }

    /// It is over, and the peer has proved itself with `chain`.
    pub fn proved(
        self,
        binding: Binding,
        peer: PeerIdentity,
        chain: Vec<CertificateDer<'static>>,
    ) -> Standing {
        Standing {
            credentials: self.credentials,
            binding,
            shown: Mutex::new(self.presented),
            proved: watch::Sender::new(Arc::new(Proved { peer, chain })),
            changed: self.changed,
            looked: Mutex::new(None),
        }
    }
}

/// Why a proof is none.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The chain.
    #[error(transparent)]
    Chain(#[from] VerifyError),
    /// It is of the same identity on another machine.
    #[error("it is of another machine")]
    OtherMachine,
    /// Not by the key of the chain, or for another session.
    #[error("the signature is not good for this session")]
    Signature,
}

/// Both sides of one session: see the module.
pub struct Standing {
    credentials: Arc<Credentials>,
    binding: Binding,
    /// What the peer has seen of us last.
    shown: Mutex<Option<Arc<Svid>>>,
    proved: watch::Sender<Arc<Proved>>,
    /// Seen before the handshake.
    changed: watch::Receiver<u64>,
    /// When a proof was looked at last.
    looked: Mutex<Option<Instant>>,
}

/// Whom the newest chain names.
struct Proved {
    peer: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
}

impl Standing {
    /// Waits until our certificate is another one than the peer has seen, and
    /// returns the proof for it. Not more often than a peer looks at them.
    pub async fn renewed(&self) -> v1::Proof {
        let mut changed = self.changed.clone();
        loop {
            changed.mark_unchanged();
            if let Some(proof) = self.prove() {
                return proof;
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Sends every proof, as long as it is polled.
    pub async fn keep_proving(&self, send: impl Fn(v1::Proof)) -> ! {
        loop {
            send(self.renewed().await);
            sleep(PAUSE).await;
        }
    }

    fn prove(&self) -> Option<v1::Proof> {
        let held = self.credentials.held.load_full()?;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &held.svid)) {
            return None;
        }
        *shown = Some(held.svid.clone());
        let chain: Vec<Vec<u8>> = held.svid.chain.iter().map(|one| one.to_vec()).collect();
        let signer = held.certified.key.choose_scheme(&SCHEMES)?;
        let signed = signer.sign(&signed(&self.binding.ours, chain.first()?));
        let scheme = u32::from(u16::from(signer.scheme()));
        match signed {
            Ok(signature) => Some(v1::Proof { chain, scheme, signature }),
            Err(error) => {
                log::warn!(error:% = error; "a renewed certificate cannot be proved");
                None
            }
        }
    }

    /// Looks at what the peer has sent: from here on it is believed until its
    /// new leaf ends. What is no proof changes nothing.
    pub fn receive(&self, proof: v1::Proof) {
        let now = Instant::now();
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|looked| now - looked < SOONEST) {
                return;
            }
            *looked = Some(now);
        }
        let known = self.proved.borrow().clone();
        let id = known.peer.id.as_str();
        match self.check(&known.peer, proof) {
            Ok(proved) if proved.peer.not_after >= known.peer.not_after => {
                log::debug!(peer = id, lasts:? = left(&proved.peer); "the peer has proved itself anew");
                self.proved.send_replace(Arc::new(proved));
            }
            Ok(_) => {}
            Err(error) => log::warn!(peer = id, error:% = error; "a proof that is none"),
        }
    }

    fn check(&self, known: &PeerIdentity, proof: v1::Proof) -> Result<Proved, ProofError> {
        let chain = proof.chain.into_iter().take(MAX_CHAIN).map(CertificateDer::from);
        let chain: Vec<_> = chain.collect();
        let peer = self.credentials.verify_any(&chain, &Allowed::Exactly(known.id.clone()))?;
        if peer.node != known.node {
            return Err(ProofError::OtherMachine);
        }
        let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
        let signed = signed(&self.binding.theirs, leaf);
        verify(leaf, proof.scheme, &signed, &proof.signature).ok_or(ProofError::Signature)?;
        Ok(Proved { peer, chain })
    }

    /// Waits until a change of trust makes what the peer has proved worthless.
    /// That its certificate has ended is no change of trust.
    pub async fn disbelieved(&self) -> VerifyError {
        let mut changed = self.changed.clone();
        while changed.changed().await.is_ok() {
            let proved = self.proved.borrow().clone();
            match self.credentials.recheck(&proved.peer, &proved.chain) {
                Ok(()) | Err(VerifyError::OutsideValidity { .. }) => {}
                Err(error) => return error,
            }
        }
        std::future::pending().await
    }

    /// Waits until `lead` before the end of what the peer has proved.
    pub async fn expires(&self, lead: Duration) {
        let mut proved = self.proved.subscribe();
        loop {
            let current = proved.borrow_and_update().clone();
            tokio::select! {
                () = expired(&current.peer, lead) => return,
                // The sender lives as long as `self`.
                _ = proved.changed() => {}
            }
        }
    }

    /// How long the peer is still believed.
    pub fn left(&self) -> Duration {
        left(&self.proved.borrow().peer)
    }
}

fn signed(binding: &[u8; 32], leaf: &[u8]) -> Vec<u8> {
    [CONTEXT, binding, leaf].concat()
}

/// As TLS 1.3 verifies: a scheme means one curve and one hash.
fn verify(leaf: &CertificateDer<'_>, scheme: u32, signed: &[u8], signature: &[u8]) -> Option<()> {
    let scheme = SignatureScheme::from(u16::try_from(scheme).ok()?);
    if !SCHEMES.contains(&scheme) {
        return None;
    }
    let known = provider().signature_verification_algorithms.mapping;
    let (_, algorithms) = known.iter().find(|(known, _)| *known == scheme)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).ok()?;
    leaf.verify_signature(*algorithms.first()?, signed, signature).ok()
}

#[cfg(test)]
mod tests;
