//! Documents about traffic: applied, read, deleted, and what they mean for the
//! services that there are.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::v1;
use mesh_manifest::{
    AccessIndex, AccessPolicy, Compiled, Kind, Manifest, ObjectName, Problem, Registry, compile,
    compile::{compile_with, services},
    manifest::read,
};
use tonic::{Code, Status};
use v1::authority_record::Event;

use crate::{
    authority::State,
    refusal::{Refusal, commit_status},
    site::Site,
    view::View,
};

/// Documents that a site keeps.
const MAX_MANIFESTS: usize = 10_000;
/// Bytes of one document.
const MAX_DOCUMENT: usize = 256 << 10;

/// Why documents are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestRefusal {
    /// One of them is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is no such document.
    #[error("there is no {0}; see `meshctl get`")]
    Unknown(ObjectName),
    /// There are too many.
    #[error("a site keeps at most {MAX_MANIFESTS} documents; delete some first")]
    TooMany,
}

impl Refusal for ManifestRefusal {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unknown(_) => Code::NotFound,
            Self::TooMany => Code::ResourceExhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_manifest",
            Self::Unknown(_) => "not_found",
            Self::TooMany => "too_many_manifests",
        }
    }
}

/// The name as it travels.
pub fn wire_name(name: &ObjectName) -> v1::ManifestName {
    v1::ManifestName {
        kind: name.kind.as_str().to_owned(),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

/// What is to be applied, understood.
#[derive(Debug)]
pub struct Change {
    manifests: Vec<Manifest>,
    dry_run: bool,
}

impl Change {
    /// Reads what was sent.
    pub fn read(request: &v1::ApplyManifestsRequest) -> Result<Self, ManifestRefusal> {
        let source = if request.source.is_empty() { "the request" } else { &request.source };
        let manifests = read(&request.documents, source)
            .map_err(|error| ManifestRefusal::Invalid(error.to_string()))?;
        let mut seen = BTreeSet::new();
        for manifest in &manifests {
            let name = &manifest.name;
            if !seen.insert(name) {
                return Err(ManifestRefusal::Invalid(format!("{source}: {name} is there twice")));
            }
            if manifest.document.to_string().len() > MAX_DOCUMENT {
                let problem = format!("{source}: {name} is longer than {MAX_DOCUMENT} bytes");
                return Err(ManifestRefusal::Invalid(problem));
            }
        }
        Ok(Self { manifests, dry_run: request.dry_run })
    }

    /// Every namespace that it changes something in.
    pub fn namespaces(&self) -> Vec<String> {
        namespaces(self.manifests.iter())
    }

    /// Every document that there will be.
    fn after<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Manifest> {
        let changed: BTreeSet<&ObjectName> = self.manifests.iter().map(|one| &one.name).collect();
        let kept = state.manifests.iter().filter(move |(name, _)| !changed.contains(name));
        kept.filter_map(|(_, manifest)| manifest.read.as_ref().ok()).chain(&self.manifests)
    }

    /// Applies all of it, or nothing.
    pub async fn apply(
        self,
        site: &Site,
        view: &View,
        actor: &str,
    ) -> Result<v1::ApplyManifestsResponse, Status> {
        let now = site.authority.clock().unix_s();
        let registry = Published(view);
        let dry_run = self.dry_run;
        let decide = |state: &State| -> Result<(Vec<Event>, _), ManifestRefusal> {
            let (mut events, mut changes) = (Vec::new(), Vec::new());
            let mut new = 0;
            let access = AccessIndex::of(self.after(state)).problems();
            for manifest in &self.manifests {
                let (event, mut change) = one(state, manifest, now, &registry);
                let document = manifest.name.to_string();
                let own = access.iter().filter(|problem| problem.document == document);
                change.problems.extend(own.map(|problem| problem.text.clone()));
                new += usize::from(change.action == "created");
                events.extend(event);
                changes.push(change);
            }
            if state.manifests.len() + new > MAX_MANIFESTS {
                return Err(ManifestRefusal::TooMany);
            }
            Ok((if dry_run { Vec::new() } else { events }, changes))
        };
        let changes = site.authority.commit(actor, decide).await.map_err(commit_status)?;
        if !dry_run {
            for change in changes.iter().filter(|change| change.action != "unchanged") {
                let name = change.name.clone().unwrap_or_default();
                log::info!(kind = name.kind.as_str(), namespace = name.namespace.as_str(),
                    name = name.name.as_str(), actor = actor, action = change.action.as_str();
                    "document applied");
            }
        }
        Ok(v1::ApplyManifestsResponse { changes })
    }
}

fn namespaces<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> Vec<String> {
    let mut found = BTreeSet::new();
    for manifest in manifests {
        found.insert(manifest.name.namespace.clone());
        for service in services(manifest).unwrap_or_default() {
            found.extend(service.split_once('.').map(|(_, namespace)| namespace.to_owned()));
        }
    }
    found.into_iter().collect()
}

fn one(
    state: &State,
    manifest: &Manifest,
    now: i64,
    registry: &impl Registry,
) -> (Option<Event>, v1::ManifestChange) {
    let known = state.manifests.get(&manifest.name);
    let after = manifest.document.to_string();
    let before = known.map(|known| known.document.clone()).unwrap_or_default();
    let action = match known {
        None => "created",
        Some(known) if known.document == after => "unchanged",
        Some(_) => "configured",
    };
    let applied = (action != "unchanged").then(|| {
        Event::ManifestApplied(v1::ManifestApplied {
            document: after.clone(),
            name: Some(wire_name(&manifest.name)),
            created_unix_s: known.map_or(now, |known| known.created_unix_s),
        })
    });
    let change = v1::ManifestChange {
        name: Some(wire_name(&manifest.name)),
        action: action.into(),
        before,
        after,
        problems: problems_alone(manifest, registry),
    };
    (applied, change)
}

/// What of a document would not be in force if it were the only one.
fn problems_alone(manifest: &Manifest, registry: &impl Registry) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services(manifest).unwrap_or_default() {
        if registry.ports(&service).is_none() {
            problems.push(no_service(&service));
            continue;
        }
        let compiled = compile(&service, std::slice::from_ref(manifest), registry);
        problems.extend(invalid_backends(&compiled));
        problems.extend(compiled.problems.into_iter().map(|problem| problem.text));
    }
    problems
}

fn no_service(service: &str) -> String {
    format!("NoMatchingParent: there is no service {service} yet")
}

fn invalid_backends(compiled: &Compiled) -> impl Iterator<Item = String> {
    let backends = compiled.routes.iter().flat_map(|route| &route.backends);
    let invalid = backends.filter(|backend| !backend.invalid.is_empty());
    invalid.map(|backend| format!("{}; its share is answered with 500", backend.invalid))
}

/// Ports of services as they are published now.
struct Published<'a>(&'a View);

