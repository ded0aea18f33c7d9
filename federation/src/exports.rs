//! Which linked sites may call which local service.

use std::collections::BTreeSet;

use mesh_api::v1::{ExportServiceRequest, ServiceExported, authority_record::Event};
use mesh_core::{ServiceName, SiteName, name::is_reserved_namespace};
use tonic::Code;

use crate::{
    authority::{State, state::Export},
    refusal::Refusal,
};

/// Sites that one request, or one service, may name.
const MAX_SITES: usize = mesh_core::wire::MAX_SITES;

/// Why an export was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A name that is not well formed.
    #[error("{0}")]
    Invalid(String),
    /// No other site would import it.
    #[error("{0}: its namespace is reserved and never leaves a site")]
    Reserved(ServiceName),
    /// A site that is not linked.
    #[error(
        "{site} is not linked with this site (linked: {linked}); link it first, or leave --site \
             out to export to every linked site, also future ones"
    )]
    NotLinked {
        /// What was asked.
        site: SiteName,
        /// What there is.
        linked: String,
    },
}

impl Refusal for ExportError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Reserved(_) => Code::InvalidArgument,
            Self::NotLinked { .. } => Code::FailedPrecondition,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_argument",
            Self::Reserved(_) => "reserved_namespace",
            Self::NotLinked { .. } => "not_linked",
        }
    }
}

/// Adds sites to a service's export, or all. Whether the service exists does
/// not matter. Answers to whom it is exported now.
pub fn decide_export(
    state: &State,
    request: &ExportServiceRequest,
) -> Result<(Vec<Event>, Vec<String>), ExportError> {
    let (service, sites) = parse(request)?;
    if is_reserved_namespace(service.namespace()) {
        return Err(ExportError::Reserved(service));
    }
    if let Some(site) = sites.iter().find(|site| !state.links.contains_key(*site)) {
        let linked: Vec<_> = state.links.keys().map(ToString::to_string).collect();
        let linked = if linked.is_empty() { "none".to_owned() } else { linked.join(", ") };
        return Err(ExportError::NotLinked { site: site.clone(), linked });
    }
    let mut export = current(state, &service);
    export.all |= sites.is_empty();
    export.sites.extend(sites);
    export.by_cluster = false;
    Ok(change(state, &service, export))
}

/// Takes sites from a service's export, or all.
pub fn decide_unexport(
    state: &State,
    request: &ExportServiceRequest,
) -> Result<(Vec<Event>, Vec<String>), ExportError> {
    let (service, sites) = parse(request)?;
    let mut export = current(state, &service);
    if sites.is_empty() {
        export = Export::default();
    } else if export.all {
        // "All but these" is the list of those that are linked now.
        let linked = state.links.keys().cloned();
        let kept = linked.chain(export.sites).filter(|site| !sites.contains(site)).collect();
        export = Export { all: false, sites: kept, by_cluster: false };
    } else {
        export.sites.retain(|site| !sites.contains(site));
    }
    Ok(change(state, &service, export))
}

fn parse(request: &ExportServiceRequest) -> Result<(ServiceName, BTreeSet<SiteName>), ExportError> {
    let invalid = |error: mesh_core::name::InvalidName| ExportError::Invalid(error.to_string());
    if request.sites.len() > MAX_SITES {
        return Err(ExportError::Invalid(format!("more than {MAX_SITES} sites")));
    }
    let service = request.service.parse().map_err(invalid)?;
    let sites = request.sites.iter().map(|site| site.parse().map_err(invalid));
    Ok((service, sites.collect::<Result<_, _>>()?))
}

fn current(state: &State, service: &ServiceName) -> Export {
    state.exports.get(service).map(|export| (**export).clone()).unwrap_or_default()
}

/// No event if nothing changes.
fn change(state: &State, service: &ServiceName, next: Export) -> (Vec<Event>, Vec<String>) {
    let to = state.links.keys().filter(|site| next.includes(site));
    let exported_to = to.map(ToString::to_string).collect();
    if next == current(state, service) {
        return (Vec::new(), exported_to);
    }
    let sites = next.sites.iter().map(ToString::to_string).collect();
    let exported = ServiceExported {
        service: service.to_string(),
        sites,
        all: next.all,
        by_cluster: next.by_cluster,
    };
    (vec![Event::ServiceExported(exported)], exported_to)
}

/// Names that are exported to a site, whether they exist or not.
pub fn exported_names(state: &State, site: &SiteName) -> Vec<String> {
    let names = state.exports.iter().filter(|(_, export)| export.includes(site));
    names.map(|(name, _)| name.to_string()).collect()
}
