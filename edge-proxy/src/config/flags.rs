//! The command line and the environment: flag before environment before file
//! before default. All of it is said of keys of the two files ([`Setting`]).

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum, parser::ValueSource};
use mesh_core::{PortName, ServiceName};
use mesh_runtime::config::{ConfigError, HumanDuration, Setting, Step};

/// Several settings, separated by `;`.
const SET: &str = "ISTHMUS_PROXY_SET";
/// The same for the site file.
const SET_SITE: &str = "ISTHMUS_PROXY_SET_SITE";

/// Carries the traffic of one machine, one workload, or a site's border.
///
/// Examples:
///   edge-proxy
///   edge-proxy --config /etc/isthmus/proxy.yaml
///   edge-proxy --config proxy.yaml --http-listener 127.0.0.1:4140 --admin off
///   edge-proxy --config proxy.yaml --set drain_timeout=5s --set 'gateway.tls=0.0.0.0:9443'
///   edge-proxy --config proxy.yaml --upstream orders.shop:http=127.0.0.1:9000
///   edge-proxy --config proxy.yaml --set-site 'services[orders.shop].endpoints[0].weight=3'
///   ISTHMUS_PROXY_SET='workers=2; access_log=off' edge-proxy
///
/// A flag comes before the environment, that before the file, that before the
/// default. KEY is what error messages call it: a.b[0].c; in brackets may stand
/// the name of an element, or a key with dots in it.
///
/// SIGHUP and SIGUSR2 start a successor with the new version and configuration,
/// which takes the listeners over. SIGTERM and SIGINT end the process: callers
/// of the mesh are served while clients' connections and requests that had begun
/// go on (drain_timeout, opaque_drain_timeout), and refused after that.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "edge-proxy", version, verbatim_doc_comment)]
pub struct Flags {
    /// Configuration file [default: /etc/isthmus/proxy.yaml, if it exists]
    #[arg(long, value_name = "FILE", env = "ISTHMUS_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Site file: services and endpoints, without a control plane
    #[arg(long, value_name = "FILE", env = "ISTHMUS_PROXY_SNAPSHOT")]
    pub snapshot: Option<String>,
    /// Where applications send HTTP for any service, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_HTTP_LISTENER")]
    pub http_listener: Option<String>,
    /// Where captured traffic arrives, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_TRANSPARENT")]
    pub transparent: Option<String>,
    /// Where the mesh calls, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_INBOUND")]
    pub inbound: Option<String>,
    /// Where to serve /metrics, /live and /ready, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_ADMIN")]
    pub admin: Option<String>,
    /// Listener for one port of one service; in the place of the file's, if
    /// that has one for it
    #[arg(
        long,
        value_name = "SERVICE:PORT=IP:PORT",
        env = "ISTHMUS_PROXY_LISTENER",
        value_delimiter = ','
    )]
    pub listener: Vec<PortAddr>,
    /// Target of the endpoint for one port of one service of the site file
    #[arg(
        long,
        value_name = "SERVICE:PORT=IP:PORT",
        env = "ISTHMUS_PROXY_UPSTREAM",
        value_delimiter = ','
    )]
    pub upstream: Vec<PortAddr>,
    /// PEM file: this proxy's certificate, then its issuing CA's
    #[arg(long, value_name = "FILE", env = "ISTHMUS_PROXY_CERTIFICATE")]
    pub certificate: Option<String>,
    /// PEM file: the certificate's key
    #[arg(long, value_name = "FILE", env = "ISTHMUS_PROXY_KEY")]
    pub key: Option<String>,
    /// PEM file: the roots of a trust domain
    #[arg(long, value_name = "DOMAIN=FILE", env = "ISTHMUS_PROXY_BUNDLE", value_delimiter = ',')]
    pub bundle: Vec<DomainFile>,
    /// Threads that carry traffic [default: one per core, at most 4]
    #[arg(long, value_name = "N", env = "ISTHMUS_PROXY_WORKERS")]
    pub workers: Option<String>,
    /// stdout, journald, off, or a file
    #[arg(long, value_name = "WHERE", env = "ISTHMUS_PROXY_ACCESS_LOG")]
    pub access_log: Option<String>,
    /// Any key of the configuration file; files are relative to it
    /// [env: ISTHMUS_PROXY_SET, separated by `;`]
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Any key of the site file; files are relative to it
    /// [env: ISTHMUS_PROXY_SET_SITE, separated by `;`]
    #[arg(long, value_name = "KEY=VALUE")]
    pub set_site: Vec<String>,
    /// Print the JSON Schema of a file and exit
    #[arg(long, value_name = "FILE")]
    pub print_schema: Option<Schema>,
    /// Wait until the proxy beside is ready (`admin` of the same configuration), and exit
    #[arg(long, value_name = "DURATION")]
    pub await_ready: Option<HumanDuration>,
    /// What of it came from the environment.
    #[arg(skip)]
    pub env: Environment,
}

