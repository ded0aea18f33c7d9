//! The `check` of a service file.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use mesh_runtime::config::HumanDuration;
use serde::Deserialize;

use super::{PortSpec, Problem};
use crate::machine::is_unit;

/// The longest path, or name of a service, of a health check, in bytes.
const MAX_PATH: usize = 1024;
/// Words of a command.
const MAX_WORDS: usize = 64;
/// The longest word of a command, in bytes.
const MAX_WORD: usize = 4096;
/// The longest name of a user, as `useradd(8)` has it.
const MAX_USER: usize = 32;
/// Who runs commands where nobody is named: can do nothing else.
const USER: &str = "isthmus-check";
/// Often enough for any answer; much more often a machine is busy with
/// starting processes.
const MIN_EXEC_INTERVAL: Duration = Duration::from_secs(1);

/// How a service is asked for its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckSpec {
    /// What is asked.
    pub probe: Probe,
    /// From one check to the next.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Passes in a row that make it healthy again.
    pub healthy: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy: u32,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Each address accepts a connection.
    Tcp(Vec<SocketAddr>),
    /// `GET` answers with 200 to 399.
    Http(SocketAddr, String),
    /// `grpc.health.v1.Health/Check` says that this service is `SERVING`; an
    /// empty name is the whole server.
    Grpc(SocketAddr, String),
    /// systemd says that this unit is active.
    Unit(String),
    /// A command ends with 0.
    Exec(Exec),
}

/// A command of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// An absolute path and its arguments; at least the path.
    pub command: Vec<String>,
    /// Who runs it.
    pub user: String,
}

/// What was written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CheckFile {
    http: Option<String>,
    tcp: Option<NonZeroU16>,
    grpc: Option<String>,
    unit: Option<String>,
    exec: Option<Vec<String>>,
    user: Option<String>,
    port: Option<NonZeroU16>,
    interval: Option<HumanDuration>,
    timeout: Option<HumanDuration>,
    healthy: Option<u32>,
    unhealthy: Option<u32>,
}

impl CheckFile {
    pub(super) fn check(&self, host: IpAddr, ports: &[PortSpec]) -> Result<CheckSpec, Problem> {
        let spec = CheckSpec {
            probe: self.probe(host, ports).map_err(|problem| ("check", problem))?,
            interval: self.interval.map_or(Duration::from_secs(5), Into::into),
            timeout: self.timeout.map_or(Duration::from_secs(1), Into::into),
            healthy: self.healthy.unwrap_or(1),
            unhealthy: self.unhealthy.unwrap_or(2),
        };
        let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
        if !bounds.contains(&spec.interval) || !bounds.contains(&spec.timeout) {
            return Err(("check", "interval and timeout must be 100ms to 1h".to_owned()));
        }
        if self.exec.is_some() && spec.interval < MIN_EXEC_INTERVAL {
            return Err(("check", "interval of exec must be 1s to 1h".to_owned()));
        }
        if spec.healthy == 0 || spec.unhealthy == 0 {
            return Err(("check", "healthy and unhealthy count checks; at least 1".to_owned()));
        }
        Ok(spec)
    }

    fn probe(&self, host: IpAddr, ports: &[PortSpec]) -> Result<Probe, String> {
        if self.port.is_some() && self.http.is_none() && self.grpc.is_none() {
            return Err("port goes with http or grpc; write tcp: <port>".to_owned());
        }
        if self.user.is_some() && self.exec.is_none() {
            return Err("user goes with exec: who runs the command".to_owned());
        }
        let first = ports.first().map_or(0, |port| port.target);
        let asked = SocketAddr::new(host, self.port.map_or(first, NonZeroU16::get));
        match (&self.http, self.tcp, &self.grpc, &self.unit, &self.exec) {
            (None, None, None, None, None) => {
                let addr = |port: &PortSpec| SocketAddr::new(host, port.target);
                Ok(Probe::Tcp(ports.iter().map(addr).collect()))
            }
            (Some(path), None, None, None, None) => http(asked, path),
            (None, Some(port), None, None, None) => {
                Ok(Probe::Tcp(vec![SocketAddr::new(host, port.get())]))
            }
            (None, None, Some(service), None, None) => grpc(asked, service),
            (None, None, None, Some(unit), None) if is_unit(unit) => Ok(Probe::Unit(unit.clone())),
            (None, None, None, Some(unit), None) => {
                Err(format!("unit: {unit:?} must be the name of a unit, e.g. orders.service"))
            }
            (None, None, None, None, Some(command)) => {
                exec(command, self.user.as_deref().unwrap_or(USER))
            }
            _ => Err("asks one of http, tcp, grpc, unit and exec".to_owned()),
        }
    }
}

fn http(addr: SocketAddr, path: &str) -> Result<Probe, String> {
    if !path.starts_with('/') || !is_graphic(path) {
        return Err(format!("http: {path:?} must be a path, e.g. /healthz"));
    }
    Ok(Probe::Http(addr, path.to_owned()))
}

fn grpc(addr: SocketAddr, service: &str) -> Result<Probe, String> {
    if !is_graphic(service) {
        let must = "must be the name of a service, e.g. shop.Orders, or empty";
        return Err(format!("grpc: {service:?} {must}"));
    }
    Ok(Probe::Grpc(addr, service.to_owned()))
}

fn is_graphic(text: &str) -> bool {
    text.len() <= MAX_PATH && text.bytes().all(|b| b.is_ascii_graphic())
}

