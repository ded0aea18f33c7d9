//! Names of services and their virtual addresses, for who resolves names on this
//! machine: `names_file`, a line for each address. What resolves is what this
//! proxy can carry.

use std::{
    collections::BTreeSet, fmt::Write, net::IpAddr, path::PathBuf, sync::Arc, time::Duration,
};

use mesh_core::{Service, ServiceName, Snapshot};
use mesh_runtime::files;

use crate::app::Shared;

/// The shortest time between two looks: names come with services, which come
/// slowly, and a program that asks too early asks again.
const EVERY: Duration = Duration::from_millis(500);

/// Keeps the file, if one is wanted.
pub fn start(shared: &Shared) {
    if let Some(path) = shared.config.names_file.clone() {
        shared.drain.spawn(keep(path, shared.clone()));
    }
}

/// Writes what has changed. What is there stays when this process ends, as the
/// addresses do.
async fn keep(path: PathBuf, shared: Shared) {
    let mut changed = shared.snapshot.changed();
    let mut written = None;
    loop {
        if let Some(snapshot) = shared.snapshot.load() {
            let names = names(&snapshot);
            if written.as_ref() != Some(&names) && save(path.clone(), names.clone()).await {
                written = Some(names);
            }
        }
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = shared.drain.draining() => return,
            // The file belongs to the successor.
            () = shared.drain.leaving() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shared.drain.closing() => return,
        }
    }
}

type Names = BTreeSet<(ServiceName, IpAddr)>;

fn names(snapshot: &Snapshot) -> Names {
    let all = snapshot.services.values();
    let lines = |service: &Arc<Service>| {
        let name = service.name.clone();
        service.virtual_addresses().map(move |address| (name.clone(), address))
    };
    all.flat_map(lines).collect()
}

fn text(names: &Names) -> String {
    let mut text = String::new();
    for (name, address) in names {
        let _ = writeln!(text, "{name} {address}");
    }
    text
}

/// Whether it is done; if not, the next snapshot tries again.
async fn save(path: PathBuf, names: Names) -> bool {
    let write = move || files::write_public(&path, text(&names).as_bytes());
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => {
            log::error!(error:% = error; "names of new services do not resolve on this machine");
        }
        Err(error) => log::error!(error:% = error; "writing names has failed"),
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_a_line_for_each_address() {
        use mesh_api::v1::{
            Delta, Port, Protocol, Resource, Revision, Service, Site, resource::Resource as R,
        };
        let port = Port { name: "http".into(), number: 80, protocol: Protocol::Http.into() };
        let service = |name: &str, address: &str| {
            R::Service(Service {
                name: name.into(),
                virtual_address: address.into(),
                ports: vec![port.clone()],
                ..Service::default()
            })
        };
        let two = R::Service(Service {
            name: "both.shop".into(),
            virtual_address: "10.96.0.7".into(),
            second_address: "fd00:96::7".into(),
            ports: vec![port.clone()],
            ..Service::default()
        });
        let site =
            Site { name: "east".into(), trust_domain: "east.example".into(), ..Site::default() };
        let all = [
            R::Site(site),
            service("web.shop", "240.240.0.7"),
            service("six.lab", "fd00::6"),
            service("none.shop", ""),
            two,
        ];
        let delta = Delta {
            to: Some(Revision { epoch: 1, n: 1 }),
            upsert: all.map(|resource| Resource { resource: Some(resource) }).to_vec(),
            ..Delta::default()
        };
        let snapshot = mesh_core::apply(None, &delta).unwrap();
        let wanted = "both.shop 10.96.0.7\nboth.shop fd00:96::7\nsix.lab fd00::6\n\
                      web.shop 240.240.0.7\nweb.shop fd69:7374:686d::f0f0:7\n";
        assert_eq!(text(&names(&snapshot)), wanted);
    }
}
