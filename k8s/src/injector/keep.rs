//! Keeps the certificate in its Secret, what is served with, and the webhook's
//! `caBundle`, all the time.
//!
//! Every replica reads; who holds the lease writes. Two that think they do are
//! told apart by the Secret's resource version.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use mesh_runtime::{admin::Condition, clock, drain::Drain};
use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    certificate::{Lives, Material, MaterialError, seconds},
    metrics::Certificates,
};
use crate::lease::Leadership;

/// How soon a new certificate is served with, and somebody else's hand in the
/// configuration is corrected.
const INTERVAL: Duration = Duration::from_secs(10);
/// One round; the next may do better.
const ROUND: Duration = Duration::from_secs(8);
/// Steps of one round at most; there are never that many.
const MAX_STEPS: usize = 8;

/// Names of what is kept.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) secret: String,
    pub(super) webhook: String,
}

impl Names {
    /// By which API servers call the service.
    fn hosts(&self) -> Vec<String> {
        let name = format!("{}.{}.svc", self.service, self.namespace);
        vec![name.clone(), format!("{name}.cluster.local")]
    }
}

/// What is served with at the moment.
#[derive(Debug, Default)]
pub(super) struct Served(std::sync::RwLock<Option<Arc<CertifiedKey>>>);

impl Served {
    fn set(&self, material: &Material) -> Result<(), MaterialError> {
        let (chain, key) = material.leaf()?;
        let provider: CryptoProvider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|_| MaterialError::Broken("tls.key"))?;
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("Secret {name}: {problem}")]
    Secret { name: String, problem: kube::Error },
    #[error("MutatingWebhookConfiguration {name}: {problem}")]
    Webhook { name: String, problem: kube::Error },
    #[error("certificate: {0}")]
    Material(#[from] MaterialError),
    #[error("the API server has not answered in time")]
    Late,
}

/// Keeps them.
#[derive(Debug)]
pub(super) struct Keeper {
    secrets: Api<Secret>,
    webhooks: Api<MutatingWebhookConfiguration>,
    names: Names,
    lives: Lives,
    leadership: Leadership,
    served: Arc<Served>,
    material: Option<Material>,
    /// There is a certificate.
    has_certificate: Condition,
    /// API servers have been told whom to trust.
    is_trusted: Condition,
    figures: Certificates,
}

