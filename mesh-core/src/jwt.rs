//! JWT-SVIDs (SPIFFE JWT-SVID; RFC 7519 in the compact form of RFC 7515) and
//! the one function that verifies them.
//!
//! There is one algorithm, ES256, and a key of a bundle is good for nothing
//! else: what a token says about keys and algorithms only chooses among keys
//! that are there, or refuses it.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use crate::{
    identity::TrustBundles,
    name::{SpiffeId, TrustDomain},
};

/// Bytes of the longest token that is read.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Bytes of the longest name of a key.
pub const MAX_KID: usize = 64;
/// Audiences of one token.
pub const MAX_AUDIENCES: usize = 16;
/// Bytes of the longest audience.
pub const MAX_AUDIENCE: usize = 512;
/// How far two clocks may be apart.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Bytes of an uncompressed point on P-256 (SEC 1 section 2.3.3).
const POINT: usize = 65;

/// A key that JWT-SVIDs of one trust domain are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKey {
    /// Names it in tokens.
    pub kid: Arc<str>,
    point: [u8; POINT],
}

impl JwtKey {
    /// From an uncompressed point on P-256. `None` if it has not its form;
    /// one that is not on the curve verifies nothing.
    pub fn new(kid: &str, point: &[u8]) -> Option<Self> {
        let point: [u8; POINT] = point.try_into().ok()?;
        let well_formed = point[0] == 4
            && (1..=MAX_KID).contains(&kid.len())
            && kid.bytes().all(|byte| byte.is_ascii_graphic());
        well_formed.then(|| Self { kid: kid.into(), point })
    }

    /// The uncompressed point.
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// RFC 7517, with the `use` of a SPIFFE bundle.
    fn to_jwk(&self) -> Value {
        let (x, y) = self.point[1..].split_at(32);
        json!({
            "kty": "EC",
            "use": "jwt-svid",
            "kid": &*self.kid,
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

/// A set of keys as JSON (RFC 7517 section 5).
pub fn jwk_set(keys: &[JwtKey]) -> Vec<u8> {
    let keys: Vec<Value> = keys.iter().map(JwtKey::to_jwk).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

/// A verified token.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    /// Whom it names.
    pub id: SpiffeId,
    /// Its end, since the Unix epoch.
    pub not_after: Duration,
    /// Everything that it says.
    pub claims: Map<String, Value>,
}

/// Why a token is not believed. Each has a stable code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is none, or lacks something that every one has.
    #[error("not a JWT-SVID: {0}")]
    Malformed(&'static str),
    /// It is signed in another way, or not at all.
    #[error("not signed by ES256, the only algorithm that is accepted")]
    Algorithm,
    /// There is no bundle for the trust domain it claims.
    #[error("unknown trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// That domain has no such key.
    #[error("{0} has no key of this name for JWT-SVIDs")]
    UnknownKey(TrustDomain),
    /// Not signed by that key.
    #[error("{0}: the signature does not verify")]
    Signature(SpiffeId),
    /// Before or after its validity.
    #[error("{0}: the token has expired or is not yet valid; check both clocks")]
    OutsideValidity(SpiffeId),
    /// For somebody else.
    #[error("{0}: the token is for another audience")]
    Audience(SpiffeId),
}

impl JwtError {
    /// The stable code, as in logs and answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "jwt_malformed",
            Self::Algorithm => "jwt_algorithm",
            Self::UnknownTrustDomain(_) => "jwt_unknown_trust_domain",
            Self::UnknownKey(_) => "jwt_unknown_key",
            Self::Signature(_) => "jwt_signature",
            Self::OutsideValidity(_) => "jwt_outside_validity",
            Self::Audience(_) => "jwt_audience",
        }
    }
}

/// Verifies a token for one audience.
///
/// The key is the one that the token names among those of the trust domain of
/// its subject, and of no other: no domain vouches for another.
pub fn verify_jwt(
    token: &str,
    audience: &str,
    bundles: &TrustBundles,
    now: UnixTime,
) -> Result<JwtSvid, JwtError> {
    let parts = Parts::split(token)?;
    let kid = kid(&object(parts.header)?)?;
    let claims = object(parts.claims)?;
    let id = subject(&claims)?;
    let domain = id.trust_domain();
    let bundle = bundles.get(domain).ok_or_else(|| JwtError::UnknownTrustDomain(domain.clone()))?;
    let key = bundle.jwt_keys.iter().find(|key| *key.kid == *kid);
    let key = key.ok_or_else(|| JwtError::UnknownKey(domain.clone()))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point)
        .verify(parts.signed.as_bytes(), &decoded(parts.signature)?)
        .map_err(|_| JwtError::Signature(id.clone()))?;
    let not_after = check_times(&id, &claims, now)?;
    check_audience(&id, &claims, audience)?;
    Ok(JwtSvid { id, not_after, claims })
}

/// What is signed for a token that says this: the part before its last dot.
/// Times are seconds since the Unix epoch.
pub fn to_sign(
    kid: &str,
    id: &SpiffeId,
    audience: &[String],
    issued_at: i64,
    not_after: i64,
) -> String {
    let header = json!({ "alg": "ES256", "kid": kid, "typ": "JWT" });
    let claims = json!({ "sub": id.as_str(), "aud": audience, "iat": issued_at, "exp": not_after });
    let encoded = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", encoded(header), encoded(claims))
}

/// The token: [`to_sign`] with its signature, `r` and `s` of 32 bytes each (RFC
/// 7518 section 3.4).
pub fn with_signature(to_sign: &str, signature: &[u8]) -> String {
    format!("{to_sign}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Whether tokens may be for these: not for nobody, and not for what no
/// program calls itself.
pub fn are_audiences(audiences: &[String]) -> bool {
    let is_one = |audience: &String| {
        (1..=MAX_AUDIENCE).contains(&audience.len()) && !audience.chars().any(char::is_control)
    };
    (1..=MAX_AUDIENCES).contains(&audiences.len()) && audiences.iter().all(is_one)
}

struct Parts<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    signed: &'a str,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed("it is longer than 16 KiB"));
        }
        let three = || {
            let (signed, signature) = token.rsplit_once('.')?;
            let (header, claims) = signed.split_once('.')?;
            (!claims.contains('.')).then_some(Self { header, claims, signature, signed })
        };
        three().ok_or(JwtError::Malformed("it has not three parts"))
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed("a part is not base64url"))
}

