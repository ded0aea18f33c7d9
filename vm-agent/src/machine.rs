//! What tells this machine, this boot and this process from others.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use mesh_runtime::files;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

/// Written by the kernel, new at every boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The longest id that is believed, in bytes.
const MAX_ID: u64 = 128;
/// The longest name of a unit (`systemd.unit(5)`), in bytes.
const MAX_UNIT: usize = 255;
/// How long systemd may take to say whether the machine stops; with the goodbye
/// after it far within the unit's `TimeoutStopSec`.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one question may take: longer on a machine where everything stops.
const QUESTION: Duration = Duration::from_secs(2);
/// Between a question that was not answered and the next.
const PAUSE: Duration = Duration::from_millis(50);

/// This machine, in this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// From `/etc/machine-id`; differs on a clone whose image was prepared.
    pub id: String,
    /// The same over restarts of the agent, new after a reboot and in a copy.
    pub boot: String,
    /// As the kernel knows it.
    pub hostname: String,
}

impl Machine {
    /// Reads what there is; a machine without an id gets one, kept in `state`.
    pub fn read(machine_id_file: &Path, state: &Path) -> Result<Self, files::FileError> {
        let id = match read_id(machine_id_file) {
            Some(id) => id,
            // Containers and half-installed images have none.
            None => kept_id(&state.join("machine-id"))?,
        };
        // A copy of the state that runs beside the original shares the
        // kernel's id with it, and never the inode of its directory.
        let kernel = read_id(Path::new(KERNEL_BOOT_ID)).unwrap_or_default();
        let inode = std::fs::metadata(state).map(|metadata| metadata.ino()).unwrap_or_default();
        let boot = format!("{kernel}.{inode:x}");
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { id, boot, hostname })
    }
}

/// The id in a file, unless it is missing, empty or nonsense.
fn read_id(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_ID).read_to_string(&mut text).ok()?;
    let id = text.trim();
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    // systemd writes "uninitialized" into images that are to be cloned.
    let known = !id.is_empty() && id != "uninitialized" && id.bytes().all(ok);
    known.then(|| id.to_owned())
}

