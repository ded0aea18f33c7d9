//! What a TLS client may say first: any bytes give a hello, an error, or the
//! wish for more, and that wish ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::client_hello::{MAX_LEN, NotHello, may_be_tls, read};

fuzz_target!(|data: &[u8]| {
    let said = read(data);
    assert_eq!(may_be_tls(data), said != Err(NotHello::NotTls));
    match said {
        Ok(None) => assert!(data.len() < MAX_LEN),
        Ok(Some(hello)) => {
            // It was not there before its last byte, and stays what it is.
            let first = (0..=data.len()).find(|end| read(&data[..*end]) != Ok(None));
            let first = first.expect("all of it is one");
            assert_eq!(read(&data[..first]), Ok(Some(hello.clone())));
            let name = hello.server_name.as_deref().unwrap_or("a");
            assert!(!name.is_empty() && name == name.to_ascii_lowercase());
        }
        Err(_) => {
            let longer = [data, &[0; 64]].concat();
            assert!(read(&longer).is_err());
        }
    }
});
