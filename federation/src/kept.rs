//! What linked sites exported last, on disk: a federation that starts while
//! they are out of reach takes nothing away from its own proxies.
//!
//! `imports/<site>.bin`: 8 bytes of magic with the format's number, CRC-32
//! (IEEE) of the rest as 4 bytes big endian, when the link was made (Unix
//! milliseconds, 8 bytes big endian), then a whole `Delta` (protobuf) without a
//! revision. Replaced atomically, mode 0600; it may lag behind by [`EVERY`].
//! What does not read is told and ignored.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_api::v1::{Delta, Resource, Revision, resource::Resource as R};
use mesh_core::SiteName;
use mesh_runtime::{
    drain::Drain,
    files::{self, FileError},
};
use prost::Message;

use crate::{
    authority::entries::LinkState,
    imports::{Imported, Peer, apply_import},
    replication::MAX_DELTA,
    view::View,
};

const MAGIC: &[u8; 8] = b"ISTHIMP1";
/// The shortest time between two writes of one link: the files are for starts,
/// not for history.
const EVERY: Duration = Duration::from_secs(3);

/// Where it is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    dir: Arc<Path>,
}

/// The revision that each link's file holds.
type Written = BTreeMap<SiteName, Option<Revision>>;

impl Kept {
    /// In a state directory.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("imports").into() }
    }

    fn path(&self, site: &SiteName) -> PathBuf {
        self.dir.join(format!("{site}.bin"))
    }

    /// What this link brought last, checked as if the peer said it now.
    /// Without a revision, so that the peer tells everything anew.
    pub fn read(&self, site: &SiteName, link: &LinkState) -> Imported {
        let path = self.path(site);
        let read = match files::read_private_at_most(&path, MAX_DELTA as u64) {
            Ok(bytes) => decode(&bytes, site, link),
            Err(error) if error.is_not_found() => return Imported::default(),
            Err(error) => Err(error.to_string()),
        };
        read.unwrap_or_else(|problem| {
            log::warn!(path:% = path.display(), problem = problem.as_str();
                "what a linked site exported last is not usable; it is asked anew");
            Imported::default()
        })
    }

    /// Writes what changes until the drain begins, and once more then.
    pub async fn keep(self, view: View, drain: Drain) {
        let mut written = Written::new();
        let mut problem = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = drain.draining() => {}
            }
            let failed = self.write_changes(&view, &mut written).await.err().unwrap_or_default();
            // Said once, not at every attempt.
            if failed != problem && !failed.is_empty() {
                log::error!(error = failed.as_str(); "what linked sites export cannot be kept; a \
                    start without them would begin without");
            }
            problem = failed;
            if drain.is_draining() {
                return;
            }
        }
    }

    async fn write_changes(&self, view: &View, written: &mut Written) -> Result<(), String> {
        let links = view.authority().state().links.clone();
        for (site, link) in links.iter() {
            let changed = view.read_live(|live| {
                let imported = &live.links.get(site)?.imported;
                let is_new = written.get(site) != Some(&imported.revision);
                (imported.revision.is_some() && is_new).then(|| imported.clone())
            });
            let Some(imported) = changed else { continue };
            let (path, made_at_ms) = (self.path(site), link.made_at_ms);
            let revision = imported.revision;
            // Encoding and syncing a large site takes longer than a control
            // task may hold its thread.
            let write = tokio::task::spawn_blocking(move || write(&path, &imported, made_at_ms));
            let done = write.await.map_err(|error| error.to_string())?;
            done.map_err(|error| error.to_string())?;
            written.insert(site.clone(), revision);
        }
        let ended: Vec<_> =
            written.keys().filter(|site| !links.contains_key(*site)).cloned().collect();
        for site in ended {
            files::remove(&self.path(&site)).map_err(|error| error.to_string())?;
            written.remove(&site);
        }
        Ok(())
    }
}

fn write(path: &Path, imported: &Imported, made_at_ms: i64) -> Result<(), FileError> {
    if let Some(dir) = path.parent() {
        files::create_private_dir(dir)?;
    }
    files::write_private(path, &encode(imported, made_at_ms))
}

