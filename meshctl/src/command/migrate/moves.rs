//! `meshctl migrate` for hosts: beside, over, back.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use mesh_api::v1::{self, migration_client::MigrationClient};
use mesh_runtime::clock;
use tonic::{Code, transport::Channel};

use super::{host::Host, shown::Shown};
use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format},
    time,
};

/// From one look at a watch to the next.
const LOOK: Duration = Duration::from_millis(500);
/// For an agent that does not answer meanwhile: it may be started again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done to one host.
#[derive(Debug, Subcommand)]
pub enum Move {
    /// Run the imported configuration beside the legacy proxy, on other ports
    #[command(after_help = "Examples:
  meshctl migrate plan --from haproxy /etc/haproxy/haproxy.cfg -o web-7
  meshctl migrate beside web-7")]
    Beside(Of),
    /// Compare what both proxies answer, before anybody is led to ours
    Shadow(Shadow),
    /// Let our proxy take new connections, watch it, and go back if it does not do well
    Cutover(Cutover),
    /// Let the legacy proxy take new connections again; it is started if need be
    #[command(after_help = "Examples:
  meshctl migrate rollback web-7")]
    Rollback(Of),
    /// Stop the legacy proxy of a host that has moved, for good
    #[command(after_help = "Examples:
  meshctl migrate finish web-7")]
    Finish(Of),
    /// Forget a move: the legacy proxy serves, and ours is stopped
    #[command(after_help = "Examples:
  meshctl migrate abandon web-7")]
    Abandon(Of),
}

/// Which host.
#[derive(Debug, Clone, Args)]
pub struct Of {
    /// The host: a directory that `meshctl migrate plan -o` has written
    #[arg(value_name = "HOST")]
    host: String,
    #[command(flatten)]
    plans: Plans,
}

/// Where plans are.
#[derive(Debug, Clone, Args)]
pub struct Plans {
    /// Directory of the hosts' directories
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) plans: PathBuf,
}

/// Arguments of `shadow`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Requests of clients are seen from beside, or read from an access log, and asked again: of the legacy proxy, of ours, \
and of the legacy proxy once more. No client hears of it. Only GET, HEAD and OPTIONS, unless others are named: what they do is done \
again, several times. Exits with 1 if something differs, or too little was compared.

Examples:
  meshctl migrate shadow web-7
  meshctl migrate shadow web-7 --share 100% --for 10m --at-least 1000
  meshctl migrate shadow web-7 --share 0% --access-log /var/log/haproxy.log
  meshctl migrate shadow web-7 --ignore-header x-served-by -o json"
)]
pub struct Shadow {
    #[command(flatten)]
    of: Of,
    /// Of clients' requests, how many are asked again
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = whole_percent)]
    share: u32,
    /// How long: 1s to 24h
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = time::parse_duration)]
    during: Duration,
    /// An access log to replay once; of HAProxy, nginx, Envoy, Linkerd, or JSON
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// A method besides the safe ones whose requests may be repeated; several times
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// A header of answers that may differ; several times
    #[arg(long = "ignore-header", value_name = "NAME")]
    ignore_headers: Vec<String>,
    /// Answers that must have been compared
    #[arg(long, value_name = "N", default_value = "20")]
    at_least: u32,
}

fn whole_percent(text: &str) -> Result<u32, String> {
    percent(text).map(|hundredths| hundredths / 100)
}

/// Arguments of `cutover`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "New connections go to our proxy from one moment to the next; those that are there stay with the legacy proxy \
until they end. It keeps running while ours is watched, and takes new connections again if ours fails: by itself, or with \
`meshctl migrate rollback`.

Examples:
  meshctl migrate cutover web-7
  meshctl migrate cutover web-7 --watch 10m --min-success 99.9 --max-p99 250ms"
)]
pub struct Cutover {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    pub(super) bounds: Bounds,
}

