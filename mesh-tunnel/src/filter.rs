//! What the kernel drops for us before it costs a wake-up, a descriptor or a
//! packet in return: classic BPF on the sockets of a door (socket(7),
//! `SO_ATTACH_FILTER`; filter.rst of the kernel), which needs no privilege.
//!
//! Whoever opens a connection that is refused has cost us as much as many
//! requests of those we know. So a source that does nothing but that is not
//! heard for a while ([`Shunning`]), and no datagram of a handshake is while a
//! worker has no time for any ([`drop_handshakes`]).

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use mesh_runtime::clock;
use socket2::{SockFilter, SockRef};
use tokio::time::Instant;

use crate::{admission::source_of, net::Listener};

/// Refusals within [`WITHIN`] after which a source is not heard.
const REFUSALS: u32 = 16;
/// The time in which they are counted.
const WITHIN: Duration = Duration::from_secs(1);
/// How long it is not heard: about as long as the kernel of somebody honest
/// waits until it tries again.
const SHUNNED: Duration = Duration::from_secs(2);
/// Sources that are counted at once, and that are not heard: a flood of more is
/// left to the worker's budget.
const COUNTED: usize = 64;
const MAX_SHUNNED: usize = 16;

/// Keeps sources away from one listener that are refused again and again; what
/// they have open goes on.
pub struct Shunning {
    listener: Arc<dyn Listener>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Since when a source is counted, and how often it was refused.
    refused: HashMap<IpAddr, (Instant, u32)>,
    /// Until when.
    shunned: Vec<(IpAddr, Instant)>,
}

impl Shunning {
    /// Nobody yet; a process before this one may have left somebody.
    pub fn new(listener: Arc<dyn Listener>) -> Self {
        listener.shun(&[]);
        Self { listener, state: Arc::default() }
    }

    /// A connection from there was refused for what its source already has.
    /// Call it in a runtime.
    pub fn refused(&self, from: IpAddr) {
        let now = clock::monotonic();
        let mut state = state_of(&self.state);
        if !state.count(source_of(from), now) {
            return;
        }
        let is_first = state.shunned.len() == 1;
        self.listener.shun(&state.sources());
        if is_first {
            tokio::spawn(forgive(Arc::downgrade(&self.listener), self.state.clone()));
        }
    }
}

/// A successor may have the same socket, and hears everybody.
impl Drop for Shunning {
    fn drop(&mut self) {
        self.listener.shun(&[]);
    }
}

fn state_of(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears them again, one after the other, until there is none, or no listener.
async fn forgive(listener: Weak<dyn Listener>, state: Arc<Mutex<State>>) {
    loop {
        // None is added before it.
        let Some(until) = state_of(&state).shunned.first().map(|(_, until)| *until) else { return };
        tokio::time::sleep_until(until).await;
        let Some(listener) = listener.upgrade() else { return };
        let mut state = state_of(&state);
        let now = clock::monotonic();
        state.shunned.retain(|(_, until)| *until > now);
        listener.shun(&state.sources());
        if state.shunned.is_empty() {
            return;
        }
    }
}

impl State {
    /// Whether it has to be shunned from now on.
    fn count(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.refused.len() >= COUNTED {
            self.refused.retain(|_, (since, _)| *since + WITHIN > now);
        }
        if self.refused.len() >= COUNTED && !self.refused.contains_key(&source) {
            return false;
        }
        let (since, count) = self.refused.entry(source).or_insert((now, 0));
        if *since + WITHIN <= now {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        let is_too_often = *count >= REFUSALS;
        let is_known = self.shunned.iter().any(|(other, _)| *other == source);
        if !is_too_often || is_known || self.shunned.len() >= MAX_SHUNNED {
            return false;
        }
        self.refused.remove(&source);
        self.shunned.push((source, now + SHUNNED));
        true
    }

    fn sources(&self) -> Vec<IpAddr> {
        self.shunned.iter().map(|(source, _)| *source).collect()
    }
}

/// Instructions of `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SKF_NET_OFF`: offsets from here are of the network header; others of the
/// transport's.
const NETWORK: u32 = -0x10_0000_i32 as u32;
const KEEP: SockFilter = SockFilter::new(RETURN, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);

fn load(code: u16, at: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, at)
}

/// Goes on if it is equal, or passes over so many.
fn unless_equal(value: u32, over: u8) -> SockFilter {
    SockFilter::new(JUMP_EQUAL, 0, over, value)
}

/// Drops what begins a TCP connection from these sources: whole addresses of
/// IPv4, networks of 64 bits of IPv6.
fn beginnings_of(sources: &[IpAddr]) -> Vec<SockFilter> {
    const FLAGS: u32 = 13;
    const SYN_OR_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    const SOURCE_V4: u32 = NETWORK + 12;
    const SOURCE_V6: u32 = NETWORK + 8;
    let mut program = vec![
        load(LOAD_BYTE, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(JUMP_EQUAL, 1, 0, SYN),
        KEEP,
    ];
    for source in sources {
        // The version's half byte.
        program.extend([load(LOAD_BYTE, NETWORK), SockFilter::new(AND, 0, 0, 0xf0)]);
        match source {
            IpAddr::V4(ip) => program.extend([
                unless_equal(0x40, 3),
                load(LOAD_WORD, SOURCE_V4),
                unless_equal(ip.to_bits(), 1),
                DROP,
            ]),
            IpAddr::V6(ip) => {
                let network = (ip.to_bits() >> 64) as u64;
                program.extend([
                    unless_equal(0x60, 5),
                    load(LOAD_WORD, SOURCE_V6),
                    unless_equal((network >> 32) as u32, 3),
                    load(LOAD_WORD, SOURCE_V6 + 4),
                    unless_equal(network as u32, 1),
                    DROP,
                ]);
            }
        }
    }
    program.push(KEEP);
    program
}

/// Has a listening socket drop what these begin; none of them hears of it.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn drop_beginnings(socket: &impl AsFd, sources: &[IpAddr]) -> io::Result<()> {
    match sources {
        [] => keep_all(socket),
        _ => SockRef::from(socket).attach_filter(&beginnings_of(sources)),
    }
}

/// Has a UDP socket drop what belongs to handshakes of QUIC: only that has a
/// long header (RFC 9000 section 17.2).
///
/// # Errors
///
/// The kernel's.
pub(crate) fn drop_handshakes(socket: &impl AsFd) -> io::Result<()> {
    const FIRST: u32 = 8;
    const LONG: u32 = 0x80;
    let program = [load(LOAD_BYTE, FIRST), SockFilter::new(JUMP_SET, 0, 1, LONG), DROP, KEEP];
    SockRef::from(socket).attach_filter(&program)
}

/// Ends what the other two have begun, if anything.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn keep_all(socket: &impl AsFd) -> io::Result<()> {
    match SockRef::from(socket).detach_filter() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        ended => ended,
    }
}

#[cfg(test)]
mod tests;
