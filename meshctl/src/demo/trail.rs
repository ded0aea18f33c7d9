//! What the proxies say happened: their access logs, read as they grow.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use serde::Deserialize;

/// What one poll reads of one file; the rest waits for the next.
const MAX_READ: u64 = 4 << 20;

/// The fields of an access-log line that the demo reads.
#[derive(Debug, Deserialize)]
struct Line {
    direction: String,
    #[serde(default)]
    service: String,
    #[serde(default)]
    port: String,
    /// `direct`, `via gateway` or `reverse`.
    #[serde(default)]
    via: String,
    /// The verified other end.
    #[serde(default)]
    peer: String,
    /// Why it was refused, if it was.
    #[serde(default)]
    reason: String,
    /// Of a response; 0 or nothing if the caller gave up, and for opaque bytes.
    #[serde(default)]
    status: u16,
    #[serde(default)]
    protocol: String,
}

/// What a line is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    machine: &'static str,
    service: String,
    port: String,
}

/// The access logs of all machines, summed.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    files: Vec<Tail>,
    /// Requests a machine's proxy has sent out, by kind of path.
    sent: BTreeMap<Key, BTreeMap<String, u64>>,
    /// Requests that arrived, by verified caller, then by kind of path.
    received: BTreeMap<(String, String, String), BTreeMap<String, u64>>,
}

#[derive(Debug)]
struct Tail {
    machine: &'static str,
    path: PathBuf,
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Trail {
    pub(crate) fn follow(&mut self, machine: &'static str, path: PathBuf) {
        self.files.push(Tail { machine, path, offset: 0, rest: Vec::new() });
    }

    /// Forgets what was counted; what is read from now on counts.
    pub(crate) fn reset(&mut self) {
        self.poll();
        self.sent.clear();
        self.received.clear();
    }

    /// Reads what has been written since the last call.
    pub(crate) fn poll(&mut self) {
        let mut files = std::mem::take(&mut self.files);
        for file in &mut files {
            let machine = file.machine;
            file.read(|line| self.count(machine, line));
        }
        self.files = files;
    }

    fn count(&mut self, machine: &'static str, line: Line) {
        let answered = line.protocol == "tcp" || (200..300).contains(&line.status);
        if !line.reason.is_empty() || !answered {
            return;
        }
        let paths = match line.direction.as_str() {
            "outbound" => self
                .sent
                .entry(Key { machine, service: line.service, port: line.port })
                .or_default(),
            "inbound" => self.received.entry((line.service, line.port, line.peer)).or_default(),
            _ => return,
        };
        *paths.entry(line.via).or_default() += 1;
    }

    /// How a machine's requests to a service port went out.
    pub(crate) fn sent(
        &self,
        machine: &'static str,
        service: &str,
        port: &str,
    ) -> BTreeMap<String, u64> {
        let key = Key { machine, service: service.into(), port: port.into() };
        self.sent.get(&key).cloned().unwrap_or_default()
    }

    /// Who was verified as caller of a service port, and how often, at the
    /// destinations; only callers of one trust domain.
    pub(crate) fn callers(
        &self,
        service: &str,
        port: &str,
        trust_domain: &str,
    ) -> BTreeMap<String, u64> {
        let prefix = format!("spiffe://{trust_domain}/");
        let mine = self
            .received
            .iter()
            .filter(|((s, p, peer), _)| s == service && p == port && peer.starts_with(&prefix));
        mine.map(|((_, _, peer), paths)| (peer.clone(), paths.values().sum())).collect()
    }

    /// How the requests of one caller arrived at the destinations.
    pub(crate) fn arrived(&self, service: &str, port: &str, caller: &str) -> BTreeMap<String, u64> {
        let key = (service.to_owned(), port.to_owned(), caller.to_owned());
        self.received.get(&key).cloned().unwrap_or_default()
    }
}

impl Tail {
    fn read(&mut self, mut each: impl FnMut(Line)) {
        // A log appears with the first request.
        let Ok(mut file) = File::open(&self.path) else { return };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return;
        }
        let mut bytes = std::mem::take(&mut self.rest);
        let Ok(len) = file.take(MAX_READ).read_to_end(&mut bytes) else { return };
        self.offset += len as u64;
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(end);
        for line in bytes.split(|&byte| byte == b'\n') {
            if let Ok(line) = serde_json::from_slice(line) {
                each(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_counted_once_even_when_written_in_parts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vm1.json");
        let mut trail = Trail::default();
        trail.follow("vm1", path.clone());
        trail.poll();
        let mut file = File::create(&path).expect("a file");
        let line = r#"{"direction":"outbound","service":"a.b","port":"http","via":"reverse","status":200}"#;
        write!(file, "{line}\nnot json\n{}", &line[..20]).expect("written");
        trail.poll();
        trail.poll();
        assert_eq!(trail.sent("vm1", "a.b", "http"), BTreeMap::from([("reverse".into(), 1)]));
        writeln!(file, "{}", &line[20..]).expect("written");
        let inbound = r#"{"direction":"inbound","service":"a.b","port":"http","via":"direct","peer":"spiffe://w/ns/a/sa/b","status":200}"#;
        let refused = r#"{"direction":"inbound","service":"a.b","port":"http","peer":"spiffe://w/ns/a/sa/b","status":200,"reason":"x"}"#;
        writeln!(file, "{inbound}\n{refused}").expect("written");
        trail.poll();
        assert_eq!(trail.sent("vm1", "a.b", "http")["reverse"], 2);
        assert_eq!(
            trail.callers("a.b", "http", "w"),
            BTreeMap::from([("spiffe://w/ns/a/sa/b".into(), 1)])
        );
        assert!(trail.callers("a.b", "http", "other").is_empty());
        assert_eq!(trail.arrived("a.b", "http", "spiffe://w/ns/a/sa/b")["direct"], 1);
        trail.reset();
        assert!(trail.sent("vm1", "a.b", "http").is_empty());
    }
}
