//! A unit of its own for one run of a command: its user, its limits, and nothing
//! of it is left when it ends.

use std::{
    io::{self, PipeReader},
    os::fd::OwnedFd,
    path::PathBuf,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::services::{ServiceSpec, file::Exec};

/// What may pass besides the command's own time, until systemd has started and
/// stopped it.
const SYSTEMD: Duration = Duration::from_secs(10);
/// Before another attempt.
const PAUSE: Duration = Duration::from_millis(50);
/// What systemd says of a unit whose name is taken.
const IS_THERE: &str = "was already loaded or has a fragment file.";
/// For what was written last to arrive.
const LATE: Duration = Duration::from_secs(1);
/// The longest line that is told, in bytes.
const MAX_LINE: usize = 1024;
/// What of the output is kept, in bytes: the last line, a few empty ones, and what
/// systemd adds.
const TAIL: usize = MAX_LINE + 256;
/// Before what systemd adds: the unit's result, and how its process has ended.
const ENDED: &str = "isthmus-check: ";
/// Of all processes of one check.
const MEMORY: &str = "MemoryMax=256M";
/// Of one check.
const TASKS: &str = "TasksMax=64";
/// The status where systemd found no such user (`systemd.exec(5)`, "Process Exit
/// Codes").
const USER: i32 = 217;
/// Runs the program: systemd-run would look for it itself, as who it is and where
/// it is, and not as the user where that one is.
const ENV: &str = "/usr/bin/env";

/// systemd's, in the `PATH`, but for tests.
#[derive(Debug)]
pub struct Programs {
    /// `systemd-run`.
    pub run: PathBuf,
    /// `systemctl`.
    pub control: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self { run: "systemd-run".into(), control: "systemctl".into() }
    }
}

/// Runs the command to its end, which is at the latest that of its time.
///
/// # Errors
///
/// It did not end with 0; the status and the last line, for people.
pub async fn run(
    programs: &Programs,
    own_unit: &str,
    spec: &ServiceSpec,
    exec: &Exec,
) -> Result<(), String> {
    let limit = spec.check.timeout + SYSTEMD;
    let running = run_alone(programs, own_unit, spec, exec);
    let ended = timeout(limit, running).await;
    ended.unwrap_or_else(|_| Err(format!("systemd has not run it within {limit:?}")))
}

/// One at a time: the unit's name sees to that. Who has hung up may have left one
/// that is just being killed.
async fn run_alone(
    programs: &Programs,
    own_unit: &str,
    spec: &ServiceSpec,
    exec: &Exec,
) -> Result<(), String> {
    let unit = format!("isthmus-check-{}.service", spec.instance);
    let arguments = arguments(&unit, own_unit, spec, exec);
    let began = Instant::now();
    loop {
        let (child, output) = spawn(programs, &arguments)
            .map_err(|error| format!("{}: {error}", programs.run.display()))?;
        let (status, tail) = follow(child, output).await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&tail);
        if let Some((said, end)) = said.rsplit_once(ENDED) {
            return judged(status, spec, said, end);
        }
        if status.code() == Some(USER) {
            return Err(format!("user {}: there is none of that name", exec.user));
        }
        if !said.trim_end().ends_with(IS_THERE) || began.elapsed() > SYSTEMD / 2 {
            return Err(format!("systemd-run: {status}: {}", last_line(&said)));
        }
        stop(programs, &unit).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stop(programs: &Programs, unit: &str) {
    let mut command = Command::new(&programs.control);
    command.args(["stop", "--quiet", "--", unit]).stdin(Stdio::null()).stderr(Stdio::null());
    // What is still there says the next attempt.
    let _ = command.kill_on_drop(true).status().await;
}

fn spawn(programs: &Programs, arguments: &[String]) -> io::Result<(Child, PipeReader)> {
    let (output, input) = io::pipe()?;
    let mut command = Command::new(&programs.run);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    Ok((command.kill_on_drop(true).spawn()?, output))
}

fn arguments(unit: &str, own_unit: &str, spec: &ServiceSpec, exec: &Exec) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--quiet", "--wait", "--pipe", "--collect", "--no-ask-password"].map(String::from).into();
    arguments.extend([
        format!("--unit={unit}"),
        format!("--description=Isthmus health check of {}", spec.instance),
        format!("--uid={}", exec.user),
        format!("--setenv=ISTHMUS_INSTANCE={}", spec.instance),
        format!("--setenv=ISTHMUS_SERVICE={}", spec.service),
    ]);
    if let Some(port) = spec.ports.first() {
        arguments.push(format!("--setenv=ISTHMUS_PORT={}", port.target));
    }
    let properties = [
        &format!("RuntimeMaxSec={}ms", spec.check.timeout.as_millis()),
        "KillSignal=SIGKILL",
        MEMORY,
        TASKS,
        "LimitCORE=0",
        // It ends with who has asked for it.
        &format!("BindsTo={own_unit}"),
        &format!("After={own_unit}"),
        // For a service SIGTERM is a good end, for a check it is none; and what its
        // time was is known to systemd alone. Nothing else runs any more by then.
        &format!(
            "ExecStopPost=/bin/echo {ENDED}${{SERVICE_RESULT}} ${{EXIT_CODE}} ${{EXIT_STATUS}}"
        ),
        // What it says is told here; that it ran is not worth a line.
        "LogLevelMax=err",
    ];
    arguments.extend(properties.iter().map(|property| format!("--property={property}")));
    arguments.extend(["--", ENV].map(String::from));
    // systemd would put variables in their place.
    arguments.extend(exec.command.iter().map(|word| word.replace('$', "$$")));
    arguments
}

