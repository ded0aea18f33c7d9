//! Tables that are kept elsewhere: by namerd, in Consul, in a `ConfigMap`.

use mesh_migrate::{
    linkerd1::{config::InterpreterKind, dtab::Dtab, namerd::read_dtab},
    source::Source,
    yaml::Node,
};

use super::{
    ask::{Asker, Wrong, encoded, text},
    namerd,
};

/// A table, and what is to be said of it.
pub(super) async fn read(
    kind: &InterpreterKind,
    node: &Node,
) -> Result<(Dtab, Option<String>), Wrong> {
    if let InterpreterKind::Namerd(namespace) = kind {
        let asker = namerd::asker(node)?;
        let path = format!("/api/1/dtabs/{}", encoded(namespace));
        let said = asker.bytes(&path).await?;
        return Ok((table(&asker.url(&path), &said)?, None));
    }
    match text(node, "kind")?.as_deref() {
        Some("io.l5d.consul.interpreter") => of_consul(node).await,
        Some("io.l5d.k8s.configMap") => of_config_map(node).await,
        other => Err(Wrong::new(format!(
            "nobody here knows where {} keeps it",
            other.unwrap_or("the interpreter")
        ))),
    }
}

async fn of_consul(node: &Node) -> Result<(Dtab, Option<String>), Wrong> {
    let token = text(node, "token")?;
    let asker = Asker::of(node, "localhost", 8500)?.with("x-consul-token", token);
    let prefix = text(node, "pathPrefix")?.unwrap_or_else(|| "/namerd/dtabs".into());
    let namespace = text(node, "namespace")?.unwrap_or_else(|| "default".into());
    let key = format!("{prefix}/{namespace}");
    let parts = key.split('/').filter(|part| !part.is_empty()).map(encoded);
    let centre = text(node, "datacenter")?.map(|centre| format!("&dc={}", encoded(&centre)));
    let path =
        format!("/v1/kv/{}?raw{}", parts.collect::<Vec<_>>().join("/"), centre.unwrap_or_default());
    match asker.bytes(&path).await {
        Ok(said) => Ok((table(&asker.url(&path), &said)?, None)),
        // Linkerd goes on without it.
        Err(wrong) if wrong.status == Some(http::StatusCode::NOT_FOUND) => {
            Ok((Dtab::default(), Some(format!("{wrong}: there is no such table"))))
        }
        Err(wrong) => Err(wrong),
    }
}

async fn of_config_map(node: &Node) -> Result<(Dtab, Option<String>), Wrong> {
    let asker = Asker::of(node, "localhost", 8001)?;
    let namespace = text(node, "namespace")?.unwrap_or_else(|| "default".into());
    let name = text(node, "name")?.unwrap_or_default();
    let file = text(node, "filename")?.unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", encoded(&namespace), encoded(&name));
    let map: serde_json::Value = asker.json(&path).await?;
    match map["data"][&file].as_str() {
        Some(said) => Ok((table(&asker.url(&path), said.as_bytes())?, None)),
        None => Err(Wrong::new(format!("{}: it has no {file:?}", asker.url(&path)))),
    }
}

fn table(url: &str, said: &[u8]) -> Result<Dtab, Wrong> {
    let text = std::str::from_utf8(said).map_err(|error| Wrong::new(format!("{url}: {error}")))?;
    read_dtab(&Source::of(url, text)).map_err(Wrong::new)
}
