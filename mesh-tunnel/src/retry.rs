//! Retry (RFC 9000 section 8.1.2), made of what a client's first packet says in
//! the clear: no key is derived and nothing is decrypted, or kept, for whoever
//! has not proved their address. What comes back with a token is the endpoint's,
//! which knows the same key.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use aws_lc_rs::{aead, hmac};
use mesh_runtime::clock;
use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey};

use crate::datagrams::{CID_LEN, Generation};

/// Datagrams with an Initial are no shorter (RFC 9000 section 14.1).
const MIN_DATAGRAM: usize = 1200;
/// The id that a client first chooses for us is no shorter (section 7.2).
const MIN_FIRST_ID: usize = 8;
/// And none is longer (section 17.2).
const MAX_ID: usize = 20;
/// A packet number and the sample that protects it (RFC 9001 section 5.4.2).
const MIN_PAYLOAD: u64 = 4 + 16;
/// RFC 9001 section 5.8.
const INTEGRITY_KEY: [u8; 16] = 0xbe0c690b9f66575a1d766b54e368c84e_u128.to_be_bytes();
const INTEGRITY_NONCE: [u8; 12] =
    [0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb];
const INTEGRITY_TAG: usize = 16;

const NONCE: usize = 16;
const MAC: usize = 32;
/// Type, address, the id that the client first chose, and a time.
const MAX_CLAIM: usize = 1 + (1 + 16 + 2) + (1 + MAX_ID) + 8;
/// A Retry after what only its tag is made of.
const MAX_PACKET: usize =
    (1 + MAX_ID) + (1 + 4 + 1 + MAX_ID + 1 + CID_LEN) + MAX_CLAIM + MAC + NONCE + INTEGRITY_TAG;
// Nobody is sent more than was received in their name.
const _: () = assert!(MAX_PACKET < MIN_DATAGRAM);

/// What a datagram begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum First<'a> {
    /// An Initial of version 1.
    Initial(Initial<'a>),
    /// Something like one that begins no connection: it is too short, or its
    /// lengths lead out of it.
    Broken,
    /// Anything else.
    Other,
}

/// The clear part of an Initial (RFC 9000 section 17.2.2).
#[derive(Debug, PartialEq, Eq)]
pub struct Initial<'a> {
    /// The id that the client has chosen for us.
    pub destination: &'a [u8],
    /// And for itself.
    pub source: &'a [u8],
    /// Of a Retry, or nothing.
    pub token: &'a [u8],
}

/// What a datagram begins with; whatever follows its first packet begins
/// nothing.
pub fn first_of(datagram: &[u8]) -> First<'_> {
    const LONG: u8 = 0x80;
    const TYPE: u8 = 0x30;
    let [first, 0, 0, 0, 1, rest @ ..] = datagram else { return First::Other };
    // Initial is type 0; the fixed bit may be greased (RFC 9287).
    if first & (LONG | TYPE) != LONG {
        return First::Other;
    }
    match initial(rest) {
        Some(initial) if datagram.len() >= MIN_DATAGRAM => First::Initial(initial),
        Some(_) | None => First::Broken,
    }
}

fn initial(mut rest: &[u8]) -> Option<Initial<'_>> {
    let destination = id(&mut rest)?;
    let source = id(&mut rest)?;
    let length = varint(&mut rest)?;
    let token = take(&mut rest, usize::try_from(length).ok()?)?;
    let payload = varint(&mut rest)?;
    let fits = (MIN_PAYLOAD..=rest.len() as u64).contains(&payload);
    (fits && destination.len() >= MIN_FIRST_ID).then_some(Initial { destination, source, token })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn id<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(take(rest, 1)?[0]);
    take(rest, length).filter(|id| id.len() <= MAX_ID)
}

/// RFC 9000 section 16.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = *rest.first()?;
    let bytes = take(rest, 1 << (first >> 6))?;
    let bits = u64::from(first & 0x3f);
    Some(bytes[1..].iter().fold(bits, |bits, byte| bits << 8 | u64::from(*byte)))
}

/// Who was sent a token, and for which connection: the bytes that the endpoint
/// reads in one, a MAC over them, and a nonce. A client knows all that it says;
/// that nobody else can say it is what counts (RFC 9000 section 8.1.4), so a
/// MAC does, and unlike AES-GCM under one key it survives a nonce that comes
/// twice: a flood draws more than the 2^32 of 96 bits that would be allowed.
pub(crate) struct TokenKey(hmac::Key);

