//! What the first message of a TLS client says of where it wants to go
//! (RFC 8446 section 4.1.2, RFC 6066 section 3). It is read, never changed:
//! what follows it is between the client and who answers.
//!
//! Reading is strict where that cannot be mistaken for a later version of TLS:
//! unknown versions, ciphers and extensions (GREASE, RFC 8701) pass, lengths
//! that do not add up do not. Of a client that hides its name (ECH) the outer
//! name is the one that is read.

use std::fmt;

/// Bytes of records in which a ClientHello has to end.
pub const MAX_LEN: usize = 16 << 10;

const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Of a record of plaintext (RFC 8446 section 5.1).
const MAX_RECORD: usize = 1 << 14;
/// Octets of a DNS name in text, with a dot at the end.
const MAX_NAME: usize = 254;

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The name that the client asks for, in lower case and without a dot at
    /// its end; `None` if it names nobody. Letters, digits and `-_.:` only.
    pub server_name: Option<Box<str>>,
}

/// Why bytes are not taken for a ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHello {
    /// Their sender does not speak TLS.
    NotTls,
    /// It does, and breaks its rules.
    Malformed(&'static str),
}

impl fmt::Display for NotHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls => f.write_str("the client does not speak TLS"),
            Self::Malformed(what) => write!(f, "ClientHello: {what}"),
        }
    }
}

/// Whether a connection that begins so may speak TLS: a handshake record of
/// any version.
pub fn may_be_tls(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first] => *first == HANDSHAKE,
        [first, second, ..] => (*first, *second) == (HANDSHAKE, 3),
    }
}

/// Reads the ClientHello that `bytes` begin with; `Ok(None)` if more of it is
/// needed. Of at least [`MAX_LEN`] bytes it always says something.
///
/// # Errors
///
/// Whatever follows, it will be none.
pub fn read(bytes: &[u8]) -> Result<Option<ClientHello>, NotHello> {
    if !may_be_tls(bytes) {
        return Err(NotHello::NotTls);
    }
    let within = &bytes[..bytes.len().min(MAX_LEN)];
    match message(within)? {
        None if bytes.len() >= MAX_LEN => Err(NotHello::Malformed("longer than 16 KiB")),
        None => Ok(None),
        Some(message) => hello(&message).map(Some),
    }
}

/// The body of the first handshake message, put together from its records.
fn message(bytes: &[u8]) -> Result<Option<Vec<u8>>, NotHello> {
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((fragment, after, whole)) = record(rest)? {
        message.extend_from_slice(fragment);
        if let Some(header) = message.first_chunk::<4>() {
            let [kind, length @ ..] = *header;
            let length = length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
            if kind != CLIENT_HELLO {
                return Err(NotHello::Malformed("another message comes first"));
            }
            if length > MAX_LEN {
                return Err(NotHello::Malformed("longer than 16 KiB"));
            }
            match (message.len() - header.len()).cmp(&length) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal if whole => return Ok(Some(message.split_off(4))),
                // A client cannot know yet what else to say.
                _ => return Err(NotHello::Malformed("more follows in its record")),
            }
        }
        rest = after;
    }
    Ok(None)
}

/// What a record holds.
type Record<'b> = (&'b [u8], &'b [u8], bool);

/// What is there of the next record's fragment, what follows it, and whether
/// it is whole; `None` if not even its header is.
fn record(bytes: &[u8]) -> Result<Option<Record<'_>>, NotHello> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
        let fits = bytes.iter().zip([HANDSHAKE, 3]).all(|(is, wanted)| *is == wanted);
        return if fits { Ok(None) } else { Err(NotHello::Malformed("no record of a handshake")) };
    };
    let [kind, major, _minor, high, low] = *header;
    if (kind, major) != (HANDSHAKE, 3) {
        return Err(NotHello::Malformed("no record of a handshake"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > MAX_RECORD {
        return Err(NotHello::Malformed("length of a record"));
    }
    let there = length.min(rest.len());
    let (fragment, after) = rest.split_at(there);
    Ok(Some((fragment, after, there == length)))
}

/// What is left of a message.
struct Rest<'b>(&'b [u8]);

impl<'b> Rest<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], NotHello> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(NotHello::Malformed("it ends too soon"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, NotHello> {
        self.take(1).map(|byte| byte[0])
    }

    fn u16(&mut self) -> Result<u16, NotHello> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector with its length before it, of one byte or two.
    fn vector(&mut self, wide: bool) -> Result<&'b [u8], NotHello> {
        let length = if wide { usize::from(self.u16()?) } else { usize::from(self.u8()?) };
        self.take(length)
    }
}

fn hello(message: &[u8]) -> Result<ClientHello, NotHello> {
    let mut rest = Rest(message);
    // legacy_version and random.
    rest.take(2 + 32)?;
    if rest.vector(false)?.len() > 32 {
        return Err(NotHello::Malformed("length of the session id"));
    }
    let ciphers = rest.vector(true)?;
    if ciphers.is_empty() || !ciphers.len().is_multiple_of(2) {
        return Err(NotHello::Malformed("length of the cipher suites"));
    }
    if rest.vector(false)?.is_empty() {
        return Err(NotHello::Malformed("no compression method"));
    }
    let mut server_name = None;
    // Before TLS 1.3 there may be no extensions.
    if !rest.0.is_empty() {
        let mut extensions = Rest(rest.vector(true)?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vector(true)?;
            if kind == SERVER_NAME && server_name.replace(host_name(data)?).is_some() {
                return Err(NotHello::Malformed("server_name is there twice"));
            }
        }
    }
    if !rest.0.is_empty() {
        return Err(NotHello::Malformed("more follows its extensions"));
    }
    Ok(ClientHello { server_name })
}

/// Just one, of the only kind that there is.
fn host_name(data: &[u8]) -> Result<Box<str>, NotHello> {
    let mut rest = Rest(data);
    let mut list = Rest(rest.vector(true)?);
    let kind = list.u8()?;
    let name = list.vector(true)?;
    if kind != HOST_NAME || !list.0.is_empty() || !rest.0.is_empty() {
        return Err(NotHello::Malformed("server_name is not one host name"));
    }
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let text = std::str::from_utf8(name).ok().filter(|_| name.iter().all(allowed));
    let text = text.filter(|text| text.len() <= MAX_NAME);
    let text = text.map(|text| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase());
    let text = text.filter(|text| !text.is_empty());
    text.map(Into::into).ok_or(NotHello::Malformed("server_name is no host name"))
}

/// What a server says before it closes (RFC 8446 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// The message cannot be read.
    DecodeError = 50,
    /// Nobody here has that name (RFC 6066 section 3).
    UnrecognizedName = 112,
}

impl Alert {
    /// The record that says so, fatally, before any handshake.
    pub fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}

#[cfg(test)]
mod tests;