impl Keeper {
    pub(super) fn new(
        client: Client,
        names: Names,
        leadership: Leadership,
        (has_certificate, is_trusted): (Condition, Condition),
        figures: Certificates,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &names.namespace),
            webhooks: Api::all(client),
            names,
            lives: Lives::default(),
            leadership,
            served: Arc::default(),
            material: None,
            has_certificate,
            is_trusted,
            figures,
        }
    }

    /// What to serve with.
    pub(super) fn served(&self) -> Arc<Served> {
        self.served.clone()
    }

    pub(super) async fn run(mut self, drain: Drain) {
        loop {
            let round = timeout(ROUND, self.round()).await;
            if let Err(error) = round.unwrap_or(Err(KeepError::Late)) {
                log::warn!(error:%; "the certificate is kept as it is");
            }
            let mut leadership = self.leadership.clone();
            let is_led = leadership.is_held();
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                // Whoever begins to lead need not wait.
                () = leadership.gained(), if !is_led => {}
                () = drain.draining() => return,
            }
        }
    }

    async fn round(&mut self) -> Result<(), KeepError> {
        for _ in 0..MAX_STEPS {
            if !self.step().await? {
                break;
            }
        }
        Ok(())
    }

    /// Whether something has changed, and there may be more.
    async fn step(&mut self) -> Result<bool, KeepError> {
        let now = seconds(clock::now_unix());
        let there = self.secrets.get_opt(&self.names.secret).await;
        let there = there.map_err(|problem| self.of_secret(problem))?;
        let material = match there.as_ref().and_then(|secret| secret.data.as_ref()) {
            None => None,
            Some(data) if data.is_empty() => None,
            Some(data) => match Material::read(data) {
                Ok(material) => Some(material),
                Err(error) => {
                    log::warn!(secret = self.names.secret.as_str(), error:%; "the certificate is made anew");
                    None
                }
            },
        };
        let Some(material) = material else {
            return self.write(there, &Material::new(&self.names.hosts(), now, self.lives)?).await;
        };
        self.serve(&material, now)?;
        let bundle = self.publish(&material).await?;
        match material.step(&self.names.hosts(), &bundle, now, self.lives)? {
            Some(next) => self.write(there, &next).await,
            None => Ok(false),
        }
    }

    fn serve(&mut self, material: &Material, now: i64) -> Result<(), KeepError> {
        self.figures.left(material.left(now));
        if self.material.as_ref() != Some(material) {
            self.served.set(material)?;
            self.material = Some(material.clone());
            self.has_certificate.holds();
            log::info!(left_s = material.left(now).0; "served with another certificate");
        }
        Ok(())
    }

    /// What the configuration holds after that.
    async fn publish(&mut self, material: &Material) -> Result<String, KeepError> {
        let name = self.names.webhook.clone();
        let failed = |problem| KeepError::Webhook { name: name.clone(), problem };
        let configuration = match self.webhooks.get(&name).await {
            Ok(configuration) => configuration,
            Err(problem) => {
                self.is_trusted.fails(format!("MutatingWebhookConfiguration {name}: {problem}"));
                return Err(failed(problem));
            }
        };
        let wanted = material.bundle();
        let webhooks = configuration.webhooks.unwrap_or_default();
        let bundles = webhooks.iter().map(|webhook| webhook.client_config.ca_bundle.as_ref());
        let is_there =
            bundles.clone().all(|bundle| bundle.is_some_and(|there| there.0 == wanted.as_bytes()));
        if is_there {
            self.is_trusted.holds();
            return Ok(wanted);
        }
        if self.leadership.is_held() {
            let bundle = ByteString(wanted.as_bytes().to_vec());
            let each = webhooks
                .iter()
                .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}));
            let patch = json!({"webhooks": each.collect::<Vec<_>>()});
            let patch = Patch::Strategic(patch);
            self.webhooks.patch(&name, &PatchParams::default(), &patch).await.map_err(failed)?;
            log::info!(webhook = name.as_str(); "caBundle is written");
            self.is_trusted.holds();
            return Ok(wanted);
        }
        // Only what all of them have counts.
        let all = bundles
            .map(|bundle| bundle.map(|there| String::from_utf8_lossy(&there.0).into_owned()));
        Ok(all
            .reduce(|one, other| one.filter(|one| Some(one) == other.as_ref()))
            .flatten()
            .unwrap_or_default())
    }

    async fn write(
        &mut self,
        there: Option<Secret>,
        material: &Material,
    ) -> Result<bool, KeepError> {
        if !self.leadership.is_held() {
            return Ok(false);
        }
        let data = Some(material.write());
        let name = self.names.secret.clone();
        let written = match there {
            // With the version that was read.
            Some(secret) => {
                let secret = Secret { data, ..secret };
                self.secrets.replace(&name, &PostParams::default(), &secret).await
            }
            None => {
                let labels = [("app.kubernetes.io/managed-by".to_owned(), "isthmus".to_owned())];
                let metadata = ObjectMeta {
                    name: Some(name),
                    labels: Some(labels.into()),
                    ..ObjectMeta::default()
                };
                let type_ = Some("kubernetes.io/tls".to_owned());
                let secret = Secret { metadata, data, type_, ..Secret::default() };
                self.secrets.create(&PostParams::default(), &secret).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Somebody else was first: read again.
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(true),
            Err(problem) => Err(self.of_secret(problem)),
        }
    }

    fn of_secret(&self, problem: kube::Error) -> KeepError {
        KeepError::Secret { name: self.names.secret.clone(), problem }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use mesh_runtime::admin::Readiness;
    use serde_json::Value;

    use super::*;
    use crate::{
        lease::{Terms, hold},
        testing::{FakeApi, paused},
    };

    const SECRET: &str = "/api/v1/namespaces/isthmus-system/secrets/isthmus-injector-tls";
    const WEBHOOK: &str =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/isthmus-injector";

    fn names() -> Names {
        let text = str::to_owned;
        Names {
            namespace: text("isthmus-system"),
            service: text("isthmus-injector"),
            secret: text("isthmus-injector-tls"),
            webhook: text("isthmus-injector"),
        }
    }

    /// Something to serve with, and whom to trust for it.
    pub(in crate::injector) fn served(hosts: &[String]) -> (Arc<Served>, String) {
        let now = seconds(clock::now_unix());
        let material = Material::new(hosts, now, Lives::default()).unwrap();
        let served = Arc::new(Served::default());
        served.set(&material).unwrap();
        (served, material.bundle())
    }

    struct Replica {
        served: Arc<Served>,
        readiness: Readiness,
        drain: Drain,
    }

    fn replica(api: &FakeApi, identity: &str, lives: Lives) -> Replica {
        let (drain, readiness) = (Drain::new(), Readiness::new());
        let client = api.client();
        let leadership = hold(
            client.clone(),
            "isthmus-system",
            "isthmus-injector",
            identity,
            Terms::default(),
            &drain,
        );
        let conditions = (readiness.condition("certificate"), readiness.condition("webhook"));
        let mut keeper =
            Keeper::new(client, names(), leadership, conditions, Certificates::default());
        keeper.lives = lives;
        let served = keeper.served();
        drain.spawn_beside(keeper.run(drain.clone()));
        Replica { served, readiness, drain }
    }

    fn install(api: &FakeApi) {
        let webhook = |name: &str| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": "isthmus-injector", "namespace": "isthmus-system"}},
            })
        };
        api.put(
            WEBHOOK,
            json!({"kind": "MutatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1",
                "metadata": {"name": "isthmus-injector"},
                "webhooks": [webhook("namespaces.isthmus.dev"), webhook("pods.isthmus.dev")]}),
        );
    }

    fn bundles(api: &FakeApi) -> Vec<String> {
        let configuration = api.get(WEBHOOK).unwrap();
        let decode = |text: &Value| {
            String::from_utf8(STANDARD.decode(text.as_str().unwrap_or_default()).unwrap()).unwrap()
        };
        let all = configuration["webhooks"].as_array().unwrap().iter();
        all.map(|webhook| decode(&webhook["clientConfig"]["caBundle"])).collect()
    }

    fn leaf(replica: &Replica) -> Vec<u8> {
        replica
            .served
            .0
            .read()
            .unwrap()
            .as_ref()
            .map(|key| key.cert[0].to_vec())
            .unwrap_or_default()
    }

    fn material(api: &FakeApi) -> Material {
        let secret: Secret = serde_json::from_value(api.get(SECRET).unwrap()).unwrap();
        Material::read(&secret.data.unwrap()).unwrap()
    }

    async fn after(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[test]
    fn two_replicas_serve_with_one_certificate_that_is_trusted() {
        paused(async {
            let api = FakeApi::new();
            install(&api);
            let (a, b) =
                (replica(&api, "a", Lives::default()), replica(&api, "b", Lives::default()));
            tokio::join!(a.readiness.ready(), b.readiness.ready());
            after(30).await;
            assert!(!leaf(&a).is_empty());
            assert_eq!(leaf(&a), leaf(&b));
            let bundle = material(&api).bundle();
            assert_eq!(bundles(&api), [bundle.clone(), bundle]);
            let secrets = api.writes().into_iter().filter(|write| write.contains("secrets"));
            assert_eq!(secrets.count(), 1);
            // Whatever else writes there is corrected.
            install(&api);
            after(12).await;
            assert!(!bundles(&api)[0].is_empty());
        });
    }

    #[test]
    fn whoever_survives_goes_on() {
        paused(async {
            let api = FakeApi::new();
            install(&api);
            let (a, b) =
                (replica(&api, "a", Lives::default()), replica(&api, "b", Lives::default()));
            tokio::join!(a.readiness.ready(), b.readiness.ready());
            a.drain.finish(Duration::from_secs(5)).await;
            let before = leaf(&b);
            api.delete(SECRET);
            after(40).await;
            assert_ne!(leaf(&b), before);
            assert_eq!(bundles(&api)[0], material(&api).bundle());
        });
    }

    #[test]
    fn a_rotation_is_never_noticed_by_who_is_behind() {
        paused(async {
            let api = FakeApi::new();
            install(&api);
            let lives = Lives { ca: 3600, leaf: 1200, settle: 60, overlap: 300 };
            let (a, b) = (replica(&api, "a", lives), replica(&api, "b", lives));
            tokio::join!(a.readiness.ready(), b.readiness.ready());
            let mut seen = std::collections::BTreeSet::new();
            // What API servers that are thirty seconds behind have.
            let mut late: std::collections::VecDeque<String> = [bundles(&api)[0].clone()].into();
            for _ in 0..1440 {
                after(10).await;
                late.push_back(bundles(&api)[0].clone());
                if late.len() > 3 {
                    late.pop_front();
                }
                let now = seconds(clock::now_unix());
                let current = material(&api);
                for replica in [&a, &b] {
                    // Each serves with a leaf that is in the Secret, or was.
                    let served = leaf(replica);
                    seen.insert(served.clone());
                    let trusted = late.iter().all(|bundle| trusts_leaf(bundle, &served, now));
                    assert!(trusted, "{now}");
                }
                drop(current);
            }
            assert!(seen.len() >= 12, "{}", seen.len());
            let cas = api.writes().iter().filter(|write| write.contains("webhook")).count();
            assert!(cas >= 8, "{cas}");
        });
    }

    fn trusts_leaf(bundle: &str, leaf: &[u8], now: i64) -> bool {
        super::super::certificate::tests::trusts_chain(bundle, leaf, &names().hosts()[0], now)
    }

    #[test]
    fn without_a_configuration_it_is_not_ready() {
        paused(async {
            let api = FakeApi::new();
            let a = replica(&api, "a", Lives::default());
            after(30).await;
            let why = a.readiness.check().unwrap_err();
            assert!(
                why.starts_with("webhook: MutatingWebhookConfiguration isthmus-injector: "),
                "{why}"
            );
            install(&api);
            after(12).await;
            a.readiness.check().unwrap();
        });
    }

    #[test]
    fn a_secret_that_is_broken_is_made_anew() {
        paused(async {
            let api = FakeApi::new();
            install(&api);
            api.put(
                SECRET,
                json!({"kind": "Secret", "apiVersion": "v1", "type": "kubernetes.io/tls",
                    "metadata": {"name": "isthmus-injector-tls", "namespace": "isthmus-system"},
                    "data": {"tls.crt": "", "tls.key": ""}}),
            );
            let a = replica(&api, "a", Lives::default());
            a.readiness.ready().await;
            assert_eq!(bundles(&api)[0], material(&api).bundle());
        });
    }
}
