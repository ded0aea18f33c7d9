//! Which program is calling: user and group as the kernel vouches for them, and
//! the systemd unit that the process runs in.

use std::{fmt, fs, time::Duration};

use mesh_tunnel::unix::UnixPeer;
use serde::Deserialize;

/// Ticks of a second in `/proc/<pid>/stat` (`USER_HZ`, the same on every
/// architecture that we build for).
const TICKS: u64 = 100;
/// The longest `/proc/<pid>/cgroup` that is looked at, in bytes.
const MAX_CGROUP: usize = 64 * 1024;

/// Whom the Workload API serves; everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selector {
    /// A unit of the system's manager, with its suffix: `reports.service`.
    pub unit: Option<String>,
    /// Name or number.
    pub user: Option<Account>,
    /// Name or number of the effective group.
    pub group: Option<Account>,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Account {
    /// By number.
    Id(u32),
    /// As in `passwd(5)` or `group(5)`, looked up at every call: packages may
    /// make it later.
    Name(String),
}

impl Account {
    fn is(&self, id: u32, accounts: &str) -> bool {
        self.number(accounts) == Some(id)
    }

    /// Its number, if there is such an account: `name:password:number:…`, one a
    /// line.
    pub fn number(&self, accounts: &str) -> Option<u32> {
        match self {
            Self::Id(known) => Some(*known),
            Self::Name(known) => accounts.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next().unwrap_or_default();
                let number = fields.nth(1).and_then(|number| number.parse().ok());
                number.filter(|_| name == known)
            }),
        }
    }
}

/// Where users, groups and processes are looked up.
pub trait Host {
    /// `passwd(5)`.
    fn users(&self) -> String;
    /// `group(5)`.
    fn groups(&self) -> String;
    /// The unit of the process that called.
    fn unit(&self, peer: &UnixPeer) -> Option<String>;
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// This machine.
#[derive(Debug, Clone, Copy)]
pub struct RealHost;

impl Host for RealHost {
    fn users(&self) -> String {
        fs::read_to_string("/etc/passwd").unwrap_or_default()
    }

    fn groups(&self) -> String {
        fs::read_to_string("/etc/group").unwrap_or_default()
    }

    /// A process that began after the connection was accepted has only got the
    /// number of the one that called.
    fn unit(&self, peer: &UnixPeer) -> Option<String> {
        let pid = peer.pid?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let again = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let began = began(&stat)?;
        (began <= peer.accepted && began == self::began(&again)?).then(|| unit_of(&cgroup))?
    }
}

impl Selector {
    /// Whether it names anything at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the caller is meant.
    pub fn matches(&self, peer: &UnixPeer, host: &impl Host) -> bool {
        !self.is_empty()
            && self.user.as_ref().is_none_or(|user| user.is(peer.uid, &host.users()))
            && self.group.as_ref().is_none_or(|group| group.is(peer.gid, &host.groups()))
            && self.unit.as_ref().is_none_or(|unit| host.unit(peer).as_ref() == Some(unit))
    }
}

/// Field 22 of `proc_pid_stat(5)`, after boot. The name in field 2 may hold
/// anything, parentheses too.
fn began(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_millis(ticks.checked_mul(1000 / TICKS)?))
}

