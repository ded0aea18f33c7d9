use std::collections::BTreeMap;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use proptest::prelude::*;

use super::*;
use crate::TrustBundle;

const NOW: i64 = 1_800_000_000;

/// A site that signs.
struct Site {
    key: EcdsaKeyPair,
    kid: &'static str,
    domain: TrustDomain,
}

impl Site {
    fn new(domain: &str, kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { key, kid, domain: domain.parse().unwrap() }
    }

    fn jwt_key(&self) -> JwtKey {
        JwtKey::new(self.kid, self.key.public_key().as_ref()).unwrap()
    }

    fn id(&self) -> SpiffeId {
        SpiffeId::workload(&self.domain, "shop", "orders").unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let to_sign = format!("{}.{}", encoded(header), encoded(claims));
        let signature = self.key.sign(&SystemRandom::new(), to_sign.as_bytes()).unwrap();
        with_signature(&to_sign, signature.as_ref())
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" })
    }

    fn claims(&self) -> Value {
        json!({ "sub": self.id().as_str(), "aud": ["bank"], "exp": NOW + 300, "iat": NOW })
    }

    fn token(&self) -> String {
        self.sign(&self.header(), &self.claims())
    }
}

fn bundles(sites: &[&Site]) -> TrustBundles {
    let mut all = TrustBundles::new();
    for site in sites {
        let bundle = all.entry(site.domain.clone()).or_insert_with(|| {
            Arc::new(TrustBundle {
                trust_domain: site.domain.clone(),
                sequence: 1,
                roots: vec![vec![1].into()],
                retiring: None,
                jwt_keys: Vec::new(),
            })
        });
        Arc::make_mut(bundle).jwt_keys.push(site.jwt_key());
    }
    all
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
}

fn verify(token: &str, bundles: &TrustBundles) -> Result<JwtSvid, JwtError> {
    verify_jwt(token, "bank", bundles, at(NOW))
}

#[test]
fn what_is_made_here_verifies_for_its_audience_and_no_other() {
    let west = Site::new("west.example", "k1");
    let audience = ["bank".to_owned(), "post".to_owned()];
    let to_sign = to_sign("k1", &west.id(), &audience, NOW - 60, NOW + 300);
    let signature = west.key.sign(&SystemRandom::new(), to_sign.as_bytes()).unwrap();
    assert_eq!(signature.as_ref().len(), 64);
    let token = with_signature(&to_sign, signature.as_ref());
    let bundles = bundles(&[&west]);
    for audience in &audience {
        let svid = verify_jwt(&token, audience, &bundles, at(NOW)).unwrap();
        assert_eq!((svid.id, svid.not_after.as_secs()), (west.id(), 1_800_000_300));
        assert_eq!(svid.claims["iat"], NOW - 60);
    }
    for other in ["", "Bank", "ban", "bank ", "[\"bank\",\"post\"]"] {
        let refused = verify_jwt(&token, other, &bundles, at(NOW)).unwrap_err();
        assert_eq!(refused.code(), "jwt_audience", "{other:?}");
    }
}

