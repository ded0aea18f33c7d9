//! `meshctl migrate` for many hosts: where each is, and the next ones. What was done
//! is asked of the hosts, not remembered: whoever ends this command can start it
//! again.

use std::{fs, io, path::PathBuf};

use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream::FuturesUnordered};
use mesh_api::v1;

use super::{
    host::Host,
    moves::{self, Bounds, Plans},
    shown::Shown,
};
use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format},
};

/// In the directory of the hosts: `next` goes no further.
const PAUSED: &str = "paused";

/// What is done to all hosts.
#[derive(Debug, Subcommand)]
pub enum Fleet {
    /// Where hosts are, and who serves there
    Status(Status),
    /// Cut hosts over one after the other, and stop at the first that goes back
    Next(Next),
    /// Let `next` begin with no further host
    Pause(Pause),
}

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl migrate status
  meshctl migrate status web-7 -o json
  meshctl migrate status --plans /srv/plans -o wide")]
pub struct Status {
    /// Hosts; all that have a plan, or what moves on this machine, unless they are named
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    #[command(flatten)]
    plans: Plans,
}

/// Arguments of `next`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each host is cut over as `meshctl migrate cutover` does it. Hosts that have moved are left alone; one that was \
rolled back stops all until it is abandoned or --again says to try it once more.

Examples:
  meshctl migrate next
  meshctl migrate next --count 1 --watch 10m
  meshctl migrate next --concurrency 3 --plans /srv/plans"
)]
pub struct Next {
    #[command(flatten)]
    plans: Plans,
    /// Hosts that are watched at the same time
    #[arg(long, value_name = "N", default_value = "1")]
    concurrency: usize,
    /// Hosts to begin with, at most
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Those that were rolled back, too
    #[arg(long)]
    again: bool,
    /// Although it was paused; it is not any more
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    bounds: Bounds,
}

/// Arguments of `pause`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl migrate pause
  meshctl migrate pause --because 'sale until Monday'
  meshctl migrate next --resume")]
pub struct Pause {
    #[command(flatten)]
    plans: Plans,
    /// For whoever wonders
    #[arg(long, value_name = "TEXT", default_value = "")]
    because: String,
}

impl Fleet {
    pub(super) async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        match self {
            Self::Status(status) => status.run(run, format).await,
            Self::Next(next) => next.run(run, format).await,
            Self::Pause(pause) => pause.run(format),
        }
    }
}

impl Plans {
    fn paused_file(&self) -> PathBuf {
        self.plans.join(PAUSED)
    }

    /// Why it is; `None` while it is not.
    fn paused(&self) -> Option<String> {
        let text = fs::read_to_string(self.paused_file()).ok()?;
        Some(if text.trim().is_empty() { "by hand".to_owned() } else { text.trim().to_owned() })
    }
}

impl Status {
    async fn run(&self, run: &Run, format: Format) -> Result<(), Failure> {
        let hosts = if self.hosts.is_empty() {
            Host::all(&self.plans.plans)?
        } else {
            let read = |host: &String| Host::read(&self.plans.plans, host);
            self.hosts.iter().map(read).collect::<Result<_, _>>()?
        };
        if hosts.is_empty() {
            let mut agent = run.migration().await?;
            let moves = agent.list_moves(v1::ListMovesRequest {}).await?.into_inner().moves;
            return output::print(format, &Shown::of(moves));
        }
        let mut shown = Shown::of(Vec::new());
        let mut unknown = Vec::new();
        for host in &hosts {
            match moves::look(host, run).await {
                Ok(Some(status)) => shown.add(status),
                Ok(None) => shown.add_planned(host),
                Err(failure) => {
                    shown.add_unknown(host, &failure.problem);
                    unknown.push(host.name.as_str());
                }
            }
        }
        shown.paused = self.plans.paused().unwrap_or_default();
        output::print(format, &shown)?;
        if unknown.is_empty() {
            return Ok(());
        }
        let (names, all) = (unknown.join(", "), hosts.len());
        let problem = format!("{names}: cannot be asked ({} of {all} hosts)", unknown.len());
        Err(Failure::new(problem)
            .exit(Exit::Unreachable)
            .remedy("see above why; whoever served there serves still"))
    }
}

impl Pause {
    fn run(&self, format: Format) -> Result<(), Failure> {
        let path = self.plans.paused_file();
        fs::write(&path, format!("{}\n", self.because))
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        if !format.is_document() {
            eprintln!(
                "`next` begins with no further host; `meshctl migrate next --resume` goes on"
            );
        }
        Ok(())
    }
}

impl Next {
    async fn run(&self, run: &Run, format: Format) -> Result<(), Failure> {
        if self.resume {
            match fs::remove_file(self.plans.paused_file()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = self.plans.paused_file();
                    return Err(Failure::new(format!("{}: {error}", path.display())));
                }
                _ => {}
            }
        }
        if self.concurrency == 0 {
            return Err(Failure::usage("--concurrency: at least 1"));
        }
        let hosts = Host::all(&self.plans.plans)?;
        if hosts.is_empty() {
            let problem = format!("{}: no host has a plan here", self.plans.plans.display());
            return Err(Failure::config(problem)
                .remedy("meshctl migrate plan --from <proxy> <configuration> -o <host>"));
        }
        let waiting = self.waiting(&hosts, run).await?;
        let talk = !format.is_document();
        let mut shown = Shown::of(Vec::new());
        let mut waiting = waiting.into_iter();
        let mut running = FuturesUnordered::new();
        let mut failed: Option<Failure> = None;
        loop {
            while failed.is_none()
                && running.len() < self.concurrency
                && self.plans.paused().is_none()
                && let Some(host) = waiting.next()
            {
                if talk {
                    eprintln!("{}: cut over", host.name);
                }
                let bounds = &self.bounds;
                running.push(async move { moves::cut_over(host, run, bounds, talk).await });
            }
            let Some(ended) = running.next().await else { break };
            match ended {
                Ok(status) => {
                    if talk {
                        eprintln!("{}: {}", status.name, status.phase);
                    }
                    shown.add(status);
                }
                // Those that are watched already are watched to the end.
                Err(failure) => {
                    if talk && failed.is_some() {
                        eprintln!("{failure}");
                    }
                    failed.get_or_insert(failure);
                }
            }
        }
        if let Some(failure) = failed {
            let left = waiting.count();
            let problem = format!("{}; {left} hosts were not begun with", failure.problem);
            return Err(Failure { problem, ..failure });
        }
        if let Some(why) = self.plans.paused() {
            shown.paused = why;
        }
        output::print(format, &shown)
    }

    /// Who is to be cut over, or is being watched.
    async fn waiting<'h>(&self, hosts: &'h [Host], run: &Run) -> Result<Vec<&'h Host>, Failure> {
        let mut waiting = Vec::new();
        for host in hosts {
            let Some(status) = moves::look(host, run).await? else {
                waiting.push(host);
                continue;
            };
            let is_bad = status.phase == "back" && !status.problem.is_empty();
            if is_bad && !self.again {
                let problem = format!("{} was rolled back: {}", host.name, status.problem);
                return Err(Failure::new(problem).exit(Exit::Failed).remedy(format!(
                    "mend its plan, then `meshctl migrate next --again`; or `meshctl migrate abandon {}`",
                    host.name
                )));
            }
            if !matches!(status.phase.as_str(), "moved" | "finished") {
                waiting.push(host);
            }
        }
        waiting.truncate(self.count.unwrap_or(usize::MAX));
        Ok(waiting)
    }
}
