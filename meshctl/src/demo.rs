//! `meshctl demo`: a whole mesh on this machine.

//!
//! In reading order: [`world`] says what there is, [`stage`] raises it,
//! [`load`] drives it, [`scenario`] stops and kills parts of it, [`trail`]
//! reads what the proxies logged, [`report`] judges.

mod apps;
mod blackhole;
mod child;
mod client;
mod load;
mod meter;
mod report;
mod room;
mod scenario;
mod screen;
mod shell;
mod show;
mod stage;
mod tell;
mod trail;
mod world;

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use mesh_runtime::drain::Termination;
use tokio::task::LocalSet;

use self::{
    child::{Sweep, Sweeper},
    report::Report,
    show::Show,
    stage::Stage,
    tell::Teller,
    world::World,
};
use crate::{
    failure::Failure,
    output::{self, Format},
    time,
};

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Exits 0 only if every request succeeded over mTLS.

Examples:
  meshctl demo
  meshctl demo --duration 20s
  meshctl demo --duration 20s --json | jq '.flows[] | {name, path, transport, p99_ms}'
  meshctl demo --duration 20s --block-udp      (the link falls back to TLS over TCP)")]
pub struct Demo {
    /// End by itself after this long [default: until Ctrl-C]
    #[arg(long, value_parser = time::parse_duration)]
    duration: Option<Duration>,
    /// Advertise UDP addresses that swallow everything; the proxies are not told
    #[arg(long)]
    block_udp: bool,
    /// Leave the directory with logs and configurations
    #[arg(long)]
    keep_logs: bool,
}

/// The processes of the demo that are this same program.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// An application
    App(apps::App),
    /// Becomes another program that dies with the demo
    Exec(child::Exec),
    /// Removes the directory when the demo is gone
    Sweep(child::Sweep),
}

impl Part {
    /// Does it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Part::App(app) => app.run().await,
            Part::Exec(exec) => exec.run(),
            Part::Sweep(sweep) => sweep.run(),
        }
    }
}

impl Demo {
    /// Raises the mesh, drives it, tells what happened, leaves nothing.
    pub async fn run(self, format: Format) -> Result<(), Failure> {
        // Before anything exists that Ctrl-C would leave behind.
        let mut ctrl_c = Termination::listen()?;
        let mut world = World::new(self.block_udp)?;
        let sweeper = Sweep::start(world.dir())?;
        let teller = Teller::new(format, world.dir());
        let mut stage = Stage::empty();
        let driven = self.drive(&mut stage, &world, &teller, format, &mut ctrl_c);
        let driven = LocalSet::new().run_until(driven).await;
        // The result first: ending everything may take a moment.
        let printed = match &driven {
            Ok(Some(report)) => output::print(format, report),
            Ok(None) | Err(_) => Ok(()),
        };
        stage.lower().await;
        self.tidy(&mut world, sweeper, &teller);
        let Some(report) = driven? else {
            return Err(Failure::new("interrupted before the mesh was up"));
        };
        printed?;
        if report.ok {
            return Ok(());
        }
        Err(Failure::new(format!("demo: {}", report.problems.join("; ")))
            .remedy("again with --keep-logs, then look at log/ in its directory"))
    }

    async fn drive(
        &self,
        stage: &mut Stage,
        world: &World,
        teller: &Teller,
        format: Format,
        ctrl_c: &mut Termination,
    ) -> Result<Option<Report>, Failure> {
        tokio::select! {
            raised = stage.raise(world, teller) => raised?,
            () = ctrl_c.wait() => return Ok(None),
        }
        let ready_after_s = teller.elapsed_s();
        let mut show = Show::new(world, self.duration, format);
        let report = show.run(stage, world, teller, ctrl_c).await?;
        let versions = versions(world).await;
        Ok(Some(Report { ready_after_s, versions, ..report }))
    }

    fn tidy(&self, world: &mut World, mut sweeper: Sweeper, teller: &Teller) {
        if self.keep_logs {
            sweeper.spare();
            world.room.keep();
            teller.line(&format!("logs and configurations: {}", world.dir().display()));
        }
    }
}

/// What each program calls its version.
async fn versions(world: &World) -> BTreeMap<&'static str, String> {
    let mut versions = BTreeMap::from([("meshctl", env!("CARGO_PKG_VERSION").to_owned())]);
    for (name, program) in world.programs() {
        let Ok(mut command) = child::command(program, &["--version".into()]) else { continue };
        let Ok(output) = command.output().await else { continue };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().last().unwrap_or("unknown");
        versions.insert(name, version.to_owned());
    }
    versions
}
