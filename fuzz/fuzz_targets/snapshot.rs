//! A delta applies whole or not at all, and a snapshot survives the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::{apply, snapshot::to_delta};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(delta) = mesh_api::v1::Delta::decode(data) else { return };
    let Ok(snapshot) = apply(None, &delta) else { return };
    let again = apply(None, &to_delta(&snapshot)).expect("what we write we can read");
    assert_eq!(to_delta(&again), to_delta(&snapshot));
});
