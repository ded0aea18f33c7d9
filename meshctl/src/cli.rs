//! The command line: every command, its arguments and its help.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    cluster, command, demo,
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Output},
};

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   refused, or a check did not pass
  2   the command line makes no sense
  69  no control plane or agent answers
  77  not permitted: the socket, a file, or the role of this machine's identity
  78  a configuration is wrong or missing

Where it talks: federation.sock in the run directory. On a joined machine, which
has identity.sock instead, it goes through a gateway of the site with mTLS, and the
machine's identity needs a role in federation.yaml on the host of federation:
  roles: [{ id: \"spiffe://west.example/ns/ops/sa/alice\", role: viewer }]
A viewer looks; an operator also makes tokens and exports (in `namespaces: [...]`
only, if given); an admin does everything.

With --context it asks the control plane of a cluster: `kubectl exec` in the pod of
federation carries the connection. Files are read here, and no credential of the
cluster leaves this machine.

Begin with:
  meshctl demo --duration 20s                        watch two sites on this machine
  meshctl site init west --trust-domain west.example a site of your own
  meshctl token create --namespace shop --account orders
  meshctl join <token>                               on the VM";

/// Explains and changes an Isthmus mesh.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, propagate_version = true, after_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// The site whose run directory is $ISTHMUS_SITES/<NAME>
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Directory of federation.sock, agent.sock and identity.sock [default: /run/isthmus]
    #[arg(long, global = true, value_name = "DIR", env = "ISTHMUS_RUN", hide_env_values = true)]
    run: Option<PathBuf>,
    /// The control plane of a cluster, through kubectl and this context of its configuration
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// How to print: table, wide, json or yaml
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    output: Output,
    /// Short for -o json: one JSON document on stdout and nothing else
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a site: its CA, its configuration
    #[command(subcommand)]
    Site(command::site::Site),
    /// Tokens with which machines join
    #[command(subcommand)]
    Token(command::token::Token),
    /// Join this machine to a site
    Join(command::join::Join),
    /// Take this machine out of its site
    Leave(command::join::Leave),
    /// What the kernel of this machine sends to its proxy
    #[command(subcommand)]
    Vm(command::vm::Vm),
    /// Link this site with another
    #[command(subcommand)]
    Link(command::link::Link),
    /// The links of this site: transport, round-trip time, what is shared
    #[command(
        after_help = "Examples:\n  meshctl links\n  meshctl links -o wide\n  meshctl links --json | jq '.links[].state'"
    )]
    Links,
    /// What this site shares with linked sites
    #[command(subcommand)]
    Service(command::service::Service),
    /// Put documents about traffic in force: routes, profiles, policies
    Apply(command::manifest::Apply),
    /// What `apply` would change
    Diff(command::manifest::Diff),
    /// Documents about traffic, and whether they are in force
    Get(command::manifest::Get),
    /// Take documents about traffic out of force
    Delete(command::manifest::Delete),
    /// Hosts off their legacy proxies: Linkerd 1.x, HAProxy, nginx, Envoy
    #[command(subcommand)]
    Migrate(command::migrate::Migrate),
    /// What makes a cluster a site, as documents for kubectl
    Install(command::install::Install),
    /// Put the proxy into workloads of a cluster, offline
    Inject(command::inject::Inject),
    /// Take the proxy out of workloads of a cluster, offline
    Uninject(command::inject::Uninject),
    /// The machines of this site
    #[command(subcommand)]
    Node(command::node::Node),
    /// Who has a certificate, until when; and revocation
    Identity(command::identity::Identity),
    /// Replace the site's root CA
    #[command(subcommand)]
    Rotate(command::rotate::Rotate),
    /// Site, gateways, machines, certificates, links and what needs attention
    #[command(
        after_help = "Examples:\n  meshctl status\n  meshctl --site west status      (with ISTHMUS_SITES)\n  meshctl status --json | jq -r '.warnings[]'"
    )]
    Status,
    /// Success rate, requests per second and latency of each service
    Stat(command::stat::Stat),
    /// What the callers of each route saw: success rate, requests per second, latency
    Routes(command::routes::Routes),
    /// Who talks to whom, in which site, as which identity
    Edges(command::edges::Edges),
    /// Requests as they end, one by one: of this machine's proxy, or of the site's
    Tap(command::tap::Tap),
    /// The same by path: how many, how fast, how many went well
    Top(command::top::Top),
    /// Every endpoint of a service: site, tier, weight, health, way
    Endpoints(command::endpoints::Endpoints),
    /// Why a caller's requests go where they go, decided by the proxy's own code
    Why(command::why::Why),
    /// Prove the site works; name the first thing that does not, and its remedy
    Check(command::check::Check),
    /// Two sites on this machine, real processes, real requests, a live table
    Demo(demo::Demo),
    /// A completion script for a shell
    #[command(
        after_help = "Examples:\n  meshctl completions bash > /etc/bash_completion.d/meshctl\n  meshctl completions zsh > \"${fpath[1]}/_meshctl\"\n  meshctl completions fish > ~/.config/fish/completions/meshctl.fish"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// What the demo is made of.
    #[command(subcommand, hide = true)]
    DemoPart(demo::Part),
    /// What `--context` talks through in the pod of federation, and `migrate` on hosts.
    #[command(hide = true)]
    Pipe {
        /// Of the run directory
        #[arg(default_value = "federation.sock")]
        socket: String,
    },
}

