//! `meshctl rotate`: another root in the place of the site's own.

use std::time::Duration;

use clap::{Args, Subcommand};
use mesh_api::v1::{self, RotationAction, RotationPhase, RotationStatus};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show, Table},
    time,
};

/// How often it is looked while it waits.
const LOOK: Duration = Duration::from_millis(500);
/// A federation that is started anew is waited for this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blockers that are named in one line of progress.
const NAMED: usize = 3;

/// What is rotated.
#[derive(Debug, Subcommand)]
pub enum Rotate {
    /// Replace this site's root CA while everything runs, and show how far that is
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Steps, each taken by itself when everybody is there:\n  publish    a new root joins the bundle; proxies, machines and linked sites take it\n  turn over  certificates are issued under it; those of the old root are renewed\n  retire     the old root leaves the bundle, its keys are removed\n\nExamples:\n  meshctl rotate root                     # begin, or go on watching; Ctrl-C ends only the watching\n  meshctl rotate root status\n  meshctl rotate root status -o json | jq -r '.blockers[].who'\n  meshctl rotate root pause               # and: resume\n  meshctl rotate root rollback            # until the old root is retired\n  meshctl rotate root --force             # wait no longer for who is not connected\n  meshctl rotate root --force=node:0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11"
    )]
    Root(Root),
}

/// Arguments of `rotate root`.
#[derive(Debug, Args)]
pub struct Root {
    #[command(subcommand)]
    steer: Option<Steer>,
    /// Do not wait for those who are not connected, or for these blockers by name; once the old
    /// root is retired they must join, or be linked, again
    #[arg(long, num_args = 0.., require_equals = true, value_delimiter = ',', value_name = "NAME")]
    force: Option<Vec<String>>,
    /// Begin, and do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

/// Subcommands of `rotate root`.
#[derive(Debug, Subcommand)]
pub enum Steer {
    /// How far it is, and whom it waits for
    #[command(
        after_help = "Examples:\n  meshctl rotate root status\n  meshctl rotate root status -o json | jq '.counts'"
    )]
    Status,
    /// Take no further step
    #[command(after_help = "Examples:\n  meshctl rotate root pause")]
    Pause,
    /// Go on
    #[command(after_help = "Examples:\n  meshctl rotate root resume")]
    Resume,
    /// Back to the root that was there; possible until it is retired
    #[command(after_help = "Examples:\n  meshctl rotate root rollback")]
    Rollback,
}

impl Rotate {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let Rotate::Root(root) = self;
        let action = match root.steer {
            Some(Steer::Status) => RotationAction::Unspecified,
            Some(Steer::Pause) => RotationAction::Pause,
            Some(Steer::Resume) => RotationAction::Resume,
            Some(Steer::Rollback) => RotationAction::RollBack,
            None => return rotate(run, format, root.force, root.no_wait).await,
        };
        let status = ask(run, action, Vec::new()).await?;
        output::print(format, &Shown::from(status))
    }
}

async fn ask(
    run: &Run,
    action: RotationAction,
    names: Vec<String>,
) -> Result<RotationStatus, Failure> {
    let request = v1::RotateRootRequest { action: action.into(), names };
    Ok(run.admin().await?.rotate_root(request).await?.into_inner())
}

/// Begins a rotation, or takes up the one that is under way, to its end.
async fn rotate(
    run: &Run,
    format: Format,
    force: Option<Vec<String>>,
    no_wait: bool,
) -> Result<(), Failure> {
    let mut status = ask(run, RotationAction::Unspecified, Vec::new()).await?;
    if let Some(names) = force {
        status = ask(run, RotationAction::Force, names).await?;
        for name in &status.now_forced {
            eprintln!("  {name} is not waited for any more; {}", afterwards(name));
        }
    } else if status.phase() == RotationPhase::Unspecified {
        status = ask(run, RotationAction::Start, Vec::new()).await?;
    }
    if no_wait {
        return output::print(format, &Shown::from(status));
    }
    let before = status.clone();
    let mut told = String::new();
    while status.phase() != RotationPhase::Unspecified {
        let line = progress(&status);
        if line != told {
            eprintln!("  {line}");
            told = line;
        }
        sleep(LOOK).await;
        status = look(run).await?;
    }
    let signing = status.signing_root.clone();
    let over = Shown { over: Some(Over::of(&before, &signing)), ..Shown::from(status) };
    output::print(format, &over)
}

