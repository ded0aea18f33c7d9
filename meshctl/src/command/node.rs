//! `meshctl node`: machines and what they may be.

use clap::Subcommand;
use mesh_api::v1;
use serde::Serialize;

use super::view;
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
    time,
};

/// Subcommands of `node`.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Machines that have joined
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  meshctl node list\n  meshctl node list -o wide"
    )]
    List,
    /// Clear a machine's `duplicated` mark: one copy stays, the others are revoked
    #[command(
        after_help = "Examples:\n  meshctl node resolve 0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11\n  meshctl node resolve 0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11 --keep-serial 5af3…"
    )]
    Resolve {
        /// UUID, as `node list` shows it
        id: String,
        /// The certificate that stays, hex [default: the current one]
        #[arg(long, default_value = "", hide_default_value = true)]
        keep_serial: String,
    },
}

impl Node {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut admin = run.admin().await?;
        match self {
            Node::List => {
                let answer = admin.list_nodes(v1::ListNodesRequest {}).await?.into_inner();
                let nodes = answer.nodes.into_iter().map(Into::into).collect();
                output::print(format, &Nodes { nodes })
            }
            Node::Resolve { id, keep_serial } => {
                admin.resolve_node(v1::ResolveNodeRequest { id: id.clone(), keep_serial }).await?;
                output::print(format, &view::Done::new(format!("node {id}: resolved")))
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Nodes {
    nodes: Vec<view::Node>,
}

impl Show for Nodes {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.nodes.is_empty() {
            return "No machines. Make a token: meshctl token create --namespace N --account A\n"
                .into();
        }
        node_table(&self.nodes, wide, paint)
    }
}

/// The machines as a table.
pub(crate) fn node_table(nodes: &[view::Node], wide: bool, paint: Paint) -> String {
    let now = time::now_unix_s();
    let mut header = vec!["NODE", "HOST", "STATE", "IDENTITY", "CERTIFICATE", "HEARD", "VERSION"];
    if wide {
        header.extend(["SERVICES", "SERIAL", "CLOCK"]);
    }
    let mut table = Table::new(&header);
    for node in nodes {
        let grants = node.grants.as_ref();
        let mut cells = vec![
            node.id.clone(),
            node.hostname.clone(),
            view::state(paint, &node.state),
            grants.map(view::Grants::identity).unwrap_or_default(),
            time::until(node.certificate_expires_unix_s, now),
            time::age_ms(node.last_heard_ms),
            node.agent_version.clone(),
        ];
        if wide {
            cells.push(grants.map(|grants| grants.services.join(",")).unwrap_or_default());
            cells.push(node.serial.clone());
            cells.push(node.clock_ahead_ms.map(time::ahead_ms).unwrap_or_default());
        }
        table.row(cells);
    }
    table.render(paint)
}