/// What the environment says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Flags whose value is that of their variable, as clap calls them.
    pub flags: Vec<&'static str>,
    /// What `ISTHMUS_PROXY_SET` holds.
    pub set: String,
    /// What `ISTHMUS_PROXY_SET_SITE` holds.
    pub set_site: String,
}

/// Of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Schema {
    /// proxy.yaml
    Proxy,
    /// the site file
    Site,
}

impl Schema {
    /// Its JSON Schema; a test holds it against the types that read the file.
    pub fn text(self) -> &'static str {
        match self {
            Self::Proxy => include_str!("../../../docs/schema/proxy.json"),
            Self::Site => include_str!("../../../docs/schema/site.json"),
        }
    }
}

/// An address for one port of one service: `orders.shop:http=127.0.0.1:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortAddr {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: PortName,
    /// The address.
    pub addr: SocketAddr,
}

impl FromStr for PortAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || "write <service>:<port>=<ip>:<port>, e.g. orders.shop:http=127.0.0.1:80";
        let (name, addr) = text.split_once('=').ok_or_else(hint)?;
        let (service, port) = name.split_once(':').ok_or_else(hint)?;
        Ok(Self {
            service: service.parse().map_err(|error| format!("{error}"))?,
            port: port.parse().map_err(|error| format!("{error}"))?,
            addr: addr.parse().map_err(|_| hint())?,
        })
    }
}

/// Roots of a trust domain: `west.example=root.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainFile {
    domain: String,
    file: String,
}

impl FromStr for DomainFile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let hint = "write <trust domain>=<file>, e.g. west.example=root.pem";
        let (domain, file) = text.split_once('=').ok_or(hint)?;
        Ok(Self { domain: domain.into(), file: file.into() })
    }
}