/// The state of the rotation, also from a federation that is just starting.
async fn look(run: &Run) -> Result<RotationStatus, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask(run, RotationAction::Unspecified, Vec::new()).await {
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < until => {
                sleep(LOOK).await;
            }
            answer => return answer,
        }
    }
}

fn progress(status: &RotationStatus) -> String {
    let counts = status.counts.iter().filter(|count| count.of > 0);
    let counts: Vec<_> =
        counts.map(|count| format!("{} {}/{}", count.what, count.done, count.of)).collect();
    let mut line = format!("{}: {}", phase(status), counts.join(", "));
    let names: Vec<_> = status.blockers.iter().take(NAMED).map(|b| b.who.as_str()).collect();
    if !names.is_empty() {
        let all = status.blockers.len() + status.more_blockers as usize;
        let more = all.saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        line.push_str(&format!("; waits for {}{more}", names.join(", ")));
    }
    if !status.problem.is_empty() {
        line.push_str(&format!("; {}", status.problem));
    }
    line
}

fn phase(status: &RotationStatus) -> String {
    let phase = match status.phase() {
        RotationPhase::Unspecified => "none",
        RotationPhase::Publish => "publish",
        RotationPhase::TurnOver => "turn over",
    };
    let back = if status.rolled_back { " (rolling back)" } else { "" };
    let paused = if status.paused { ", paused" } else { "" };
    format!("{phase}{back}{paused}")
}

/// What becomes of somebody who was not waited for.
fn afterwards(name: &str) -> &'static str {
    match name.split_once(':') {
        Some(("site", _)) => {
            "once the old root is retired: `meshctl unlink` and link it again, on both sides"
        }
        Some(("node", _)) => {
            "once the old root is retired it must join again: `meshctl join <token>` there"
        }
        _ => "once the old root is retired nobody believes its certificate: restart what uses it",
    }
}

/// How a rotation has ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Over {
    Rotated,
    RolledBack,
}

