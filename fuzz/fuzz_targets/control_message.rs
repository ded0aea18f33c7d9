//! Messages of stream 0 decode or fail; nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = mesh_api::v1::Control::decode(data) {
        assert!(message.encoded_len() <= data.len() * 2 + 16);
    }
});
