//! Tokens: what lets a machine join, or a site link, once.
//!
//! `isthmus1.` followed by base64url without padding (RFC 4648 section 5) of a
//! `Token` message and the CRC-32 of it, big-endian. The checksum tells a token
//! that was cut or mistyped from one that is refused. Clients and federation
//! read it with the same code.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_api::v1;
use prost::Message;

use crate::name::{SiteName, TrustDomain};

/// What every token begins with; the digit is the version of the encoding.
pub const PREFIX: &str = "isthmus1.";
/// The version of the message inside.
pub const VERSION: u32 = 1;
/// The longest token that is read, in bytes.
pub const MAX_LENGTH: usize = 8192;
/// Gateways that a token may name.
pub const MAX_GATEWAYS: usize = 16;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A machine joins a site.
    Node,
    /// A site links with another.
    Link,
}

/// A token, readable by its bearer. `Debug` and `Display` never show the
/// secret; [`Token::encode`] is the only way to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is for.
    pub purpose: Purpose,
    /// Site that issued it.
    pub site: SiteName,
    /// That site's trust domain.
    pub trust_domain: TrustDomain,
    /// `host:port` of that site's gateways' TLS/TCP listeners; at least one.
    pub gateways: Vec<Arc<str>>,
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub root_spki_sha256: [u8; 32],
    /// Public part, as `token list` shows it.
    pub id: Arc<str>,
    /// What the site knows only as a hash.
    pub secret: [u8; 32],
}

/// Why a text is not a token that can be used here. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else was pasted.
    #[error("this is not an Isthmus token: it must begin with {PREFIX:?}")]
    NotAToken,
    /// A newer encoding or message.
    #[error("this token has version {0}, and this program reads version {VERSION}; upgrade it")]
    UnsupportedVersion(String),
    /// It ends too early.
    #[error("this token is cut off: copy it whole, it is one line")]
    Truncated,
    /// Right length, wrong content.
    #[error("this token is damaged: copy it again, no character may change")]
    Damaged,
    /// A link token for joining, or the other way round.
    #[error("this is a token for {}; {}", .found.whom(), .found.remedy())]
    WrongPurpose {
        /// What it is for.
        found: Purpose,
    },
    /// It is intact and says nonsense.
    #[error("this token is not valid: {0}; ask for a new one")]
    Invalid(String),
}

impl TokenError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAToken => "token_not_a_token",
            Self::UnsupportedVersion(_) => "token_unsupported_version",
            Self::Truncated => "token_truncated",
            Self::Damaged => "token_damaged",
            Self::WrongPurpose { .. } => "token_wrong_purpose",
            Self::Invalid(_) => "token_invalid",
        }
    }
}

impl Purpose {
    fn whom(self) -> &'static str {
        match self {
            Self::Node => "joining a machine",
            Self::Link => "linking a site",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Node => {
                "use it with `meshctl join`, and get a link token with `meshctl link token`"
            }
            Self::Link => {
                "use it with `meshctl link cluster`, and get a join token with `meshctl token create`"
            }
        }
    }

    /// As on the wire.
    pub fn wire(self) -> v1::TokenPurpose {
        match self {
            Self::Node => v1::TokenPurpose::Node,
            Self::Link => v1::TokenPurpose::Link,
        }
    }
}

impl Token {
    /// The text that its bearer gets.
    pub fn encode(&self) -> String {
        let message = v1::Token {
            version: VERSION,
            purpose: self.purpose.wire().into(),
            site: self.site.to_string(),
            trust_domain: self.trust_domain.to_string(),
            gateways: self.gateways.iter().map(ToString::to_string).collect(),
            root_spki_sha256: self.root_spki_sha256.to_vec(),
            id: self.id.to_string(),
            secret: self.secret.to_vec(),
        };
        let mut bytes = message.encode_to_vec();
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_be_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token for one purpose. White space around it is ignored.
    pub fn decode(text: &str, wanted: Purpose) -> Result<Self, TokenError> {
        let token = Self::decode_any(text)?;
        if token.purpose == wanted {
            Ok(token)
        } else {
            Err(TokenError::WrongPurpose { found: token.purpose })
        }
    }

    /// Reads a token for any purpose.
    pub fn decode_any(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(TokenError::Invalid(format!("it is longer than {MAX_LENGTH} bytes")));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body(text)?).map_err(|error| match error {
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidLastSymbol(..) => {
                TokenError::Truncated
            }
            _ => TokenError::Damaged,
        })?;
        let (message, checksum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Truncated)?;
        if crc32fast::hash(message) != u32::from_be_bytes(*checksum) {
            return Err(if is_cut(&bytes) { TokenError::Truncated } else { TokenError::Damaged });
        }
        let message = v1::Token::decode(message).map_err(|_| TokenError::Damaged)?;
        if message.version != VERSION {
            return Err(TokenError::UnsupportedVersion(message.version.to_string()));
        }
        Self::try_from(message)
    }
}

