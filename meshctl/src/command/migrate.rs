//! `meshctl migrate`: hosts off their legacy proxies. `plan` and `explain` are files
//! only, but for `--live` and `--discover`; the others ask the agent of a host.

mod discover;
pub mod explain;
pub mod fleet;
mod host;
mod http;
mod live;
pub mod moves;
pub mod plan;
mod shown;

use std::{
    net::{IpAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use mesh_migrate::{
    legacy::{self, Format as From, Outside},
    linkerd1::{
        config::Config,
        discovery, listing,
        name::Name,
        world::{Files, World},
    },
    nginx,
    source::{MAX_FILE, Problem, Source},
};

use crate::{
    endpoint::Run,
    failure::Failure,
    output::{Format, Output},
};

/// What `--discover` has found, beside a plan.
const DISCOVERY: &str = "discovery.yaml";

/// What `migrate` does.
#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// What the configuration of a legacy proxy is with us, line by line
    Plan(plan::Plan),
    /// What a legacy proxy does with a request and why, beside what we would do
    Explain(explain::Explain),
    #[command(flatten)]
    Move(moves::Move),
    #[command(flatten)]
    Fleet(fleet::Fleet),
}

impl Migrate {
    /// Does what was asked.
    pub async fn run(self, run: &Run, output: Output) -> Result<(), Failure> {
        match self {
            Self::Plan(plan) => plan.run(output).await,
            Self::Explain(explain) => explain.run(output.format()?).await,
            Self::Move(one) => one.run(run, output.format()?).await,
            Self::Fleet(fleet) => fleet.run(run, output.format()?).await,
        }
    }
}

/// A configuration, and what it hangs on.
#[derive(Debug, Args)]
pub(super) struct Input {
    /// Whose configuration it is
    #[arg(long, value_enum, value_name = "PROXY")]
    from: Proxy,
    /// Directory that files which it names are relative to, but for includes of nginx;
    /// that of the first file where absent
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Bound names of Linkerd that discovery knows, a line each with its endpoints:
    /// /#/io.l5d.consul/dc1/web 10.0.0.1:80 10.0.0.2:80*2; or YAML with `names`,
    /// `localAddresses`, `environment`, `ingresses`, `dtabs` and `namerd`
    #[arg(long, value_name = "FILE")]
    discovery: Option<PathBuf>,
    /// Ask the registries that namers and interpreters of Linkerd point to, for names
    /// that its tables lead to; without it nobody is asked
    #[arg(long, conflicts_with = "discovery")]
    discover: bool,
    /// A service of Linkerd that is known to be used, e.g. /svc/web; several times
    #[arg(long = "name", value_name = "PATH")]
    names: Vec<String>,
    /// Addresses of names, as /etc/hosts has them; the system is asked for others
    #[arg(long, value_name = "FILE")]
    hosts: Option<PathBuf>,
}

/// A legacy proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Proxy {
    /// Linkerd 1.x: linkerd.yaml, or what its admin port has at /config.json
    Linkerd1,
    /// HAProxy: the files of its -f, in their order
    Haproxy,
    /// nginx: nginx.conf, or what nginx -T prints
    Nginx,
    /// Envoy: a static bootstrap, or what its admin port has at /config_dump
    Envoy,
}

impl Proxy {
    fn format(self) -> From {
        match self {
            Self::Linkerd1 => From::Linkerd1,
            Self::Haproxy => From::Haproxy,
            Self::Nginx => From::Nginx,
            Self::Envoy => From::Envoy,
        }
    }
}

impl Input {
    fn format(&self) -> From {
        self.from.format()
    }