impl Registry for Published<'_> {
    fn ports(&self, service: &str) -> Option<Vec<(String, u16)>> {
        self.0.service_ports(service)
    }
}

/// Deletes all of them, or nothing.
pub async fn delete(
    site: &Site,
    actor: &str,
    names: &[v1::ManifestName],
) -> Result<v1::DeleteManifestsResponse, Status> {
    let decide = |state: &State| -> Result<(Vec<Event>, ()), ManifestRefusal> {
        let event = |name: &v1::ManifestName| {
            let name = object_name(name)?;
            if !state.manifests.contains_key(&name) {
                return Err(ManifestRefusal::Unknown(name));
            }
            let name = Some(wire_name(&name));
            Ok(Event::ManifestDeleted(v1::ManifestDeleted { name }))
        };
        Ok((names.iter().map(event).collect::<Result<_, _>>()?, ()))
    };
    site.authority.commit(actor, decide).await.map_err(commit_status)?;
    for name in names {
        log::info!(kind = name.kind.as_str(), namespace = name.namespace.as_str(),
            name = name.name.as_str(), actor = actor; "document deleted");
    }
    Ok(v1::DeleteManifestsResponse {})
}

/// Every namespace in which deleting `names` changes something.
pub fn namespaces_of(state: &State, names: &[v1::ManifestName]) -> Vec<String> {
    let known = names.iter().filter_map(|name| state.manifests.get(&object_name(name).ok()?));
    let mut found = namespaces(known.filter_map(|known| known.read.as_ref().ok()));
    found.extend(names.iter().map(|name| name.namespace.clone()));
    found
}

fn object_name(name: &v1::ManifestName) -> Result<ObjectName, ManifestRefusal> {
    let kind = Kind::from_typed(&name.kind).ok_or_else(|| {
        let kinds = Kind::ALL.map(Kind::as_str).join(", ");
        ManifestRefusal::Invalid(format!("{:?} is none of {kinds}", name.kind))
    })?;
    Ok(ObjectName { kind, namespace: name.namespace.clone(), name: name.name.clone() })
}