/// Bounds of a watch.
#[derive(Debug, Clone, Args)]
pub struct Bounds {
    /// How long it is watched: 1s to 24h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::parse_duration)]
    watch: Duration,
    /// Of 100 requests, how many must succeed
    #[arg(long, value_name = "PERCENT", default_value = "99", value_parser = percent)]
    min_success: u32,
    /// What 1 of 100 answers may take longer than; no bound unless it is given
    #[arg(long, value_name = "TIME", value_parser = time::parse_duration)]
    max_p99: Option<Duration>,
    /// How long connections may go on with a legacy process that was told to end
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time::parse_duration)]
    drain: Duration,
    /// Although answers were not compared
    #[arg(long)]
    without_shadow: bool,
    /// Do not wait for the end of the watch
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// In hundredths of a percent.
fn percent(text: &str) -> Result<u32, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "a number, e.g. 99.5")?;
    if (0.0..=100.0).contains(&number) {
        return Ok((number * 100.0).round() as u32);
    }
    Err("0 to 100".to_owned())
}

impl Move {
    pub(super) async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        match self {
            Self::Beside(of) => {
                let host = of.host()?;
                let status = begin(&host, run).await?;
                output::print(format, &Shown::of(vec![status]))
            }
            Self::Shadow(shadow) => shadow.run(run, format).await,
            Self::Cutover(cutover) => {
                let host = cutover.of.host()?;
                let status = cut_over(&host, run, &cutover.bounds, !format.is_document()).await?;
                output::print(format, &Shown::of(vec![status]))
            }
            Self::Rollback(of) => of.ask(run, format, Asked::RollBack).await,
            Self::Finish(of) => of.ask(run, format, Asked::Finish).await,
            Self::Abandon(of) => of.ask(run, format, Asked::Abandon).await,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    RollBack,
    Finish,
    Abandon,
}

impl Of {
    fn host(&self) -> Result<Host, Failure> {
        Host::read(&self.plans.plans, &self.host)
    }

    async fn ask(&self, run: &Run, format: Format, asked: Asked) -> Result<(), Failure> {
        let host = self.host()?;
        let mut agent = host.agent(run).await?;
        let request = v1::MoveRequest { name: host.name.clone() };
        let status = match asked {
            Asked::RollBack => agent.roll_back(request).await,
            Asked::Finish => agent.finish_move(request).await,
            Asked::Abandon => agent.abandon_move(request).await,
        };
        output::print(format, &Shown::of(vec![status?.into_inner()]))
    }
}

impl Shadow {
    async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let host = self.of.host()?;
        let access_log = match &self.access_log {
            None => String::new(),
            Some(path) => std::fs::read(path)
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .map_err(|error| Failure::config(format!("{}: {error}", path.display())))?,
        };
        // Whatever ran beside may be of an older plan.
        if look(&host, run).await?.is_none_or(|status| !is_ours(&status)) {
            begin(&host, run).await?;
        }
        let mut agent = host.agent(run).await?;
        let request = v1::ShadowMoveRequest {
            name: host.name.clone(),
            percent: self.share,
            for_s: u32::try_from(self.during.as_secs()).unwrap_or(u32::MAX),
            methods: self.methods.clone(),
            access_log,
            ignore_headers: self.ignore_headers.clone(),
            at_least: self.at_least,
        };
        let mut status = agent.shadow_move(request).await?.into_inner();
        let mut said = u32::MAX;
        while status.phase == "shadow" {
            let found = status.shadow.clone().unwrap_or_default();
            if !format.is_document() && found.left_s.abs_diff(said) >= 10 {
                eprintln!(
                    "{}: {} s left, {} compared, {} differ, {} left out",
                    host.name, found.left_s, found.compared, found.different, found.skipped
                );
                said = found.left_s;
            }
            tokio::time::sleep(LOOK).await;
            status = look(&host, run).await?.ok_or_else(|| {
                Failure::new(format!("{}: somebody has abandoned the move", host.name))
            })?;
        }
        let found = status.shadow.clone().unwrap_or_default();
        output::print(format, &Shown::of(vec![status]))?;
        match found.verdict.as_str() {
            "alike" => Ok(()),
            "different" => Err(Failure::new(format!(
                "{}: {} of {} answers differ",
                host.name, found.different, found.compared
            ))
            .remedy("mend the plan; or, if it may differ so, --ignore-header")),
            _ => Err(Failure::new(format!(
                "{}: {} answers were compared, {} were wanted",
                host.name, found.compared, self.at_least
            ))
            .remedy("a larger --share, a longer --for, or an --access-log")),
        }
    }
}

