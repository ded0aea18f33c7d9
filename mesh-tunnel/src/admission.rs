//! How many strangers may be busy with us at once, in all and of one source.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::budget::Budget;

/// Handshakes under way at a gateway's doors, both transports.
const HALF_OPEN: usize = 256;
/// Of one source; a site behind address translation still fits.
const HALF_OPEN_PER_SOURCE: usize = 64;
/// Of one source while handshakes wait for time: whoever comes from elsewhere
/// does not wait behind many.
const WAITING_PER_SOURCE: usize = 16;
/// More than this, and QUIC clients must prove their address first.
const BUSY: usize = 32;
/// Join streams at once.
const JOINING: usize = 64;
/// Of one source: four workers of a gateway let in fewer than federation takes
/// from that gateway.
const JOINING_PER_SOURCE: usize = 16;
/// Join streams begun per second, and as many in one burst.
const JOINS_PER_SECOND: u32 = 20;

/// Places for those who have not proved who they are; nobody waits for one.
#[derive(Debug)]
pub struct Places {
    all: usize,
    per_source: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    sources: HashMap<Option<IpAddr>, usize>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    source: Option<IpAddr>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// For nobody.
    #[error("too many handshakes are under way")]
    All,
    /// For this source.
    #[error("too many handshakes of one source are under way")]
    Source,
}

impl Full {
    /// Stable code, as it is counted.
    pub fn code(self) -> &'static str {
        match self {
            Self::All => "handshake_limit",
            Self::Source => "source_limit",
        }
    }
}

impl Places {
    /// So many in all, so many of one source.
    pub fn new(all: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { all, per_source, taken: Mutex::default() })
    }

    /// Takes a place for somebody at this address; those whose address is not
    /// known count as one source.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn take(self: &Arc<Self>, from: Option<IpAddr>) -> Result<Place, Full> {
        self.take_one_of(from, self.per_source)
    }

    /// The same while whoever has a place waits for time.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn take_to_wait(self: &Arc<Self>, from: Option<IpAddr>) -> Result<Place, Full> {
        self.take_one_of(from, self.per_source.min(WAITING_PER_SOURCE))
    }

    fn take_one_of(
        self: &Arc<Self>,
        from: Option<IpAddr>,
        per_source: usize,
    ) -> Result<Place, Full> {
        let source = from.map(source_of);
        let mut taken = self.taken();
        let of_source = taken.sources.get(&source).copied().unwrap_or(0);
        if of_source >= per_source {
            return Err(Full::Source);
        }
        if taken.all >= self.all {
            return Err(Full::All);
        }
        taken.all += 1;
        taken.sources.insert(source, of_source + 1);
        Ok(Place { places: self.clone(), source })
    }

    fn count(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(n) = taken.sources.get_mut(&self.source) {
            *n -= 1;
            if *n == 0 {
                taken.sources.remove(&self.source);
            }
        }
    }
}

/// What limits tell apart: an IPv4 address, or the /64 that a host on IPv6
/// chooses its addresses from (RFC 4291 section 2.5.1).
pub(crate) fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// How often something was turned away, by stable code. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Tally {
    /// Once more.
    pub fn count(&self, code: &'static str) {
        *self.counts().entry(code).or_default() += 1;
    }

    /// All of it.
    pub fn get(&self) -> Vec<(&'static str, u64)> {
        self.counts().iter().map(|(code, n)| (*code, *n)).collect()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places and limits of one door of a gateway.
#[derive(Debug)]
pub(crate) struct Admission {
    half_open: Arc<Places>,
    joining: Arc<Places>,
    joins: Mutex<Option<Bucket>>,
}

/// Join streams that may begin now.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            half_open: Places::new(HALF_OPEN, HALF_OPEN_PER_SOURCE),
            joining: Places::new(JOINING, JOINING_PER_SOURCE),
            joins: Mutex::default(),
        }
    }
}

impl Admission {
    /// Begins a handshake, at once or when there is time.
    pub(crate) fn enter(&self, source: IpAddr, waits: bool) -> Result<Place, Full> {
        match waits {
            true => self.half_open.take_to_wait(Some(source)),
            false => self.half_open.take(Some(source)),
        }
    }

    /// Whether strangers should first prove that they receive what we send.
    pub(crate) fn is_busy(&self) -> bool {
        self.half_open.count() >= BUSY
    }

    /// Begins a join stream.
    pub(crate) fn join(&self, source: IpAddr, now: Instant) -> Option<Place> {
        let place = self.joining.take(Some(source)).ok()?;
        let mut bucket = self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        let full = f64::from(JOINS_PER_SECOND);
        let bucket = bucket.get_or_insert(Bucket { tokens: full, filled: now });
        let since: Duration = now.duration_since(bucket.filled);
        bucket.tokens = full.min(bucket.tokens + since.as_secs_f64() * full);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;
        Some(place)
    }
}

