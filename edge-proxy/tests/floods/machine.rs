//! The machine as figures need it: the attacked process alone on one core, and
//! on another one the attacker, ordinary clients, applications and the other
//! proxies. What is to be saturated by ordinary traffic alone gets a part of its
//! core only, so that nobody else is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use tokio::runtime::Handle;

/// Of the attacked process.
const ITS_CORE: usize = 0;
/// Of everything else.
const OTHER_CORE: usize = 1;
/// How often the part of a core is counted anew.
const PERIOD_US: u32 = 10_000;

/// Where ordinary clients and applications run: an attack that keeps its thread
/// busy leaves them alone.
pub(crate) static ASIDE: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

/// All threads of a process; those that it makes later follow.
fn pin(pid: u32, core: usize) {
    let mut taskset = Command::new("taskset");
    taskset.args(["--all-tasks", "--cpu-list", "--pid", &core.to_string(), &pid.to_string()]);
    let pinned = taskset.stdout(Stdio::null()).status().expect("taskset of util-linux");
    assert!(pinned.success(), "figures need two cores");
}

/// Whatever this process does and starts from now on is not the attacked one.
pub(crate) fn pin_others() {
    pin(std::process::id(), OTHER_CORE);
}

/// A process on its core, with a part of it (`cpu.max` of cgroups(7), or what
/// version 1 had) if `percent` says so, until this is dropped.
pub(crate) struct Alone {
    pid: u32,
    group: Option<PathBuf>,
}

impl Alone {
    pub(crate) fn new(pid: u32, percent: Option<u32>) -> Self {
        pin(pid, ITS_CORE);
        Self { pid, group: percent.map(|percent| slow(pid, percent)) }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let Some(group) = &self.group else { return };
        let all = group.parent().unwrap().join("cgroup.procs");
        // It may have ended.
        let _left = fs::write(all, self.pid.to_string()).and_then(|()| fs::remove_dir(group));
    }
}

fn slow(pid: u32, percent: u32) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let unified = root.join("cgroup.controllers").exists();
    let root = if unified { root.to_owned() } else { root.join("cpu") };
    let group = root.join(format!("isthmus-flood-{pid}"));
    fs::create_dir(&group).expect("figures need to be root, and the CPU controller");
    let quota = PERIOD_US * percent / 100;
    let say = |name: &str, text: String| fs::write(group.join(name), text).expect("a quota");
    if unified {
        say("cpu.max", format!("{quota} {PERIOD_US}"));
    } else {
        say("cpu.cfs_period_us", PERIOD_US.to_string());
        say("cpu.cfs_quota_us", quota.to_string());
    }
    say("cgroup.procs", pid.to_string());
    group
}

/// What the other core has done so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    idle: u64,
    all: u64,
}

impl Others {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let begins = format!("cpu{OTHER_CORE} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&begins)).unwrap();
        let ticks: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        // What is nice makes room.
        Self { idle: ticks[1] + ticks[3] + ticks[4], all: ticks.iter().sum() }
    }

    /// The part of the time since then in which it had nothing to do.
    pub(crate) fn idle_since(self) -> f64 {
        let now = Self::now();
        (now.idle - self.idle) as f64 / (now.all - self.all).max(1) as f64
    }
}
