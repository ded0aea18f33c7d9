//! How much memory a process may hold before it takes in nobody new.
//!
//! Each connection has bounds of its own; this is for many of them together.
//! What counts is what the kernel counts, so nothing can be forgotten. The
//! limit is soft: what is under way goes on.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{clock, usage};

/// How often it is looked at: as often as it could take to fill what is left at
/// [`FASTEST`], within these bounds.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Bytes a second: no network brings more.
const FASTEST: u64 = 2 << 30;
/// How often the allocator is asked for what it holds and does not need.
const TRIM: Duration = Duration::from_secs(1);
/// The part of what a machine or container has that one process may hold.
const PART: u64 = 80;

/// Memory is the process's, and so is what is known of it.
static SHORT: AtomicBool = AtomicBool::new(false);
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Whether the process holds more than it may.
#[inline]
pub fn is_short() -> bool {
    SHORT.load(Ordering::Relaxed)
}

/// What the process may hold, in bytes, where a limit is kept.
pub fn kept() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit < u64::MAX)
}

/// Looks again and again whether the process holds more than `limit` bytes.
pub async fn keep(limit: u64) -> Infallible {
    LIMIT.store(limit, Ordering::Relaxed);
    let mut trimmed: Option<Instant> = None;
    let mut pause = LOOK.0;
    loop {
        tokio::time::sleep(pause).await;
        let is_due = || trimmed.is_none_or(|at| at.elapsed() >= TRIM);
        let mut held = resident();
        if held > limit && is_due() {
            trim();
            trimmed = Some(clock::monotonic());
            held = resident();
        }
        pause = pause_at(held, limit);
        let is_short = held > limit;
        if is_short != SHORT.swap(is_short, Ordering::Relaxed) {
            let mib = |bytes: u64| bytes >> 20;
            match is_short {
                true => {
                    log::warn!(resident_mib = mib(held), limit_mib = mib(limit); "short of memory: nobody new is taken in");
                }
                false => {
                    log::info!(resident_mib = mib(held), limit_mib = mib(limit); "there is memory again");
                }
            }
        }
    }
}

fn pause_at(held: u64, limit: u64) -> Duration {
    let left = limit.saturating_sub(held).min(FASTEST);
    let to_fill = Duration::from_secs(1).mul_f64(left as f64 / FASTEST as f64);
    to_fill.clamp(LOOK.0, LOOK.1)
}

/// What a process may hold where nobody says: four fifths of what its machine
/// or its control groups have.
pub fn of_machine() -> u64 {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let groups = of_groups(&text("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    let machine = bytes(&text("/proc/meminfo"), "MemTotal:");
    let all = [groups, machine].into_iter().flatten().min();
    all.map_or(u64::MAX, |all| all / 100 * PART)
}

/// Bytes in a line as proc_meminfo(5) and proc_pid_status(5) have it.
fn bytes(text: &str, name: &str) -> Option<u64> {
    usage::number(text, name).map(|kib| (kib * 1024.0) as u64)
}

/// The least limit of the groups that a process is in (cgroups(7)), and of
/// those above them.
fn of_groups(text: &str, root: &Path) -> Option<u64> {
    let group = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some((root.join(path), "memory.max")),
            "memory" => Some((root.join("memory").join(path), "memory.limit_in_bytes")),
            _ => None,
        }
    };
    let limit = |(path, file): (PathBuf, &str)| {
        let above = path.ancestors().take_while(|above| above.starts_with(root));
        let read = |dir: &Path| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        above.filter_map(read).min()
    };
    text.lines().filter_map(group).filter_map(limit).min()
}

fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    bytes(&text, "VmRSS:").unwrap_or_default()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: malloc_trim(3) is safe to call from any thread at any time; it
    // gives back pages that hold nothing.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_groups_and_machine_counts() {
        let total = |text| bytes(text, "MemTotal:");
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(total("nonsense"), None);
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = |text: &str| of_groups(text, root.path());
        assert_eq!(found("0::/a/b\n"), None);
        write("a/memory.max", "4000\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(found("0::/a/b\n"), Some(4000));
        assert_eq!(found("0::/\n"), None);
        write("memory/c/memory.limit_in_bytes", "3000\n");
        assert_eq!(found("4:memory:/c\n3:cpu:/c\n0::/a/b\n"), Some(3000));
        assert_eq!(found("0::/../../a\nnonsense\n"), None, "of another namespace");
    }

    #[test]
    fn the_closer_to_the_limit_the_more_often_it_looks() {
        let gib = |n: u64| n << 30;
        assert_eq!(pause_at(gib(1), gib(8)), LOOK.1);
        assert_eq!(pause_at(gib(7), gib(8)), Duration::from_millis(500));
        assert_eq!(pause_at(gib(8) - (50 << 20), gib(8)), LOOK.0);
        assert_eq!(pause_at(gib(9), gib(8)), LOOK.0);
        assert_eq!(pause_at(0, u64::MAX), LOOK.1);
    }

    #[test]
    fn what_a_process_holds_is_known() {
        let before = resident();
        let much = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident();
        // Other tests give back some meanwhile.
        assert!(before > 0 && after >= before + (32 << 20), "{before} {after} {}", much.len());
        assert!(of_machine() > before);
    }
}