/// Until it has ended; and the end of what it said.
async fn follow(mut child: Child, output: PipeReader) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut output = Receiver::from_owned_fd(OwnedFd::from(output))?;
    let mut tail = Vec::new();
    let status = match select(pin!(child.wait()), pin!(read_tail(&mut output, &mut tail))).await {
        Either::Left((status, reading)) => {
            // What is missing is not worth more.
            let _ = timeout(LATE, reading).await;
            status
        }
        Either::Right((_, ended)) => ended.await,
    };
    Ok((status?, tail))
}

async fn read_tail(output: &mut Receiver, tail: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = output.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..read]);
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
}

/// What `systemd.exec(5)` has in `$SERVICE_RESULT`, `$EXIT_CODE`, `$EXIT_STATUS`.
fn judged(status: ExitStatus, spec: &ServiceSpec, said: &str, end: &str) -> Result<(), String> {
    let how = match end.split_whitespace().collect::<Vec<_>>()[..] {
        ["success", "exited", "0"] if status.success() => return Ok(()),
        ["timeout", ..] => format!("killed: not done within {:?}", spec.check.timeout),
        ["oom-kill", ..] => "killed: it wanted more memory than it may have".to_owned(),
        [_, "exited", status] => format!("status {status}"),
        [_, _, signal] => format!("killed by SIG{signal}"),
        _ => "systemd does not say how it has ended".to_owned(),
    };
    let said = last_line(said);
    Err(if said.is_empty() { how } else { format!("{how}: {said}") })
}

