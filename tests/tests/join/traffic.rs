//! Rules reach running proxies: `meshctl apply` changes what they do within
//! seconds, `meshctl delete` undoes it, and what is wrong changes nothing.
//! Federation, gateway, agents and both proxies are processes.

mod effects;
mod guards;
mod scene;

use std::time::Duration;

use mesh_api::v1;
use tokio::time::Instant;

use self::{effects::FAMILIES, guards::GUARDS, scene::Scene};
use crate::world::{reason, run};

/// From the command until every request shows it, on a busy machine.
const WITHIN: Duration = Duration::from_secs(10);

/// Waits until a family has its effect, or has it no longer.
async fn becomes(scene: &Scene, family: &effects::Family, wanted: bool) {
    let began = Instant::now();
    while (family.effect)(scene).await != wanted {
        let word = if wanted { "apply" } else { "delete" };
        assert!(began.elapsed() < WITHIN, "{}: not {WITHIN:?} after {word}", family.name);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn rules_take_effect_on_running_proxies_and_are_undone() {
    run(comes_and_goes(FAMILIES));
}

#[test]
fn policies_take_effect_on_running_proxies_and_are_undone() {
    run(comes_and_goes(GUARDS));
}

async fn comes_and_goes(families: &[effects::Family]) {
    let scene = Scene::start().await;
    for family in families {
        becomes(&scene, family, false).await;
        let file = scene.file(&(family.document)());
        scene.world.meshctl(&["apply", "-f", &file]);
        becomes(&scene, family, true).await;
        scene.world.meshctl(&["delete", "-f", &file]);
        becomes(&scene, family, false).await;
    }
    assert_eq!(scene.documents(), 0);
}

#[test]
fn what_is_wrong_is_refused_with_its_field_and_changes_nothing() {
    run(async {
        let scene = Scene::start().await;
        let headers = FAMILIES.iter().find(|family| family.name == "header filters").unwrap();
        scene.world.meshctl(&["apply", "-f", &scene.file(&(headers.document)())]);
        becomes(&scene, headers, true).await;
        let route = |rule: &str| effects::route("HTTPRoute", "r", rule);
        let wrong = [
            (route("- { backendRef: [{ name: next, port: 80 }] }"), "backendRef"),
            (route("- { backendRefs: [{ name: next, port: 80, weight: -1 }] }"), "weight"),
            (route("- { backendRefs: [{ name: next }], timeouts: { request: soon } }"), "request"),
            (effects::policy("  traffic: { concurrency: { maxInFlight: 0 } }"), "maxInFlight"),
            (effects::policy("  rules: [{ retry: { codes: [200] } }]"), "codes"),
            (guards::identities("web.shop"), "identities[0]"),
            (guards::server("allow"), "accessPolicy"),
        ];
        // Before it stands one that is right and would show.
        let right =
            effects::route("HTTPRoute", "s", "- { backendRefs: [{ name: next, port: 80 }] }");
        for (document, field) in wrong {
            let documents = format!("{right}---\n{document}");
            let file = scene.file(&documents);
            let output = scene.world.meshctl_output(&["apply", "-f", &file]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(field), "{field}: {said}");
            // The server does not rely on the command's own check.
            let request =
                v1::ApplyManifestsRequest { documents, source: "x".into(), dry_run: false };
            let refused = scene.world.admin().await.apply_manifests(request).await.unwrap_err();
            assert!(refused.message().contains(field), "{field}: {refused} {}", reason(&refused));
        }
        assert_eq!(scene.documents(), 1);
        assert!((headers.effect)(&scene).await, "what is in force stays so");
        assert_eq!(scene.get("/").await.body, "orders");
    });
}
