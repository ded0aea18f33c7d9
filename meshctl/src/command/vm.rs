//! `meshctl vm`: what the kernel of this machine sends to its proxy.

use std::time::Duration;

use clap::{Args, Subcommand};
use mesh_api::v1;
use serde::Serialize;

use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show},
    time,
};

/// Commands about this machine.
#[derive(Debug, Subcommand)]
pub enum Vm {
    /// Which connections of this machine go to its proxy by themselves
    #[command(subcommand)]
    Capture(Capture),
}

/// Commands about captured traffic.
#[derive(Debug, Subcommand)]
pub enum Capture {
    /// Put what capture.yaml says on trial; it ends by itself unless confirmed
    Enable(Enable),
    /// All is well: keep what is on trial, over reboots too
    #[command(after_help = "Examples:
  meshctl vm capture confirm")]
    Confirm,
    /// Capture nothing, now and after a reboot
    #[command(after_help = "Examples:
  meshctl vm capture disable")]
    Disable,
    /// What is captured, until when, and whether the proxy is ready
    #[command(after_help = "Examples:
  meshctl vm capture status
  meshctl vm capture status -o wide      (the rules, too)
  meshctl vm capture status --json | jq -r .rules | nft -c -f -")]
    Status,
}

/// Arguments of `enable`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl vm capture enable --confirm-within 60s
  meshctl vm capture enable --dry-run    (what would be captured, and the rules)")]
pub struct Enable {
    /// How long the trial lasts: 5s to 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::parse_duration)]
    confirm_within: Duration,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Vm {
    /// Does what was asked.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let Self::Capture(command) = self;
        if let Capture::Confirm = command {
            check_path(run).await?;
        }
        let mut capture = run.capture().await?;
        let status = match &command {
            Capture::Enable(enable) => capture.enable_capture(enable.request()).await,
            Capture::Confirm => capture.confirm_capture(v1::ConfirmCaptureRequest {}).await,
            Capture::Disable => capture.disable_capture(v1::DisableCaptureRequest {}).await,
            Capture::Status => capture.capture_status(v1::CaptureStatusRequest {}).await,
        };
        output::print(format, &CaptureView::from(status?.into_inner()))
    }
}

impl Enable {
    fn request(&self) -> v1::EnableCaptureRequest {
        let ssh = std::env::var("SSH_CONNECTION").unwrap_or_default();
        v1::EnableCaptureRequest {
            confirm_within_s: u32::try_from(self.confirm_within.as_secs()).unwrap_or(u32::MAX),
            dry_run: self.dry_run,
            ssh_port: server_port(&ssh).unwrap_or_default().into(),
        }
    }
}

/// `ssh(1)`: client address, its port, server address, its port.
fn server_port(connection: &str) -> Option<u16> {
    connection.split(' ').nth(3)?.parse().ok()
}

/// What is captured needs the way to the site's gateways.
async fn check_path(run: &Run) -> Result<(), Failure> {
    let mut agent = run.agent().await?;
    let status = agent.agent_status(v1::AgentStatusRequest {}).await?.into_inner();
    if status.state == "connected" {
        return Ok(());
    }
    let problem =
        format!("this machine does not reach its site: {} {}", status.state, status.problem);
    Err(Failure::new(problem.trim_end())
        .remedy("nothing was confirmed; without that, the trial ends by itself"))
}

/// Takes rules out before a machine leaves its site; where there never was
/// anybody to put them in, there are none.
pub(crate) async fn disable_if_there(run: &Run) -> Result<(), Failure> {
    match run.capture().await {
        Ok(mut capture) => {
            capture.disable_capture(v1::DisableCaptureRequest {}).await?;
            Ok(())
        }
        Err(failure) if failure.exit == Exit::Unreachable => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// What is in force.
#[derive(Debug, Serialize)]
struct CaptureView {
    state: String,
    confirm_within_s: u32,
    proxy_problem: String,
    problem: String,
    captured: Vec<String>,
    never: Vec<String>,
    waits_for: Vec<String>,
    rules: String,
}

impl From<v1::CaptureStatusResponse> for CaptureView {
    fn from(status: v1::CaptureStatusResponse) -> Self {
        Self {
            state: status.state,
            confirm_within_s: status.confirm_within_s,
            proxy_problem: status.proxy_problem,
            problem: status.problem,
            captured: status.captured,
            never: status.never,
            waits_for: status.waits_for,
            rules: status.rules,
        }
    }
}

impl Show for CaptureView {
    fn text(&self, wide: bool, paint: Paint) -> String {
        let mut text = match self.state.as_str() {
            "off" => {
                "Nothing is captured.\n  next: meshctl vm capture enable --confirm-within 60s\n"
                    .to_owned()
            }
            "trial" => format!(
                "{} ends by itself in {} s.\n  next: see that all is well, then meshctl vm capture confirm\n",
                paint.warn("On trial:"),
                self.confirm_within_s
            ),
            "dry-run" => "Would be captured:\n".to_owned(),
            _ => format!("{}: also after a reboot.\n", paint.good("In force")),
        };
        let mut list = |title: &str, lines: &[String]| {
            if !lines.is_empty() {
                text.push_str(&format!("{}\n", paint.bold(title)));
                text.extend(lines.iter().map(|line| format!("  {line}\n")));
            }
        };
        list("Captured", &self.captured);
        list("Never captured", &self.never);
        list("Captured once they run", &self.waits_for);
        if !self.proxy_problem.is_empty() {
            let proxy = paint.bad("The proxy is not ready");
            text.push_str(&format!("{proxy}: {}\n", self.proxy_problem));
        }
        if !self.problem.is_empty() {
            text.push_str(&format!("{} {}\n", paint.bad("Problem"), self.problem));
        }
        if wide || self.state == "dry-run" {
            text.push_str(&self.rules);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_an_ssh_connection_is_its_servers() {
        assert_eq!(server_port("192.0.2.7 50022 10.0.0.5 2222"), Some(2222));
        assert_eq!(server_port("fe80::1%eth0 50022 fe80::2 22"), Some(22));
        for nonsense in ["", "192.0.2.7 50022", "a b c d", "a b c 99999"] {
            assert_eq!(server_port(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn what_is_on_trial_says_how_long_and_what_next() {
        let view = CaptureView::from(v1::CaptureStatusResponse {
            state: "trial".into(),
            confirm_within_s: 42,
            captured: vec!["user shop, to everywhere".into()],
            never: vec!["SSH (port 22)".into()],
            rules: "table inet isthmus".into(),
            ..v1::CaptureStatusResponse::default()
        });
        let text = view.text(false, Paint::PLAIN);
        for part in ["42 s", "capture confirm", "user shop", "SSH"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("table inet"), "{text}");
        assert!(view.text(true, Paint::PLAIN).contains("table inet"));
    }
}