/// A random id, kept in a file.
fn kept_id(path: &Path) -> Result<String, files::FileError> {
    if let Some(id) = read_id(path) {
        return Ok(id);
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    files::write_private(path, id.as_bytes())?;
    Ok(id)
}

/// Whether this names one unit, as `systemd.unit(5)` has it: no pattern, and no
/// option of a command.
pub(crate) fn is_unit(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b":_.\\@-".contains(&b);
    let named = name.rsplit_once('.').is_some_and(|(prefix, kind)| {
        !prefix.is_empty() && !kind.is_empty() && !prefix.starts_with('-')
    });
    named && name.len() <= MAX_UNIT && name.bytes().all(ok)
}

/// Whether the whole machine is going down, as systemd says; `false` where it
/// says nothing.
pub async fn is_stopping() -> bool {
    says_stopping(Path::new("systemctl"), PATIENCE).await
}

/// Asks until the answer is clear. The first `systemctl` may well be killed:
/// whoever stops a unit signals its main process, and then whatever else it
/// finds in its cgroup.
async fn says_stopping(systemctl: &Path, patience: Duration) -> bool {
    let asking = async {
        loop {
            match timeout(QUESTION, ask(systemctl)).await {
                Ok(Ok(stopping)) => return stopping,
                Ok(Err(unclear)) => {
                    log::info!(said:% = unclear; "does the machine stop? asking again")
                }
                Err(_) => log::info!("does the machine stop? no answer, asking again"),
            }
            sleep(PAUSE).await;
        }
    };
    timeout(patience, asking).await.unwrap_or_else(|_| {
        log::warn!("systemd does not say whether the machine stops; taken for a restart");
        false
    })
}

/// One question, or what was said instead of an answer.
async fn ask(systemctl: &Path) -> Result<bool, String> {
    let output = match said(systemctl, &["is-system-running"]).await {
        Ok(output) => output,
        // No systemd, no machine that it stops.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    // Its exit code is 0 for "running" alone.
    match output.stdout.trim_ascii() {
        b"stopping" => Ok(true),
        b"running" | b"degraded" | b"maintenance" | b"offline" => Ok(false),
        // Before v256 it says so until all has started, also to one who stops it
        // meanwhile.
        b"initializing" | b"starting" => is_shutdown_queued(systemctl).await,
        _ => Err(unclear(&output)),
    }
}

/// `systemctl list-jobs`: lines of `1234 shutdown.target start waiting`.
async fn is_shutdown_queued(systemctl: &Path) -> Result<bool, String> {
    let asked = said(systemctl, &["list-jobs", "--plain", "--no-legend", "shutdown.target"]).await;
    let output = asked.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(unclear(&output));
    }
    let jobs = String::from_utf8_lossy(&output.stdout);
    Ok(jobs.lines().any(|job| {
        let mut words = job.split_whitespace().skip(1);
        (words.next(), words.next()) == (Some("shutdown.target"), Some("start"))
    }))
}

/// Runs `systemctl` with this question.
pub(crate) async fn said(systemctl: &Path, question: &[&str]) -> io::Result<Output> {
    Command::new(systemctl).args(question).stdin(Stdio::null()).kill_on_drop(true).output().await
}

/// What was said instead of an answer, for people.
pub(crate) fn unclear(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.trim_ascii()).into_owned();
    format!("{}: {:?} {:?}", output.status, text(&output.stdout), text(&output.stderr))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn ids_stay_over_restarts_and_differ_in_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let [state, copy] = ["state", "copy"].map(|name| dir.path().join(name));
        for dir in [&state, &copy] {
            std::fs::create_dir(dir).unwrap();
        }
        let machine_id = dir.path().join("machine-id");
        std::fs::write(&machine_id, "0123456789abcdef0123456789abcdef\n").unwrap();

        let machine = Machine::read(&machine_id, &state).unwrap();
        assert_eq!(machine.id, "0123456789abcdef0123456789abcdef");
        assert!(!machine.hostname.is_empty());
        assert_eq!(Machine::read(&machine_id, &state).unwrap(), machine);
        let copy = Machine::read(&machine_id, &copy).unwrap();
        assert_eq!(copy.id, machine.id);
        assert_ne!(copy.boot, machine.boot);
    }

    #[test]
    fn a_machine_without_an_id_keeps_one_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etc-machine-id");
        for nonsense in ["", "\n", "uninitialized\n", "../../etc\n"] {
            std::fs::write(&file, nonsense).unwrap();
            let id = Machine::read(&file, dir.path()).unwrap().id;
            assert_eq!(id.len(), 32, "{nonsense:?}");
            assert_eq!(Machine::read(&file, dir.path()).unwrap().id, id);
        }
    }

    /// A `systemctl` that answers its nth call with the nth of these lines of
    /// shell, and the calls after the last one with that.
    pub(crate) fn played(answers: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
        use std::fmt::Write;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("systemctl");
        let mut script = "#!/bin/sh\necho >>$0.asked\ncase $(wc -l <$0.asked) in\n".to_owned();
        for (at, answer) in answers.iter().enumerate() {
            let number =
                if at + 1 == answers.len() { "*".to_owned() } else { (at + 1).to_string() };
            writeln!(script, "{number}) {answer} ;;").unwrap();
        }
        writeln!(script, "esac").unwrap();
        // By another process: none that is forked meanwhile has it open for writing.
        let made = std::process::Command::new("sh")
            .args(["-c", r#"printf %s "$1" >"$0" && chmod 755 "$0""#])
            .args([path.as_os_str(), script.as_ref()])
            .status();
        assert!(made.unwrap().success());
        (dir, path)
    }

    #[tokio::test]
    async fn systemd_is_asked_until_it_says_whether_the_machine_stops() {
        let queued = r#"[ "$1" = list-jobs ] && echo " 12 shutdown.target start waiting""#;
        let other = r#"[ "$1" = list-jobs ] && echo " 12 shutdown.target stop waiting""#;
        let killed = "kill -TERM $$";
        let no_bus = "echo unknown; echo Failed to connect to bus >&2; exit 1";
        for (answers, expected) in [
            (&["echo stopping; exit 1"][..], true),
            (&["echo running"], false),
            (&["echo degraded; exit 1"], false),
            (&["echo offline; exit 1"], false),
            // Whoever stops the unit has killed it, too.
            (&[killed, "echo stopping; exit 1"], true),
            (&[killed, "echo running"], false),
            (&[no_bus, no_bus, "echo stopping; exit 1"], true),
            (&["echo starting; exit 1", queued], true),
            (&["echo starting; exit 1", other], false),
            (&["echo starting; exit 1", "true"], false),
            (&["echo starting; exit 1", killed, "echo stopping; exit 1"], true),
        ] {
            let (_dir, systemctl) = played(answers);
            let stopping = says_stopping(&systemctl, Duration::from_secs(60)).await;
            assert_eq!(stopping, expected, "{answers:?}");
        }
    }

    #[tokio::test]
    async fn who_never_hears_from_systemd_is_not_stopping() {
        let (_dir, mute) = played(&["exec sleep 60"]);
        assert!(!says_stopping(&mute, Duration::from_millis(200)).await);
        let (dir, unclear) = played(&["echo unknown; exit 1"]);
        assert!(!says_stopping(&unclear, Duration::from_millis(500)).await);
        let asked = std::fs::read(dir.path().join("systemctl.asked")).unwrap();
        assert!(asked.len() > 1, "asked once");
        let missing = dir.path().join("missing");
        assert!(!says_stopping(&missing, Duration::from_secs(600)).await);
    }
}