impl Command {
    /// Whether it asks a control plane that may be a cluster's.
    fn check_context(&self) -> Result<(), Failure> {
        match self {
            Self::Site(_)
            | Self::Install(_)
            | Self::Migrate(_)
            | Self::Inject(_)
            | Self::Uninject(_)
            | Self::Demo(_)
            | Self::DemoPart(_)
            | Self::Pipe { .. }
            | Self::Completions { .. } => {
                Err(Failure::usage("--context: this command asks no control plane"))
            }
            _ => Ok(()),
        }
    }
}

impl Cli {
    /// Does what was asked.
    pub async fn run(self) -> Result<(), Failure> {
        let output = if self.global.json { Output::As(Format::Json) } else { self.global.output };
        let format = match &self.command {
            // Takes a directory, too.
            Command::Migrate(_) => Format::default(),
            _ => output.format()?,
        };
        let sites = std::env::var_os("ISTHMUS_SITES").map(PathBuf::from);
        let context = self.global.context.as_deref();
        // An explicit --site or --context outranks ISTHMUS_RUN, not an explicit --run.
        let from_env = std::env::var_os("ISTHMUS_RUN").map(PathBuf::from) == self.global.run;
        let is_outranked = from_env && (self.site.is_some() || context.is_some());
        let dir = self.global.run.as_deref().filter(|_| !is_outranked);
        if context.is_some() {
            self.command.check_context()?;
        }
        let run = || match (context, dir, self.site.as_deref()) {
            (Some(context), None, None) => Ok(Run::cluster(context)),
            (Some(_), ..) => Err(Failure::usage("--context excludes --run and --site")),
            (None, dir, site) => Run::choose(dir, site, sites.as_deref()),
        };
        match self.command {
            Command::Site(site) => site.run(format, dir).await,
            Command::Token(token) => token.run(&run()?, format).await,
            Command::Join(join) => join.run(&run()?, format).await,
            Command::Leave(leave) => leave.run(&run()?, format).await,
            Command::Vm(vm) => vm.run(&run()?, format).await,
            Command::Link(link) => link.run(&run()?, format).await,
            Command::Links => command::link::links(&run()?, format).await,
            Command::Service(service) => service.run(&run()?, format).await,
            Command::Apply(apply) => apply.run(&run()?, format).await,
            Command::Diff(diff) => diff.run(&run()?, format).await,
            Command::Get(get) => get.run(&run()?, format).await,
            Command::Delete(delete) => delete.run(&run()?, format).await,
            Command::Install(install) => install.run(),
            Command::Migrate(migrate) => migrate.run(&run()?, output).await,
            Command::Inject(inject) => inject.run(format),
            Command::Uninject(uninject) => uninject.run(format),
            Command::Node(node) => node.run(&run()?, format).await,
            Command::Identity(identity) => identity.run(&run()?, format).await,
            Command::Rotate(rotate) => rotate.run(&run()?, format).await,
            Command::Status => command::status::status(&run()?, format).await,
            Command::Stat(stat) => stat.run(&run()?, format).await,
            Command::Routes(routes) => routes.run(&run()?, format).await,
            Command::Edges(edges) => edges.run(&run()?, format).await,
            Command::Tap(tap) => tap.run(&run()?, format).await,
            Command::Top(top) => top.run(&run()?, format).await,
            Command::Endpoints(endpoints) => endpoints.run(&run()?, format).await,
            Command::Why(why) => why.run(&run()?, format).await,
            Command::Check(check) => check.run(run, context, format).await,
            Command::Demo(demo) => demo.run(format).await,
            Command::Completions { shell } => completions(shell),
            Command::DemoPart(part) => part.run().await,
            Command::Pipe { socket } => cluster::pipe(&run()?.dir().join(socket)).await,
        }
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
    output::write_stdout(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_ux_promises_parses() {
        let lines = [
            "demo --duration 20s --json --block-udp --keep-logs",
            "site init west --trust-domain west.example",
            "token create --namespace shop --account orders --uses 1 --ttl 15m",
            "token list -o json",
            "token revoke abc",
            "join -",
            "leave --force",
            "vm capture enable --confirm-within 60s",
            "vm capture enable --dry-run",
            "vm capture confirm",
            "vm capture disable",
            "vm capture status -o json",
            "link token --site west",
            "link cluster east isthmus1.abc",
            "link cluster east - --transport tls",
            "link remove east",
            "links -o wide",
            "service export orders.shop --to east",
            "service unexport orders.shop",
            "service list",
            "node list",
            "node resolve 0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11",
            "identity revoke spiffe://west.example/ns/shop/sa/orders",
            "--site west status",
            "stat orders.shop",
            "routes payments.prod --from orders.shop -o json",
            "edges payments.prod -o wide",
            "identity",
            "identity orders.shop -o json",
            "tap orders.shop --path /api -o json",
            "tap --from spiffe://west.example/ns/shop/* --status 5xx --count 3",
            "tap payments.prod --mesh",
            "top orders.shop --for 10s",
            "endpoints orders.shop --json",
            "why orders.shop payments.prod --path /pay",
            "apply -f routes.yaml -f - --dry-run",
            "diff -f routes/",
            "get",
            "get httproute -n shop orders -o yaml",
            "delete httproute orders -n shop",
            "delete -f routes.yaml",
            "install --site east --trust-domain east.example --gateway gw.east.example:443 --image-tag 0.1.0",
            "inject --trust-domain east.example deployment.yaml",
            "inject --config inject.yaml -",
            "uninject -",
            "check --pre --context east",
            "link cluster west - --context east",
            "--context east status",
            "check --json",
            "check --from orders.shop --to payments.prod:grpc --path /pay --json",
            "completions bash",
        ];
        for line in lines {
            let words = std::iter::once("meshctl").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("meshctl {line}: {error}");
            }
        }
    }

    #[test]
    fn every_command_shows_examples() {
        fn walk(command: &clap::Command, path: &str, without: &mut Vec<String>) {
            let children: Vec<_> = command
                .get_subcommands()
                .filter(|child| !child.is_hide_set() && child.get_name() != "help")
                .collect();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if children.is_empty() && !help.contains("meshctl ") {
                without.push(path.to_owned());
            }
            for child in children {
                walk(child, &format!("{path} {}", child.get_name()), without);
            }
        }
        let mut without = Vec::new();
        walk(&Cli::command(), "meshctl", &mut without);
        assert!(without.is_empty(), "no examples: {without:?}");
    }

    #[test]
    fn completions_name_the_commands() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "meshctl", &mut script);
        let script = String::from_utf8(script).expect("text");
        assert!(script.contains("endpoints") && script.contains("completions"));
    }
}