/// How a host is; `None` where nothing has begun.
pub(super) async fn look(host: &Host, run: &Run) -> Result<Option<v1::MoveStatus>, Failure> {
    let mut agent = host.agent(run).await?;
    let moves = agent.list_moves(v1::ListMovesRequest {}).await?.into_inner().moves;
    Ok(moves.into_iter().find(|one| one.name == host.name))
}

/// Runs what the plan says beside, whatever ran beside before.
async fn begin(host: &Host, run: &Run) -> Result<v1::MoveStatus, Failure> {
    let mut agent = host.agent(run).await?;
    Ok(agent.begin_move(host.begin()?).await?.into_inner())
}

/// To the end of the watch, unless nobody waits for it.
///
/// # Errors
///
/// It was not begun, or the legacy proxy serves again.
pub(super) async fn cut_over(
    host: &Host,
    run: &Run,
    bounds: &Bounds,
    talk: bool,
) -> Result<v1::MoveStatus, Failure> {
    let before = look(host, run).await?;
    let runs = before.as_ref().is_some_and(is_ours);
    if !runs && before.is_none_or(|status| status.phase == "back") {
        begin(host, run).await?;
    }
    let mut agent = host.agent(run).await?;
    let ms = bounds.max_p99.map_or(0, |most| u32::try_from(most.as_millis()).unwrap_or(u32::MAX));
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let request = v1::CutOverRequest {
        name: host.name.clone(),
        watch_s: seconds(bounds.watch),
        min_success: bounds.min_success,
        max_p99_ms: ms,
        without_verdict: bounds.without_shadow,
        drain_s: seconds(bounds.drain),
    };
    let status = agent.cut_over(request).await?.into_inner();
    if bounds.no_wait {
        return Ok(status);
    }
    watch(host, run, agent, status, talk).await
}

/// Whether our proxy takes new connections.
pub(super) fn is_ours(status: &v1::MoveStatus) -> bool {
    matches!(status.phase.as_str(), "watch" | "moved" | "finished")
}

/// Until the watch is over.
async fn watch(
    host: &Host,
    run: &Run,
    mut agent: MigrationClient<Channel>,
    mut status: v1::MoveStatus,
    talk: bool,
) -> Result<v1::MoveStatus, Failure> {
    let mut heard = clock::monotonic();
    let mut said = u32::MAX;
    while status.phase == "watch" {
        // Every ten seconds, and the last ones.
        let is_due = status.watch_left_s.abs_diff(said) >= 10 || status.watch_left_s == 0;
        if talk && is_due && said != status.watch_left_s {
            eprintln!("{}: {}", host.name, progress(&status));
            said = status.watch_left_s;
        }
        tokio::time::sleep(LOOK).await;
        match agent.list_moves(v1::ListMovesRequest {}).await {
            Ok(moves) => {
                let found = moves.into_inner().moves.into_iter().find(|one| one.name == host.name);
                status = found.ok_or_else(|| {
                    Failure::new(format!("{}: somebody has abandoned the move", host.name))
                })?;
                heard = clock::monotonic();
            }
            Err(refused) if heard.elapsed() < PATIENCE && refused.code() != Code::NotFound => {
                // What is in force stays, whoever asks.
                if let Ok(again) = host.agent(run).await {
                    agent = again;
                }
            }
            Err(refused) => return Err(refused.into()),
        }
    }
    if is_ours(&status) {
        return Ok(status);
    }
    let why = if status.problem.is_empty() { "somebody rolled it back" } else { &status.problem };
    Err(Failure::new(format!("{}: rolled back: {why}", host.name)).exit(Exit::Failed).remedy(
        format!(
            "the legacy proxy serves; mend the plan, then `meshctl migrate cutover {}`",
            host.name
        ),
    ))
}

fn progress(status: &v1::MoveStatus) -> String {
    format!(
        "{} s left, {} requests, {} failed, 99 % within {} ms; {} connections are with the legacy proxy",
        status.watch_left_s,
        status.requests,
        status.failures,
        status.p99_ms,
        status.legacy_connections
    )
}
