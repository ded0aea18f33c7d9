//! The mesh that tests speak of: site `east` (domain `east.example`), linked
//! to `west` and `north`; `orders.shop` is local and exported to `west`,
//! `billing.shop` is local and not exported, `search.shop` is imported from
//! `west`.

use mesh_api::v1::{self, resource::Resource as Kind};

use crate::{
    identity::PeerIdentity,
    name::{NodeId, SpiffeId},
    snapshot::{Snapshot, apply},
};
use rustls_pki_types::UnixTime;

pub(crate) const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";
pub(crate) const OTHER_NODE: &str = "0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22";

pub(crate) fn resource(kind: Kind) -> v1::Resource {
    v1::Resource { resource: Some(kind) }
}

pub(crate) fn site() -> v1::Site {
    v1::Site {
        name: "east".into(),
        trust_domain: "east.example".into(),
        federation_address: "10.0.0.5:8446".into(),
    }
}

pub(crate) fn service(name: &str) -> v1::Service {
    v1::Service {
        name: name.into(),
        ports: vec![v1::Port {
            name: "http".into(),
            number: 80,
            protocol: v1::Protocol::Http.into(),
        }],
        ..Default::default()
    }
}

pub(crate) fn endpoint(service: &str, site: &str, id: &str) -> v1::Endpoint {
    v1::Endpoint {
        id: id.into(),
        service: service.into(),
        port: "http".into(),
        site: site.into(),
        spiffe_id: format!("spiffe://{site}.example/ns/shop/sa/web"),
        address: "10.1.2.3:4143".into(),
        target_port: 8080,
        weight: 1,
        health: v1::Health::Healthy.into(),
        node: NODE.into(),
        ..Default::default()
    }
}

pub(crate) fn link(site: &str) -> v1::Link {
    v1::Link {
        site: site.into(),
        trust_domain: format!("{site}.example"),
        dial: true,
        transport: v1::LinkTransport::Unspecified.into(),
    }
}

pub(crate) fn gateway(id: &str) -> v1::Gateway {
    v1::Gateway {
        id: id.into(),
        site: "east".into(),
        quic_addresses: vec!["gw.example:8443".into()],
        tls_addresses: vec!["192.0.2.1:8443".into()],
    }
}

pub(crate) fn bundle(domain: &str, sequence: u64, root: &[u8]) -> v1::Bundle {
    v1::Bundle {
        trust_domain: domain.into(),
        sequence,
        roots: vec![root.to_vec()],
        ..v1::Bundle::default()
    }
}

/// A whole state.
pub(crate) fn whole(upsert: Vec<Kind>) -> v1::Delta {
    v1::Delta {
        from: None,
        to: Some(v1::Revision { epoch: 7, n: 1 }),
        upsert: upsert.into_iter().map(resource).collect(),
        remove: Vec::new(),
    }
}

/// A change to what is at `snapshot`'s revision.
pub(crate) fn change(
    snapshot: &Snapshot,
    upsert: Vec<Kind>,
    remove: Vec<(v1::ResourceKind, &str)>,
) -> v1::Delta {
    let from = v1::Revision::from(snapshot.revision);
    let key = |(kind, name): (v1::ResourceKind, &str)| v1::ResourceKey {
        kind: kind.into(),
        name: name.into(),
    };
    v1::Delta {
        from: Some(from),
        to: Some(v1::Revision { n: from.n + 1, ..from }),
        upsert: upsert.into_iter().map(resource).collect(),
        remove: remove.into_iter().map(key).collect(),
    }
}

/// The mesh of the module's description.
pub(crate) fn mesh() -> Snapshot {
    let orders = v1::Service { exported_to: vec!["west".into()], ..service("orders.shop") };
    let search = v1::Service { imported_from: vec!["west".into()], ..service("search.shop") };
    let reverse = v1::Endpoint {
        address: String::new(),
        via: vec!["gw-2".into()],
        node: OTHER_NODE.into(),
        ..endpoint("orders.shop", "east", "o-2")
    };
    let delta = whole(vec![
        Kind::Site(site()),
        Kind::Link(link("west")),
        Kind::Link(link("north")),
        Kind::Gateway(gateway("gw-1")),
        Kind::Gateway(gateway("gw-2")),
        Kind::Bundle(bundle("east.example", 3, b"root of east")),
        Kind::Bundle(bundle("west.example", 1, b"root of west")),
        Kind::Service(orders),
        Kind::Service(service("billing.shop")),
        Kind::Service(search),
        Kind::Endpoint(endpoint("orders.shop", "east", "o-1")),
        Kind::Endpoint(reverse),
        Kind::Endpoint(endpoint("billing.shop", "east", "b-1")),
        Kind::Endpoint(endpoint("search.shop", "west", "s-1")),
    ]);
    apply(None, &delta).expect("the example is well formed")
}

/// A verified peer, of a node if one is given.
pub(crate) fn peer(id: &str, node: Option<&str>) -> PeerIdentity {
    PeerIdentity {
        id: id.parse::<SpiffeId>().expect("a SPIFFE ID"),
        node: node.map(|node| node.parse::<NodeId>().expect("a UUID")),
        serial: "01".into(),
        not_after: UnixTime::since_unix_epoch(std::time::Duration::from_secs(4_000_000_000)),
    }
}
