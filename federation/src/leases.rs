//! Leases: which nodes are alive, decided from who was heard when.
//!
//! A node's lease is renewed by its agent (registry session) and by its proxy
//! (discovery stream). Pure: time is an argument, nothing here waits.
//!
//! - Both silent for [`Terms::lease`]: the node lapses and its endpoints are
//!   no longer published. Its registrations stay, so that its return needs no
//!   write; after [`Terms::forget`] they are deregistered.
//! - Only the agent silent: the health of its endpoints ages to unknown.
//! - An agent that said it is leaving and is not back in time: gone, proxy or
//!   not, and deregistered.
//! - A node that was not heard since federation started has until
//!   [`Terms::start`] before its clock begins.
//! - Too many at once (a mass lapse) are held as unknown instead: then it is
//!   more likely that we are cut off than that they all died.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use mesh_core::NodeId;
use tokio::time::Instant;

/// The durations that leases are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Silence after which a lease ends.
    pub lease: Duration,
    /// How long after the start of federation clocks begin for nodes that
    /// have not been heard yet.
    pub start: Duration,
    /// Silence after which the registrations of a lapsed node are dropped.
    pub forget: Duration,
    /// Lapses within this window are counted together.
    pub mass_window: Duration,
    /// Fewer lapses than this are never a mass lapse.
    pub mass_nodes: usize,
    /// More than this share of all nodes is one.
    pub mass_percent: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(8),
            start: Duration::from_secs(30),
            forget: Duration::from_secs(600),
            mass_window: Duration::from_secs(10),
            mass_nodes: 5,
            mass_percent: 30,
        }
    }
}

/// The longest time for which an agent may announce that it is away.
pub const LONGEST_LEAVE: Duration = Duration::from_secs(60);

/// What is to be thought of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Its agent speaks: health is as reported.
    Alive,
    /// The agent has said that it will be back at once.
    Leaving,
    /// The lease holds and nobody reports health.
    Unknown,
    /// Its endpoints are not published.
    Lapsed,
}

impl Liveness {
    /// Whether endpoints of the node are published.
    pub fn is_published(self) -> bool {
        self != Self::Lapsed
    }
}

/// What a look at the clock brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Some node's [`Liveness`] is another one now.
    pub changed: bool,
    /// To be deregistered for good: node and `left` or `lapsed`.
    pub deregister: Vec<(NodeId, &'static str)>,
    /// Newly lapsed.
    pub lapsed: Vec<NodeId>,
    /// A mass lapse began (true) or is over (false).
    pub mass: Option<bool>,
}

#[derive(Debug)]
struct Lease {
    agent: Option<Instant>,
    proxy: Option<Instant>,
    /// When an announced absence is over.
    leaving: Option<Instant>,
    state: Liveness,
    lapsed_at: Option<Instant>,
    /// Held back by a mass lapse.
    held: bool,
}

impl Lease {
    fn new() -> Self {
        let state = Liveness::Unknown;
        Self { agent: None, proxy: None, leaving: None, state, lapsed_at: None, held: false }
    }

    fn heard(&self) -> Option<Instant> {
        self.agent.max(self.proxy)
    }
}

/// The leases of one site.
#[derive(Debug)]
pub struct Leases {
    terms: Terms,
    started: Instant,
    nodes: BTreeMap<NodeId, Lease>,
    recent: VecDeque<(Instant, NodeId)>,
    mass: bool,
}

impl Leases {
    /// No node has been heard yet.
    pub fn new(terms: Terms, started: Instant) -> Self {
        Self { terms, started, nodes: BTreeMap::new(), recent: VecDeque::new(), mass: false }
    }

    /// Begins the lease of a node that has registrations. Others are tracked once
    /// they are heard.
    pub fn begin(&mut self, node: &NodeId) {
        self.nodes.entry(node.clone()).or_insert_with(Lease::new);
    }

    /// The node is no longer joined.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// Forgets all other nodes.
    pub fn retain(&mut self, joined: impl Fn(&NodeId) -> bool) {
        self.nodes.retain(|node, _| joined(node));
    }

