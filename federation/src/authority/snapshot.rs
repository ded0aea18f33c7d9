//! A state as the shortest log that folds to it: what compaction writes.

use mesh_api::v1::{
    AuthorityRecord, BundleHeld, BundleUpdated, CertificatesShown, EndpointRegistered, GatewaySeen,
    LinkMade, ManifestApplied, NodeDuplicated, NodeJoined, NodeRenewed, Revision as WireRevision,
    Revocation, ServiceExported, SiteCreated, TokenCreated, TokenRevoked, TokenUsed,
    WorkloadIssued, authority_record::Event,
};

use super::state::{NodeState, State, TokenState};

/// How long a token is remembered after its end, so that whoever comes late
/// learns that it has expired rather than that it never was. Seconds.
pub const REMEMBER_TOKENS_S: i64 = 30 * 86_400;
/// How long the revocation of a certificate or node is kept: no certificate
/// lives longer. Seconds.
pub const REMEMBER_REVOCATIONS_S: i64 = 31 * 86_400;

/// Records that fold to `state`, without what nobody needs any more at
/// `now_unix_s`. All carry the state's own revision.
pub fn records(state: &State, now_unix_s: i64) -> Vec<AuthorityRecord> {
    let mut out = Records { state, now_unix_s, records: Vec::new() };
    out.site();
    out.tokens();
    out.nodes();
    out.leaves();
    out.links();
    out.services();
    out.rotation();
    out.manifests();
    out.revocations();
    out.records
}

struct Records<'a> {
    state: &'a State,
    now_unix_s: i64,
    records: Vec<AuthorityRecord>,
}

