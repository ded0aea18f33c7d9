//! Services of a mesh as services of Consul.
//!
//! [`Exporter::run`] keeps what is registered at one agent equal to what is wanted.
//! Each instance carries `managed-by: isthmus` and the site's name, and has a TTL
//! check that the exporter keeps alive: if it ends without a word, its instances
//! fail after the TTL and are gone a minute later. A short restart changes nothing.
//!
//! Instances of its own site that are not wanted are removed, those of an earlier
//! run too; nobody else's are touched. A site has one exporter at an agent.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_core::SiteName;
use tokio::{
    sync::watch as channel,
    time::{Instant, MissedTickBehavior, interval},
};

pub use self::plan::{Action, Plan, plan};
use crate::{
    client::{Client, Error},
    import::Health,
    wire::CheckUpdate,
};

/// The most instances that are shown in Consul; each is a call every few seconds.
pub const MAX_EXPORTED: usize = 512;
/// How often it is looked whether the agent still has everything.
const LOOK: Duration = Duration::from_secs(30);
/// The shortest TTL: a look at everything must fit in a third of it.
pub const SHORTEST_TTL: Duration = Duration::from_secs(3);
/// Consul takes no shorter time, and looks every half minute.
const GONE_AFTER: &str = "1m";
/// Calls between two ticks that all fail are not all made.
const MAX_FAILURES: usize = 3;

/// One instance to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the service in Consul.
    pub service: String,
    /// Unique among the site's instances of it: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    pub instance: String,
    /// IP address or host name.
    pub address: String,
    /// Where it listens there.
    pub port: u16,
    /// Sent as they are.
    pub tags: Vec<String>,
    /// Beside what says whose it is.
    pub meta: BTreeMap<String, String>,
    /// Consul takes 1 to 65535 for what passes.
    pub weight: u32,
    /// Kept up to date through its check.
    pub health: Health,
}

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exports {
    /// In Consul, as wanted.
    pub shown: usize,
    /// What cannot be shown, and why.
    pub refused: BTreeMap<String, String>,
    /// Since when, and why, it is not as wanted.
    pub failing: Option<(Instant, String)>,
}

/// Who registers, and how.
#[derive(Clone)]
pub struct Exporter {
    client: Client,
    site: SiteName,
    ttl: Duration,
}

impl Exporter {
    /// For one agent. `ttl` is how long instances outlast the exporter's last word.
    pub fn new(client: Client, site: SiteName, ttl: Duration) -> Self {
        Self { client, site, ttl: ttl.max(SHORTEST_TTL) }
    }

    /// For ever. While `wanted` holds nothing, nothing is known of what is wanted,
    /// and nothing is removed.
    pub async fn run(
        &self,
        mut wanted: channel::Receiver<Option<Vec<Wanted>>>,
        tell: &channel::Sender<Exports>,
    ) {
        let mut tick = interval(self.ttl / 3);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let mut shown = BTreeSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = wanted.changed() => match changed {
                    Ok(()) => looked = None,
                    // Nobody will want anything else.
                    Err(_) => { tick.tick().await; }
                }
            }
            let Some(now_wanted) = wanted.borrow_and_update().clone() else { continue };
            let result = match looked {
                Some(at) if at.elapsed() < LOOK => self.update(&now_wanted, &shown).await,
                _ => self.reconcile(&now_wanted, tell).await.map(|now_shown| {
                    shown = now_shown;
                    looked = Some(Instant::now());
                }),
            };
            if let Err(error) = &result {
                looked = None;
                log::warn!(error:% = error; "consul: what is exported may be old");
            }
            let failing = result.err().map(|error| error.to_string());
            tell.send_modify(|told| {
                let since = told.failing.take().map_or_else(Instant::now, |(since, _)| since);
                told.failing = failing.map(|why| (since, why));
            });
        }
    }

    /// Makes the agent's registrations those that are wanted, and says that they
    /// live. Returns their ids.
    ///
    /// # Errors
    ///
    /// The last one, once everything else has been tried.
    pub async fn reconcile(
        &self,
        wanted: &[Wanted],
        tell: &channel::Sender<Exports>,
    ) -> Result<BTreeSet<String>, Error> {
        let present = self.client.agent_services().await?;
        let plan = plan(&self.site, self.ttl, wanted, &present);
        let mut failures = Failures::default();
        for action in &plan.actions {
            let result = match action {
                Action::Register(registration) => self.client.register(registration).await,
                Action::Deregister(id) => self.client.deregister(id).await,
            };
            failures.note(result)?;
        }
        let shown = plan.shown.len().saturating_sub(failures.count);
        tell.send_modify(|told| (told.shown, told.refused) = (shown, plan.refused));
        // What Consul does not take costs the others nothing.
        let alive = self.update(wanted, &plan.shown).await;
        failures.result().and(alive)?;
        Ok(plan.shown)
    }

    /// Takes everything of this site from the agent: for a site that goes for good.
    pub async fn withdraw(&self) -> Result<(), Error> {
        let present = self.client.agent_services().await?;
        let mut failures = Failures::default();
        for action in plan(&self.site, self.ttl, &[], &present).actions {
            if let Action::Deregister(id) = action {
                failures.note(self.client.deregister(&id).await)?;
            }
        }
        failures.result()
    }

    async fn update(&self, wanted: &[Wanted], shown: &BTreeSet<String>) -> Result<(), Error> {
        let mut failures = Failures::default();
        for one in wanted {
            let id = plan::id(&self.site, one);
            if !shown.contains(&id) {
                continue;
            }
            let output = format!("isthmus: site {}", self.site);
            let update = CheckUpdate { status: plan::status(one.health), output };
            failures.note(self.client.update_check(&plan::check(&id), &update).await)?;
        }
        failures.result()
    }
}

/// One instance that Consul does not take says nothing of the next; an agent that is
/// not there is not asked for each.
#[derive(Debug, Default)]
struct Failures {
    count: usize,
    last: Option<Error>,
}

impl Failures {
    fn note(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let Err(error) = result else { return Ok(()) };
        self.count += 1;
        if error.passes() && self.count >= MAX_FAILURES {
            return Err(error);
        }
        self.last = Some(error);
        Ok(())
    }

    fn result(self) -> Result<(), Error> {
        self.last.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
