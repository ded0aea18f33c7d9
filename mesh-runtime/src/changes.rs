//! Changes in a directory, told as they happen (`inotify(7)`): whoever is told
//! need not look all the time.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::{
    fd::OwnedFd,
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{sleep, timeout},
};

/// From one look to the next where changes are told: there are file systems on
/// which others change something and nobody is told.
const SELDOM: Duration = Duration::from_secs(10);
/// What is written in one go is looked at once.
const SETTLES: Duration = Duration::from_millis(50);
/// What changes what a file of that directory says, and what is done to itself.
const TOLD: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    // Where a link leads may change without a word.
    .union(WatchFlags::DONT_FOLLOW);

/// When to look at a directory.
#[derive(Debug, Default)]
pub struct Changes {
    now: Notify,
    /// Somebody follows it.
    told: AtomicBool,
}

impl Changes {
    /// Somebody wants a look at once.
    pub fn ask(&self) {
        self.now.notify_one();
    }

    /// Whether changes are told.
    pub fn are_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Until it is time to look again: at once if somebody asks or something has
    /// changed, and after `pause` where that is not told. Returns whether it was
    /// at once.
    pub async fn wait(&self, pause: Duration) -> bool {
        // Whoever tells asks for a look from time to time, too.
        self.asked_within(if self.are_told() { SELDOM * 2 } else { pause }).await
    }

    /// The same where it does not matter what is told.
    pub async fn asked_within(&self, pause: Duration) -> bool {
        timeout(pause, self.now.notified()).await.is_ok()
    }

    fn tell(&self, told: bool) {
        self.told.store(told, Ordering::Relaxed);
        self.ask();
    }
}

/// Tells of changes in `dir` for ever, while there is such a directory and the
/// kernel can be asked.
pub async fn follow(dir: &Path, changes: &Changes) {
    loop {
        if let Ok(events) = Events::of(dir) {
            changes.tell(true);
            let ended = events.tell(dir, changes).await;
            log::debug!(dir:% = dir.display(), why:? = ended; "changes are no longer told");
            changes.tell(false);
        }
        sleep(SELDOM).await;
    }
}

struct Events {
    queue: AsyncFd<OwnedFd>,
    watch: i32,
}

impl Events {
    fn of(dir: &Path) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = inotify::add_watch(&queue, dir, TOLD)?;
        // SAFETY: an `OwnedFd` is open, and the same, until it is dropped.
        #[allow(unsafe_code)]
        let queue = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }?;
        Ok(Self { queue, watch })
    }

    /// Until the directory is another one, or none.
    async fn tell(&self, dir: &Path, changes: &Changes) -> io::Result<()> {
        loop {
            if let Ok(happened) = timeout(SELDOM, self.queue.readable()).await {
                let mut happened = happened?;
                sleep(SETTLES).await;
                self.forget()?;
                happened.clear_ready();
            }
            // The same watch for the same directory.
            if inotify::add_watch(self.queue.get_ref(), dir, TOLD)? != self.watch {
                return Ok(());
            }
            changes.ask();
        }
    }

    /// What happened does not matter: whoever is told looks at everything.
    fn forget(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            match read(self.queue.get_ref(), &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::process::current_thread;

    /// Longer than telling takes, and far less than [`SELDOM`].
    const SOON: Duration = Duration::from_secs(2);

    fn following<F: Future<Output = ()>>(dir: &Path, changes: &Changes, test: F) {
        current_thread().unwrap().block_on(async {
            tokio::select! {
                () = follow(dir, changes) => unreachable!("it follows for ever"),
                () = test => {}
            }
        });
    }

    async fn is_told(changes: &Changes) -> bool {
        changes.wait(SOON).await && changes.are_told()
    }

    #[test]
    fn whatever_changes_is_told_at_once() {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, changes) = (temporary.path().join("dir"), Changes::default());
        fs::create_dir(&dir).unwrap();
        let file = dir.join("a.yaml");
        following(&dir, &changes, async {
            assert!(is_told(&changes).await, "from now on");
            let deeds: [(&str, &dyn Fn() -> io::Result<()>); 6] = [
                ("made", &|| fs::write(&file, "a")),
                ("written", &|| fs::write(&file, "b")),
                ("readable", &|| fs::set_permissions(&file, mode(0o600))),
                ("moved", &|| fs::rename(&file, dir.join("b.yaml"))),
                ("linked", &|| symlink("b.yaml", &file)),
                ("removed", &|| fs::remove_file(dir.join("b.yaml"))),
            ];
            for (what, deed) in deeds {
                deed().unwrap();
                let told = timeout(SOON, changes.now.notified()).await;
                assert!(told.is_ok(), "{what}");
            }
            let quiet = timeout(SETTLES * 4, changes.now.notified()).await;
            assert!(quiet.is_err(), "nothing happens");
        });
    }

    fn mode(bits: u32) -> fs::Permissions {
        std::os::unix::fs::PermissionsExt::from_mode(bits)
    }

    #[test]
    fn another_directory_of_its_name_is_not_the_same() {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, changes) = (temporary.path().join("dir"), Changes::default());
        for lost in ["moved", "removed"] {
            fs::create_dir(&dir).unwrap();
            following(&dir, &changes, async {
                assert!(is_told(&changes).await);
                match lost {
                    "moved" => fs::rename(&dir, temporary.path().join(lost)).unwrap(),
                    _ => fs::remove_dir(&dir).unwrap(),
                }
                let told = timeout(SOON, changes.now.notified()).await;
                assert!(told.is_ok() && !changes.are_told(), "{lost}");
            });
        }
    }

    #[test]
    fn where_nothing_is_told_it_is_time_again_soon() {
        let temporary = tempfile::tempdir().unwrap();
        let (link, changes) = (temporary.path().join("link"), Changes::default());
        symlink(temporary.path(), &link).unwrap();
        for dir in [&link, &temporary.path().join("none")] {
            following(dir, &changes, async {
                assert!(!changes.wait(Duration::from_millis(20)).await);
                assert!(!changes.are_told());
                changes.ask();
                assert!(changes.wait(SELDOM).await, "somebody asks");
            });
        }
    }
}
