//! Which cgroup a unit's processes are in, as nft names it.
//!
//! nft looks for names below `/sys/fs/cgroup`; where cgroup v1 is there, too,
//! version 2 is mounted at `unified` in it. The kernel counts levels from the
//! root of all, or of the cgroup namespace.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Where nft looks for cgroups.
const SYSFS: &str = "/sys/fs/cgroup";
/// How deep slices may lie in each other.
const MAX_DEPTH: usize = 8;
/// Slices that are looked through for one unit.
const MAX_SLICES: usize = 1024;

/// The cgroups of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Where version 2 is mounted.
    root: PathBuf,
    /// What nft calls it: empty, or with a slash behind it.
    prefix: String,
    /// Of the mount itself.
    level: u32,
}

/// One that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As nft calls it.
    pub name: String,
    /// As the kernel counts it.
    pub level: u32,
    /// Another one for each life of a unit.
    pub inode: u64,
}

impl Cgroups {
    /// As this process sees them; `None` where there are none that nft knows.
    pub fn of_this_machine() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    /// None at all.
    pub fn none() -> Self {
        Self { root: "/nonexistent".into(), prefix: String::new(), level: 0 }
    }

    /// `proc_pid_mountinfo(5)`: `id parent device root mount options … - type …`.
    fn parse(mounts: &str) -> Option<Self> {
        mounts.lines().find_map(|line| {
            let (mount, fs) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (inside, root) = (fields.next()?, fields.next()?);
            let below = root.strip_prefix(SYSFS)?.trim_start_matches('/');
            let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
            let level = depth(inside);
            fs.starts_with("cgroup2 ").then(|| Self { root: root.into(), prefix, level })
        })
    }

    /// The cgroup of a unit of the system's manager that runs.
    pub fn find(&self, unit: &str) -> Option<Found> {
        let mut left = MAX_SLICES;
        let at = find_below(&self.root, Path::new(""), unit, MAX_DEPTH, &mut left)?;
        let inode = fs::metadata(self.root.join(&at)).ok()?.ino();
        let at = at.to_str()?;
        let level = self.level + depth(at);
        Some(Found { name: format!("{}{at}", self.prefix), level, inode })
    }
}

fn depth(path: &str) -> u32 {
    let parts = path.split('/').filter(|part| !part.is_empty()).count();
    u32::try_from(parts).unwrap_or(u32::MAX)
}

/// Units are in slices, and slices in slices.
fn find_below(
    root: &Path,
    at: &Path,
    unit: &str,
    depth: usize,
    left: &mut usize,
) -> Option<PathBuf> {
    *left = left.checked_sub(1)?;
    let candidate = at.join(unit);
    if root.join(&candidate).is_dir() {
        return Some(candidate);
    }
    let deeper = depth.checked_sub(1)?;
    for entry in fs::read_dir(root.join(at)).ok()?.flatten() {
        let name = entry.file_name();
        let is_slice = Path::new(&name).extension().is_some_and(|kind| kind == "slice");
        if is_slice && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let found = find_below(root, &at.join(&name), unit, deeper, left);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 22 0:23 / /proc rw,nosuid - proc proc rw\n\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "29 22 0:24 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        30 29 0:25 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
        31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    const LEGACY: &str = "31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    const BOUND: &str = "30 24 0:26 /a/b /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn mounts_say_where_they_are() {
        let cases = [
            (UNIFIED, Some(("/sys/fs/cgroup", "", 0))),
            (HYBRID, Some(("/sys/fs/cgroup/unified", "unified/", 0))),
            (BOUND, Some(("/sys/fs/cgroup", "", 2))),
            (LEGACY, None),
            ("nonsense", None),
            ("", None),
        ];
        for (mounts, wanted) in cases {
            let found = Cgroups::parse(mounts);
            let found = found.as_ref().map(|c| (c.root.to_str().unwrap(), &*c.prefix, c.level));
            assert_eq!(found, wanted, "{mounts}");
        }
    }

    #[test]
    fn units_are_found_in_their_slices() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/orders.service",
            "system.slice/system-web.slice/web@1.service",
            "shop.slice/shop-batch.slice",
            "user.slice/user-1000.slice/user@1000.service/app.slice/orders.service",
        ] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let root = dir.path().to_owned();
        let cgroups = Cgroups { root, prefix: "unified/".into(), level: 1 };
        let cases = [
            ("orders.service", Some(("unified/system.slice/orders.service", 3))),
            ("web@1.service", Some(("unified/system.slice/system-web.slice/web@1.service", 4))),
            ("shop.slice", Some(("unified/shop.slice", 2))),
            ("shop-batch.slice", Some(("unified/shop.slice/shop-batch.slice", 3))),
            // What a user's own manager calls so is the user's choice.
            ("app.slice", None),
            ("gone.service", None),
        ];
        for (unit, wanted) in cases {
            let found = cgroups.find(unit);
            assert_eq!(found.as_ref().map(|f| (&*f.name, f.level)), wanted, "{unit}");
        }
        let before = cgroups.find("shop-batch.slice").unwrap().inode;
        let path = dir.path().join("shop.slice/shop-batch.slice");
        fs::rename(&path, dir.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        assert_ne!(cgroups.find("shop-batch.slice").unwrap().inode, before);
        assert_eq!(Cgroups::none().find("shop.slice"), None);
    }
}
