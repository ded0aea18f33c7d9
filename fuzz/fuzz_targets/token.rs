//! A token is what a person pastes: any text gives a token or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = mesh_core::token::decode(text) {
        let again = mesh_core::token::encode(&token);
        assert_eq!(mesh_core::token::decode(&again).ok(), Some(token));
    }
});
