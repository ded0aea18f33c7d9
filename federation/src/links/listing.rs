//! What operators see of links and services.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::v1::{
    Endpoint, Health, LinkInfo, ListLinksResponse, ListServicesResponse, Service, ServiceInfo,
    resource::Resource as R,
};
use mesh_core::SiteName;

use super::{Links, fingerprint_of};
use crate::{
    authority::{State, state::LinkState},
    exports::exported_names,
    live::LinkLive,
    render::Note,
};

impl Links {
    /// `Admin.ListLinks`.
    pub fn list(&self) -> ListLinksResponse {
        let (state, notes) = (self.state(), self.view.notes());
        let info =
            |(site, link): (&SiteName, &Arc<LinkState>)| self.info(&state, &notes, site, link);
        ListLinksResponse { links: state.links.iter().map(info).collect() }
    }

    fn info(&self, state: &State, notes: &[Note], site: &SiteName, link: &LinkState) -> LinkInfo {
        let notes: Vec<&Note> = notes.iter().filter(|note| note.site == *site).collect();
        let tunnels = self.tunnels(site);
        self.view.read_live(|live| {
            let none = LinkLive::default();
            let live = live.links.get(site).unwrap_or(&none);
            let imported = live.imported.services.keys();
            let imports = imported.filter(|name| !notes.iter().any(|note| note.service == **name));
            LinkInfo {
                site: site.to_string(),
                trust_domain: link.trust_domain.to_string(),
                state: live.state().to_owned(),
                tunnels,
                last_heard_ms: live.heard.map_or(0, |heard| {
                    u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX)
                }),
                bundle_sequence: link.bundle.sequence,
                root_fingerprint: fingerprint_of(&link.bundle),
                exports: exported_names(state, site),
                imports: imports.map(ToString::to_string).collect(),
                refused: refused(live, &notes),
                clock_ahead_ms: live.clock_ahead_ms,
            }
        })
    }

    /// `Admin.ListServices`: those that exist, and those that are exported or
    /// offered and do not.
    pub fn services(&self) -> ListServicesResponse {
        let state = self.state();
        let mut services: BTreeMap<String, ServiceInfo> = BTreeMap::new();
        self.view.read(|resources, _| {
            for resource in resources.values() {
                match &resource.resource {
                    Some(R::Service(service)) => {
                        entry(&mut services, &service.name).service = Some(service.clone())
                    }
                    Some(R::Endpoint(endpoint)) => count(&mut services, endpoint),
                    _ => {}
                }
            }
        });
        for (name, export) in state.exports.iter() {
            let info = entry(&mut services, name.as_str());
            if info.service.is_none() {
                let to = state.links.keys().filter(|site| export.includes(site));
                let exported_to = to.map(ToString::to_string).collect();
                let name = name.to_string();
                info.service = Some(Service { name, exported_to, ..Service::default() });
                info.status = "exported, and no machine has registered it yet".to_owned();
            }
        }
        for note in self.view.notes() {
            let status = &mut entry(&mut services, note.service.as_str()).status;
            let separator = if status.is_empty() { "" } else { "; " };
            status.push_str(&format!("{separator}in {}: {}", note.site, note.why));
        }
        ListServicesResponse { services: services.into_values().collect() }
    }
}

fn entry<'a>(services: &'a mut BTreeMap<String, ServiceInfo>, name: &str) -> &'a mut ServiceInfo {
    services.entry(name.to_owned()).or_default()
}

fn count(services: &mut BTreeMap<String, ServiceInfo>, endpoint: &Endpoint) {
    let info = entry(services, &endpoint.service);
    info.endpoints += 1;
    info.healthy += u32::from(endpoint.health() == Health::Healthy);
}

/// Everything about a link that is not as it should be.
fn refused(live: &LinkLive, notes: &[&Note]) -> Vec<String> {
    let notes = notes.iter().map(|note| format!("{}: {}", note.service, note.why));
    let problem = live.problem.iter().filter(|_| live.refused.is_none()).cloned();
    live.refused.iter().cloned().chain(problem).chain(notes).collect()
}
