//! The header of a tunnel stream: any bytes give a `Connect` or an error, and
//! what was parsed says the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::path::Connect;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = mesh_api::v1::Connect::decode(data) else { return };
    let Ok(connect) = Connect::try_from(message) else { return };
    let again = mesh_api::v1::Connect::from(&connect);
    assert_eq!(Connect::try_from(again).ok(), Some(connect));
});