/// A flag and what it says of a key.
type Said = (&'static str, Setting);

impl Flags {
    /// Those of this process; ends it where clap cannot read them.
    pub fn of_process() -> Self {
        let matches = Self::command().get_matches();
        let mut flags = Self::of(&matches).unwrap_or_else(|error| error.exit());
        let variable = |name| std::env::var(name).unwrap_or_default();
        flags.env.set = variable(SET);
        flags.env.set_site = variable(SET_SITE);
        flags
    }

    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::from_arg_matches(matches)?;
        let from_env = |id: &&str| matches.value_source(id) == Some(ValueSource::EnvVariable);
        flags.env.flags = IDS.into_iter().filter(from_env).collect();
        Ok(flags)
    }

    /// What is said of the configuration file, the weakest first.
    ///
    /// # Errors
    ///
    /// A setting is no `KEY=VALUE`.
    pub fn settings(&self) -> Result<Vec<Setting>, ConfigError> {
        self.in_order((&self.env.set, SET), (&self.set, "--set"), self.named())
    }

    /// What is said of the site file, the weakest first.
    ///
    /// # Errors
    ///
    /// A setting is no `KEY=VALUE`.
    pub fn site_settings(&self) -> Result<Vec<Setting>, ConfigError> {
        let upstream = |one: &PortAddr| {
            let (service, port) = (one.service.to_string(), one.port.to_string());
            let key = |text: &str| Step::Key(text.to_owned());
            let steps = vec![
                key("services"),
                Step::Element(service),
                key("endpoints"),
                Step::Element(port),
                key("target"),
            ];
            ("upstream", Setting::text(steps, &one.addr.to_string(), &self.shown("upstream")))
        };
        let named = self.upstream.iter().map(upstream).collect();
        self.in_order((&self.env.set_site, SET_SITE), (&self.set_site, "--set-site"), named)
    }

    fn in_order(
        &self,
        (env, variable): (&str, &str),
        (set, flag): (&[String], &str),
        named: Vec<Said>,
    ) -> Result<Vec<Setting>, ConfigError> {
        let written = env.split(';').map(str::trim).filter(|text| !text.is_empty());
        let mut settings =
            written.map(|text| Setting::parse(text, variable)).collect::<Result<Vec<_>, _>>()?;
        let (weak, strong): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(id, _)| self.env.flags.contains(id));
        settings.extend(weak.into_iter().map(|(_, setting)| setting));
        for text in set {
            settings.push(Setting::parse(text, flag)?);
        }
        settings.extend(strong.into_iter().map(|(_, setting)| setting));
        Ok(settings)
    }

    /// Flags that are keys of the configuration file under another name.
    fn named(&self) -> Vec<Said> {
        let mut said = Vec::new();
        let mut say = |id, keys: &[&str], value: &str| {
            let steps = keys.iter().map(|key| Step::Key((*key).to_owned())).collect();
            said.push((id, Setting::text(steps, value, &self.shown(id))));
        };
        for (key, value) in [
            ("http_listener", &self.http_listener),
            ("transparent", &self.transparent),
            ("inbound", &self.inbound),
            ("admin", &self.admin),
            ("access_log", &self.access_log),
        ] {
            value.iter().for_each(|value| say(key, &[key], value));
        }
        for (id, keys, file) in [
            ("snapshot", &["snapshot", "file"][..], &self.snapshot),
            ("certificate", &["identity", "files", "certificate"], &self.certificate),
            ("key", &["identity", "files", "key"], &self.key),
        ] {
            file.iter().for_each(|file| say(id, keys, &absolute(file)));
        }
        for DomainFile { domain, file } in &self.bundle {
            say("bundle", &["identity", "files", "bundles", domain], &absolute(file));
        }
        if let Some(workers) = &self.workers {
            let steps = vec![Step::Key("workers".into())];
            said.push(("workers", Setting::yaml(steps, workers, &self.shown("workers"))));
        }
        said
    }

    /// How errors call a flag: by its name, or by that of its variable.
    fn shown(&self, id: &str) -> String {
        match self.env.flags.contains(&id) {
            true => format!("ISTHMUS_PROXY_{}", id.to_uppercase()),
            false => format!("--{}", id.replace('_', "-")),
        }
    }
}

/// Flags that have a variable of their own, as clap calls them.
const IDS: [&str; 12] = [
    "snapshot",
    "http_listener",
    "transparent",
    "inbound",
    "admin",
    "listener",
    "upstream",
    "certificate",
    "key",
    "bundle",
    "workers",
    "access_log",
];

