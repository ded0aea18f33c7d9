//! Tokens that somebody shows: any text, and any header and claims under a
//! signature that is good.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use mesh_core::{
    TrustBundle, TrustBundles,
    jwt::{JwtKey, LEEWAY, verify_jwt, with_signature},
};
use rustls_pki_types::UnixTime;

const NOW: Duration = Duration::from_secs(1_800_000_000);

static KEY: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"));

static BUNDLES: LazyLock<TrustBundles> = LazyLock::new(|| {
    let bundle = TrustBundle {
        trust_domain: "west.example".parse().expect("a name"),
        sequence: 1,
        roots: vec![vec![1].into()],
        retiring: None,
        jwt_keys: JwtKey::new("k1", KEY.public_key().as_ref()).into_iter().collect(),
    };
    [(bundle.trust_domain.clone(), bundle.into())].into_iter().collect()
});

fuzz_target!(|data: &[u8]| {
    let verify = |token: &str| verify_jwt(token, "bank", &BUNDLES, UnixTime::since_unix_epoch(NOW));
    if let Ok(text) = str::from_utf8(data) {
        assert!(verify(text).is_err(), "nobody has signed it");
    }
    // Header and claims, a line break between them.
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let encoded = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let to_sign = format!("{}.{}", encoded(&data[..end]), encoded(&data[end + 1..]));
    let signature = KEY.sign(&SystemRandom::new(), to_sign.as_bytes()).expect("a signature");
    if let Ok(svid) = verify(&with_signature(&to_sign, signature.as_ref())) {
        assert_eq!(svid.id.trust_domain().as_str(), "west.example");
        assert!(svid.not_after + LEEWAY > NOW);
        assert_eq!(svid.claims["sub"], svid.id.as_str());
    }
});
