//! Where proxies lead a question to. Both hand on a header of ours that says which
//! question it is, and the kernel shows to whom it goes (packet(7)), where that is
//! HTTP/1 without TLS. Servers of one pool are as good as each other, so what is
//! compared is the pools of the plan that have that address.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_migrate::shadow::heads::Head;
use mesh_runtime::{clock, config};
use serde_json::Value;

/// Says which question it is. Proxies of ours hand on nothing that begins with `isthmus-`.
pub(super) const HEADER: &str = "shadow-question";
/// Of a segment that is looked at for it, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// What has gone is seen a moment later.
const LATE: Duration = Duration::from_millis(50);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Of addresses with names of their own, at most.
const MAX_ADDRESSES: usize = 100_000;

/// Questions that are on their way, and who has them. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Backends(Arc<Mutex<HashMap<String, Option<SocketAddr>>>>);

/// A question on its way.
#[derive(Debug)]
pub(super) struct Sent<'b> {
    all: &'b Backends,
    /// What [`HEADER`] says.
    pub(super) id: String,
}

impl Backends {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self) -> Sent<'_> {
        let id = format!("{:016x}", rand::random::<u64>());
        self.lock().insert(id.clone(), None);
        Sent { all: self, id }
    }

    /// Somebody was asked this. Who was first counts: he may ask others.
    pub(super) fn saw(&self, id: &str, whom: SocketAddr) {
        if let Some(who) = self.lock().get_mut(id) {
            who.get_or_insert(whom);
        }
    }
}

impl Sent<'_> {
    /// Who has it, once it was answered.
    pub(super) async fn whom(&self) -> Option<SocketAddr> {
        let began = clock::monotonic();
        loop {
            let whom = self.all.lock().get(&self.id).copied().flatten();
            if whom.is_some() || began.elapsed() > LATE {
                return whom;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

/// Whether it is one of ours, whoever it comes from.
pub(super) fn is_question(head: &Head) -> bool {
    head.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HEADER))
}

/// Which question begins in this segment.
pub(super) fn id_in(payload: &[u8]) -> Option<&str> {
    let head = payload.get(..payload.len().min(MAX_HEAD))?;
    if !head.first()?.is_ascii_uppercase() {
        return None;
    }
    let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut fields = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b':')?;
        Some((line.get(..at)?, line.get(at + 1..)?.trim_ascii()))
    });
    let (_, id) = fields.find(|(name, _)| name.eq_ignore_ascii_case(HEADER.as_bytes()))?;
    std::str::from_utf8(id).ok()
}

/// Pools of a plan.
#[derive(Debug, Clone, Default)]
pub(super) struct Pools {
    of: BTreeMap<SocketAddr, BTreeSet<String>>,
    /// Some have names whose addresses are found out elsewhere, or there are too many.
    has_others: bool,
}

impl Pools {
    /// Those of a site file; none where it cannot be read.
    pub(super) fn read(site: &Path) -> Self {
        let text = std::fs::read_to_string(site).unwrap_or_default();
        let site = config::parse::<Value>(&text, &site.display().to_string()).unwrap_or_default();
        Self::of(&site)
    }

    fn of(site: &Value) -> Self {
        let mut all = Self::default();
        let list = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        for service in list(site, "services") {
            let Some(name) = service.get("name").and_then(Value::as_str) else { continue };
            for endpoint in list(&service, "endpoints") {
                let target = endpoint.get("target").and_then(Value::as_str);
                let Some(target) = target.and_then(|target| target.parse().ok()) else {
                    all.has_others = true;
                    continue;
                };
                if all.of.len() < MAX_ADDRESSES {
                    all.of.entry(target).or_default().insert(name.to_owned());
                } else {
                    all.has_others = true;
                }
            }
        }
        all
    }

    /// The pools that two proxies have chosen, if no pool has both addresses. An address
    /// that the plan does not know may be behind a name of it.
    pub(super) fn differ(
        &self,
        legacy: Option<SocketAddr>,
        ours: Option<SocketAddr>,
    ) -> Option<(String, String)> {
        let pools = |at: SocketAddr| match self.of.get(&at) {
            Some(pools) => Some(pools.clone()),
            None => (!self.has_others).then(|| BTreeSet::from([at.to_string()])),
        };
        let (a, b) = (pools(legacy?)?, pools(ours?)?);
        let names = |pools: BTreeSet<String>| pools.into_iter().collect::<Vec<_>>().join(" or ");
        a.is_disjoint(&b).then(|| (names(a), names(b)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_is_known_by_its_header() {
        let of = |text: &str| id_in(text.as_bytes()).map(str::to_owned);
        let id = Some("00ff".to_owned());
        assert_eq!(of("GET / HTTP/1.1\r\nhost: a\r\nShadow-Question: 00ff\r\n\r\n"), id);
        assert_eq!(of("POST /a:b HTTP/1.1\r\nshadow-question:00ff\r\nhost: a"), id);
        assert_eq!(of("GET / HTTP/1.1\r\nhost: a\r\n\r\nshadow-question: 00ff\r\n"), None);
        assert_eq!(of("HTTP/1.1 200 OK\r\n\r\n"), None);
        assert_eq!(of("\x16\x03\x01shadow-question: 00ff\r\n"), None);
        assert_eq!(of(""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_asked_first_is_told_while_somebody_waits() {
        let backends = Backends::default();
        let [first, second] = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse().unwrap());
        let sent = backends.send();
        assert_eq!(sent.whom().await, None);
        backends.saw(&sent.id, first);
        backends.saw(&sent.id, second);
        assert_eq!(sent.whom().await, Some(first));
        drop(sent);
        backends.saw("other", first);
        assert!(backends.lock().is_empty());
    }

    #[test]
    fn servers_of_one_pool_are_alike() {
        let pools = |more: &str| {
            Pools::of(&json!({ "services": [
                { "name": "fe.legacy" },
                { "name": "apps.legacy", "endpoints": [
                    { "target": "10.0.0.1:80" }, { "target": "10.0.0.2:80" }] },
                { "name": "all.legacy", "endpoints": [
                    { "target": "10.0.0.2:80" }, { "target": "10.0.0.3:80" }, { "target": more }] },
            ]}))
        };
        let named = pools("db.example:80");
        let differ = |a: &str, b: &str| named.differ(a.parse().ok(), b.parse().ok());
        assert_eq!(differ("10.0.0.1:80", "10.0.0.2:80"), None);
        assert_eq!(differ("10.0.0.2:80", "10.0.0.3:80"), None);
        let names = ("apps.legacy".to_owned(), "all.legacy".to_owned());
        assert_eq!(differ("10.0.0.1:80", "10.0.0.3:80"), Some(names));
        assert_eq!(differ("10.0.0.1:80", "10.0.0.9:80"), None);
        assert_eq!(differ("10.0.0.1:80", "?"), None);
        let all = pools("10.0.0.4:80");
        let names = ("apps.legacy".to_owned(), "10.0.0.9:80".to_owned());
        let [a, b] = ["10.0.0.1:80", "10.0.0.9:80"].map(|at| at.parse().ok());
        assert_eq!(all.differ(a, b), Some(names));
        assert_eq!(all.differ(b, b), None);
    }

    proptest::proptest! {
        #[test]
        fn no_segment_panics(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = id_in(&bytes);
        }
    }
}