    /// The agent has said something. True if the node's liveness changed.
    pub fn heard_agent(&mut self, node: &NodeId, now: Instant) -> bool {
        let lease = self.nodes.entry(node.clone()).or_insert_with(Lease::new);
        lease.agent = Some(now);
        lease.leaving = None;
        self.settle(node, now)
    }

    /// The proxy has said something. True if the node's liveness changed.
    pub fn heard_proxy(&mut self, node: &NodeId, now: Instant) -> bool {
        self.nodes.entry(node.clone()).or_insert_with(Lease::new).proxy = Some(now);
        self.settle(node, now)
    }

    /// The agent is away and means to be back in time. True if the node's
    /// liveness changed.
    pub fn leaving(&mut self, node: &NodeId, within: Duration, now: Instant) -> bool {
        let lease = self.nodes.entry(node.clone()).or_insert_with(Lease::new);
        lease.agent = Some(now);
        lease.leaving = Some(now + within.min(LONGEST_LEAVE));
        self.settle(node, now)
    }

    /// This process stood still for a while (a paused machine, a starved
    /// scheduler): what nobody could hear is no silence.
    pub fn stood_still(&mut self, time: Duration) {
        for lease in self.nodes.values_mut() {
            for instant in [&mut lease.agent, &mut lease.proxy, &mut lease.leaving] {
                *instant = instant.map(|at| at + time);
            }
        }
        self.started += time;
    }

    /// What is to be thought of a node; unknown if it was never heard of.
    pub fn liveness(&self, node: &NodeId) -> Liveness {
        self.nodes.get(node).map_or(Liveness::Unknown, |lease| lease.state)
    }

    /// When anybody on the node was heard last.
    pub fn last_heard(&self, node: &NodeId) -> Option<Instant> {
        self.nodes.get(node).and_then(Lease::heard)
    }

    /// Whether a mass lapse is going on, and how many nodes it holds.
    pub fn mass(&self) -> Option<usize> {
        self.mass.then(|| self.nodes.values().filter(|lease| lease.held).count())
    }

    /// Looks at the clock. `registered` are the nodes that have registrations:
    /// only they can lapse.
    pub fn tick(&mut self, registered: &BTreeSet<NodeId>, now: Instant) -> Tick {
        let mut tick = Tick::default();
        let mut lapsing = Vec::new();
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for node in nodes {
            let Some(lease) = self.nodes.get(&node) else { continue };
            let next = self.judge(lease, now);
            let has_registrations = registered.contains(&node);
            match next {
                Liveness::Lapsed if lease.state != Liveness::Lapsed && !has_registrations => {
                    tick.changed |= self.set(&node, next, now);
                }
                Liveness::Lapsed if lease.state == Liveness::Lapsed => {
                    let since = lease.lapsed_at.unwrap_or(now);
                    if has_registrations && now.duration_since(since) >= self.terms.forget {
                        tick.deregister.push((node.clone(), "lapsed"));
                    }
                }
                Liveness::Lapsed if lease.leaving.is_some_and(|until| now >= until) => {
                    tick.changed |= self.set(&node, next, now);
                    tick.deregister.push((node.clone(), "left"));
                }
                Liveness::Lapsed => lapsing.push(node),
                other => tick.changed |= self.set(&node, other, now),
            }
        }
        self.lapse(lapsing, registered.len(), now, &mut tick);
        tick
    }

    /// What silence alone makes of a lease.
    fn judge(&self, lease: &Lease, now: Instant) -> Liveness {
        if let Some(until) = lease.leaving {
            return if now >= until { Liveness::Lapsed } else { Liveness::Leaving };
        }
        let unheard = self.started + self.terms.start;
        let silent = |since: Instant| now.saturating_duration_since(since) >= self.terms.lease;
        if silent(lease.heard().unwrap_or(unheard)) {
            return Liveness::Lapsed;
        }
        match lease.agent {
            Some(agent) if !silent(agent) => Liveness::Alive,
            _ => Liveness::Unknown,
        }
    }

