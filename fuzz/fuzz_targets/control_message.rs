//! Messages of stream 0 decode or fail; nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::v1::{self, control::Message};
use mesh_core::path::Traced;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = v1::Control::decode(data) {
        assert!(message.encoded_len() <= data.len() * 2 + 16);
        let Some(Message::Traced(traced)) = message.message else { return };
        let Ok(traced) = Traced::try_from(traced) else { return };
        assert_eq!(Traced::try_from(v1::Traced::from(&traced)).ok(), Some(traced));
    }
});
