//! What a running proxy says of itself at its admin port.

use std::{collections::BTreeSet, time::Duration};

use mesh_migrate::{
    legacy::Format,
    source::{MAX_FILE, Source},
};

use super::http::{self, Bounds};
use crate::failure::{Exit, Failure};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Services of Linkerd that its figures name, at most.
const MAX_NAMES: usize = 1000;

/// A configuration, and the services that its figures name.
pub(super) async fn read(format: Format, url: &str) -> Result<(Source, Vec<String>), Failure> {
    let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let authority = authority.filter(|rest| rest.contains(':') && !rest.contains('/'));
    let wrong = || Failure::usage(format!("--live {url}: write http://<host>:<port>"));
    let authority = authority.ok_or_else(wrong)?;
    match format {
        Format::Linkerd1 => {
            let config = get(authority, "/config.json").await?;
            let figures = get(authority, "/admin/metrics.json").await?;
            Ok((Source::of(&format!("{url}/config.json"), &config), names(&figures)))
        }
        Format::Envoy => {
            let path = "/config_dump?include_eds";
            let config = get(authority, path).await?;
            Ok((Source::of(&format!("{url}{path}"), &config), Vec::new()))
        }
        Format::Haproxy | Format::Nginx => Err(Failure::usage(format!(
            "--live: {} tells nobody its configuration; name its files{}",
            format.as_str(),
            if format == Format::Nginx { ", or give it `nginx -T | … -`" } else { "" }
        ))),
    }
}

async fn get(authority: &str, path: &str) -> Result<String, Failure> {
    let lost = |error: &dyn std::fmt::Display| {
        Failure::new(format!("http://{authority}{path}: {error}"))
            .exit(Exit::Unreachable)
            .remedy("is this the admin port, and does it run?")
    };
    let length = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
    let bounds = Bounds { patience: PATIENCE, length };
    let body = http::get(authority, path, &[], bounds).await.map_err(|error| lost(&error))?;
    String::from_utf8(body.to_vec()).map_err(|error| lost(&error))
}

/// `rt/<router>/service/<name>/requests`, name for name.
fn names(figures: &str) -> Vec<String> {
    let Ok(figures) = serde_json::from_str::<serde_json::Map<_, _>>(figures) else {
        return Vec::new();
    };
    let names: BTreeSet<String> = figures
        .keys()
        .filter_map(|key| {
            let (_, rest) = key.strip_prefix("rt/")?.split_once("/service/")?;
            Some(format!("/{}", rest.strip_suffix("/requests")?))
        })
        .collect();
    names.into_iter().take(MAX_NAMES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_name_the_services_that_are_used() {
        let figures = r#"{"rt/http/service/svc/web/requests": 7, "rt/http/service/svc/web/success": 7,
            "rt/http/service/svc/a.b/requests": 1, "rt/http/client/#/io.l5d.fs/web/requests": 7}"#;
        assert_eq!(names(figures), ["/svc/a.b", "/svc/web"]);
        assert!(names("no JSON").is_empty());
    }
}