fn object(part: &str) -> Result<Map<String, Value>, JwtError> {
    serde_json::from_slice(&decoded(part)?)
        .map_err(|_| JwtError::Malformed("a part is no JSON object"))
}

/// The key that the header names, if it says nothing that has to be understood.
fn kid(header: &Map<String, Value>) -> Result<String, JwtError> {
    if header.get("alg").and_then(Value::as_str) != Some("ES256") {
        return Err(JwtError::Algorithm);
    }
    if header.contains_key("crit") {
        return Err(JwtError::Malformed("its header has critical extensions"));
    }
    let typ = header.get("typ");
    if typ.is_some_and(|typ| !matches!(typ.as_str(), Some("JWT" | "JOSE"))) {
        return Err(JwtError::Malformed("its header has another type"));
    }
    let kid = header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
    kid.map(str::to_owned).ok_or(JwtError::Malformed("its header names no key"))
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtError> {
    let subject = claims.get("sub").and_then(Value::as_str);
    let subject = subject.ok_or(JwtError::Malformed("it has no subject"))?;
    subject.parse().map_err(|_| JwtError::Malformed("its subject is no SPIFFE ID of a mesh"))
}

/// Returns the end.
fn check_times(
    id: &SpiffeId,
    claims: &Map<String, Value>,
    now: UnixTime,
) -> Result<Duration, JwtError> {
    let end = time(claims, "exp")?.ok_or(JwtError::Malformed("it has no end"))?;
    let begins = [time(claims, "nbf")?, time(claims, "iat")?];
    let now = Duration::from_secs(now.as_secs());
    let is_early = begins.into_iter().flatten().any(|begin| begin > now + LEEWAY);
    if is_early || end + LEEWAY <= now {
        return Err(JwtError::OutsideValidity(id.clone()));
    }
    Ok(end)
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<Duration>, JwtError> {
    /// Nobody's token lasts longer than for a million years.
    const LATEST: f64 = 3.2e13;
    let Some(claim) = claims.get(name) else { return Ok(None) };
    let seconds = claim.as_f64().filter(|seconds| (0.0..LATEST).contains(seconds));
    seconds.map(Duration::from_secs_f64).map(Some).ok_or(JwtError::Malformed("a time is none"))
}

fn check_audience(
    id: &SpiffeId,
    claims: &Map<String, Value>,
    audience: &str,
) -> Result<(), JwtError> {
    let holds = match claims.get("aud") {
        Some(Value::String(only)) => only == audience,
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(audience)),
        _ => return Err(JwtError::Malformed("it has no audience")),
    };
    if holds && !audience.is_empty() { Ok(()) } else { Err(JwtError::Audience(id.clone())) }
}

#[cfg(test)]
mod tests;