/// What a door tells its UDP socket of those who have not proved who they are.
#[derive(Debug)]
pub(crate) struct Strangers {
    admission: Arc<Admission>,
    handshakes: Budget,
    /// Whose handshakes have begun, one entry each.
    begun: Mutex<Vec<SocketAddr>>,
    is_closed: AtomicBool,
}

/// A handshake over QUIC that has begun, until this is dropped.
#[derive(Debug)]
pub(crate) struct Begun {
    strangers: Arc<Strangers>,
    from: SocketAddr,
}

impl Strangers {
    pub(crate) fn new(admission: Arc<Admission>, handshakes: Budget) -> Arc<Self> {
        let (begun, is_closed) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { admission, handshakes, begun, is_closed })
    }

    /// Whether they should first prove that they receive what we send.
    pub(crate) fn must_prove_address(&self) -> bool {
        self.admission.is_busy() || !self.handshakes.has_left()
    }

    /// Whether a first packet from there is to be answered by a Retry, whatever
    /// else it says. In a handshake that has begun it may be said again, and
    /// acknowledgements look alike.
    pub(crate) fn must_retry(&self, from: SocketAddr) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
            && self.must_prove_address()
            && !self.begun().contains(&from)
    }

    pub(crate) fn begin(self: &Arc<Self>, from: SocketAddr) -> Begun {
        self.begun().push(from);
        Begun { strangers: self.clone(), from }
    }

    /// Nothing begins any more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    fn begun(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut begun = self.strangers.begun();
        if let Some(place) = begun.iter().position(|from| *from == self.from) {
            begun.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
    }

    #[test]
    fn handshakes_are_limited_per_source_and_in_all() {
        let admission = Admission::default();
        let enter = |n| admission.enter(ip(n), false);
        let one: Vec<_> = (0..200).filter_map(|_| enter(1).ok()).collect();
        assert_eq!((one.len(), enter(1).err()), (HALF_OPEN_PER_SOURCE, Some(Full::Source)));
        assert!(admission.is_busy());
        let waiting: Vec<_> =
            (0..50).filter_map(|_| admission.enter(ip(3000), true).ok()).collect();
        assert_eq!(waiting.len(), WAITING_PER_SOURCE);
        assert!(admission.enter(ip(3000), false).is_ok());
        drop(waiting);
        let all: Vec<_> = (2..2000).filter_map(|n| enter(n).ok()).collect();
        assert_eq!((one.len() + all.len(), enter(2000).err()), (HALF_OPEN, Some(Full::All)));
        drop((one, all));
        assert!(!admission.is_busy());
        assert!(enter(1).is_ok());
        let taken = admission.half_open.taken();
        assert!(taken.sources.is_empty(), "nothing is kept of a source that left");
    }

    #[test]
    fn a_source_is_an_ipv4_address_a_network_of_ipv6_or_everybody_without_one() {
        let places = Places::new(100, 1);
        let at = |text: &str| places.take(Some(text.parse().unwrap()));
        let _held = [at("192.0.2.1"), at("2001:db8::1"), at("2001:db8:0:1::1"), places.take(None)];
        let again = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::2", "2001:db8:0:0:ffff::"];
        for text in again {
            assert_eq!(at(text).err(), Some(Full::Source), "{text}");
        }
        assert_eq!(places.take(None).err(), Some(Full::Source));
        assert!(at("192.0.2.2").is_ok() && at("2001:db8:0:2::1").is_ok());
        assert_eq!(places.count(), 4);
    }

    #[test]
    fn joining_is_limited_per_second_per_source_and_at_once() {
        let admission = Admission::default();
        let mut now = Instant::now();
        let one: Vec<_> = (0..100).filter_map(|_| admission.join(ip(1), now)).collect();
        assert_eq!(one.len(), JOINING_PER_SOURCE);
        // What is left of the burst is for others.
        let burst = |now| (2..100).filter_map(|n| admission.join(ip(n), now)).collect::<Vec<_>>();
        let mut held = burst(now);
        assert_eq!(one.len() + held.len(), 20);
        now += Duration::from_millis(500);
        held.extend(burst(now));
        assert_eq!(one.len() + held.len(), 30);
        for _ in 0..5 {
            now += Duration::from_secs(1);
            held.extend(burst(now));
        }
        assert_eq!(one.len() + held.len(), JOINING);
        drop((one, held));
        now += Duration::from_secs(1);
        assert!(admission.join(ip(1), now).is_some());
    }
}
