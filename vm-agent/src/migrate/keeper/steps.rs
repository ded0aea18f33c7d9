//! What a person asks for: each step of a move.

use std::{io, net::SocketAddr};

use mesh_migrate::shadow::verdict::Verdict;
use mesh_runtime::clock;

use super::{
    super::{
        capacity::Room,
        legacy, proxy,
        record::{self, Legacy, MAX_MOVES, Phase, Record, Watch},
        redirect,
        shadow::{self, Found, Shadow, Shadowing},
        sockets::{self, Landed},
    },
    Begin, CutOver, Keeper, MoveError, ShadowAsk, Status, forget_dead, until_ready,
};

/// What a watch or a comparison may take, in seconds.
const WATCH: std::ops::RangeInclusive<u32> = 1..=86_400;

impl Keeper {
    pub(super) async fn begin(&mut self, begin: Begin) -> Result<String, MoveError> {
        let Begin { name, mut legacy, proxy_yaml, beside } = begin;
        record::check_name(&name).map_err(MoveError::Invalid)?;
        self.check_new(&name)?;
        let admin = free(([127, 0, 0, 1], 0).into()).map_err(|error| invalid(&error))?;
        let (text, listeners) =
            proxy::place(&proxy_yaml, admin, |address| free(SocketAddr::new(address.ip(), 0)))
                .map_err(MoveError::Invalid)?;
        let known = self.records.get(&name);
        let taken = self.records.values().filter(|other| other.name != name).find(|other| {
            other.listeners.iter().any(|other| listeners.iter().any(|l| l.address == other.address))
        });
        if let Some(other) = taken {
            let problem = format!("{} takes one of these listeners over already", other.name);
            return Err(MoveError::NotNow(problem));
        }
        let mut record = Record {
            name: name.clone(),
            legacy: Legacy::default(),
            listeners,
            admin,
            phase: Phase::Beside,
            since: clock::unix_seconds(),
            problem: String::new(),
            watch: None,
            let_go: false,
            leaving: known.map(|known| known.leaving.clone()).unwrap_or_default(),
            process: None,
            shadow: None,
        };
        let Some(process) = legacy::process(&record) else {
            let wanted: Vec<_> =
                record.listeners.iter().map(|listener| listener.address.to_string()).collect();
            return Err(MoveError::NotNow(format!(
                "nobody listens at {}: start the legacy proxy, or import what it runs",
                wanted.join(", ")
            )));
        };
        legacy.learn(&process, self.supervisor.systemd);
        record.process = Some(process.id);
        record.legacy = legacy;
        self.seen.remove(&name);
        // The one before, if there is one, runs something else.
        if self.records.contains_key(&name) {
            self.supervisor.stop(&self.moves, &name).await.map_err(MoveError::NotNow)?;
        }
        let mut files = vec![("proxy.yaml", text)];
        files.extend(beside);
        self.moves.save_config(&name, &files)?;
        self.keep(record.clone())?;
        self.put_rules().await?;
        let started = self.supervisor.start(&self.moves, &name).await;
        let ready = match started {
            Ok(()) => until_ready(&record).await,
            Err(why) => Err(why),
        };
        if let Err(why) = ready {
            let said = self.last_words(&name);
            self.forget(&name).await;
            return Err(MoveError::NotNow(format!("our proxy does not start: {why}{said}")));
        }
        log::info!(name = name.as_str(); "our proxy runs beside the legacy one");
        Ok(name)
    }

    fn check_new(&self, name: &str) -> Result<(), MoveError> {
        let problem = match self.records.get(name) {
            None if self.records.len() >= MAX_MOVES => {
                format!("there are {MAX_MOVES} moves already")
            }
            Some(known) if known.phase.is_ours() => {
                let phase = known.phase.as_str();
                format!("{name} is in phase {phase}: meshctl migrate rollback {name}, then again")
            }
            None | Some(_) => return Ok(()),
        };
        Err(MoveError::NotNow(problem))
    }