fn exec(command: &[String], user: &str) -> Result<Probe, String> {
    let Some(program) = command.first() else {
        return Err("exec: is empty; write the path of a program and its arguments".to_owned());
    };
    if !is_program(program) {
        let must = "must be the absolute path of a program, e.g. /usr/lib/orders/check; no shell \
                    reads it";
        return Err(format!("exec: {program:?} {must}"));
    }
    let is_word = |word: &String| word.len() <= MAX_WORD && !word.chars().any(char::is_control);
    if command.len() > MAX_WORDS || !command.iter().all(is_word) {
        return Err(format!(
            "exec: must be at most {MAX_WORDS} words of {MAX_WORD} bytes without control \
             characters; put the rest into a script"
        ));
    }
    if !is_user(user) {
        return Err(format!("user: {user:?} must be the name of a user, e.g. nobody"));
    }
    Ok(Probe::Exec(Exec { command: command.to_owned(), user: user.to_owned() }))
}

/// Whether systemd and `env(1)` take this as it is: for one `$` begins a variable,
/// for the other `=` ends its name.
fn is_program(path: &str) -> bool {
    let plain = is_graphic(path) && !path.contains(['$', '=']) && !path.ends_with('/');
    path.starts_with('/')
        && plain
        && path[1..].split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// As `useradd(8)` has it: no number, which may become another's.
fn is_user(name: &str) -> bool {
    let begins = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    name.len() <= MAX_USER && name.bytes().next().is_some_and(begins) && name.bytes().all(ok)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse;
    use super::*;

    fn probe(check: &str) -> Result<Probe, String> {
        let text = format!("service: orders\nnamespace: shop\nport: 80\ncheck: {check}\n");
        let parsed = parse(&text, "orders", "orders.yaml");
        parsed.map(|spec| spec.check.probe).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_a_path_its_arguments_and_a_user() {
        let long = "{ exec: [/usr/lib/check_disk, -w, '10%', '$HOME', ''], user: nobody }";
        let command = ["/usr/lib/check_disk", "-w", "10%", "$HOME", ""].map(String::from).into();
        assert_eq!(probe(long), Ok(Probe::Exec(Exec { command, user: "nobody".into() })));
        let Ok(Probe::Exec(short)) = probe("{ exec: [/bin/true] }") else { panic!("no command") };
        assert_eq!(short.user, USER);
    }

    #[test]
    fn what_cannot_be_a_command_is_refused_with_its_remedy() {
        let many = format!("{{ exec: [/bin/true{}] }}", ", a".repeat(MAX_WORDS));
        let long = format!("{{ exec: [/bin/true, {}] }}", "a".repeat(MAX_WORD + 1));
        for (check, place, remedy) in [
            ("{ exec: [] }", ": check: exec: ", "path of a program"),
            ("{ exec: [check_disk] }", ": check: exec: ", "absolute path"),
            ("{ exec: [./check_disk] }", ": check: exec: ", "absolute path"),
            ("{ exec: [/usr/../check] }", ": check: exec: ", "absolute path"),
            ("{ exec: [/usr//check] }", ": check: exec: ", "absolute path"),
            ("{ exec: [/usr/lib/] }", ": check: exec: ", "absolute path"),
            ("{ exec: ['/bin/true -x'] }", ": check: exec: ", "no shell"),
            ("{ exec: [/bin/a=b] }", ": check: exec: ", "absolute path"),
            ("{ exec: [/bin/$x] }", ": check: exec: ", "absolute path"),
            ("{ exec: [/bin/sh, \"a\\nb\"] }", ": check: exec: ", "into a script"),
            (&many, ": check: exec: ", "at most 64 words"),
            (&long, ": check: exec: ", "4096 bytes"),
            ("{ exec: /bin/true }", ":4:16: ", "expected a sequence"),
            ("{ exec: [/bin/true, [a]] }", ":4:28: ", "expected a string"),
            ("{ exec: [/bin/true], user: '' }", ": check: user: ", "name of a user"),
            ("{ exec: [/bin/true], user: '0' }", ": check: user: ", "name of a user"),
            ("{ exec: [/bin/true], user: -x }", ": check: user: ", "name of a user"),
            ("{ exec: [/bin/true], user: a b }", ": check: user: ", "name of a user"),
            ("{ user: nobody }", ": check: ", "user goes with exec"),
            ("{ unit: a.service, user: nobody }", ": check: ", "user goes with exec"),
            ("{ exec: [/bin/true], http: / }", ": check: ", "one of http, tcp, grpc, unit and"),
            ("{ exec: [/bin/true], port: 81 }", ": check: ", "goes with http or"),
            ("{ exec: [/bin/true], interval: 500ms }", ": check: ", "1s to 1h"),
            ("{ exce: [/bin/true] }", ":4:10: ", "did you mean `exec`?"),
        ] {
            let shown = probe(check).unwrap_err();
            assert!(shown.starts_with(&format!("orders.yaml{place}")), "{check}: {shown}");
            assert!(shown.contains(remedy), "{check}: {shown}");
        }
    }

    proptest! {
        /// Whatever is written: what is taken can be handed to systemd.
        #[test]
        fn what_is_taken_is_a_command(
            program in "/?[a-z.$= ]{0,3}",
            words in prop::collection::vec("[/a-z.$%-]{0,4}|[ \n\\\\]", 0..3),
            user in "[a-z0-9-][a-z0-9 _.%/-]{0,2}",
        ) {
            let command = [vec![program.clone()], words].concat();
            let written = serde_json::json!({ "exec": command, "user": user }).to_string();
            if let Ok(taken) = probe(&written) {
                prop_assert_eq!(taken, Probe::Exec(Exec { command: command.clone(), user: user.clone() }));
                prop_assert!(program.starts_with('/') && !program.contains(['$', '=', ' ']));
                prop_assert!(!command.concat().contains('\n'));
                prop_assert!(user.starts_with(|c: char| c.is_ascii_lowercase()));
                prop_assert!(!user.contains([' ', '%', '/']));
            }
        }
    }
}
