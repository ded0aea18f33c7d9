//! `vm-agent dns`: says which virtual address a name of the mesh has. A process
//! of its own: it reads what anybody on this machine sends it, and has no
//! capability but to listen at port 53.
//!
//! In reading order:
//! - [`names`]: what the proxy of this machine knows, and leaves in a file.
//! - [`answer`]: a question and its answer, as bytes.
//! - [`serve`]: UDP and TCP.
//! - [`probe`]: how others see whether it answers.

pub mod answer;
pub mod names;
pub mod probe;
pub mod serve;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::anyhow;
use mesh_runtime::{
    changes::{self, Changes},
    drain::Drain,
    process,
};
use mesh_tunnel::Net;
use tokio::sync::watch;

use crate::config::DnsFlags;

/// Loopback, and nobody else's.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 240, 0, 53);
/// Where it can be had however the host resolves names: port 53 may be taken by
/// who listens at every address.
pub const PORT: u16 = 4153;
/// The port of a `nameserver` in `resolv.conf(5)`.
const STUB_PORT: u16 = 53;

/// For answers that are on their way.
const GOODBYE: Duration = Duration::from_secs(1);

/// The whole process.
///
/// # Errors
///
/// The port cannot be had.
pub async fn run(flags: DnsFlags, net: Arc<dyn Net>) -> anyhow::Result<()> {
    let drain = Drain::new();
    let (table, names) = watch::channel(Arc::default());
    let listen = flags.listen.unwrap_or_else(|| SocketAddr::from((ADDRESS, PORT)));
    let doors = serve::Doors::open(&*net, listen).await;
    let doors = doors.map_err(|error| anyhow!("{error}; is another vm-agent dns running?"))?;
    doors.spawn(&names, &drain);
    if flags.listen.is_none() {
        let stub = SocketAddr::from((ADDRESS, STUB_PORT));
        match serve::Doors::open(&*net, stub).await {
            Ok(doors) => doors.spawn(&names, &drain),
            Err(error) => log::warn!(
                error:% = error;
                "`nameserver {ADDRESS}` in resolv.conf would not work; systemd-resolved and dnsmasq ask port {PORT}"
            ),
        }
    }
    let look = Arc::new(Changes::default());
    if let Some(dir) = flags.names.parent().map(Path::to_owned) {
        let look = look.clone();
        drain.spawn_beside(async move { changes::follow(&dir, &look).await });
    }
    drain.spawn(names::follow(flags.names, look, table, drain.clone()));
    log::info!(version = env!("CARGO_PKG_VERSION"); "started");
    process::until_terminated(&drain).await?;
    drain.finish(GOODBYE).await;
    log::info!("stopped");
    Ok(())
}
