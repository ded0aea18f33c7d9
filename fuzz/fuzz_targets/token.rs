//! A token is what a person pastes: any text gives a token or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::token::Token;

fuzz_target!(|text: &str| {
    if let Ok(token) = Token::decode_any(text) {
        let again = token.encode();
        assert_eq!(Token::decode_any(&again).ok(), Some(token));
    }
});
