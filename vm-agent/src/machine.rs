//! What tells this machine, this boot and this process from others.

use std::{fs::File, io::Read, os::unix::fs::MetadataExt, path::Path, time::Duration};

use mesh_runtime::files;

/// Written by the kernel, new at every boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The longest id that is believed, in bytes.
const MAX_ID: u64 = 128;
/// How long systemd may take to say whether the machine stops.
const SYSTEMCTL: Duration = Duration::from_millis(400);

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

/// Whether the whole machine is going down, as systemd says (with an exit code
/// that is not 0); `false` where it says nothing.
pub async fn is_stopping() -> bool {
    let asked = tokio::process::Command::new("systemctl")
        .arg("is-system-running")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(SYSTEMCTL, asked).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        // Without systemd there is no systemctl, or it says "offline".
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
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
}
