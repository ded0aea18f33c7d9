//! `meshctl service`: what this site offers to others.

use clap::Subcommand;
use mesh_api::v1;
use serde::Serialize;

use super::view;
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// Subcommands of `service`.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// Let linked sites call a service of this site
    #[command(
        after_help = "Examples:\n  meshctl service export orders.shop\n  meshctl service export orders.shop --to east --to north"
    )]
    Export {
        /// <name>.<namespace>
        service: String,
        /// Only this linked site; may be repeated [default: every linked site]
        #[arg(long = "to", value_name = "SITE")]
        sites: Vec<String>,
    },
    /// Take that back
    #[command(
        after_help = "Examples:\n  meshctl service unexport orders.shop\n  meshctl service unexport orders.shop --from north"
    )]
    Unexport {
        /// <name>.<namespace>
        service: String,
        /// Only this linked site; may be repeated [default: every linked site]
        #[arg(long = "from", value_name = "SITE")]
        sites: Vec<String>,
    },
    /// Services known here, own and imported
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  meshctl service list\n  meshctl service list -o wide"
    )]
    List,
}

impl Service {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut admin = run.admin().await?;
        match self {
            Service::Export { service, sites } => {
                let request = v1::ExportServiceRequest { service: service.clone(), sites };
                let exported_to = admin.export_service(request).await?.into_inner().exported_to;
                output::print(format, &Exported { service, exported_to })
            }
            Service::Unexport { service, sites } => {
                let request = v1::ExportServiceRequest { service: service.clone(), sites };
                let exported_to = admin.unexport_service(request).await?.into_inner().exported_to;
                output::print(format, &Exported { service, exported_to })
            }
            Service::List => {
                let answer = admin.list_services(v1::ListServicesRequest {}).await?.into_inner();
                let services = answer.services.into_iter().map(Into::into).collect();
                output::print(format, &Services { services })
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Exported {
    service: String,
    exported_to: Vec<String>,
}

impl Show for Exported {
    fn text(&self, _wide: bool, _paint: Paint) -> String {
        if self.exported_to.is_empty() {
            return format!("{}: exported to no linked site\n", self.service);
        }
        format!("{}: exported to {}\n", self.service, self.exported_to.join(", "))
    }
}

#[derive(Debug, Serialize)]
struct Services {
    services: Vec<ServiceView>,
}

#[derive(Debug, Serialize)]
struct ServiceView {
    name: String,
    ports: Vec<view::Port>,
    endpoints: u32,
    healthy: u32,
    exported_to: Vec<String>,
    imported_from: Vec<String>,
    virtual_address: String,
    status: String,
}

impl From<v1::ServiceInfo> for ServiceView {
    fn from(info: v1::ServiceInfo) -> Self {
        let service = info.service.unwrap_or_default();
        Self {
            name: service.name,
            ports: service.ports.into_iter().map(Into::into).collect(),
            endpoints: info.endpoints,
            healthy: info.healthy,
            exported_to: service.exported_to,
            imported_from: service.imported_from,
            virtual_address: service.virtual_address,
            status: info.status,
        }
    }
}

impl Show for Services {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.services.is_empty() {
            return "No services. On a joined machine: write /etc/isthmus/services.d/<name>.yaml\n"
                .into();
        }
        let mut header = vec!["SERVICE", "PORTS", "HEALTHY", "EXPORTED TO", "IMPORTED FROM"];
        if wide {
            header.push("ADDRESS");
        }
        header.push("STATUS");
        let mut table = Table::new(&header);
        for service in &self.services {
            let healthy = format!("{}/{}", service.healthy, service.endpoints);
            let mut cells = vec![
                service.name.clone(),
                view::Port::list(&service.ports),
                if service.healthy == 0 { paint.bad(&healthy) } else { healthy },
                service.exported_to.join(","),
                service.imported_from.join(","),
            ];
            if wide {
                cells.push(service.virtual_address.clone());
            }
            cells.push(if service.status.is_empty() {
                "ok".into()
            } else {
                paint.warn(&service.status)
            });
            table.row(cells);
        }
        table.render(paint)
    }
}
