//! Names of services and their virtual addresses.
//!
//! The proxy writes them, a line each: what resolves is what it can carry, and
//! neither needs the agent or the site to be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_core::ServiceName;
use mesh_runtime::{changes::Changes, drain::Drain};
use tokio::sync::watch;

use crate::attest::{Account, Host, RealHost};

/// From one look at the file to the next where nobody tells of changes; a look at
/// an unchanged one costs a `stat`.
const POLL: Duration = Duration::from_millis(500);
/// The longest file, in bytes: some hundred thousand names.
const LONGEST: u64 = 16 << 20;
/// Who writes it.
const WRITER: &str = "isthmus-proxy";

/// All that resolves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    services: BTreeMap<String, Addresses>,
    /// Of those: a name without an address, but there.
    namespaces: BTreeSet<String>,
}

/// Of a service: at least one of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Of IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// What there is to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A service.
    Service(Addresses),
    /// Names below it.
    Empty,
    /// Nothing.
    Nothing,
}

impl Names {
    /// `<name>.<namespace> <address>`, a line for each address. Other lines are
    /// left out: a newer proxy may say more.
    pub fn parse(text: &str) -> Self {
        let mut names = Self::default();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(name), Some(address), None) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (Ok(name), Ok(address)) = (name.parse::<ServiceName>(), address.parse()) else {
                continue;
            };
            names.namespaces.insert(name.namespace().to_owned());
            let service = names.services.entry(name.as_str().to_owned()).or_default();
            match address {
                IpAddr::V4(ip) => service.v4 = Some(ip),
                IpAddr::V6(ip) => service.v6 = Some(ip),
            }
        }
        names
    }

    /// `name` is in lower case and without the mesh's domain.
    pub fn find(&self, name: &str) -> Found {
        match self.services.get(name) {
            Some(addresses) => Found::Service(*addresses),
            None if name.is_empty() || self.namespaces.contains(name) => Found::Empty,
            None => Found::Nothing,
        }
    }
}

/// Changes when the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

/// Keeps `table` as the file is. Names stay where the file is gone for a moment:
/// their addresses do, too.
pub async fn follow(
    file: PathBuf,
    look: Arc<Changes>,
    table: watch::Sender<Arc<Names>>,
    drain: Drain,
) {
    let mut read = None;
    let mut problem = String::new();
    loop {
        match read_new(&file, &mut read) {
            Ok(None) => {}
            Ok(Some(names)) => {
                log::info!(names = names.services.len(); "names are read");
                problem.clear();
                table.send_replace(Arc::new(names));
            }
            Err(error) => {
                let said = format!("{}: {error}", file.display());
                if said != problem {
                    log::warn!("no names are read: {said}");
                    problem = said;
                }
            }
        }
        tokio::select! {
            _ = look.wait(POLL) => {}
            () = drain.draining() => return,
        }
    }
}

/// What the file says, unless it was read before.
fn read_new(path: &Path, before: &mut Option<Stamp>) -> io::Result<Option<Names>> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    let stamp = Stamp {
        modified: (about.mtime(), about.mtime_nsec()),
        inode: about.ino(),
        size: about.size(),
    };
    if *before == Some(stamp) {
        return Ok(None);
    }
    check_owner(about.uid())?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than what a proxy writes"));
    }
    *before = Some(stamp);
    Ok(Some(Names::parse(&text)))
}

/// Others of the mesh may write to the directory, and must not say where names
/// lead.
fn check_owner(uid: u32) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if uid == 0 || uid == own {
        return Ok(());
    }
    if Account::Name(WRITER.into()).number(&RealHost.users()) == Some(uid) {
        return Ok(());
    }
    Err(io::Error::other(format!("uid {uid} has written it, who is not {WRITER}")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_there_is_found_and_its_namespace_is_there() {
        let names = Names::parse(
            "orders.shop 240.240.1.2\nnonsense\nweb.shop 240.240.1.3 more\nx.y nowhere\n\
             six.lab fd00::6\norders.shop fd69::6\n",
        );
        let service = |v4: &str, v6: &str| {
            Found::Service(Addresses { v4: v4.parse().ok(), v6: v6.parse().ok() })
        };
        let cases = [
            ("orders.shop", service("240.240.1.2", "fd69::6")),
            ("six.lab", service("", "fd00::6")),
            ("shop", Found::Empty),
            ("", Found::Empty),
            ("web.shop", Found::Nothing),
            ("y", Found::Nothing),
            ("a.orders.shop", Found::Nothing),
        ];
        for (name, found) in cases {
            assert_eq!(names.find(name), found, "{name}");
        }
    }

    #[test]
    fn a_file_is_read_when_it_changes_and_only_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut before) = (dir.path().join("names"), None);
        assert!(read_new(&path, &mut before).is_err());
        fs::write(&path, "orders.shop 240.240.1.2\n").unwrap();
        let read = read_new(&path, &mut before).unwrap().unwrap();
        assert!(matches!(read.find("orders.shop"), Found::Service(_)));
        assert_eq!(read_new(&path, &mut before).unwrap(), None);
        fs::write(dir.path().join("new"), "web.shop 240.240.1.2\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(read_new(&path, &mut before).unwrap().is_some());
        File::create(&path).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(read_new(&path, &mut before).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn another_user_does_not_say_where_names_lead() {
        assert!(check_owner(0).is_ok());
        let shown = check_owner(4_000_000_000).unwrap_err().to_string();
        assert!(shown.contains("4000000000"), "{shown}");
    }
}