    /// Reads files, or what a running proxy says, and calls with them and what there is
    /// beside them; what `--discover` has found is to be kept as a file in `keep`.
    async fn read<T>(
        &self,
        files: &[PathBuf],
        live: Option<&str>,
        keep: Option<&Path>,
        then: impl FnOnce(&legacy::Legacy<'_>, Option<&Source>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (sources, used) = match live {
            Some(_) if !files.is_empty() => {
                return Err(Failure::usage("--live: instead of files, not beside them"));
            }
            Some(url) => {
                let (source, used) = live::read(self.format(), url).await?;
                (vec![source], used)
            }
            None => {
                let sources = files.iter().map(|file| source(file));
                (sources.collect::<Result<_, _>>().map_err(wrong)?, Vec::new())
            }
        };
        let beside = files.first().and_then(|file| file.parent()).map(Path::to_owned);
        let directory = self.directory.clone().or(beside).unwrap_or_default();
        let file = |name: &str| Source::read(&directory.join(name));
        let name = |text: &String| {
            Name::read(text).map_err(|problem| Failure::usage(format!("--name {text}: {problem}")))
        };
        let names: Vec<Name> =
            self.names.iter().chain(&used).map(name).collect::<Result<_, _>>()?;
        let found = match sources.first() {
            Some(source) if self.discover => {
                Some(self.discovered(source, &names, &file, keep).await?)
            }
            _ => None,
        };
        let given = self.discovery.as_ref().map(|path| Source::read(path)).transpose();
        let mut world = match found.as_ref().or(given.map_err(wrong)?.as_ref()) {
            Some(source) => legacy::read_world(source).map_err(wrong)?,
            None => World::default(),
        };
        if let (Proxy::Linkerd1, Some(source)) = (self.from, sources.first())
            && let Ok(config) = Config::read(source)
        {
            listing::add(&config, &directory, &mut world);
        }
        let variable = |name: &str| std::env::var(name).ok();
        let main = files.first().cloned().unwrap_or_default();
        let included = nginx::disk(&main);
        let outside =
            Outside { file: &file, included: &included, variable: &variable, world, names };
        let read = legacy::Legacy::read(self.format(), sources, &outside).map_err(wrong)?;
        then(&read, found.as_ref())
    }

    /// What the registries of a Linkerd say, as the file that says it again.
    async fn discovered(
        &self,
        source: &Source,
        names: &[Name],
        file: Files<'_>,
        keep: Option<&Path>,
    ) -> Result<Source, Failure> {
        if self.from != Proxy::Linkerd1 {
            let from = self.format().as_str();
            return Err(Failure::usage(format!("--discover: {from} has no namers; leave it out")));
        }
        let config = Config::read(source).map_err(wrong)?;
        let world = Box::pin(discover::read(&config, names, file)).await?;
        let name = keep.unwrap_or(Path::new("")).join(DISCOVERY);
        let text = discovery::write(&world);
        if text.len() as u64 > MAX_FILE {
            let why = "--discover: registries know more than a plan can hold; give what is needed";
            return Err(Failure::new(why).remedy("--discovery FILE, with the names that are used"));
        }
        Ok(Source::of(&name.display().to_string(), &text))
    }

    /// Who knows the addresses of names.
    fn resolver(&self) -> Result<impl Fn(&str) -> Vec<IpAddr> + use<>, Failure> {
        let hosts = match &self.hosts {
            Some(path) => hosts(&Source::read(path).map_err(wrong)?)?,
            None => Vec::new(),
        };
        Ok(move |name: &str| {
            if let Ok(address) = name.trim_matches(['[', ']']).parse() {
                return vec![address];
            }
            let known = hosts.iter().filter(|(_, known)| known == name);
            let known: Vec<IpAddr> = known.map(|(address, _)| *address).collect();
            if !known.is_empty() {
                return known;
            }
            let asked = (name, 0).to_socket_addrs();
            asked.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
        })
    }
}

/// `-` is standard input.
fn source(path: &Path) -> Result<Source, Problem> {
    let path = if path == Path::new("-") { Path::new("/dev/stdin") } else { path };
    Source::read(path)
}

/// hosts(5).
fn hosts(source: &Source) -> Result<Vec<(IpAddr, String)>, Failure> {
    let mut all = Vec::new();
    for (line, text) in (1..).zip(source.text.lines()) {
        let mut words = text.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next() else { continue };
        let address = address.parse().map_err(|_| {
            Failure::config(format!("{}:{line}: {address:?} is no IP address", source.name))
        })?;
        all.extend(words.map(|name| (address, name.to_owned())));
    }
    Ok(all)
}

fn wrong(problem: Problem) -> Failure {
    Failure::config(problem)
}

/// A format where nothing is written to a directory.
impl Output {
    fn or_directory(self) -> (Format, Option<PathBuf>) {
        match self {
            Output::As(format) => (format, None),
            Output::Into(directory) => (Format::default(), Some(directory)),
        }
    }
}