/// What follows the prefix.
fn body(text: &str) -> Result<&str, TokenError> {
    if let Some(body) = text.strip_prefix(PREFIX) {
        return Ok(body);
    }
    if !text.is_empty() && PREFIX.starts_with(text) {
        return Err(TokenError::Truncated);
    }
    let version = text.strip_prefix("isthmus").and_then(|rest| rest.split_once('.'));
    match version {
        Some((version, _))
            if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Err(TokenError::UnsupportedVersion(version.chars().take(10).collect()))
        }
        _ => Err(TokenError::NotAToken),
    }
}

/// Whether bytes that fail their checksum are the beginning of a token: the
/// secret comes last in the message, so a whole one ends 4 bytes after it.
fn is_cut(bytes: &[u8]) -> bool {
    // Field 8, length-delimited, 32 bytes.
    const SECRET: [u8; 2] = [8 << 3 | 2, 32];
    let whole = bytes.len().checked_sub(4 + 32 + SECRET.len());
    !whole.is_some_and(|at| bytes[at..].starts_with(&SECRET))
}

impl TryFrom<v1::Token> for Token {
    type Error = TokenError;

    fn try_from(message: v1::Token) -> Result<Self, TokenError> {
        let invalid = |problem: &str| TokenError::Invalid(problem.to_owned());
        let purpose = match message.purpose() {
            v1::TokenPurpose::Node => Purpose::Node,
            v1::TokenPurpose::Link => Purpose::Link,
            v1::TokenPurpose::Unspecified => return Err(invalid("it has no purpose")),
        };
        let name = |error: crate::name::InvalidName| TokenError::Invalid(error.to_string());
        let bytes = |value: &[u8], what: &str| {
            <[u8; 32]>::try_from(value)
                .map_err(|_| TokenError::Invalid(format!("its {what} is not 32 bytes")))
        };
        if message.gateways.is_empty() || message.gateways.len() > MAX_GATEWAYS {
            return Err(invalid("it must name 1 to 16 gateways"));
        }
        if let Some(bad) = message.gateways.iter().find(|gateway| !is_host_port(gateway)) {
            return Err(invalid(&format!("gateway {bad:?} is not host:port")));
        }
        if message.id.is_empty() || message.id.len() > 64 {
            return Err(invalid("its id is not 1 to 64 bytes"));
        }
        Ok(Self {
            purpose,
            site: message.site.parse().map_err(name)?,
            trust_domain: message.trust_domain.parse().map_err(name)?,
            gateways: message.gateways.iter().map(|g| g.as_str().into()).collect(),
            root_spki_sha256: bytes(&message.root_spki_sha256, "hash of the root")?,
            id: message.id.into(),
            secret: bytes(&message.secret, "secret")?,
        })
    }
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    text.len() <= 261
        && !host.is_empty()
        && !host.contains(|c: char| c.is_whitespace() || c.is_control())
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("purpose", &self.purpose)
            .field("site", &self.site)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            purpose: Purpose::Node,
            site: "west".parse().unwrap(),
            trust_domain: "west.example".parse().unwrap(),
            gateways: vec!["gw.west.example:8443".into(), "[2001:db8::1]:8443".into()],
            root_spki_sha256: [7; 32],
            id: "t1a2b3c4".into(),
            secret: [9; 32],
        }
    }

    #[test]
    fn survives_the_round_trip() {
        let text = token().encode();
        assert!(text.starts_with("isthmus1."), "{text}");
        assert_eq!(Token::decode(&format!("  {text}\n"), Purpose::Node), Ok(token()));
    }

    #[test]
    fn every_truncation_is_told_as_such() {
        let text = token().encode();
        for length in 1..text.len() {
            let error = Token::decode(&text[..length], Purpose::Node).unwrap_err();
            assert_eq!(error, TokenError::Truncated, "cut to {length} bytes");
        }
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = token().encode();
        for at in PREFIX.len()..text.len() {
            for other in ['A', 'b', '-', '!', '='] {
                let mut changed: Vec<char> = text.chars().collect();
                if changed[at] == other {
                    continue;
                }
                changed[at] = other;
                let changed: String = changed.into_iter().collect();
                let error = Token::decode(&changed, Purpose::Node).expect_err(&changed);
                assert!(
                    matches!(error, TokenError::Damaged | TokenError::Truncated),
                    "{changed}: {error}"
                );
            }
        }
    }

    /// A whole token with one byte changed is not called a cut one.
    #[test]
    fn damage_is_told_from_a_cut() {
        let text = token().encode();
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
        // The two bytes before the secret are what tells a whole token.
        let tag = bytes.len() - 4 - 32 - 2;
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let changed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(changed));
            let is_tag = (tag..tag + 2).contains(&at);
            let expected = if is_tag { TokenError::Truncated } else { TokenError::Damaged };
            assert_eq!(Token::decode(&changed, Purpose::Node), Err(expected), "byte {at}");
        }
    }

    /// The example with another message and a checksum that fits it.
    fn with(change: impl FnOnce(&mut v1::Token)) -> String {
        let text = token().encode();
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
        let mut message = v1::Token::decode(&bytes[..bytes.len() - 4]).unwrap();
        change(&mut message);
        let mut bytes = message.encode_to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    #[test]
    fn each_kind_of_foreign_text_has_its_own_answer() {
        let cases = [
            ("".to_owned(), "token_not_a_token"),
            ("eyJhbGciOiJIUzI1NiJ9.e30.x".to_owned(), "token_not_a_token"),
            ("isthmusx.abc".to_owned(), "token_not_a_token"),
            ("isthmus.abc".to_owned(), "token_not_a_token"),
            ("isthmus2.abcd".to_owned(), "token_unsupported_version"),
            (with(|t| t.version = 9), "token_unsupported_version"),
            (with(|t| t.purpose = 2), "token_wrong_purpose"),
            (with(|t| t.purpose = 0), "token_invalid"),
            (with(|t| t.secret.truncate(31)), "token_invalid"),
            (with(|t| t.gateways.clear()), "token_invalid"),
            (with(|t| t.gateways.push("no port".into())), "token_invalid"),
            (with(|t| t.site = "NO".into()), "token_invalid"),
            (with(|t| t.id.clear()), "token_invalid"),
            (format!("{PREFIX}{}", "A".repeat(MAX_LENGTH)), "token_invalid"),
        ];
        for (text, code) in cases {
            let error = Token::decode(&text, Purpose::Node).unwrap_err();
            assert_eq!(error.code(), code, "{text:.40}: {error}");
        }
    }

    #[test]
    fn a_token_for_something_else_says_what_it_is_for() {
        let cases = [
            (
                Purpose::Node,
                Purpose::Link,
                "a token for joining a machine; use it with `meshctl join`",
            ),
            (Purpose::Link, Purpose::Node, "a token for linking a site; use it with `meshctl link"),
        ];
        for (purpose, wanted, message) in cases {
            let text = Token { purpose, ..token() }.encode();
            assert_eq!(Token::decode(&text, purpose).map(|token| token.purpose), Ok(purpose));
            let error = Token::decode(&text, wanted).unwrap_err();
            assert_eq!(error, TokenError::WrongPurpose { found: purpose });
            assert!(error.to_string().contains(message), "{error}\nexpected {message}");
        }
    }

    /// Exactly so much passes, one more does not.
    #[test]
    fn limits() {
        let gateways = |n: usize| with(|t| t.gateways = vec!["gw:1".into(); n]);
        let id = |n: usize| with(|t| t.id = "i".repeat(n));
        let host = |n: usize| with(|t| t.gateways = vec![format!("{}:8443", "h".repeat(n - 5))]);
        type Case<'a> = (&'a str, &'a dyn Fn(usize) -> String, usize);
        let cases: [Case<'_>; 3] = [
            ("it must name 1 to 16 gateways", &gateways, MAX_GATEWAYS),
            ("its id is not 1 to 64 bytes", &id, 64),
            ("is not host:port", &host, 261),
        ];
        for (message, case, max) in cases {
            assert_eq!(Token::decode_any(&case(max)).map(drop), Ok(()), "{message}");
            let error = Token::decode_any(&case(max + 1)).unwrap_err();
            assert!(matches!(&error, TokenError::Invalid(problem) if problem.ends_with(message)));
        }
        // Of white space around it nothing counts.
        let text = |n: usize| format!(" {PREFIX}{}\n", "A".repeat(n - PREFIX.len()));
        assert_eq!(Token::decode_any(&text(MAX_LENGTH)), Err(TokenError::Truncated));
        let too_long = TokenError::Invalid("it is longer than 8192 bytes".to_owned());
        assert_eq!(Token::decode_any(&text(MAX_LENGTH + 1)), Err(too_long));
    }

    #[test]
    fn gateways_are_host_and_port() {
        for good in ["gw:1", "gw.example:65535", "192.0.2.1:8443", "[2001:db8::1]:8443"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in ["", "gw", "gw:", ":8443", "gw:0", "gw:65536", "g w:1", "gw\u{7}:1", "gw:http"] {
            assert!(!is_host_port(bad), "{bad:?}");
        }
    }

    #[test]
    fn is_never_printed_with_its_secret() {
        let text = format!("{:?}", Token { secret: [211; 32], ..token() });
        assert!(text.contains("t1a2b3c4") && !text.contains("211"), "{text}");
    }
}