impl TokenKey {
    /// That of the process: its workers take each other's tokens.
    pub(crate) fn of_process() -> Arc<Self> {
        static KEY: LazyLock<Arc<TokenKey>> = LazyLock::new(|| {
            let secret: [u8; 32] = rand::random();
            Arc::new(TokenKey(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
        });
        KEY.clone()
    }

    fn mac(&self, nonce: &[u8; NONCE], claim: &[u8]) -> [u8; MAC] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(nonce);
        context.update(claim);
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether one of these made it; for whom, and when, the endpoint asks.
    pub(crate) fn has_made(&self, token: &[u8]) -> bool {
        let Some((sealed, nonce)) = token.split_last_chunk() else { return false };
        self.open(nonce, sealed).is_some()
    }

    fn open<'a>(&self, nonce: &[u8; NONCE], sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (claim, mac) = sealed.split_last_chunk::<MAC>()?;
        let expected = self.mac(nonce, claim);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, mac).ok()?;
        Some(claim)
    }
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let nonce = random_bytes.try_into().expect("the endpoint's nonces have 128 bits");
        Box::new(Sealing { key: TokenKey(self.0.clone()), nonce })
    }
}

/// One token's key, as the endpoint sees it.
struct Sealing {
    key: TokenKey,
    nonce: [u8; NONCE],
}

impl AeadKey for Sealing {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        if !additional_data.is_empty() {
            return Err(CryptoError);
        }
        let mac = self.key.mac(&self.nonce, data);
        data.extend_from_slice(&mac);
        Ok(())
    }

    fn open<'a>(
        &self,
        data: &'a mut [u8],
        additional_data: &[u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let claim = self.key.open(&self.nonce, data).filter(|_| additional_data.is_empty());
        let length = claim.ok_or(CryptoError)?.len();
        Ok(&mut data[..length])
    }
}

/// The wall clock that the endpoint judges tokens by: ours.
pub(crate) struct WallClock;

impl quinn::TimeSource for WallClock {
    fn now(&self) -> std::time::SystemTime {
        clock::now()
    }
}

/// A Retry.
pub(crate) struct Packet {
    bytes: [u8; MAX_PACKET],
    /// Where it begins.
    start: usize,
    end: usize,
}

impl Packet {
    /// Has whoever is at `from` prove it. The endpoint takes any id for the one
    /// that their next Initial is sent to; this is like those that it makes
    /// itself.
    pub(crate) fn new(
        initial: &Initial<'_>,
        from: SocketAddr,
        generation: Option<Generation>,
        key: &TokenKey,
    ) -> Self {
        let mut id: [u8; CID_LEN] = rand::random();
        if let Some(Generation(generation)) = generation {
            id[0] = generation;
        }
        let start = 1 + initial.destination.len();
        let mut packet = Self { bytes: [0; MAX_PACKET], start, end: 0 };
        packet.put_id(initial.destination);
        // RFC 9000 section 17.2.5.
        packet.put(&[0xf0, 0, 0, 0, 1]);
        packet.put_id(initial.source);
        packet.put_id(&id);
        packet.put_token(initial.destination, from, clock::now_unix().as_secs(), key);
        packet.put_tag();
        packet
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        self.bytes[self.end..end].copy_from_slice(bytes);
        self.end = end;
    }

    fn put_id(&mut self, id: &[u8]) {
        // No longer than MAX_ID.
        self.put(&[id.len() as u8]);
        self.put(id);
    }

    /// As quinn-proto writes and reads one (`token.rs`).
    fn put_token(&mut self, first_id: &[u8], from: SocketAddr, now: u64, key: &TokenKey) {
        const OF_RETRY: u8 = 0;
        let begin = self.end;
        self.put(&[OF_RETRY]);
        match from.ip() {
            IpAddr::V4(ip) => {
                self.put(&[0]);
                self.put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.put(&[1]);
                self.put(&ip.octets());
            }
        }
        self.put(&from.port().to_be_bytes());
        self.put_id(first_id);
        self.put(&now.to_be_bytes());
        let nonce = rand::random();
        let mac = key.mac(&nonce, &self.bytes[begin..self.end]);
        self.put(&mac);
        self.put(&nonce);
    }

    /// Over the packet, after the id that it answers (RFC 9001 section 5.8).
    fn put_tag(&mut self) {
        static KEY: LazyLock<aead::LessSafeKey> = LazyLock::new(|| {
            let key = aead::UnboundKey::new(&aead::AES_128_GCM, &INTEGRITY_KEY);
            aead::LessSafeKey::new(key.expect("it has 128 bits"))
        });
        let nonce = aead::Nonce::assume_unique_for_key(INTEGRITY_NONCE);
        let said = aead::Aad::from(&self.bytes[..self.end]);
        let tag = KEY.seal_in_place_separate_tag(nonce, said, &mut []);
        self.put(tag.expect("nothing is shorter than any limit").as_ref());
    }
}

#[cfg(test)]
pub(crate) mod tests;
