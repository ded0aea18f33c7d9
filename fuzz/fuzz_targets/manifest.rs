//! Documents about traffic, which operators send to federation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_manifest::manifest::read;

fuzz_target!(|text: &str| {
    let Ok(manifests) = read(text, "fuzz.yaml") else { return };
    for manifest in manifests {
        assert!(!manifest.name.name.is_empty());
    }
});
