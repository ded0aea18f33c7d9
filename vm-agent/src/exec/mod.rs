//! `vm-agent check-exec`: has the command of one health check run. The agent
//! has no rights to start anything; systemd starts this as root for each of its
//! connections. It is told the name of an instance and nothing else: what is run
//! by whom is in files that only root can have written.
//!
//! In reading order:
//! - [`trusted`]: whether a file is such.
//! - [`unit`]: the unit that the command runs in.

pub mod trusted;
pub mod unit;

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream as StdStream},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use self::unit::Programs;
use crate::{
    config::{CheckExecFlags, Config, DEFAULT_FILE, Flags},
    services::{
        ServiceSpec, exec,
        file::{self, Exec, Probe},
        watch,
    },
};

/// For the name, and for the answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest name that is read, in bytes; those of instances are shorter.
const MAX_NAME: usize = 128;

/// The whole process.
///
/// # Errors
///
/// Standard input is no connection, or says nothing.
pub async fn run(flags: CheckExecFlags) -> anyhow::Result<()> {
    let stream = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let instance = timeout(PATIENCE, name(&mut stream)).await??;
    let outcome = tokio::select! {
        outcome = outcome(&flags, &instance) => outcome,
        // Nobody wants to know any more: what runs ends with this unit.
        () = hung_up(&mut stream) => return Ok(()),
    };
    timeout(PATIENCE, stream.write_all(exec::answer(&outcome).as_bytes())).await??;
    Ok(())
}

/// One line.
async fn name(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::with_capacity(MAX_NAME);
    while line.len() < MAX_NAME {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            byte => line.push(byte),
        }
    }
    Err(io::Error::other("the name of an instance is shorter"))
}

async fn hung_up(stream: &mut UnixStream) {
    while stream.read(&mut [0; 16]).await.is_ok_and(|read| read > 0) {}
}

async fn outcome(flags: &CheckExecFlags, instance: &str) -> Result<(), String> {
    let (spec, command) = services(flags.config.as_deref())
        .and_then(|dir| find(&dir, instance))
        .inspect_err(|refusal| log::warn!(instance; "nothing is run: {refusal}"))?;
    unit::run(&Programs::default(), &flags.unit, &spec, &command).await
}

/// Where the agent has its services.
fn services(config: Option<&Path>) -> Result<PathBuf, String> {
    let file = config.unwrap_or(Path::new(DEFAULT_FILE));
    if config.is_some() || file.exists() {
        trusted::read(file)?;
    }
    let flags = Flags { config: config.map(Path::to_owned), ..Flags::default() };
    Ok(Config::load(&flags).map_err(|error| error.to_string())?.services)
}

/// The command of an instance. As for the agent, the first file by name has it;
/// files that others can write are none.
fn find(dir: &Path, instance: &str) -> Result<(ServiceSpec, Exec), String> {
    let unreadable = |error| format!("{}: cannot be read: {error}", dir.display());
    let mut refused = Vec::new();
    for path in watch::service_files(dir).map_err(unreadable)? {
        let text = match trusted::read(&path) {
            Ok(text) => text,
            Err(refusal) => {
                // Most likely the one that is meant comes first.
                let at = if watch::stem(&path) == instance { 0 } else { refused.len() };
                refused.insert(at, refusal);
                continue;
            }
        };
        // The agent tells what is wrong with a file.
        let Ok(spec) = file::parse(&text, &watch::stem(&path), &path.display().to_string()) else {
            continue;
        };
        if spec.instance == instance {
            return match spec.check.probe.clone() {
                Probe::Exec(command) => Ok((spec, command)),
                Probe::Tcp(_) | Probe::Http(..) | Probe::Grpc(..) | Probe::Unit(_) => {
                    Err(format!("{}: has no command", path.display()))
                }
            };
        }
    }
    let nowhere = format!("{}: no file has this instance", dir.display());
    Err(refused.into_iter().next().unwrap_or(nowhere))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const CHECKED: &str = "service: orders\nnamespace: shop\nport: 80\n";

    #[test]
    fn only_what_root_has_written_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let exec = format!("{CHECKED}check: {{ exec: [/bin/true] }}\n");
        write("a.yaml", &exec, 0o644);
        write("b.yaml", CHECKED, 0o644);
        write("broken.yaml", "[", 0o644);
        write("c.yaml", &exec, 0o664);
        write("aa.yaml", &exec, 0o666);
        write("d.yaml", &format!("{exec}instance: a\n"), 0o644);
        let found =
            |instance| find(dir.path(), instance).map(|(spec, exec)| (spec.instance, exec.command));
        assert_eq!(found("a"), Ok(("a".into(), vec!["/bin/true".into()])));
        assert!(found("b").unwrap_err().contains("b.yaml: has no command"));
        assert!(found("c").unwrap_err().contains("c.yaml: others than root"), "{:?}", found("c"));
        for name in ["aa.yaml", "c.yaml"] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        for other in ["", "../a", "broken", "d"] {
            assert!(found(other).unwrap_err().contains("no file has this instance"), "{other}");
        }
        assert!(find(&dir.path().join("none"), "a").unwrap_err().contains("cannot be read"));
    }

    #[tokio::test]
    async fn a_name_is_one_short_line() {
        let long = format!("{}\n", "a".repeat(MAX_NAME));
        for (said, expected) in [
            (&b"orders\n"[..], Some("orders")),
            (b"orders\nmore", Some("orders")),
            (b"\n", Some("")),
            (b"orders", None),
            (b"\xff\n", None),
            (long.as_bytes(), None),
        ] {
            let (mut client, mut server) = UnixStream::pair().unwrap();
            let write = async {
                // Who has heard enough hangs up.
                let _ = client.write_all(said).await;
                drop(client);
            };
            let read = async { (name(&mut server).await.ok(), drop(server)).0 };
            let (name, ()) = tokio::join!(read, write);
            assert_eq!(name.as_deref(), expected);
        }
    }
}