/// For people, on terminals too.
fn last_line(said: &str) -> String {
    let line = said.trim_end().rsplit('\n').next().unwrap_or_default();
    let begin = line.ceil_char_boundary(line.len().saturating_sub(MAX_LINE));
    line[begin..].replace(char::is_control, " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{machine::tests::played, services::file};

    fn spec(check: &str) -> (ServiceSpec, Exec) {
        let text =
            format!("service: web\nnamespace: shop\nport: 80\ntarget: 8080\ncheck: {check}\n");
        let spec = file::parse(&text, "blue", "blue.yaml").unwrap();
        let file::Probe::Exec(exec) = spec.check.probe.clone() else { panic!("{check}") };
        (spec, exec)
    }

    #[test]
    fn a_command_has_a_unit_and_systemd_reads_nothing_into_it() {
        let (spec, exec) =
            spec("{ exec: [/bin/x, --uid=0, $HOME, '10%'], user: nobody, timeout: 1500ms }");
        let arguments = arguments("u.service", "own.service", &spec, &exec);
        let at = arguments.iter().position(|word| word == "--").unwrap();
        assert_eq!(arguments[at + 1..], [ENV, "/bin/x", "--uid=0", "$$HOME", "10%"]);
        for expected in [
            "--unit=u.service",
            "--uid=nobody",
            "--setenv=ISTHMUS_PORT=8080",
            "--property=RuntimeMaxSec=1500ms",
            "--property=BindsTo=own.service",
        ] {
            assert!(
                arguments[..at].iter().any(|word| word == expected),
                "{expected}: {arguments:?}"
            );
        }
    }

    /// With a systemd-run that does this, and then that.
    async fn ran(scripts: &[&str]) -> Result<(), String> {
        let (_dir, run_program) = played(scripts);
        let programs = Programs { run: run_program, control: "true".into() };
        let (spec, exec) = spec("{ exec: [/bin/x], user: nobody, timeout: 2s }");
        run(&programs, "own.service", &spec, &exec).await
    }

    #[tokio::test]
    async fn what_is_told_is_how_it_ended_and_the_last_line() {
        for (script, end, status, expected) in [
            ("echo fine", "success exited 0", 0, Ok(())),
            ("echo a; echo DISK CRITICAL", "exit-code exited 2", 2, Err("status 2: DISK CRITICAL")),
            ("echo out; echo err >&2; echo", "exit-code exited 1", 1, Err("status 1: err")),
            ("printf unended", "exit-code exited 1", 1, Err("status 1: unended")),
            ("true", "exit-code exited 3", 3, Err("status 3")),
            ("true", "exit-code exited 217", 217, Err("status 217")),
            ("true", "success killed TERM", 0, Err("killed by SIGTERM")),
            ("true", "success exited 0", 1, Err("status 0")),
            ("echo x", "timeout killed KILL", 1, Err("killed: not done within 2s: x")),
            (
                "true",
                "oom-kill killed KILL",
                1,
                Err("killed: it wanted more memory than it may have"),
            ),
            ("true", "exit-code", 1, Err("systemd does not say how it has ended")),
            // The last one is systemd's.
            (
                "echo isthmus-check: success exited 0",
                "exit-code exited 1",
                1,
                Err("status 1: isthmus-check: success exited 0"),
            ),
            (
                "printf '\\033[2Ja\\tb\\377'",
                "exit-code exited 1",
                1,
                Err("status 1: [2Ja b\u{fffd}"),
            ),
        ] {
            let script = format!("{script}; echo '{ENDED}{end}'; exit {status}");
            assert_eq!(ran(&[&script]).await, expected.map_err(str::to_owned), "{script}");
        }
    }

    #[tokio::test]
    async fn what_systemd_cannot_start_is_told() {
        for (script, expected) in [
            ("exit 217", "user nobody: there is none of that name"),
            ("echo no bus >&2; exit 1", "systemd-run: exit status: 1: no bus"),
            ("true", "systemd-run: exit status: 0: "),
        ] {
            assert_eq!(ran(&[script]).await, Err(expected.to_owned()), "{script}");
        }
    }

    #[tokio::test]
    async fn much_output_holds_up_nobody_and_little_of_it_is_kept() {
        let end = format!("echo; echo '{ENDED}exit-code exited 1'; exit 1");
        let much = format!("head -c 10000000 /dev/zero | tr '\\0' x; {end}");
        let shown = ran(&[&much]).await.unwrap_err();
        assert_eq!(shown, format!("status 1: {}", "x".repeat(MAX_LINE)));
        // Who holds on to the pipe is not waited for.
        let held = format!("sleep 30 & echo said; {end}");
        assert_eq!(ran(&[&held]).await, Err("status 1: said".to_owned()));
    }

    #[tokio::test]
    async fn a_unit_that_is_still_there_is_waited_for() {
        let there = format!("echo Unit a.service {IS_THERE}; exit 1");
        let fine = format!("echo '{ENDED}success exited 0'");
        assert_eq!(ran(&[&there, &there, &fine]).await, Ok(()));
        assert!(ran(&[&there]).await.unwrap_err().ends_with(IS_THERE), "not for ever");
    }

    #[tokio::test]
    async fn without_systemd_it_says_so() {
        let programs =
            Programs { run: Path::new("/nowhere/systemd-run").into(), control: "true".into() };
        let (spec, exec) = spec("{ exec: [/bin/x] }");
        let shown = run(&programs, "own.service", &spec, &exec).await.unwrap_err();
        assert!(shown.starts_with("/nowhere/systemd-run: "), "{shown}");
    }
}