/// RFC 7515 appendix A.3: key and token are somebody else's.
#[test]
fn the_example_of_the_standard_is_signed_by_its_key() {
    let decode = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
    let mut point = vec![4];
    point.extend(decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"));
    point.extend(decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"));
    let key = JwtKey::new("a3", &point).unwrap();
    let signed = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = decode(
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    );
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point());
    public.verify(signed.as_bytes(), &signature).unwrap();
}

#[test]
fn no_header_chooses_how_it_is_verified() {
    let west = Site::new("west.example", "k1");
    let bundles = bundles(&[&west]);
    let header = |changes: Value| {
        let mut header = west.header();
        for (name, value) in changes.as_object().unwrap() {
            header[name] = value.clone();
        }
        header
    };
    assert!(
        verify(&west.sign(&header(json!({ "typ": "JOSE" })), &west.claims()), &bundles).is_ok()
    );
    for (changes, code) in [
        (json!({ "alg": "none" }), "jwt_algorithm"),
        (json!({ "alg": "None" }), "jwt_algorithm"),
        (json!({ "alg": "HS256" }), "jwt_algorithm"),
        (json!({ "alg": "ES384" }), "jwt_algorithm"),
        (json!({ "alg": "es256" }), "jwt_algorithm"),
        (json!({ "alg": ["ES256"] }), "jwt_algorithm"),
        (json!({ "alg": null }), "jwt_algorithm"),
        (json!({ "kid": "" }), "jwt_malformed"),
        (json!({ "kid": null }), "jwt_malformed"),
        (json!({ "kid": 1 }), "jwt_malformed"),
        (json!({ "kid": "k2" }), "jwt_unknown_key"),
        (json!({ "typ": "JWE" }), "jwt_malformed"),
        (json!({ "crit": ["b64"], "b64": false }), "jwt_malformed"),
        (json!({ "crit": [] }), "jwt_malformed"),
    ] {
        let refused = verify(&west.sign(&header(changes.clone()), &west.claims()), &bundles);
        assert_eq!(refused.unwrap_err().code(), code, "{changes}");
    }
    // A key in the token is not even looked at.
    let thief = Site::new("west.example", "k1");
    let own = thief.jwt_key().to_jwk();
    for brought in [json!({ "jwk": own }), json!({ "jku": "https://thief.example" })] {
        let token = thief.sign(&header(brought), &thief.claims());
        assert_eq!(verify(&token, &bundles).unwrap_err().code(), "jwt_signature");
    }
    // Unsigned, and "signed" with what everybody knows.
    let (signed, _) = west
        .sign(&header(json!({ "alg": "none" })), &west.claims())
        .rsplit_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert_eq!(verify(&format!("{signed}."), &bundles).unwrap_err().code(), "jwt_algorithm");
    let token = west.token();
    let (signed, _) = token.rsplit_once('.').unwrap();
    for signature in [&[][..], &[0; 64], &[0; 63], &[0xff; 64]] {
        let refused = verify(&with_signature(signed, signature), &bundles).unwrap_err();
        assert_eq!(refused.code(), "jwt_signature", "{signature:?}");
    }
}

#[test]
fn no_domain_vouches_for_another() {
    let (west, east) = (Site::new("west.example", "k1"), Site::new("east.example", "k1"));
    let both = bundles(&[&west, &east]);
    assert_eq!(verify(&east.token(), &both).unwrap().id, east.id());
    let forged = east.sign(&east.header(), &west.claims());
    assert_eq!(verify(&forged, &both), Err(JwtError::Signature(west.id())));
    let refused = verify(&east.token(), &bundles(&[&west])).unwrap_err();
    assert_eq!(refused, JwtError::UnknownTrustDomain(east.domain.clone()));
    // A domain without keys, as older sites are.
    let mut silent = both.clone();
    Arc::make_mut(silent.get_mut(&east.domain).unwrap()).jwt_keys.clear();
    assert_eq!(verify(&east.token(), &silent).unwrap_err().code(), "jwt_unknown_key");
}

#[test]
fn while_keys_are_rotated_both_verify() {
    let (old, new) = (Site::new("west.example", "old"), Site::new("west.example", "new"));
    let both = bundles(&[&old, &new]);
    assert!(verify(&old.token(), &both).is_ok());
    assert!(verify(&new.token(), &both).is_ok());
    let retired = verify(&old.token(), &bundles(&[&new])).unwrap_err();
    assert_eq!(retired, JwtError::UnknownKey(old.domain.clone()));
}

#[test]
fn claims_that_it_must_have_are_checked() {
    let west = Site::new("west.example", "k1");
    let bundles = bundles(&[&west]);
    for (name, value, code) in [
        ("sub", Value::Null, "jwt_malformed"),
        ("sub", json!("orders"), "jwt_malformed"),
        ("sub", json!("https://west.example/ns/shop/sa/orders"), "jwt_malformed"),
        ("sub", json!(["spiffe://west.example/ns/shop/sa/orders"]), "jwt_malformed"),
        ("aud", Value::Null, "jwt_malformed"),
        ("aud", json!([]), "jwt_audience"),
        ("aud", json!([1, null, ["bank"]]), "jwt_audience"),
        ("aud", json!({ "bank": "bank" }), "jwt_malformed"),
        ("aud", json!("bank"), ""),
        ("exp", Value::Null, "jwt_malformed"),
        ("exp", json!("1800000300"), "jwt_malformed"),
        ("exp", json!(-1), "jwt_malformed"),
        ("exp", json!(1e300), "jwt_malformed"),
        ("exp", json!(NOW), ""),
        ("exp", json!(NOW - 59), ""),
        ("exp", json!(NOW - 60), "jwt_outside_validity"),
        ("exp", json!(1_799_999_940.5), ""),
        ("nbf", json!(NOW + 60), ""),
        ("nbf", json!(NOW + 61), "jwt_outside_validity"),
        ("nbf", json!("soon"), "jwt_malformed"),
        ("iat", json!(NOW + 61), "jwt_outside_validity"),
        ("iat", json!(null), "jwt_malformed"),
        ("more", json!({ "deep": [1] }), ""),
    ] {
        let mut claims = west.claims();
        claims[name] = value.clone();
        let refused = verify(&west.sign(&west.header(), &claims), &bundles);
        assert_eq!(refused.map_or_else(|e| e.code(), |_| ""), code, "{name}: {value}");
    }
    for name in ["sub", "aud", "exp"] {
        let mut claims = west.claims();
        claims.as_object_mut().unwrap().remove(name);
        let refused = verify(&west.sign(&west.header(), &claims), &bundles).unwrap_err();
        assert_eq!(refused.code(), "jwt_malformed", "without {name}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let west = Site::new("west.example", "k1");
    let bundles = bundles(&[&west]);
    let token = west.token();
    let (header, rest) = token.split_once('.').unwrap();
    let long = format!("{token}{}", "A".repeat(MAX_TOKEN));
    let deep = URL_SAFE_NO_PAD.encode(format!("{{\"sub\":{}", "[".repeat(9000)));
    for text in [
        "",
        ".",
        "..",
        "...",
        header,
        rest,
        &format!("{token}."),
        &format!("{token}="),
        &format!("{token}.{header}"),
        &format!(" {token}"),
        &format!("{token}\n"),
        &format!("{header}.{deep}.AAAA"),
        &long,
    ] {
        let refused = verify(text, &bundles).unwrap_err();
        assert_eq!(refused.code(), "jwt_malformed", "{text:?}");
    }
}

#[test]
fn a_key_has_a_name_and_a_point() {
    let mut point = [7; POINT];
    point[0] = 4;
    assert!(JwtKey::new("k", &point).is_some(), "and this one verifies nothing");
    assert!(JwtKey::new("", &point).is_none());
    assert!(JwtKey::new("a b", &point).is_none());
    assert!(JwtKey::new(&"k".repeat(MAX_KID + 1), &point).is_none());
    assert!(JwtKey::new("k", &point[1..]).is_none());
    point[0] = 2;
    assert!(JwtKey::new("k", &point).is_none(), "compressed");
}

#[test]
fn keys_are_told_as_a_jwk_set() {
    let west = Site::new("west.example", "k1");
    let told: Value = serde_json::from_slice(&jwk_set(&[west.jwt_key()])).unwrap();
    let [key] = told["keys"].as_array().unwrap().as_slice() else { panic!("{told}") };
    let expected: BTreeMap<_, _> =
        [("kty", "EC"), ("use", "jwt-svid"), ("kid", "k1"), ("crv", "P-256")].into();
    for (name, value) in expected {
        assert_eq!(key[name], value, "{name}");
    }
    let number = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], number("x"), number("y")].concat();
    assert_eq!(point, west.key.public_key().as_ref());
    assert!(key.get("d").is_none(), "nothing of the private key");
}

#[test]
fn audiences_are_somebody() {
    let of = |audiences: &[&str]| {
        are_audiences(&audiences.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert!(of(&["bank"]));
    assert!(of(&["a"; MAX_AUDIENCES]));
    assert!(!of(&[]));
    assert!(!of(&["a"; MAX_AUDIENCES + 1]));
    assert!(!of(&["bank", ""]));
    assert!(!of(&["ba\nnk"]));
    assert!(!of(&[&"a".repeat(MAX_AUDIENCE + 1)]));
}

proptest! {
    /// One changed byte, anywhere, and it is not believed.
    #[test]
    fn whoever_changes_a_token_breaks_it(at in 0usize..1000, to in "[A-Za-z0-9_.-]") {
        let west = Site::new("west.example", "k1");
        let token = west.token();
        let at = at % token.len();
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assume!(changed != token);
        prop_assert!(verify(&changed, &bundles(&[&west])).is_err());
    }

    #[test]
    fn nothing_panics(text in "\\PC{0,200}", header in "\\PC{0,60}", claims in "\\PC{0,60}") {
        let west = Site::new("west.example", "k1");
        let bundles = bundles(&[&west]);
        let parts = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        for token in [text, format!("{}.{}.AAAA", parts[0], parts[1])] {
            prop_assert!(verify(&token, &bundles).is_err());
        }
    }
}
