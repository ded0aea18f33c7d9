//! What a linked site says: a delta is taken whole or not at all, and nothing
//! of it names an identity or a place that is not the peer's.
#![no_main]

use federation::imports::{Imported, Peer, apply_import};
use libfuzzer_sys::fuzz_target;
use mesh_api::v1::{Bundle, ReplicateResponse, replicate_response::Response};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = ReplicateResponse::decode(data) else { return };
    let Some(Response::Delta(delta)) = message.response else { return };
    let site = "east".parse().expect("a site");
    let trust_domain = "east.example".parse().expect("a trust domain");
    let bundle = Bundle::default();
    let peer = Peer { site: &site, trust_domain: &trust_domain, bundle: &bundle };
    let Ok(imported) = apply_import(&Imported::default(), &delta, peer) else { return };
    assert!(imported.endpoints.values().all(|one| {
        one.site == "east"
            && one.spiffe_id.starts_with("spiffe://east.example/")
            && one.address.is_empty()
    }));
    // What follows from it is as bounded.
    let mut next = delta;
    next.from = imported.revision;
    let _again = apply_import(&imported, &next, peer);
});