fn encode(imported: &Imported, made_at_ms: i64) -> Vec<u8> {
    let services = imported.services.values().cloned().map(R::Service);
    let endpoints = imported.endpoints.values().cloned().map(R::Endpoint);
    let gateways = imported.gateways.values().cloned().map(R::Gateway);
    let revocations = imported.revocations.values().cloned().map(R::Revocation);
    // Not the bundle: that is in the log.
    let all = services.chain(endpoints).chain(gateways).chain(revocations);
    let upsert = all.map(|resource| Resource { resource: Some(resource) }).collect();
    let delta = Delta { upsert, ..Delta::default() };
    let body = [&made_at_ms.to_be_bytes()[..], &delta.encode_to_vec()].concat();
    [&MAGIC[..], &crc32fast::hash(&body).to_be_bytes(), &body].concat()
}

fn decode(bytes: &[u8], site: &SiteName, link: &LinkState) -> Result<Imported, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not of this version")?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err("its checksum is wrong".to_owned());
    }
    let (made_at_ms, delta) = body.split_first_chunk::<8>().ok_or("it is cut off")?;
    if i64::from_be_bytes(*made_at_ms) != link.made_at_ms {
        return Err("it is of an earlier link".to_owned());
    }
    let mut delta = Delta::decode(delta).map_err(|error| error.to_string())?;
    delta.to = Some(Revision::default());
    let peer = Peer { site, trust_domain: &link.trust_domain, bundle: &link.bundle };
    let imported = apply_import(&Imported::default(), &delta, peer);
    let imported = imported.map_err(|error| error.to_string())?;
    Ok(Imported { revision: None, ..imported })
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{Bundle, Endpoint, Gateway, Link, Service};

    use super::*;

    fn link() -> LinkState {
        LinkState {
            link: Link::default(),
            trust_domain: "east.example".parse().unwrap(),
            bundle: Bundle::default(),
            gateways: vec![],
            made_at_ms: 4711,
        }
    }

    fn imported(domain: &str) -> Imported {
        let endpoint = Endpoint {
            id: "e1".into(),
            service: "orders.shop".into(),
            port: "http".into(),
            site: "east".into(),
            spiffe_id: format!("spiffe://{domain}/ns/shop/sa/orders"),
            health: mesh_api::v1::Health::Healthy.into(),
            weight: 1,
            ..Endpoint::default()
        };
        let service = Service {
            name: "orders.shop".into(),
            ports: vec![mesh_api::v1::Port { name: "http".into(), number: 80, protocol: 1 }],
            ..Service::default()
        };
        let gateway = Gateway {
            id: "gw-1".into(),
            site: "east".into(),
            quic_addresses: vec![],
            tls_addresses: vec!["gw.east.example:8443".into()],
        };
        let revoked = mesh_api::v1::Revocation {
            subject: format!("spiffe://{domain}/ns/shop/sa/thief"),
            revoked_at_unix_s: 7,
        };
        Imported {
            revision: Some(Revision { epoch: 5, n: 7 }),
            services: BTreeMap::from([("orders.shop".parse().unwrap(), service)]),
            endpoints: BTreeMap::from([("e1".into(), endpoint)]),
            gateways: BTreeMap::from([("gw-1".into(), gateway)]),
            bundle: None,
            revocations: BTreeMap::from([(revoked.subject.clone(), revoked)]),
        }
    }

    fn read(bytes: &[u8], link: &LinkState) -> Result<Imported, String> {
        decode(bytes, &"east".parse().unwrap(), link)
    }

    #[test]
    fn what_was_kept_is_read_and_asked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, site) = (Kept::new(dir.path()), "east".parse().unwrap());
        assert_eq!(kept.read(&site, &link()), Imported::default(), "nothing yet");
        write(&kept.path(&site), &imported("east.example"), 4711).unwrap();
        let expected = Imported { revision: None, ..imported("east.example") };
        assert_eq!(kept.read(&site, &link()), expected);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let good = encode(&imported("east.example"), 4711);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(read(&bad, &link()).is_err(), "byte {at}");
            assert!(read(&good[..at], &link()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_the_link_may_not_say_its_file_may_not_either() {
        let cases = [
            (imported("west.example"), 4711, "speaks only for trust domain east.example"),
            (imported("east.example"), 4712, "of an earlier link"),
        ];
        for (imported, made_at_ms, expected) in cases {
            let problem = read(&encode(&imported, made_at_ms), &link()).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
