//! The last snapshot on disk, so that a machine boots into the mesh without
//! federation.
//!
//! `snapshot.bin` in the state directory ([`StateFile`]) holds a whole `Delta`
//! (protobuf). What does not read is told and ignored.

use std::{path::Path, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::{Snapshot, to_delta};
use prost::Message;

use crate::{
    app::Shared,
    state_file::{StateFile, StateFileError},
};

const NAME: &str = "snapshot.bin";
const MAGIC: &[u8; 8] = b"ISTHSNP1";
/// The longest file, in bytes; as long as the longest delta.
const LONGEST: u64 = 64 << 20;
/// The shortest time between two writes: the file is for boots, not for
/// history.
const EVERY: Duration = Duration::from_secs(3);

/// Where the last snapshot is kept.
#[derive(Debug, Clone)]
pub(super) struct Disk(StateFile);

impl Disk {
    pub(super) fn new(state: &Path) -> Self {
        Self(StateFile::new(state, NAME, MAGIC, LONGEST))
    }

    /// The last snapshot; `None` if there is none or it is damaged, which is
    /// told.
    pub(super) fn read(&self) -> Option<v1::Delta> {
        self.try_read().unwrap_or_else(|error| {
            log::error!(error:% = error; "the snapshot on disk cannot be read, beginning without");
            None
        })
    }

    fn try_read(&self) -> Result<Option<v1::Delta>, StateFileError> {
        let Some(body) = self.0.read()? else { return Ok(None) };
        v1::Delta::decode(body.as_slice()).map(Some).map_err(|error| self.0.damaged(error))
    }

    fn write(&self, snapshot: &Snapshot) -> Result<(), StateFileError> {
        self.0.write(&to_delta(snapshot).encode_to_vec())
    }
}

/// Writes every new snapshot, at most one per [`EVERY`], for as long as it is
/// decided from; the last one is written on the way out.
pub(super) async fn keep(disk: Disk, shared: Shared) {
    let mut changed = shared.snapshot.changed();
    let mut written = shared.snapshot.load();
    loop {
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = shared.drain.refusing() => {}
            // The file belongs to the successor.
            () = shared.drain.leaving() => return,
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
        if shared.drain.is_refusing() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shared.drain.refusing() => {}
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
        assert!(std::fs::metadata(disk.0.path()).unwrap().len() > mesh_runtime::files::MAX_PRIVATE);
        assert_eq!(disk.try_read().unwrap().unwrap().upsert.len(), large.upsert.len());
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        assert!(disk.read().is_none());
        let snapshot = mesh_core::apply(None, &delta()).unwrap();
        disk.write(&snapshot).unwrap();
        assert_eq!(disk.read(), Some(to_delta(&snapshot)));
        std::fs::write(disk.0.path(), b"ISTHSNP1 and then nonsense").unwrap();
        assert!(disk.read().is_none());
        disk.0.write(b"\xff no protobuf").unwrap();
        assert!(disk.read().is_none());
        disk.write(&snapshot).unwrap();
        assert!(disk.read().is_some());
    }
}