impl Records<'_> {
    fn push(&mut self, at_unix_ms: i64, event: Event) {
        let revision = self.state.revision;
        self.records.push(AuthorityRecord {
            revision: Some(WireRevision { epoch: revision.epoch, n: revision.n }),
            at_unix_ms,
            actor: "federation".into(),
            event: Some(event),
        });
    }

    fn push_now(&mut self, event: Event) {
        self.push(self.now_unix_s * 1000, event);
    }

    fn site(&mut self) {
        let Some(site) = &self.state.site else { return };
        let created = SiteCreated {
            name: site.name.to_string(),
            trust_domain: site.trust_domain.to_string(),
            root: site.bundle.roots.first().cloned().unwrap_or_default(),
            restored: site.restored,
        };
        self.push(site.created_at_ms, Event::SiteCreated(created));
        self.push_now(Event::BundleUpdated(BundleUpdated { bundle: Some(site.bundle.clone()) }));
    }

    fn tokens(&mut self) {
        for token in self.state.tokens.values() {
            if token.expires_unix_s + REMEMBER_TOKENS_S > self.now_unix_s {
                self.token(token);
            }
        }
    }

    fn token(&mut self, token: &TokenState) {
        self.push_now(Event::TokenCreated(TokenCreated {
            id: token.id.clone(),
            purpose: token.purpose.into(),
            secret_sha256: token.secret_sha256.to_vec(),
            grants: Some(token.grants.clone()),
            uses: token.uses,
            expires_unix_s: token.expires_unix_s,
            gateway: token.gateway,
            site: token.site.clone(),
            root: token.root.to_vec(),
        }));
        for by in &token.used_by {
            self.push_now(Event::TokenUsed(TokenUsed { id: token.id.clone(), by: by.clone() }));
        }
        if token.revoked {
            self.push_now(Event::TokenRevoked(TokenRevoked { id: token.id.clone() }));
        }
    }

    fn nodes(&mut self) {
        for node in self.state.nodes.values() {
            self.node(node);
        }
        for registration in self.state.registrations.values() {
            self.push_now(Event::Registered(EndpointRegistered {
                node: registration.node.to_string(),
                spiffe_id: registration.identity.to_string(),
                register: Some(registration.register.clone()),
                registered_at: registration.registered_at,
            }));
        }
    }

    /// A node's certificates are told as the renewals that led to them.
    fn node(&mut self, node: &NodeState) {
        let mut oldest_first: Vec<_> = node.certificates().collect();
        oldest_first.reverse();
        let (first, renewals) = oldest_first.split_first().expect("there is a current certificate");
        self.push(
            node.joined_at_ms,
            Event::NodeJoined(NodeJoined {
                id: node.id.to_string(),
                token: node.token.clone(),
                grants: Some(node.grants.clone()),
                serial: first.serial.clone(),
                hostname: node.hostname.clone(),
                machine_id: node.machine_id.clone(),
                not_after_unix_s: first.not_after_unix_s,
                gateway: node.gateway,
                pod: node.pod,
                boot_id: node.boot_id.clone(),
                key_sha256: node.key_sha256.clone(),
                root: first.root.to_vec(),
                restored: node.restored && renewals.is_empty(),
            }),
        );
        for (i, certificate) in renewals.iter().enumerate() {
            let last = i + 1 == renewals.len();
            let previous = node.previous.as_ref().filter(|_| last);
            self.push_now(Event::NodeRenewed(NodeRenewed {
                id: node.id.to_string(),
                serial: certificate.serial.clone(),
                not_after_unix_s: certificate.not_after_unix_s,
                boot_id: node.boot_id.clone(),
                with_serial: previous.map(|p| p.serial.clone()).unwrap_or_default(),
                root: certificate.root.to_vec(),
                restored: node.restored && last,
            }));
        }
        if let Some(reason) = node.duplicated.clone() {
            let id = node.id.to_string();
            self.push_now(Event::NodeDuplicated(NodeDuplicated { id, reason }));
        }
    }

    fn links(&mut self) {
        for link in self.state.links.values() {
            let made = LinkMade {
                link: Some(link.link.clone()),
                bundle: Some(link.bundle.clone()),
                gateways: link.gateways.clone(),
            };
            self.push(link.made_at_ms, Event::LinkMade(made));
        }
        for gateway in self.state.gateways.values() {
            self.push_now(Event::GatewaySeen(GatewaySeen { gateway: Some((**gateway).clone()) }));
        }
    }

    fn leaves(&mut self) {
        for (serial, leaf) in self.state.leaves.iter() {
            if leaf.not_after_unix_s > self.now_unix_s {
                self.push_now(Event::WorkloadIssued(WorkloadIssued {
                    spiffe_id: leaf.id.to_string(),
                    node: leaf.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                    serial: serial.to_string(),
                    not_after_unix_s: leaf.not_after_unix_s,
                    root: leaf.root.to_vec(),
                    replaces: leaf.replaces.clone(),
                    ..WorkloadIssued::default()
                }));
            }
        }
    }

    /// After the nodes, whose certificates it speaks of.
    fn rotation(&mut self) {
        let Some(rotation) = &self.state.rotation else { return };
        self.push_now(Event::RootRotation(rotation.record()));
        self.push_now(Event::BundleHeld(BundleHeld {
            sequence: rotation.sequence,
            nodes: rotation.held_nodes.iter().map(ToString::to_string).collect(),
            sites: rotation.held_sites.iter().map(ToString::to_string).collect(),
        }));
        let serials = rotation.shown.iter().cloned().collect();
        self.push_now(Event::CertificatesShown(CertificatesShown { serials }));
    }

    fn services(&mut self) {
        for (service, export) in self.state.exports.iter() {
            self.push_now(Event::ServiceExported(ServiceExported {
                service: service.to_string(),
                sites: export.sites.iter().map(ToString::to_string).collect(),
                all: export.all,
                by_cluster: export.by_cluster,
            }));
        }
        for (service, address) in self.state.addresses.iter() {
            self.push_now(Event::ServiceAddressed(address.event(service)));
        }
    }

    fn manifests(&mut self) {
        for (name, manifest) in self.state.manifests.iter() {
            self.push_now(Event::ManifestApplied(ManifestApplied {
                document: manifest.document.clone(),
                name: Some(crate::manifests::wire_name(name)),
                created_unix_s: manifest.created_unix_s,
            }));
        }
    }

    fn revocations(&mut self) {
        for (subject, revoked_at_unix_s) in self.state.revocations.iter() {
            let whole_identity = subject.starts_with("spiffe://");
            if whole_identity || revoked_at_unix_s + REMEMBER_REVOCATIONS_S > self.now_unix_s {
                self.push_now(Event::Revoked(Revocation {
                    subject: subject.clone(),
                    revoked_at_unix_s: *revoked_at_unix_s,
                }));
            }
        }
    }
}