/// The documents that `wanted` names, with what of them is not in force.
pub fn list(
    state: &State,
    view: &View,
    wanted: &v1::ManifestName,
) -> Result<v1::GetManifestsResponse, ManifestRefusal> {
    let kind = match wanted.kind.as_str() {
        "" => None,
        _ => Some(object_name(wanted)?.kind),
    };
    let is_wanted = |name: &ObjectName| {
        kind.is_none_or(|kind| kind == name.kind)
            && (wanted.namespace.is_empty() || wanted.namespace == name.namespace)
            && (wanted.name.is_empty() || wanted.name == name.name)
    };
    let problems = view.problems();
    let info = |(name, manifest): (
        &ObjectName,
        &std::sync::Arc<crate::authority::state::ManifestState>,
    )| {
        let document = name.to_string();
        let own = problems.iter().filter(|problem| problem.document == document);
        v1::ManifestInfo {
            name: Some(wire_name(name)),
            document: manifest.document.clone(),
            created_unix_s: manifest.created_unix_s,
            services: match &manifest.read {
                Ok(read) => services(read).unwrap_or_default(),
                Err(_) => Vec::new(),
            },
            problems: own.map(|problem| problem.text.clone()).collect(),
        }
    };
    let manifests = state.manifests.iter().filter(|(name, _)| is_wanted(name)).map(info).collect();
    Ok(v1::GetManifestsResponse { manifests })
}

/// All documents by the service that they are for.
pub struct Manifests<'s> {
    by_service: BTreeMap<String, Vec<Manifest>>,
    access: AccessIndex<'s>,
    /// Not understood by this version.
    unread: Vec<Problem>,
}

impl<'s> Manifests<'s> {
    /// Those of a site.
    pub fn of(state: &'s State) -> Self {
        let mut by_service: BTreeMap<String, Vec<Manifest>> = BTreeMap::new();
        let mut unread = Vec::new();
        for (name, manifest) in state.manifests.iter() {
            let read = match &manifest.read {
                Ok(read) => services(read).map(|services| (read, services)),
                Err(problem) => Err(problem.clone()),
            };
            match read {
                Ok((read, services)) => {
                    let services: BTreeSet<String> = services.into_iter().collect();
                    for service in services {
                        by_service.entry(service).or_default().push(read.clone());
                    }
                }
                Err(text) => unread.push(Problem { document: name.to_string(), text }),
            }
        }
        let read = state.manifests.values().filter_map(|manifest| manifest.read.as_ref().ok());
        Self { by_service, access: AccessIndex::of(read), unread }
    }

    /// What they mean for one service.
    pub fn compile(
        &mut self,
        service: &str,
        registry: &impl Registry,
        default: AccessPolicy,
    ) -> Compiled {
        let manifests = self.by_service.remove(service).unwrap_or_default();
        let mut compiled = compile_with(service, &manifests, registry, (&self.access, default));
        let requests = compiled.routes.iter().map(|r| (&r.name, &r.backends, "answered with 500"));
        let connections =
            compiled.connection_routes.iter().map(|r| (&r.name, &r.backends, "refused"));
        for (rule, backends, instead) in requests.chain(connections) {
            for backend in backends.iter().filter(|backend| !backend.invalid.is_empty()) {
                // A rule is called <namespace>/<document>/<rule>.
                let of = |m: &&Manifest| {
                    let own = format!("{}/{}/", m.name.namespace, m.name.name);
                    rule.starts_with(&own)
                };
                let Some(manifest) = manifests.iter().find(of) else { continue };
                compiled.problems.push(Problem {
                    document: manifest.name.to_string(),
                    text: format!("{}; its share is {instead}", backend.invalid),
                });
            }
        }
        compiled
    }

    /// What is for services or other documents that there are not, or is not
    /// understood.
    pub fn unused(self) -> impl Iterator<Item = Problem> {
        let unresolved = self.access.problems();
        let unused = self.by_service.into_iter().flat_map(|(service, manifests)| {
            manifests.into_iter().map(move |manifest| Problem {
                document: manifest.name.to_string(),
                text: no_service(&service),
            })
        });
        unused.chain(unresolved).chain(self.unread)
    }
}

#[cfg(test)]
mod tests;
