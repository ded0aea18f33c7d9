//! `io.l5d.serversets`: members of `ZooKeeper` nodes, as Finagle's zk2 reads them.

use mesh_migrate::{
    linkerd1::{
        config::Namer,
        name::{Name, raw},
        reach::Reach,
    },
    request::Endpoint,
};
use serde_json::Value;

use super::{
    Names,
    ask::{Wrong, place, text},
    zookeeper::{Error, Session},
};

/// What the node of a member is called.
const MEMBER: &str = "member_";
const PORT: u16 = 2181;
/// Nodes that are looked at, at most.
const MAX_NODES: usize = 10_000;
/// Nodes within each other.
const MAX_DEPTH: usize = 16;
/// Servers that are tried, at most.
const MAX_SERVERS: usize = 5;

pub(super) async fn read(namer: &Namer, reach: &Reach, names: &mut Names) -> Result<(), Wrong> {
    let mut session = Box::pin(connect(namer)).await?;
    let mut walk = Walk { prefix: &namer.prefix, nodes: 0 };
    for end in reach.below(&namer.prefix) {
        let mut path: Vec<String> = end.labels().iter().map(|label| raw(label)).collect();
        // `<node>:<endpoint>` is one of a node.
        if let Some((node, _)) = path.last().and_then(|last| last.split_once(':')) {
            let node = node.to_owned();
            path.pop();
            path.push(node);
        }
        // What is below a serverset is for whoever is asked.
        let found = loop {
            match session.children(&spelled(&path)).await {
                Err(Error::NoNode) if !path.is_empty() => path.pop(),
                other => break other.map(drop),
            };
        };
        found.map_err(Wrong::new)?;
        let is_whole = path.len() == end.len();
        Box::pin(walk.from(&mut session, path, is_whole, names)).await.map_err(Wrong::new)?;
    }
    session.close().await;
    Ok(())
}

/// With the first server that answers.
async fn connect(namer: &Namer) -> Result<Session, Wrong> {
    let list = namer.node.at("zkAddrs").ok_or_else(|| Wrong::new("it has no `zkAddrs`"))?;
    let mut last = Wrong::new("its `zkAddrs` are empty");
    for server in list.list().map_err(Wrong::new)?.iter().take(MAX_SERVERS) {
        let host = text(server, "host")?.unwrap_or_default();
        let port = server.at("port").map_or(Ok(PORT), |port| port.number()).map_err(Wrong::new)?;
        match Session::connect(&host, port).await {
            Ok(session) => return Ok(session),
            Err(error) => last = Wrong::new(error),
        }
    }
    Err(last)
}

struct Walk<'a> {
    prefix: &'a Name,
    nodes: usize,
}

impl Walk<'_> {
    /// All serversets at and, where it is asked for, below a node.
    async fn from(
        &mut self,
        session: &mut Session,
        start: Vec<String>,
        descends: bool,
        names: &mut Names,
    ) -> Result<(), Error> {
        let mut wanted = vec![start];
        while let Some(path) = wanted.pop() {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                names.lose(format!("there are more than {MAX_NODES} nodes: the rest is not read"));
                return Ok(());
            }
            let mut children = match session.children(&spelled(&path)).await {
                Ok(children) => children,
                Err(Error::NoNode) => continue,
                Err(Error::Refused(why)) => {
                    names.lose(why);
                    continue;
                }
                Err(gone) => return Err(gone),
            };
            children.sort();
            if children.iter().any(|child| child.starts_with(MEMBER)) {
                self.serverset(session, &path, &children, names).await?;
                continue;
            }
            let is_own = |child: &String| path.is_empty() && child == "zookeeper";
            if descends && path.len() < MAX_DEPTH {
                let below = children.into_iter().rev().filter(|child| !is_own(child));
                wanted.extend(below.map(|child| [&path[..], &[child]].concat()));
            }
        }
        Ok(())
    }

    async fn serverset(
        &mut self,
        session: &mut Session,
        path: &[String],
        children: &[String],
        names: &mut Names,
    ) -> Result<(), Error> {
        let mut found = std::collections::BTreeMap::from([(String::new(), Vec::new())]);
        let mut is_whole = true;
        for child in children.iter().filter(|child| child.starts_with(MEMBER)) {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                names.lose(format!("there are more than {MAX_NODES} nodes: the rest is not read"));
                break;
            }
            let node = format!("{}/{child}", spelled(path));
            match session.data(&node).await {
                Ok(data) => {
                    for (endpoint, at) in member(&data) {
                        found.entry(endpoint).or_default().push((at, 1.0));
                    }
                }
                // Members come and go.
                Err(Error::NoNode) => {}
                Err(Error::Refused(why)) => {
                    is_whole = false;
                    names.lose(why);
                }
                Err(gone) => return Err(gone),
            }
        }
        for (endpoint, members) in found {
            let mut labels = path.to_vec();
            if let (Some(last), false) = (labels.last_mut(), endpoint.is_empty()) {
                *last = format!("{last}:{endpoint}");
            }
            let name = self.prefix.join(&Name::of(labels));
            // There may be members, and they may not be seen.
            if members.is_empty() && !is_whole {
                names.add_unknown(name);
            } else {
                names.add(name, members);
            }
        }
        Ok(())
    }
}

fn spelled(path: &[String]) -> String {
    if path.is_empty() { "/".into() } else { format!("/{}", path.join("/")) }
}

/// Endpoints of one member by name, the main one without: those of a live one.
fn member(data: &[u8]) -> Vec<(String, Endpoint)> {
    let Ok(said) = serde_json::from_slice::<Value>(data) else { return Vec::new() };
    if said["status"].as_str().is_some_and(|status| status != "ALIVE") {
        return Vec::new();
    }
    let at = |endpoint: &Value| place(endpoint["host"].as_str()?, endpoint["port"].as_u64()?);
    let main = at(&said["serviceEndpoint"]).map(|at| (String::new(), at));
    let more = said["additionalEndpoints"].as_object();
    let more = more.into_iter().flatten().filter_map(|(name, one)| Some((name.clone(), at(one)?)));
    main.into_iter().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_a_member() {
        let said = |text: &str| {
            let all = member(text.as_bytes()).into_iter();
            all.map(|(name, at)| format!("{name} {at:?}")).collect::<Vec<_>>()
        };
        let one = r#"{"serviceEndpoint": {"host": "10.0.0.1", "port": 80}, "status": "ALIVE", "shard": 0,
          "additionalEndpoints": {"admin": {"host": "web-1", "port": 81}, "bad": {"host": "a"}}}"#;
        assert_eq!(said(one), [" Address(10.0.0.1:80)", "admin Name(\"web-1:81\")"]);
        assert!(said(&one.replace("ALIVE", "DEAD")).is_empty());
        assert!(said("no JSON").is_empty() && said("{}").is_empty());
    }
}