impl Over {
    fn of(before: &RotationStatus, signing: &str) -> Self {
        // A rotation that is rolled back has its roots the other way round.
        let new = if before.rolled_back { &before.old_root } else { &before.new_root };
        if signing == new { Self::Rotated } else { Self::RolledBack }
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    site: String,
    trust_domain: String,
    /// `none`, `publish` or `turn-over`.
    phase: &'static str,
    paused: bool,
    rolled_back: bool,
    signing_root: String,
    old_root: String,
    new_root: String,
    bundle_sequence: u64,
    started_unix_s: i64,
    phase_since_unix_s: i64,
    counts: Vec<Count>,
    blockers: Vec<Blocker>,
    more_blockers: u32,
    forced: Vec<String>,
    tokens: u32,
    problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<Over>,
}

#[derive(Debug, Serialize)]
struct Count {
    what: String,
    done: u32,
    of: u32,
}

#[derive(Debug, Serialize)]
struct Blocker {
    name: String,
    who: String,
    why: String,
    connected: bool,
    /// Unset if it was not heard since federation started.
    last_heard_ms: Option<u64>,
    /// When its certificate ends, and the waiting with it; unset is never.
    ends_unix_s: Option<i64>,
}

impl From<RotationStatus> for Shown {
    fn from(status: RotationStatus) -> Self {
        let phase = match status.phase() {
            RotationPhase::Unspecified => "none",
            RotationPhase::Publish => "publish",
            RotationPhase::TurnOver => "turn-over",
        };
        let count = |count: v1::RotationCount| {
            let v1::RotationCount { what, done, of } = count;
            Count { what, done, of }
        };
        let blocker = |blocker: v1::RotationBlocker| Blocker {
            name: blocker.name,
            who: blocker.who,
            why: blocker.why,
            connected: blocker.connected,
            last_heard_ms: blocker.last_heard_ms,
            ends_unix_s: Some(blocker.ends_unix_s).filter(|end| *end > 0),
        };
        Self {
            phase,
            counts: status.counts.into_iter().map(count).collect(),
            blockers: status.blockers.into_iter().map(blocker).collect(),
            site: status.site,
            trust_domain: status.trust_domain,
            paused: status.paused,
            rolled_back: status.rolled_back,
            signing_root: status.signing_root,
            old_root: status.old_root,
            new_root: status.new_root,
            bundle_sequence: status.bundle_sequence,
            started_unix_s: status.started_unix_s,
            phase_since_unix_s: status.phase_since_unix_s,
            more_blockers: status.more_blockers,
            forced: status.forced,
            tokens: status.tokens,
            problem: status.problem,
            over: None,
        }
    }
}

impl Show for Shown {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let signing = format!("Signing root  {}\n", self.signing_root);
        if self.phase == "none" {
            let over = match self.over {
                Some(Over::Rotated) => paint.good("The root is rotated; the old one is retired."),
                Some(Over::RolledBack) => paint.warn("Rolled back; the new root is retired."),
                None => "No rotation is under way. Begin one: meshctl rotate root".to_owned(),
            };
            return format!("{over}\n{signing}");
        }
        let now = time::now_unix_s();
        let since = Duration::from_secs((now - self.phase_since_unix_s).unsigned_abs());
        let mut phase = paint.bold(self.phase);
        if self.rolled_back {
            phase.push_str(" (rolling back)");
        }
        if self.paused {
            phase = format!("{phase}, {}", paint.warn("paused: meshctl rotate root resume"));
        }
        let mut text = format!("Phase         {phase}, for {}\n{signing}", time::short(since));
        text.push_str(&format!(
            "Leaves        {}\nStays         {}\n",
            self.old_root, self.new_root
        ));
        for count in &self.counts {
            text.push_str(&format!("{:<14}{} of {}\n", count.what, count.done, count.of));
        }
        if self.tokens > 0 {
            let n = self.tokens;
            text.push_str(&format!(
                "Tokens        {n} pin the root that leaves and end with it; make new ones then\n"
            ));
        }
        if !self.forced.is_empty() {
            text.push_str(&format!("Not waited for {}\n", self.forced.join(", ")));
        }
        if !self.problem.is_empty() {
            text.push_str(&format!("Problem       {}\n", paint.bad(&self.problem)));
        }
        text.push_str(&self.waiting(paint, now));
        text
    }
}

impl Shown {
    fn waiting(&self, paint: Paint, now: i64) -> String {
        if self.blockers.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["WAITS FOR", "CONNECTED", "HEARD", "ENDS", "WHY", "NAME"]);
        for blocker in &self.blockers {
            let connected = if blocker.connected { "yes".to_owned() } else { paint.bad("no") };
            table.row(vec![
                blocker.who.clone(),
                connected,
                blocker.last_heard_ms.map(time::age_ms).unwrap_or_else(|| "-".to_owned()),
                blocker.ends_unix_s.map(|end| time::until(end, now)).unwrap_or_default(),
                blocker.why.clone(),
                blocker.name.clone(),
            ]);
        }
        let mut text = format!("\n{}", table.render(paint));
        if self.more_blockers > 0 {
            text.push_str(&format!("and {} more\n", self.more_blockers));
        }
        if self.blockers.iter().any(|blocker| !blocker.connected) {
            text.push_str(
                "Who is not connected is waited for until its certificate ends. If it is gone: \
                 meshctl rotate root --force; a machine must then join again, a site be linked \
                 again.\n",
            );
        }
        text
    }
}