    /// Lets nodes lapse, or holds them all if they are too many at once.
    fn lapse(&mut self, lapsing: Vec<NodeId>, total: usize, now: Instant, tick: &mut Tick) {
        let window = self.terms.mass_window;
        self.recent.retain(|(at, node)| {
            now.duration_since(*at) <= window
                && self.nodes.get(node).is_some_and(|lease| lease.state == Liveness::Lapsed)
        });
        let many = |count: usize| {
            count >= self.terms.mass_nodes && count * 100 > total * self.terms.mass_percent
        };
        if many(lapsing.len() + self.recent.len()) {
            if !self.mass {
                self.mass = true;
                tick.mass = Some(true);
            }
            // Those that went just before belong to the same event.
            let before: Vec<NodeId> = self.recent.drain(..).map(|(_, node)| node).collect();
            for node in lapsing.into_iter().chain(before) {
                if let Some(lease) = self.nodes.get_mut(&node) {
                    tick.changed |= lease.state != Liveness::Unknown;
                    lease.state = Liveness::Unknown;
                    lease.lapsed_at = None;
                    lease.held = true;
                }
            }
            return;
        }
        if self.mass {
            self.mass = false;
            tick.mass = Some(false);
        }
        for node in lapsing {
            tick.changed |= self.set(&node, Liveness::Lapsed, now);
            self.recent.push_back((now, node.clone()));
            tick.lapsed.push(node);
        }
    }

    fn settle(&mut self, node: &NodeId, now: Instant) -> bool {
        match self.nodes.get(node).map(|lease| self.judge(lease, now)) {
            Some(next) => self.set(node, next, now),
            None => false,
        }
    }

