//! The last snapshot on disk, so that a machine boots into the mesh without
//! federation.
//!
//! `snapshot.bin`: 8 bytes of magic with the format's number, CRC-32 (IEEE) of
//! the rest as 4 bytes big endian, then a whole `Delta` (protobuf). Replaced
//! atomically, mode 0600. What does not read is told and ignored.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_api::v1;
use mesh_core::{Snapshot, to_delta};
use mesh_runtime::files;
use prost::Message;

use crate::app::Shared;

const NAME: &str = "snapshot.bin";
const MAGIC: &[u8; 8] = b"ISTHSNP1";
/// The longest file, in bytes; as long as the longest delta.
const MAX: u64 = 64 << 20;
/// The shortest time between two writes: the file is for boots, not for
/// history.
const EVERY: Duration = Duration::from_secs(3);

/// Why there is no snapshot on disk.
#[derive(Debug, thiserror::Error)]
enum DiskError {
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error("{path}: {problem}")]
    Damaged { path: String, problem: String },
}

/// Where the last snapshot is kept.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    path: Arc<PathBuf>,
}

impl Disk {
    pub(super) fn new(state: &Path) -> Self {
        Self { path: Arc::new(state.join(NAME)) }
    }

    /// The last snapshot; `None` if there is none or it is damaged, which is
    /// told.
    pub(super) fn read(&self) -> Option<v1::Delta> {
        match self.try_read() {
            Ok(delta) => Some(delta),
            Err(DiskError::File(error)) if error.is_not_found() => None,
            Err(error) => {
                log::error!(error:% = error; "the snapshot on disk cannot be read, beginning without");
                None
            }
        }
    }

    fn try_read(&self) -> Result<v1::Delta, DiskError> {
        let bytes = files::read_private_at_most(&self.path, MAX)?;
        decode(&bytes).map_err(|problem| {
            let path = self.path.display().to_string();
            DiskError::Damaged { path, problem }
        })
    }

    /// Makes the directory too: only systemd makes it beforehand.
    fn write(&self, snapshot: &Snapshot) -> Result<(), DiskError> {
        if let Some(folder) = self.path.parent() {
            files::create_private_dir(folder)?;
        }
        Ok(files::write_private(&self.path, &encode(&to_delta(snapshot)))?)
    }
}

fn encode(delta: &v1::Delta) -> Vec<u8> {
    let body = delta.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<v1::Delta, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a snapshot of this version")?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err("its checksum is wrong".to_owned());
    }
    v1::Delta::decode(body).map_err(|error| error.to_string())
}

/// Writes every new snapshot, at most one per [`EVERY`], until the drain
/// begins; the last one is written on the way out.
pub(super) async fn keep(disk: Disk, shared: Shared) {
    let mut changed = shared.snapshot.changed();
    let mut written = shared.snapshot.load();
    loop {
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = shared.drain.draining() => {}
        }
        let now = shared.snapshot.load();
        let is_news = match (&now, &written) {
            (Some(now), Some(written)) => !Arc::ptr_eq(now, written),
            (now, _) => now.is_some(),
        };
        if let Some(snapshot) = now.filter(|_| is_news) {
            written = Some(snapshot.clone());
            save(disk.clone(), snapshot).await;
        }
        if shared.drain.is_draining() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shared.drain.draining() => {}
        }
    }
}

async fn save(disk: Disk, snapshot: Arc<Snapshot>) {
    // Encoding and syncing a large snapshot takes longer than a control task
    // may hold its thread.
    let saved = tokio::task::spawn_blocking(move || disk.write(&snapshot)).await;
    match saved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            log::error!(error:% = error; "the snapshot cannot be kept on disk; a reboot without federation would begin without");
        }
        Err(error) => log::error!(error:% = error; "writing the snapshot has failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta() -> v1::Delta {
        let site = v1::Site {
            name: "east".into(),
            trust_domain: "east.example".into(),
            federation_address: String::new(),
        };
        v1::Delta {
            from: None,
            to: Some(v1::Revision { epoch: 3, n: 9 }),
            upsert: vec![v1::Resource { resource: Some(v1::resource::Resource::Site(site)) }],
            remove: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(decode(&encode(&delta())).unwrap(), delta());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let good = encode(&delta());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {at}");
            assert!(decode(&good[..at]).is_err(), "cut at {at}");
        }
    }

    /// A gateway holds a whole site and its links.
    #[test]
    fn a_large_site_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        let mut large = delta();
        large.upsert.extend((0..60_000).map(|i| {
            let gateway = v1::Gateway {
                id: format!("gw-{i}"),
                site: "east".into(),
                quic_addresses: vec![format!("gateway-{i}.of-a-large-site.east.example:8443")],
                tls_addresses: vec![format!("gateway-{i}.of-a-large-site.east.example:8443")],
            };
            v1::Resource { resource: Some(v1::resource::Resource::Gateway(gateway)) }
        }));
        let snapshot = mesh_core::apply(None, &large).unwrap();
        disk.write(&snapshot).unwrap();
        assert!(std::fs::metadata(disk.path.as_path()).unwrap().len() > files::MAX_PRIVATE);
        assert_eq!(disk.try_read().unwrap().upsert.len(), large.upsert.len());
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        assert!(disk.read().is_none());
        let snapshot = mesh_core::apply(None, &delta()).unwrap();
        disk.write(&snapshot).unwrap();
        assert_eq!(disk.read(), Some(to_delta(&snapshot)));
        std::fs::write(disk.path.as_path(), b"ISTHSNP1 and then nonsense").unwrap();
        assert!(disk.read().is_none());
        disk.write(&snapshot).unwrap();
        assert!(disk.read().is_some());
    }
}
