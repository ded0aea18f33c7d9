//! The identity on disk, so that a machine boots into the mesh without
//! federation.
//!
//! `identity.bin` in the state directory ([`StateFile`]) holds [`KeptFile`]:
//! the certificate that was issued last with its key, and what the source said
//! of this proxy. The key was made here and goes nowhere else. What does not
//! read, or is not valid here and now, is told and not used.

use std::{fmt, path::Path, time::Duration};

use mesh_api::v1;
use mesh_core::{Allowed, VerifyError, identity::Side, verify_peer};
use mesh_tunnel::{Svid, Trust, tls};
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::described::Described;
use crate::state_file::{StateFile, StateFileError};

const NAME: &str = "identity.bin";
const MAGIC: &[u8; 8] = b"ISTHSVI1";
/// The longest such file, in bytes: bundles of every linked site are far
/// below.
const LONGEST: u64 = 4 << 20;

/// As it lies on disk.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct KeptFile {
    #[prost(message, optional, tag = "1")]
    description: Option<v1::Description>,
    /// Leaf first, then the issuing CA; DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    chain: Vec<Vec<u8>>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
}

impl fmt::Debug for KeptFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptFile").finish_non_exhaustive()
    }
}

/// What was kept: read, and not yet verified.
pub(super) struct Kept {
    pub(super) described: Described,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why what was kept is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotUsable {
    #[error(transparent)]
    Invalid(#[from] VerifyError),
    #[error("its certificate was issued under another node than it says")]
    OtherNode,
    #[error("it is {}, and this proxy is {}", whom(.kept), whom(.ours))]
    Foreign { kept: Box<Described>, ours: Box<Described> },
    #[error("key and certificate are of no use together: {0}")]
    Key(rustls::Error),
}

fn whom(described: &Described) -> String {
    let node = described.node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
    format!("{}{node}", described.id)
}

impl Kept {
    /// The certificate with its key, if everybody else would believe it now.
    pub(super) fn svid(&self, trust: &Trust, now: Duration) -> Result<Svid, NotUsable> {
        let peer = verify_peer(
            &self.chain,
            Side::Client,
            &trust.bundles,
            &trust.revocations,
            &Allowed::Exactly(self.described.id.clone()),
            UnixTime::since_unix_epoch(now),
        )?;
        if peer.node != self.described.node {
            return Err(NotUsable::OtherNode);
        }
        Ok(Svid::from_der(self.chain.clone(), self.key.clone_key())?)
    }

    /// Serial number of the certificate.
    pub(super) fn serial(&self) -> String {
        tls::serial_of(&self.chain)
    }

    /// Refuses what belongs to another identity, machine or site than the
    /// source speaks of.
    pub(super) fn check_is_of(&self, ours: &Described) -> Result<(), NotUsable> {
        if self.described.is_same_as(ours) {
            return Ok(());
        }
        let (kept, ours) = (Box::new(self.described.clone()), Box::new(ours.clone()));
        Err(NotUsable::Foreign { kept, ours })
    }
}

/// Where the identity is kept.
#[derive(Debug, Clone)]
pub(super) struct Disk(StateFile);

impl Disk {
    pub(super) fn new(state: &Path) -> Self {
        Self(StateFile::new(state, NAME, MAGIC, LONGEST))
    }

    /// What was kept; `None` if there is nothing or it is damaged, which is
    /// told.
    pub(super) fn read(&self) -> Option<Kept> {
        self.try_read().unwrap_or_else(|error| {
            log::warn!(error:% = error; "the identity on disk cannot be read, beginning without");
            None
        })
    }

    fn try_read(&self) -> Result<Option<Kept>, StateFileError> {
        let Some(body) = self.0.read()? else { return Ok(None) };
        let file = KeptFile::decode(body.as_slice()).map_err(|error| self.0.damaged(error))?;
        let description = file.description.unwrap_or_default();
        let described = Described::try_from(&description).map_err(|error| self.0.damaged(error))?;
        let chain = file.chain.into_iter().map(CertificateDer::from).collect();
        Ok(Some(Kept { described, chain, key: PrivateKeyDer::Pkcs8(file.key.into()) }))
    }

    /// Keeps an identity instead of the one before.
    pub(super) async fn save(&self, described: &Described, svid: &Svid) {
        let file = KeptFile {
            description: Some(described.into()),
            chain: svid.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            key: svid.key.secret_der().to_vec(),
        };
        let disk = self.0.clone();
        let write = move || disk.write(&file.encode_to_vec());
        if let Err(error) = blocking(write).await {
            log::error!(error:% = error; "the identity cannot be kept on disk; a reboot without federation would begin without");
        }
    }

    /// Sees to it that no start uses what was kept.
    pub(super) async fn remove(&self) {
        let disk = self.0.clone();
        match blocking(move || disk.remove()).await {
            Ok(true) => {
                log::warn!(path:% = self.0.path().display(); "removed the identity on disk")
            }
            Ok(false) => {}
            Err(error) => {
                log::error!(error:% = error; "the identity on disk cannot be removed; remove it by hand")
            }
        }
    }
}

/// Syncing takes longer than a control task may hold its thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateFileError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
