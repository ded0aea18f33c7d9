//! The legacy proxy as a process: what it is told, by its own means.

use std::{io, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use mesh_migrate::objects::label;
use mesh_runtime::clock;
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    time::{Instant, timeout},
};

use super::{
    proxy::{self, signal, systemctl},
    record::{Kind, Legacy, Listener, Phase, Record},
    sockets::{self, Id, Process},
};

/// For an answer of its control.
const ASK: Duration = Duration::from_secs(3);
/// Of HAProxy's figures, in bytes.
const MAX_ANSWER: u64 = 8 << 20;
/// Until it listens again, a Java process included.
const START: Duration = Duration::from_secs(30);
/// Until it has ended, after what runs had its time.
const STOP: Duration = Duration::from_secs(20);
/// For listeners of one that was told to end.
const CLOSE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The process, where it listens.
pub fn process(record: &Record) -> Option<Process> {
    let table = sockets::table();
    record.listeners.iter().find_map(|listener| sockets::owner(&table, listener.address))
}

/// Whether it listens at every address.
pub fn listens(listeners: &[Listener]) -> bool {
    let table = sockets::table();
    listeners.iter().all(|listener| sockets::listens(&table, listener.address))
}

impl Legacy {
    /// What of it is not known but can be seen while it runs.
    pub fn learn(&mut self, process: &Process, systemd: bool) {
        if systemd && self.unit.is_empty() && self.command.is_empty() {
            self.unit.clone_from(&process.unit);
        }
        if self.unit.is_empty() && self.command.is_empty() {
            self.command.clone_from(&process.command);
            self.directory.clone_from(&process.directory);
        }
    }

    /// Whether it could be started.
    pub fn is_startable(&self) -> bool {
        !self.unit.is_empty() || !self.command.is_empty()
    }

    /// How a person starts it.
    pub fn start_command(&self) -> String {
        match self.unit.as_str() {
            "" => self.command.join(" "),
            unit => format!("systemctl start {unit}"),
        }
    }
}

/// Tells it to take nothing new at these listeners; what it has goes on. Where it
/// has no means for that it goes on listening, and nobody comes. The answer is a
/// process that ends with its last connection.
///
/// # Errors
///
/// What to tell a person.
pub async fn let_go(record: &Record) -> Result<Option<Id>, String> {
    let legacy = &record.legacy;
    match legacy.kind {
        Kind::Haproxy if !legacy.control.is_empty() => {
            for frontend in frontends(record).await? {
                haproxy(&legacy.control, &format!("disable frontend {frontend}")).await?;
            }
            Ok(None)
        }
        // The same process, and no way back but to start another one.
        Kind::Nginx if legacy.unit.is_empty() => match process(record) {
            Some(process) => {
                signal(process.id.pid, Signal::QUIT)?;
                Ok(Some(process.id))
            }
            None => Ok(None),
        },
        // Envoy closes its listeners minutes after it was told, and cannot be told
        // otherwise: a rollback meanwhile would lead to a listener that goes away.
        Kind::Haproxy | Kind::Nginx | Kind::Envoy | Kind::Linkerd1 => Ok(None),
    }
}

