//! `isthmus-k8s redirect`: the init container of an injected pod. It tells the
//! kernel of the pod's network namespace which connections its proxy takes, and
//! ends.
//!
//! Everything is in table `inet isthmus`, which is made anew in one transaction:
//! a container that is started again leaves the same rules, and one that fails
//! leaves those of before, or none.
//!
//! - Outbound: TCP of everybody but the proxy, to anywhere but loopback, skipped
//!   ports and blocks, and what clouds and the link itself answer
//!   ([`mesh_core::address::NEVER`]).
//! - Inbound: TCP to any port but the mesh's, the proxy's admin port and skipped
//!   ones.
//!
//! The proxy learns from the kernel where a connection was bound for
//! (`SO_ORIGINAL_DST`).

mod attributes;
mod netlink;
mod rules;
mod step;

use clap::Args;
use mesh_core::Cidr;
use mesh_inject::{
    Ports, annotation,
    own::{ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, PLAINTEXT_PORT, PROXY_UID},
};

use self::{netlink::NetlinkError, rules::Rules};

/// Arguments of `redirect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Needs NET_ADMIN and Linux 5.2. Injection writes this into a pod's first init container.

Examples:
  isthmus-k8s redirect
  isthmus-k8s redirect --skip-outbound-ports=25,587,3306-3310 --skip-outbound-cidrs=10.96.0.1/32
  unshare -n isthmus-k8s redirect                    (to look at the rules: nft list ruleset)"
)]
pub struct Redirect {
    /// Outbound connections to these ports are left alone, e.g. 25,3306-3310
    #[arg(long, value_name = "PORTS", default_value_t)]
    skip_outbound_ports: Ports,
    /// Outbound connections to these blocks are left alone, e.g. 10.0.0.0/8,fd00::/8
    #[arg(long, value_name = "CIDRS", default_value = "", value_parser = blocks)]
    skip_outbound_cidrs: Blocks,
    /// Inbound connections to these ports are left alone
    #[arg(long, value_name = "PORTS", default_value_t)]
    skip_inbound_ports: Ports,
    /// Whose connections are left alone: the proxy's
    #[arg(long, value_name = "UID", default_value_t = PROXY_UID)]
    proxy_uid: u32,
    /// Where the proxy takes outbound connections, on loopback
    #[arg(long, value_name = "PORT", default_value_t = OUTBOUND_PORT)]
    outbound_port: u16,
    /// Where the proxy takes inbound connections in plaintext
    #[arg(long, value_name = "PORT", default_value_t = PLAINTEXT_PORT)]
    inbound_port: u16,
}

/// clap takes a `Vec` for an argument that is repeated.
#[derive(Debug, Clone, Default)]
struct Blocks(Vec<Cidr>);

fn blocks(text: &str) -> Result<Blocks, String> {
    annotation::blocks(text).map(Blocks)
}

impl Redirect {
    /// Puts the rules in force in the network namespace of this process.
    ///
    /// # Errors
    ///
    /// The kernel refuses; nothing has changed then.
    pub fn run(&self) -> Result<(), NetlinkError> {
        let rules = self.rules();
        netlink::commit(&rules.transaction())?;
        log::info!(
            outbound = self.outbound_port, inbound = self.inbound_port, but_uid = self.proxy_uid,
            but_outbound:% = rules.skip_outbound, but_inbound:% = rules.skip_inbound;
            "connections are redirected"
        );
        Ok(())
    }

    fn rules(&self) -> Rules {
        let own = Ports::each(&[INBOUND_PORT, ADMIN_PORT]);
        let mut rules = Rules {
            proxy_uid: self.proxy_uid,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            skip_outbound: self.skip_outbound_ports.clone(),
            skip_inbound: self.skip_inbound_ports.and(&own),
            ..Rules::default()
        };
        let never = mesh_core::address::NEVER.iter().filter_map(|block| block.parse().ok());
        for block in never.chain(self.skip_outbound_cidrs.0.iter().copied()) {
            rules.skip_block(&block);
        }
        rules
    }
}
