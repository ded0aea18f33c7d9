//! How much one neighbour may have open at once. What is over is refused, not
//! queued: the source tries elsewhere or tells its client.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use mesh_core::{GatewayId, NodeId, SiteName, SpiffeId};

use super::sessions::Neighbour;

/// Limits per neighbour.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams that one node, client or sibling may have open here.
    pub per_neighbour: usize,
    /// Streams that one linked site may have open here, and as many towards
    /// it.
    pub per_link: usize,
    /// Streams of one neighbour whose next hop has not answered yet.
    pub half_open: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_neighbour: 4096, per_link: 16_384, half_open: 512 }
    }
}

/// Whose quota: all tunnels of one neighbour share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Node(NodeId),
    Client(SpiffeId),
    FromLink(SiteName),
    ToLink(SiteName),
    Sibling(GatewayId),
}

/// The quotas of all neighbours.
#[derive(Debug, Default)]
pub struct Quotas {
    limits: Limits,
    owners: Mutex<HashMap<Owner, Weak<Quota>>>,
}

impl Quotas {
    /// Nothing is in use yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, owners: Mutex::default() }
    }

    /// What `neighbour` may open here.
    pub fn of(&self, neighbour: &Neighbour) -> Arc<Quota> {
        let per_neighbour = self.limits.per_neighbour;
        match neighbour.clone() {
            Neighbour::Node(node, _) => self.quota(Owner::Node(node), per_neighbour),
            Neighbour::Client(id) => self.quota(Owner::Client(id), per_neighbour),
            Neighbour::Sibling(id) => self.quota(Owner::Sibling(id), self.limits.per_link),
            Neighbour::Link(site, _) => self.quota(Owner::FromLink(site), self.limits.per_link),
        }
    }

    /// What this gateway may open towards a linked site.
    pub fn towards(&self, site: &SiteName) -> Arc<Quota> {
        self.quota(Owner::ToLink(site.clone()), self.limits.per_link)
    }

    fn quota(&self, owner: Owner, streams: usize) -> Arc<Quota> {
        let mut owners = self.owners.lock().expect("no code that holds this lock panics");
        if let Some(quota) = owners.get(&owner).and_then(Weak::upgrade) {
            return quota;
        }
        // Neighbours come and go; entries of those gone are swept when as many
        // are there as at the last sweep twice over.
        if owners.len() == owners.capacity() {
            owners.retain(|_, quota| quota.strong_count() > 0);
        }
        let quota = Arc::new(Quota {
            streams: Gauge::new(streams),
            half_open: Gauge::new(self.limits.half_open),
        });
        owners.insert(owner, Arc::downgrade(&quota));
        quota
    }
}

/// What one neighbour has open.
#[derive(Debug)]
pub struct Quota {
    streams: Arc<Gauge>,
    half_open: Arc<Gauge>,
}

impl Quota {
    /// Room for one more stream, until the answer is dropped.
    pub fn stream(&self) -> Option<Slot> {
        self.streams.take()
    }

    /// Room for one more stream whose next hop has not answered.
    pub fn half_open(&self) -> Option<Slot> {
        self.half_open.take()
    }
}

#[derive(Debug)]
struct Gauge {
    used: AtomicUsize,
    limit: usize,
}

impl Gauge {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    fn take(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit;
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < limit).then_some(used + 1)
            })
            .ok()
            .map(|_| Slot(Arc::clone(self)))
    }
}

/// One place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Gauge>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(site: &str, gateway: &str) -> Neighbour {
        Neighbour::Link(site.parse().unwrap(), gateway.parse().unwrap())
    }

    #[test]
    fn all_tunnels_of_a_link_share_one_quota_and_places_come_back() {
        let quotas = Quotas::new(Limits { per_neighbour: 1, per_link: 2, half_open: 1 });
        let (one, two) = (quotas.of(&link("east", "gw-1")), quotas.of(&link("east", "gw-2")));
        let first = one.stream().unwrap();
        let _second = two.stream().unwrap();
        assert!(one.stream().is_none());
        assert!(quotas.of(&link("north", "gw-1")).stream().is_some());
        assert!(quotas.towards(&"east".parse().unwrap()).stream().is_some());
        drop(first);
        assert!(two.stream().is_some());
    }

    #[test]
    fn half_open_streams_are_counted_apart() {
        let quotas = Quotas::new(Limits { per_neighbour: 4, per_link: 4, half_open: 1 });
        let quota = quotas.of(&link("east", "gw-1"));
        let half_open = quota.half_open().unwrap();
        assert!(quota.half_open().is_none());
        assert!(quota.stream().is_some());
        drop(half_open);
        assert!(quota.half_open().is_some());
    }

    #[test]
    fn neighbours_that_are_gone_are_forgotten() {
        let quotas = Quotas::default();
        for site in 0..1000 {
            let _quota = quotas.of(&link(&format!("site-{site}"), "gw"));
        }
        assert!(quotas.owners.lock().unwrap().len() < 1000);
    }
}