/// Has it listen again at all of them; it is started if it does not run.
///
/// # Errors
///
/// What to tell a person.
pub async fn take_back(record: &Record) -> Result<(), String> {
    let legacy = &record.legacy;
    if record.let_go && legacy.kind == Kind::Nginx && legacy.unit.is_empty() {
        // Its workers close theirs one by one.
        let until = Instant::now() + CLOSE;
        while listens(&record.listeners) && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    if listens(&record.listeners) {
        return Ok(());
    }
    if legacy.kind == Kind::Haproxy && Path::new(&legacy.control).exists() {
        // A socket whose process is gone is still there.
        if let Ok(frontends) = frontends(record).await {
            for frontend in frontends {
                haproxy(&legacy.control, &format!("enable frontend {frontend}")).await?;
            }
            if wait_listening(record).await.is_ok() {
                return Ok(());
            }
        }
    }
    start(record).await?;
    wait_listening(record).await
}

async fn wait_listening(record: &Record) -> Result<(), String> {
    let until = Instant::now() + START;
    while !listens(&record.listeners) {
        if Instant::now() >= until {
            let how = record.legacy.start_command();
            return Err(format!("it does not listen within {START:?} after: {how}"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn start(record: &Record) -> Result<(), String> {
    let legacy = &record.legacy;
    if !legacy.unit.is_empty() {
        if record.phase == Phase::Finished {
            proxy::at_boot(&legacy.unit, true).await?;
        }
        // What runs and has let go is made to begin anew.
        return systemctl(&["restart", &legacy.unit]).await;
    }
    let Some((program, arguments)) = legacy.command.split_first() else {
        return Err("nobody knows how it is started; start it".to_owned());
    };
    // A child of nobody here: Envoy ends with whoever has started it.
    let mut command = Command::new("setsid");
    command
        .arg("--fork")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env_remove("NOTIFY_SOCKET");
    if legacy.directory.is_dir() {
        command.current_dir(&legacy.directory);
    }
    let started = timeout(STOP, command.status()).await;
    match started {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{program}: {status}")),
        Ok(Err(error)) => Err(format!("setsid (util-linux): {error}")),
        Err(_) => Err(format!("{program}: not started within {STOP:?}")),
    }
}

/// Stops it; it is not started at boot any more.
///
/// # Errors
///
/// What to tell a person.
pub async fn stop(record: &Record) -> Result<(), String> {
    let legacy = &record.legacy;
    if !legacy.unit.is_empty() {
        proxy::at_boot(&legacy.unit, false).await?;
        return systemctl(&["stop", &legacy.unit]).await;
    }
    let by = match legacy.kind {
        Kind::Haproxy => Signal::USR1,
        Kind::Nginx => Signal::QUIT,
        Kind::Envoy | Kind::Linkerd1 => Signal::TERM,
    };
    let mut processes: Vec<Id> = record.leaving.iter().map(|(id, _)| *id).collect();
    processes.extend(process(record).map(|process| process.id).or(record.process));
    processes.retain(|id| id.runs());
    if legacy.kind == Kind::Envoy
        && !legacy.control.is_empty()
        && let Err(why) = admin(&legacy.control, "/drain_listeners?graceful&skip_exit").await
    {
        // It is ended whether it hears that or not.
        log::warn!("{why}");
    }
    for id in &processes {
        signal(id.pid, by)?;
    }
    let until = Instant::now() + STOP;
    while processes.iter().any(|id| id.runs()) && Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // What they still have has had its time.
    for id in processes.iter().filter(|id| id.runs()) {
        signal(id.pid, Signal::TERM)?;
    }
    Ok(())
}

/// Ends those that were told to, and have had their time. What is left of them.
pub fn end_late(leaving: &[(Id, i64)]) -> Vec<(Id, i64)> {
    let mut left = leaving.to_vec();
    left.retain(|(id, _)| id.runs());
    for (id, until) in &left {
        if *until <= clock::unix_seconds()
            && let Err(why) = signal(id.pid, Signal::TERM)
        {
            log::warn!("{why}");
        }
    }
    left
}

/// HAProxy's frontends of these listeners, by its own names.
async fn frontends(record: &Record) -> Result<Vec<String>, String> {
    let stats = haproxy(&record.legacy.control, "show stat").await?;
    let ours: Vec<&str> =
        record.listeners.iter().filter_map(|listener| listener.name.split('.').next()).collect();
    let named = stats.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let name = fields.next()?;
        (fields.next()? == "FRONTEND").then_some(name)
    });
    Ok(named.filter(|name| ours.contains(&label(name).as_str())).map(str::to_owned).collect())
}

/// One command on HAProxy's stats socket.
async fn haproxy(socket: &str, command: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut answer = String::new();
        (&mut stream).take(MAX_ANSWER).read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = match timeout(ASK, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("{socket}: {error}")),
        Err(_) => return Err(format!("{socket}: no answer within {ASK:?}")),
    };
    let is_change = command.starts_with("disable") || command.starts_with("enable");
    let said = answer.trim();
    // It answers a change that was made with nothing.
    if is_change && !said.is_empty() && !said.contains("Already") && !said.contains("already") {
        return Err(format!("{socket}: {command}: {said}"));
    }
    Ok(answer)
}

/// A POST to Envoy's admin port.
async fn admin(url: &str, path: &str) -> Result<(), String> {
    let at = url.trim_start_matches("http://").trim_end_matches('/');
    let at: SocketAddr = at.parse().map_err(|_| format!("{url}: http://<ip>:<port> is needed"))?;
    match proxy::ask(at, "POST", path).await? {
        (200, _) => Ok(()),
        (status, text) => {
            Err(format!("{url}{path}: {status} {}", String::from_utf8_lossy(&text).trim()))
        }
    }
}