    fn set(&mut self, node: &NodeId, next: Liveness, now: Instant) -> bool {
        let Some(lease) = self.nodes.get_mut(node) else { return false };
        let changed = lease.state != next;
        lease.state = next;
        lease.held = false;
        lease.lapsed_at = (next == Liveness::Lapsed).then(|| lease.lapsed_at.unwrap_or(now));
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn node(i: u32) -> NodeId {
        format!("00000000-0000-4000-8000-{i:012x}").parse().unwrap()
    }

    struct World {
        leases: Leases,
        registered: BTreeSet<NodeId>,
        now: Instant,
    }

    impl World {
        fn new(nodes: u32) -> Self {
            let now = Instant::now();
            let registered: BTreeSet<NodeId> = (0..nodes).map(node).collect();
            let mut leases = Leases::new(Terms::default(), now);
            registered.iter().for_each(|node| leases.begin(node));
            Self { leases, registered, now }
        }

        fn after(&mut self, time: Duration) -> Tick {
            self.now += time;
            self.leases.tick(&self.registered, self.now)
        }

        fn agents(&mut self, nodes: std::ops::Range<u32>) {
            for i in nodes {
                self.leases.heard_agent(&node(i), self.now);
            }
        }

        fn states(&self) -> Vec<Liveness> {
            self.registered.iter().map(|node| self.leases.liveness(node)).collect()
        }
    }

    use Liveness::{Alive, Lapsed, Leaving, Unknown};

    #[test]
    fn a_node_that_nobody_has_heard_has_until_the_start_of_clocks() {
        let mut world = World::new(1);
        assert_eq!(world.after(37 * S + S / 2).lapsed, []);
        assert_eq!(world.states(), [Unknown]);
        assert_eq!(world.after(S / 2).lapsed, [node(0)]);
        assert_eq!(world.states(), [Lapsed]);
    }

    #[test]
    fn both_silent_lapse_and_either_returns() {
        let mut world = World::new(1);
        world.agents(0..1);
        assert_eq!(world.states(), [Alive]);
        assert_eq!(world.after(7 * S + S * 9 / 10), Tick::default());
        let tick = world.after(S / 10);
        assert_eq!((tick.changed, tick.lapsed), (true, vec![node(0)]));
        assert!(world.leases.heard_proxy(&node(0), world.now));
        assert_eq!(world.states(), [Unknown]);
        assert!(world.leases.heard_agent(&node(0), world.now));
        assert_eq!(world.states(), [Alive]);
    }

    #[test]
    fn without_its_agent_health_ages_to_unknown() {
        let mut world = World::new(1);
        world.agents(0..1);
        for second in 1..=20 {
            world.after(S);
            world.leases.heard_proxy(&node(0), world.now);
            let expected = if second < 8 { Alive } else { Unknown };
            assert_eq!(world.states(), [expected], "after {second} s");
        }
    }

    #[test]
    fn leaving_and_back_in_time_changes_nothing() {
        let mut world = World::new(1);
        world.agents(0..1);
        world.leases.leaving(&node(0), 5 * S, world.now);
        assert_eq!(world.states(), [Leaving]);
        assert!(world.after(4 * S + S * 9 / 10).deregister.is_empty());
        assert!(world.leases.liveness(&node(0)).is_published());
        world.agents(0..1);
        assert_eq!(world.states(), [Alive]);
        assert_eq!(world.after(5 * S), Tick::default());
    }

    #[test]
    fn leaving_and_not_back_is_gone_although_the_proxy_speaks() {
        let mut world = World::new(1);
        world.agents(0..1);
        world.leases.leaving(&node(0), 5 * S, world.now);
        world.now += 4 * S;
        world.leases.heard_proxy(&node(0), world.now);
        let tick = world.after(S);
        assert_eq!(tick.deregister, [(node(0), "left")]);
        world.leases.heard_proxy(&node(0), world.now);
        assert_eq!(world.states(), [Lapsed]);
        // Nobody may be away for as long as it likes.
        world.agents(0..1);
        world.leases.leaving(&node(0), 3600 * S, world.now);
        assert_eq!(world.after(LONGEST_LEAVE).deregister, [(node(0), "left")]);
    }

    #[test]
    fn the_long_dead_are_deregistered_once_they_are_forgotten() {
        let mut world = World::new(1);
        world.agents(0..1);
        world.after(8 * S);
        assert!(world.after(599 * S).deregister.is_empty());
        assert_eq!(world.after(S).deregister, [(node(0), "lapsed")]);
        world.registered.clear();
        assert!(world.after(S).deregister.is_empty());
    }

    #[test]
    fn a_mass_lapse_removes_nobody_and_ends_when_most_are_back() {
        let mut world = World::new(10);
        world.agents(0..10);
        world.now += 4 * S;
        world.agents(4..10);
        let tick = world.after(4 * S);
        assert_eq!(tick.lapsed.len(), 4, "four are not a mass");
        world.agents(6..10);
        let tick = world.after(4 * S);
        assert_eq!((tick.mass, tick.lapsed.len()), (Some(true), 0));
        assert_eq!(world.leases.mass(), Some(6));
        assert_eq!(
            world.states(),
            [vec![Unknown; 6], vec![Alive; 4]].concat(),
            "the four are back"
        );

        world.agents(0..10);
        assert_eq!(world.after(S).mass, Some(false));
        for _ in 0..8 {
            world.agents(1..10);
            world.after(S);
        }
        assert_eq!(world.states()[0], Lapsed, "one alone lapses again");
    }

    #[test]
    fn five_of_many_are_no_mass_and_four_of_four_neither() {
        for (nodes, silent) in [(20, 6), (4, 4)] {
            let mut world = World::new(nodes);
            world.agents(0..nodes);
            world.now += 4 * S;
            world.agents(silent..nodes);
            assert_eq!(world.after(4 * S).lapsed.len(), silent as usize, "{silent} of {nodes}");
        }
    }

    #[test]
    fn what_nobody_could_hear_is_no_silence() {
        let mut world = World::new(2);
        world.agents(0..1);
        world.now += 60 * S;
        world.leases.stood_still(60 * S);
        assert_eq!(world.after(7 * S), Tick::default());
        assert_eq!(world.after(S).lapsed, [node(0)]);
        assert_eq!(world.after(29 * S).lapsed, []);
        assert_eq!(world.after(S).lapsed, [node(1)]);
    }

    #[test]
    fn who_is_no_longer_joined_is_forgotten() {
        let mut world = World::new(2);
        world.agents(0..2);
        world.leases.retain(|id| *id == node(1));
        assert_eq!(world.leases.last_heard(&node(0)), None);
        assert_eq!(world.leases.last_heard(&node(1)), Some(world.now));
    }
}
