//! TLS with certificates that are not of the mesh, for as long as hosts move
//! into it.
//!
//! A host that leaves an old proxy has peers that have not left theirs, and
//! speak TLS with certificates of some other CA. Without this they could not
//! be served until all of them move at once. Every use has a date on which it
//! ends, is refused from then on, and is shown in the metrics until somebody
//! takes it away.
//!
//! The mesh's own identity has no part in it: nothing here is shown to a peer
//! of the mesh, or an identity that a policy could allow; a client that may
//! show its certificate of the mesh instead of the old one comes in, and no
//! more. The
//! mesh's TLS is [`mesh_tunnel::tls`]. TLS 1.2 is spoken, too, and sessions are
//! not resumed.
//!
//! [`Until`] is when it ends, `pem` the files; [`door`] is about listeners, `chosen`
//! about their certificates and `clients` about those of their clients; [`origin`] is
//! about endpoints that have no proxy, [`metrics`] about what is counted.

mod chosen;
mod clients;
pub mod door;
pub mod metrics;
pub mod origin;
mod pem;
mod until;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use door::Door;
use mesh_api::v1::TransitionTls;
use mesh_runtime::{clock, config::ConfigError};
use mesh_tunnel::Credentials;
use metrics::Shown;
use origin::{Origin, OriginTls};
use rustc_hash::FxHashMap;
use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    time_provider::TimeProvider,
};
pub use until::Until;

use crate::{app::Shared, config::Config};

/// How often files are looked at again, and ends.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// RFC 7301 section 6, RFC 9113 section 3.1.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// All that one proxy has of it; cheap to clone. See the module.
#[derive(Debug, Clone, Default)]
pub struct Transition(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    /// By place in `listeners`.
    doors: ArcSwap<Vec<Option<Arc<Door>>>>,
    origins: ArcSwap<Origins>,
}

#[derive(Debug, Default)]
struct Origins {
    all: Vec<Arc<Origin>>,
    by_target: FxHashMap<SocketAddr, Arc<Origin>>,
}

impl Transition {
    /// Reads what the listeners need.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub fn load_doors(
        &self,
        config: &Config,
        credentials: &Arc<Credentials>,
    ) -> Result<(), ConfigError> {
        let doors = config.listeners.iter().map(|listener| {
            let door = listener.tls.as_ref().map(|tls| Door::load(listener, tls, credentials));
            Ok(door.transpose()?.map(Arc::new))
        });
        self.0.doors.store(Arc::new(doors.collect::<Result<_, ConfigError>>()?));
        Ok(())
    }

    /// Of the listener at this place of `listeners`.
    pub fn door(&self, place: usize) -> Option<Arc<Door>> {
        self.0.doors.load().get(place)?.clone()
    }

    /// Reads what endpoints without a proxy need.
    ///
    /// # Errors
    ///
    /// As [`Transition::load_doors`].
    pub fn load_origins(&self, wanted: Vec<OriginTls>) -> Result<(), ConfigError> {
        let mut origins = Origins::default();
        for tls in wanted {
            let origin = Arc::new(Origin::load(tls)?);
            for target in &origin.tls().targets {
                origins.by_target.entry(*target).or_insert_with(|| origin.clone());
            }
            origins.all.push(origin);
        }
        self.0.origins.store(Arc::new(origins));
        Ok(())
    }

    /// Of whoever is dialled here; `None` is plaintext.
    pub fn origin(&self, target: SocketAddr) -> Option<Arc<Origin>> {
        self.0.origins.load().by_target.get(&target).cloned()
    }

    /// Takes changed files, and tells of ends.
    pub fn look_again(&self) {
        for door in self.0.doors.load().iter().flatten() {
            door.look_again();
        }
        for origin in &self.0.origins.load().all {
            origin.look_again();
        }
    }

    /// What federation is told of it.
    pub fn told(&self) -> Vec<TransitionTls> {
        let mut told = Vec::new();
        self.show(&mut |all| told = all.iter().map(Shown::told).collect());
        told
    }

    fn is_unused(&self) -> bool {
        let no_door = self.0.doors.load().iter().flatten().next().is_none();
        no_door && self.0.origins.load().all.is_empty()
    }

    fn show(&self, each: &mut dyn FnMut(&[Shown<'_>])) {
        let (doors, origins) = (self.0.doors.load(), self.0.origins.load());
        let doors = doors.iter().flatten().map(|door| door.shown());
        let all: Vec<_> = doors.chain(origins.all.iter().map(|origin| origin.shown())).collect();
        each(&all);
    }
}

/// Looks at files and ends while this process lives; not at all where there is
/// nothing to look at.
pub fn start(shared: &Shared) {
    let transition = shared.transition.clone();
    if transition.is_unused() {
        return;
    }
    shared.drain.spawn_beside(async move {
        loop {
            transition.look_again();
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    });
}

/// aws-lc-rs with what rustls holds safe of TLS 1.2 and 1.3. Passed explicitly:
/// nothing depends on a default of the process.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// Certificates age by the clock that everything else goes by.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::now_unix()))
    }
}