/// A file that a flag names is relative to where the process was started, not
/// to the configuration file.
fn absolute(file: &str) -> String {
    std::path::absolute(file)
        .ok()
        .and_then(|path| path.to_str().map(str::to_owned))
        .unwrap_or_else(|| file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccessLogTarget, Config, IdentitySource, SnapshotSource};

    fn flags(arguments: &[&str]) -> Flags {
        let arguments = ["edge-proxy"].iter().chain(arguments);
        Flags::of(&Flags::command().try_get_matches_from(arguments).unwrap()).unwrap()
    }

    fn config(text: &str, flags: &Flags) -> Result<Config, String> {
        Config::parse(text, flags, "proxy.yaml").map_err(|error| error.to_string())
    }

    #[test]
    fn flags_come_before_the_environment_before_the_file() {
        let text = "workers: 1\nadmin: 127.0.0.1:1\ninbound: 127.0.0.1:2\naccess_log: stdout\n\
                    identity: { socket: /a }";
        let mut flags =
            flags(&["--workers", "4", "--set", "admin=127.0.0.1:4", "--inbound", "off"]);
        flags.env.set = "workers=3; admin=127.0.0.1:3;access_log=off".into();
        let read = config(text, &flags).unwrap();
        assert_eq!((read.workers, read.inbound), (4, None));
        assert_eq!(read.admin, Some(([127, 0, 0, 1], 4).into()));
        assert_eq!(read.access_log, AccessLogTarget::Off);
        // The named flag's value is the environment's now.
        flags.env.flags = vec!["workers"];
        flags.set.push("workers=5".into());
        assert_eq!(config(text, &flags).unwrap().workers, 5);
        flags.set.clear();
        assert_eq!(config(text, &flags).unwrap().workers, 4, "its own variable comes first");
    }

    #[test]
    fn files_of_flags_are_relative_to_the_process() {
        let flags = flags(&[
            "--certificate",
            "a.pem",
            "--key",
            "/k/a.key",
            "--bundle",
            "west.example=root.pem",
            "--snapshot",
            "site.yaml",
        ]);
        let read = config("", &flags).unwrap();
        let here = std::env::current_dir().unwrap();
        let IdentitySource::Files(files) = read.identity else { panic!("{read:?}") };
        assert_eq!(files.certificate, here.join("a.pem"));
        assert_eq!(files.key, PathBuf::from("/k/a.key"));
        assert_eq!(files.bundles[0].0.as_str(), "west.example");
        let SnapshotSource::File { path, .. } = read.snapshot else { panic!("no file") };
        assert_eq!(path, here.join("site.yaml"));
    }

    #[test]
    fn listeners_and_upstreams_are_named_by_service_and_port() {
        let text = "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c }]\n\
                    snapshot: { file: s.yaml }";
        let flags = flags(&[
            "--listener",
            "a.b:c=127.0.0.1:2",
            "--listener",
            "a.b:d=127.0.0.1:3",
            "--upstream",
            "a.b:c=127.0.0.1:4",
            "--set-site",
            "site=x",
        ]);
        let read = config(text, &flags).unwrap();
        let found: Vec<_> =
            read.listeners.iter().map(|one| (one.port.as_str(), one.listen.port())).collect();
        assert_eq!(found, [("c", 2), ("d", 3)]);
        let SnapshotSource::File { set, .. } = read.snapshot else { panic!("no file") };
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn mistakes_name_the_flag() {
        let cases: [(&[&str], &str); 7] = [
            (&["--workers", "0"], "--workers: workers: 0: must be 1 to 64"),
            (&["--workers", "x"], "--workers: workers: invalid type"),
            (&["--http-listener", "localhost"], "--http-listener: http_listener: \"localhost\""),
            (
                &["--http-listener", "0.0.0.0:1"],
                "--http-listener: http_listener: 0.0.0.0:1 is reac",
            ),
            (&["--access-log", "syslog"], "--access-log: access_log: \"syslog\""),
            (&["--certificate", "a.pem"], "identity.files: missing field `key`"),
            (&["--set", "workrs=1"], "--set: workrs: unknown field"),
        ];
        for (arguments, wanted) in cases {
            let error = config("", &flags(arguments)).map(|_| ()).unwrap_err();
            assert!(error.contains(wanted), "{arguments:?}: {error}");
        }
        let mut by_variable = flags(&["--workers", "0"]);
        by_variable.env.flags = vec!["workers"];
        let error = config("", &by_variable).map(|_| ()).unwrap_err();
        assert!(error.starts_with("ISTHMUS_PROXY_WORKERS: workers"), "{error}");
        for wrong in
            [["--upstream", "a.b=127.0.0.1:1"], ["--listener", "a.b:c=1"], ["--bundle", "a"]]
        {
            let arguments = ["edge-proxy"].iter().chain(&wrong);
            assert!(Flags::command().try_get_matches_from(arguments).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_help_is_whole() {
        let help = Flags::command().render_long_help().to_string();
        for id in IDS {
            let variable = format!("ISTHMUS_PROXY_{}", id.to_uppercase());
            assert!(help.contains(&variable), "{variable}");
        }
        assert!(help.contains(SET) && help.contains(SET_SITE) && help.contains("Examples:"));
        Flags::command().debug_assert();
    }
}
