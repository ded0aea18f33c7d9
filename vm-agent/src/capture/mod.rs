//! `vm-agent capture`: tells the kernel which connections of this machine go to
//! its proxy. A process of its own, because it alone has the capability for
//! that; it knows nothing of identity and the site.
//!
//! In reading order:
//! - [`file`]: what is captured, as it is written.
//! - [`rules`]: the same as nft reads it, and what the kernel does by itself.
//! - [`cgroups`]: which processes are a unit's.
//! - [`proxy`]: whether the proxy can take it.
//! - [`nft`], [`netlink`]: the two ways to the kernel.
//! - [`link`], [`naming`]: a route to virtual addresses, and that their names
//!   are asked of us.
//! - [`in_force`], [`keeper`]: trial, confirmation, what is done from time to time.

pub mod cgroups;
pub mod file;
pub mod in_force;
pub mod keeper;
pub mod link;
pub mod naming;
pub mod netlink;
pub mod nft;
pub mod proxy;
pub mod rules;

use std::{sync::Arc, time::Duration};

use mesh_runtime::{drain::Drain, files, process};
use mesh_tunnel::Net;
use tokio::sync::{mpsc, watch};

use self::keeper::{CALLS, Keeper, Places};
use crate::{api::capture::Operator, app, config::CaptureFlags};

/// For an answer that is on its way.
const GOODBYE: Duration = Duration::from_secs(1);

/// The whole process.
///
/// # Errors
///
/// The state directory or the socket cannot be had.
pub async fn run(flags: CaptureFlags, net: Arc<dyn Net>) -> anyhow::Result<()> {
    if flags.remove {
        naming::remove(&flags.run);
        return Ok(());
    }
    files::create_private_dir(&flags.state)?;
    let socket = net.bind_unix(&flags.run.join("capture.sock"), 0o600).await?;
    let drain = Drain::new();
    let (calls, asked) = mpsc::channel(CALLS);
    let places = Places { rules: flags.rules, state: flags.state };
    let (tell, captured) = watch::channel(None);
    let mut keeper = Keeper::new(places, net, asked, tell);
    keeper.restore().await;
    drain.spawn(app::serve(socket, Operator::server(calls), drain.clone()));
    drain.spawn(keeper.run(drain.clone()));
    drain.spawn(naming::run(flags.run, captured));
    log::info!(version = env!("CARGO_PKG_VERSION"); "started");
    process::until_terminated(&drain).await?;
    drain.finish(GOODBYE).await;
    log::info!("stopped");
    Ok(())
}