    /// What our proxy said last.
    pub(super) fn last_words(&self, name: &str) -> String {
        let log = self.moves.directory(name).join("proxy.log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.map(|line| format!("\n  {line}")).unwrap_or_default()
    }

    /// As if it had never been.
    pub(super) async fn forget(&mut self, name: &str) {
        let known = self.records.remove(name);
        self.seen.remove(name);
        if let Err(error) = self.put_rules().await {
            log::warn!("{error}");
        }
        if let Err(why) = self.supervisor.stop(&self.moves, name).await {
            log::warn!(name; "{why}");
        }
        forget_dead(known.map(|known| known.listeners).unwrap_or_default()).await;
        if let Err(why) = self.supervisor.at_boot(name, false).await {
            log::debug!(name; "{why}");
        }
        if let Err(error) = self.moves.remove(name) {
            log::warn!(name, error:% = error; "its directory is left");
        }
    }

    pub(super) fn shadow(&mut self, asked: ShadowAsk) -> Result<String, MoveError> {
        let mut record = self.known(&asked.name)?.clone();
        let name = record.name.clone();
        if record.phase.is_ours() {
            return Err(MoveError::NotNow(format!(
                "{name}: our proxy serves already; there is nothing to compare it with"
            )));
        }
        if !WATCH.contains(&asked.for_s) {
            return Err(MoveError::Invalid("a comparison lasts 1s to 24h".to_owned()));
        }
        if asked.shadow.percent > 100 || (asked.shadow.percent == 0 && asked.access_log.is_empty())
        {
            let problem = "what is compared: 1 to 100 % of live requests, an access log, or both?";
            return Err(MoveError::Invalid(problem.to_owned()));
        }
        let until = clock::unix_seconds() + i64::from(asked.for_s);
        let shadow = Shadow { until, ..asked.shadow };
        let files = (self.moves.found(&name), &*self.moves.config(&name).join("site.yaml"));
        let begun = Shadowing::start(&record, &shadow, Found::default(), asked.access_log, files)
            .map_err(MoveError::NotNow)?;
        record.shadow = Some(shadow);
        record.enter(Phase::Shadow);
        self.keep(record)?;
        self.seen.entry(name.clone()).or_default().shadowing = Some(begun);
        Ok(name)
    }

    /// What was found, now or before.
    pub(super) fn found(&self, name: &str) -> Found {
        let running = self.seen.get(name).and_then(|seen| seen.shadowing.as_ref());
        running.map_or_else(|| shadow::read(&self.moves.found(name)), Shadowing::found)
    }

    /// Ends a comparison whose time is over, and goes on with one that this process has
    /// found on the disk.
    pub(super) fn follow_shadow(&mut self, record: &Record) -> Result<(), String> {
        let Some(shadow) = &record.shadow else { return Ok(()) };
        let name = &record.name;
        if shadow.until <= clock::unix_seconds() {
            let found = self.found(name);
            shadow::write(&found, &self.moves.found(name));
            self.seen.entry(name.clone()).or_default().shadowing = None;
            let mut over = record.clone();
            over.enter(Phase::Beside);
            return self.keep(over).map_err(|error| error.to_string());
        }
        let seen = self.seen.entry(name.clone()).or_default();
        if seen.shadowing.is_none() {
            let file = self.moves.found(name);
            let found = shadow::read(&file);
            let site = self.moves.config(name).join("site.yaml");
            let begun = Shadowing::start(record, shadow, found, String::new(), (file, &site))?;
            seen.shadowing = Some(begun);
        }
        Ok(())
    }

    pub(super) async fn cut_over(&mut self, asked: CutOver) -> Result<String, MoveError> {
        let mut record = self.known(&asked.name)?.clone();
        let name = record.name.clone();
        if record.phase.is_ours() {
            // Whoever asked before did not hear the answer.
            return Ok(name);
        }
        if !WATCH.contains(&asked.watch_s) {
            return Err(MoveError::Invalid("a watch lasts 1s to 24h".to_owned()));
        }
        if asked.min_success > 10_000 {
            return Err(MoveError::Invalid("at most 100 % can succeed".to_owned()));
        }
        self.check(&record, asked.without_verdict).await?;
        let before = proxy::figures(&record).await.map_err(MoveError::NotNow)?;
        record.watch = Some(Watch {
            until: clock::unix_seconds() + i64::from(asked.watch_s),
            min_success: asked.min_success,
            max_p99_ms: asked.max_p99_ms,
            drain_s: asked.drain_s,
            before,
        });
        self.seen.entry(name.clone()).or_default().shadowing = None;
        record.let_go = false;
        record.process = legacy::process(&record).map(|process| process.id);
        record.enter(Phase::Watch);
        if let Err(why) = self.supervisor.at_boot(&name, true).await {
            return Err(MoveError::NotNow(why));
        }
        self.keep(record.clone())?;
        let put = self.put_rules().await.map_err(|error| error.to_string());
        let landed = match put {
            Ok(()) => sockets::serves(&record.listeners).await,
            Err(why) => return self.undo(name, &why).await,
        };
        if landed != Landed::Ours {
            return self.undo(name, "new connections did not land with our proxy").await;
        }
        forget_dead(record.listeners).await;
        log::info!(name = name.as_str(); "our proxy serves, and is watched");
        Ok(name)
    }

    pub(super) async fn undo(&mut self, name: String, why: &str) -> Result<String, MoveError> {
        self.roll_back(name, why.to_owned()).await?;
        Err(MoveError::NotNow(format!("{why}; the legacy proxy serves as before")))
    }

    /// What must be so before anything changes, the way back included.
    pub(super) async fn check(
        &mut self,
        record: &Record,
        without_verdict: bool,
    ) -> Result<(), MoveError> {
        let name = &record.name;
        if !without_verdict {
            self.check_verdict(record)?;
        }
        proxy::ready(record)
            .await
            .map_err(|why| MoveError::NotNow(format!("our proxy is not ready: {why}")))?;
        if !legacy::listens(&record.listeners) {
            return Err(MoveError::NotNow(
                "the legacy proxy does not listen: there would be no way back; start it".to_owned(),
            ));
        }
        if !record.legacy.is_startable() {
            return Err(MoveError::NotNow(
                "nobody knows how the legacy proxy is started: name its unit or its command"
                    .to_owned(),
            ));
        }
        let table = sockets::table();
        let connections = sockets::connections(&table, &record.listeners) as u64;
        let ours = record.listeners.iter().find_map(|l| sockets::owner(&table, l.beside));
        let room = ours.map(|process| Room::look(process.id.pid)).unwrap_or_default();
        if let Some(problem) = room.problem(connections) {
            return Err(MoveError::NotNow(problem));
        }
        // As it will be, and as it was: for connections of our own, which nobody notices.
        self.put_rules().await?;
        let there = sockets::all(&record.listeners, Some(redirect::TO_OURS)).await;
        let back = sockets::all(&record.listeners, Some(redirect::TO_LEGACY)).await;
        if there != Landed::Ours || back != Landed::Legacy {
            return Err(MoveError::NotNow(format!(
                "a rehearsal failed: led to our proxy a connection lands with {}, and back with \
                 {}; does the kernel have NAT (nft list table inet {}), is {name} in a container?",
                there.as_str(),
                back.as_str(),
                redirect::TABLE
            )));
        }
        Ok(())
    }

    pub(super) fn check_verdict(&self, record: &Record) -> Result<(), MoveError> {
        let name = &record.name;
        let found = self.found(name);
        let verdict = record.shadow.as_ref().map(|shadow| shadow.verdict(&found));
        let problem = match verdict {
            Some(Verdict::Alike) => return Ok(()),
            None | Some(Verdict::Nothing) => "nothing was compared".to_owned(),
            Some(Verdict::TooFew) => {
                format!("only {} answers were compared", found.tally.compared())
            }
            Some(Verdict::Different) => format!(
                "{} of {} answers differ (meshctl migrate status {name} -o wide)",
                found.tally.different(),
                found.tally.compared()
            ),
        };
        Err(MoveError::NotNow(format!(
            "{problem}: meshctl migrate shadow {name}, or --without-shadow"
        )))
    }

    /// The legacy proxy listens before anybody is led to it. `why` is empty if a
    /// person wants it.
    pub(super) async fn roll_back(
        &mut self,
        name: String,
        why: String,
    ) -> Result<String, MoveError> {
        let mut record = self.known(&name)?.clone();
        if !record.phase.is_ours() {
            return Ok(name);
        }
        if let Err(problem) = legacy::take_back(&record).await {
            let problem =
                format!("rollback: the legacy proxy does not listen, so ours goes on: {problem}");
            record.problem.clone_from(&problem);
            self.keep(record)?;
            return Err(MoveError::NotNow(problem));
        }
        record.enter(Phase::Back);
        record.let_go = false;
        record.problem = why;
        self.keep(record.clone())?;
        self.put_rules().await?;
        let boot = self.supervisor.at_boot(&name, false).await;
        boot.unwrap_or_else(|why| log::warn!(name = name.as_str(); "{why}"));
        match record.problem.as_str() {
            "" => log::info!(name = name.as_str(); "the legacy proxy serves again"),
            why => log::error!(name = name.as_str(); "rolled back: {why}"),
        }
        Ok(name)
    }

    pub(super) async fn finish(&mut self, name: String) -> Result<String, MoveError> {
        let mut record = self.known(&name)?.clone();
        match record.phase {
            // What did not work is tried again.
            Phase::Finished => {}
            Phase::Moved => {
                record.enter(Phase::Finished);
                self.keep(record.clone())?;
            }
            phase => {
                return Err(MoveError::NotNow(format!(
                    "{name} is in phase {}: only what has moved and was watched is finished",
                    phase.as_str()
                )));
            }
        }
        legacy::stop(&record).await.map_err(MoveError::NotNow)?;
        forget_dead(record.listeners).await;
        log::info!(name = name.as_str(); "the legacy proxy was stopped");
        Ok(name)
    }

    pub(super) async fn abandon(&mut self, name: String) -> Result<Vec<Status>, MoveError> {
        let name = self.roll_back(name, String::new()).await?;
        let record = self.known(&name)?.clone();
        self.forget(&name).await;
        Ok(vec![self.status(&record).await])
    }
}

/// An address that nobody has now.
fn free(at: SocketAddr) -> io::Result<SocketAddr> {
    std::net::TcpListener::bind(at)?.local_addr()
}

fn invalid(error: &io::Error) -> MoveError {
    MoveError::NotNow(format!("no port of this machine is free: {error}"))
}
