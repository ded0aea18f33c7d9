//! Names of the mesh resolve while virtual addresses are captured, and while
//! somebody answers for them.
//!
//! What sends questions to `vm-agent dns` is a link: systemd-resolved is told
//! once of the server it has (by `isthmus-resolved.service`, which starts when
//! [`SIGN`] is written), and asks it while the link is up. Up it is while that
//! server answers, which is tried all the time. Down, names take the way they
//! took before.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_core::Cidr;
use tokio::sync::watch;

use super::link;
use crate::dns::{self, probe};

/// How often names are asked for: within a second nobody waits for a server that
/// is gone.
const BEAT: Duration = Duration::from_millis(500);
/// In the run directory while there is a link: the routes, a line each.
const SIGN: &str = "link";

/// Virtual addresses that are captured; `None` while nothing is.
pub type Captured = Option<Vec<Cidr>>;

/// Follows what is captured until nobody tells any more. What was confirmed
/// stays then.
pub async fn run(run: PathBuf, mut captured: watch::Receiver<Captured>) {
    let server = SocketAddr::from((dns::ADDRESS, dns::PORT));
    let mut held = Held::new(&run);
    loop {
        let blocks = captured.borrow_and_update().clone();
        match &blocks {
            Some(blocks) => held.look(blocks, probe::ask(server).await),
            None => held.remove(),
        }
        tokio::select! {
            changed = captured.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(BEAT), if blocks.is_some() => {}
        }
    }
    if captured.borrow().is_none() {
        held.remove();
    }
}

/// Takes out what a process has left that is no more.
pub fn remove(run: &Path) {
    Held::new(run).remove();
}

/// What is in the kernel.
#[derive(Debug)]
struct Held {
    sign: PathBuf,
    routes: BTreeSet<Cidr>,
    /// Told last.
    problem: String,
}

impl Held {
    /// As the process before has left it.
    fn new(run: &Path) -> Self {
        let sign = run.join(SIGN);
        let routes = fs::read_to_string(&sign).unwrap_or_default();
        let routes = routes.lines().filter_map(|line| line.parse().ok()).collect();
        Self { sign, routes, problem: String::new() }
    }

    fn look(&mut self, blocks: &[Cidr], answers: Result<(), String>) {
        let done = self.hold(&blocks.iter().copied().collect(), answers.is_ok());
        let problem = match (&done, answers) {
            (Err(error), _) => format!("link {}: {error}", link::LINK),
            (Ok(()), Err(why)) => why,
            (Ok(()), Ok(())) => String::new(),
        };
        if problem != self.problem {
            match problem.is_empty() {
                true => log::info!("names of the mesh resolve"),
                false => log::warn!("names of the mesh do not resolve: {problem}"),
            }
            self.problem = problem;
        }
    }

    fn hold(&mut self, routes: &BTreeSet<Cidr>, up: bool) -> io::Result<()> {
        let is_new = match link::set(up) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                link::add(dns::ADDRESS)?;
                link::set(up)?;
                true
            }
            other => other.map(|()| false)?,
        };
        if self.routes != *routes {
            self.remove_routes();
        }
        if is_new || self.routes != *routes {
            let lines: String = routes.iter().map(|block| format!("{block}\n")).collect();
            fs::write(&self.sign, lines)?;
            self.routes.clone_from(routes);
        }
        for block in &self.routes {
            // Where there is no IPv6, no name has such an address.
            let added = link::add_route(block);
            if block.is_ipv4() {
                added?;
            }
        }
        Ok(())
    }

    fn remove(&mut self) {
        self.remove_routes();
        let unsigned = fs::remove_file(&self.sign).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = link::remove().and(unsigned) {
            log::warn!(error:% = error; "link {} may be left", link::LINK);
        }
        self.problem.clear();
    }

    fn remove_routes(&mut self) {
        for block in std::mem::take(&mut self.routes) {
            let removed = link::remove_route(&block);
            if let Err(error) = removed
                && block.is_ipv4()
            {
                log::warn!(error:% = error; "the route to {block} may be left");
            }
        }
    }
}