/// The unit of the system's manager whose cgroup it is, or is below; what a
/// user's own manager calls a unit is the user's choice. `cgroups(7)`:
/// `hierarchy:controllers:path`; systemd's is `0::` or `name=systemd`.
fn unit_of(cgroup: &str) -> Option<String> {
    let cgroup = cgroup.get(..cgroup.len().min(MAX_CGROUP))?;
    let path = |wanted: &str| {
        cgroup.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == wanted).then_some(path)
        })
    };
    // On a hybrid host only the named hierarchy is systemd's for sure.
    let path = path("name=systemd").or_else(|| path(""))?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let unit = parts.find(|part| !part.ends_with(".slice"))?;
    let is_unit = [".service", ".scope"].iter().any(|suffix| unit.ends_with(suffix));
    is_unit.then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl Host for Fake {
        fn users(&self) -> String {
            "root:x:0:0::/root:/bin/sh\nreports:x:1001:1001::/:/bin/false\nbroken\n".into()
        }

        fn groups(&self) -> String {
            "root:x:0:\nstaff:x:50:reports\n".into()
        }

        fn unit(&self, peer: &UnixPeer) -> Option<String> {
            (peer.pid == Some(7)).then(|| "reports.service".to_owned())
        }
    }

    fn caller(uid: u32, gid: u32, pid: Option<i32>) -> UnixPeer {
        UnixPeer { uid, gid, pid, accepted: Duration::ZERO }
    }

    #[test]
    fn everything_that_is_given_must_hold() {
        let name = |name: &str| Some(Account::Name(name.to_owned()));
        let unit = Some("reports.service".to_owned());
        let user = Selector { user: name("reports"), ..Selector::default() };
        let group = Selector { group: name("staff"), ..Selector::default() };
        let in_unit = Selector { unit: unit.clone(), ..Selector::default() };
        let all = Selector { unit, user: Some(Account::Id(1001)), group: Some(Account::Id(50)) };
        for (selector, uid, gid, pid, expected) in [
            (&user, 1001, 1, None, true),
            (&user, 1002, 1001, Some(7), false),
            (&user, 0, 0, Some(7), false),
            (&group, 1, 50, None, true),
            (&group, 50, 1, None, false),
            (&in_unit, 5, 5, Some(7), true),
            (&in_unit, 5, 5, Some(8), false),
            (&in_unit, 5, 5, None, false),
            (&all, 1001, 50, Some(7), true),
            (&all, 1001, 50, Some(8), false),
            (&all, 1001, 51, Some(7), false),
            (&all, 1000, 50, Some(7), false),
            (&Selector::default(), 0, 0, Some(7), false),
        ] {
            let peer = caller(uid, gid, pid);
            assert_eq!(selector.matches(&peer, &Fake), expected, "{selector:?} {peer:?}");
        }
    }

    #[test]
    fn units_are_those_of_the_system() {
        for (cgroup, expected) in [
            ("0::/system.slice/reports.service\n", Some("reports.service")),
            ("0::/system.slice/system-web.slice/web@1.service/worker\n", Some("web@1.service")),
            ("12:pids:/a\n1:name=systemd:/system.slice/b.service\n0::/c\n", Some("b.service")),
            ("1:name=systemd:/\n0::/system.slice/b.service\n", None),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/reports.service\n",
                Some("user@1000.service"),
            ),
            ("0::/system.slice/docker-12ab.scope\n", Some("docker-12ab.scope")),
            ("0::/\n", None),
            ("0::/reports\n", None),
            ("0::/..\n", None),
            ("0::/system.slice\n", None),
            ("", None),
            ("nonsense\n::::\n", None),
        ] {
            assert_eq!(unit_of(cgroup).as_deref(), expected, "{cgroup:?}");
        }
    }

    #[test]
    fn a_name_cannot_forge_the_time_of_a_start() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let expected = Some(Duration::from_millis(123_450));
        for name in ["(sh)", "(a b)", "(x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1)"] {
            assert_eq!(began(&format!("77 {name} {rest}")), expected, "{name}");
        }
        assert_eq!(began("77 (sh) S 1"), None);
    }

    #[test]
    fn this_process_is_known_and_a_later_one_with_its_number_is_not() {
        let pid = i32::try_from(std::process::id()).ok();
        let late = UnixPeer { accepted: Duration::from_secs(1 << 40), ..caller(0, 0, pid) };
        let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert_eq!(RealHost.unit(&late), unit_of(&cgroup));
        assert_eq!(RealHost.unit(&caller(0, 0, pid)), None, "it began after the call");
        assert_eq!(RealHost.unit(&caller(0, 0, None)), None);
    }
}
