//! Whether this machine has room for what comes with a cut-over: our proxy takes new
//! connections while the legacy one keeps what it has, so for a while both hold as
//! many as the legacy one does now.

use std::fs;

/// What our proxy has open for one connection: the client's socket and another one.
const FILES: u64 = 2;
/// What a connection costs it and the kernel at most while it is quiet, in bytes.
const MEMORY: u64 = 64 << 10;
/// What stays free besides, in bytes.
const SPARE: u64 = 32 << 20;

/// What is left, where the system says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Files that our proxy may open still.
    pub files: Option<u64>,
    /// Entries of the kernel's table of connections.
    pub tracked: Option<u64>,
    /// Memory that can be had without swapping, in bytes.
    pub memory: Option<u64>,
}

impl Room {
    /// As it is now, with our proxy in process `pid`.
    pub fn look(pid: u32) -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
        let may = read(&format!("/proc/{pid}/limits")).as_deref().and_then(open_files);
        let has = fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|open| open.count() as u64);
        let most = number("/proc/sys/net/netfilter/nf_conntrack_max");
        let are = number("/proc/sys/net/netfilter/nf_conntrack_count");
        Self {
            files: may.zip(has).map(|(may, has)| may.saturating_sub(has)),
            // 0 is without a limit.
            tracked: most
                .filter(|most| *most > 0)
                .zip(are)
                .map(|(most, are)| most.saturating_sub(are)),
            memory: read("/proc/meminfo").as_deref().and_then(available),
        }
    }

    /// What is short for as many connections again, and what to do.
    pub fn problem(self, connections: u64) -> Option<String> {
        let (files, memory) = (connections * FILES, connections * MEMORY + SPARE);
        let short = |left: Option<u64>, needed: u64| left.filter(|left| *left < needed);
        let why = if let Some(left) = short(self.files, files) {
            format!(
                "our proxy may open {left} more files and needs {files}: raise its limit \
                 (LimitNOFILE= of isthmus-front@.service, ulimit -n)"
            )
        } else if let Some(left) = short(self.tracked, connections) {
            format!("the kernel tracks {left} more: raise net.netfilter.nf_conntrack_max (sysctl)")
        } else if let Some(left) = short(self.memory, memory) {
            format!("{} MiB of memory are free, {} MiB are needed", left >> 20, memory >> 20)
        } else {
            return None;
        };
        Some(format!("no room for the {connections} connections that the legacy proxy has: {why}"))
    }
}

/// The soft limit on open files (proc(5), `limits`).
fn open_files(limits: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// `MemAvailable` (proc(5), `meminfo`), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(rest.split_ascii_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_named() {
        let room = Room { files: Some(200), tracked: Some(100), memory: Some(64 << 20) };
        assert_eq!(room.problem(100), None);
        let said = |room: Room, connections| room.problem(connections).unwrap();
        assert!(said(room, 101).contains("may open 200 more files and needs 202"));
        let room = Room { files: None, ..room };
        assert!(said(room, 101).contains("nf_conntrack_max"));
        let room = Room { tracked: None, ..room };
        assert_eq!(room.problem(512), None);
        assert!(said(room, 529).contains("64 MiB of memory are free, 65 MiB are needed"));
        // A system that does not say has room.
        assert_eq!(Room::default().problem(1 << 20), None);
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max processes             95000                95000                processes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited  unlimited  files"),
            Some(u64::MAX)
        );
        assert_eq!(open_files("nonsense"), None);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available(""), None);
        let here = Room::look(std::process::id());
        assert!(here.files.is_some_and(|files| files > 0) && here.memory.is_some());
    }
}
