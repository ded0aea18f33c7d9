//! TLS towards endpoints without a proxy, as the site file writes it.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use mesh_runtime::config::ConfigError;
use rustls::pki_types::ServerName;

use super::site::{OriginTlsFile, ServiceFile, SiteFile, VerifyFile};
use crate::transition::origin::{Expected, OriginTls};

/// Of all services that have it; files are relative to `dir`.
///
/// # Errors
///
/// It makes no sense, or two services would do different things at one address.
pub(super) fn of(file: &SiteFile, dir: &Path, name: &str) -> Result<Vec<OriginTls>, ConfigError> {
    let mut all = Vec::new();
    for service in &file.services {
        let Some(written) = &service.tls else { continue };
        let key = || format!("service {}: tls", service.name);
        let wrong = |problem: String| ConfigError::meaning(name, key(), problem);
        all.push(written.checked(service, dir).map_err(wrong)?);
    }
    check_targets(file, &all, name)?;
    Ok(all)
}

/// Connections are kept by address: what is spoken there is one thing.
fn check_targets(file: &SiteFile, all: &[OriginTls], name: &str) -> Result<(), ConfigError> {
    let mut at: BTreeMap<SocketAddr, &OriginTls> = BTreeMap::new();
    for tls in all {
        at.extend(tls.targets.iter().map(|target| (*target, tls)));
    }
    for service in &file.services {
        let own = all.iter().find(|tls| tls.service == service.name);
        for (place, endpoint) in service.endpoints.iter().enumerate() {
            let Some(there) = endpoint.target.and_then(|target| at.get(&target)) else { continue };
            if !own.is_some_and(|own| own.is_alike(there)) {
                let key = format!("service {}: endpoints[{place}].target", service.name);
                let problem = format!(
                    "service {} speaks TLS there: write the same `tls` here, or use another \
                     address (e.g. of the same host)",
                    there.service
                );
                return Err(ConfigError::meaning(name, key, problem));
            }
        }
    }
    Ok(())
}

impl OriginTlsFile {
    fn checked(&self, service: &ServiceFile, dir: &Path) -> Result<OriginTls, String> {
        if service.endpoints.iter().any(|endpoint| !endpoint.plaintext) {
            let text = "is for endpoints in `plaintext`: those with a proxy speak the mesh's own";
            return Err(text.into());
        }
        let name = self.name.as_ref().map(|name| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|_| format!("name: {name:?} is no name of DNS, and no address"))
        });
        let expected = match (self.verify, &self.ca, name.transpose()?) {
            (VerifyFile::Name, Some(ca), Some(name)) => Expected::Named { ca: dir.join(ca), name },
            (VerifyFile::Name, ..) => {
                let text = "needs `ca` and `name`; or `verify: none`, which believes everybody";
                return Err(text.into());
            }
            (VerifyFile::None, Some(_), _) => {
                return Err("`verify: none` looks at no `ca`: remove one of them".into());
            }
            (VerifyFile::None, None, name) => Expected::Anybody { name },
        };
        let shown = match (&self.certificate, &self.key) {
            (None, Some(_)) => return Err("`key` needs the `certificate` that it is for".into()),
            (certificate, key) => certificate.as_ref().map(|certificate| {
                (dir.join(certificate), dir.join(key.as_ref().unwrap_or(certificate)))
            }),
        };
        let mut targets: Vec<_> =
            service.endpoints.iter().filter_map(|endpoint| endpoint.target).collect();
        targets.sort_unstable();
        targets.dedup();
        Ok(OriginTls { service: service.name.clone(), targets, expected, shown, until: self.until })
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;

    use crate::files::snapshot;

    const SITE: &str = "
site: west
trust_domain: west.example
services:
  - name: old.shop
    ports: [{ name: http, port: 80, protocol: http }]
    tls: { ca: old.pem, name: old.example.com, until: 2027-03-01 }
    endpoints: [{ port: http, plaintext: true, target: 127.0.0.1:8443 }]
  - name: other.shop
    ports: [{ name: http, port: 80, protocol: http }]
    tls: { ca: old.pem, name: old.example.com, until: 2027-03-01 }
    endpoints: [{ port: http, plaintext: true, target: 127.0.0.1:8443 }]
";

    #[test]
    fn what_is_wrong_is_named() {
        snapshot::parse(SITE, "site.yaml", &TrustBundles::new()).unwrap();
        let tls = "{ ca: old.pem, name: old.example.com, until: 2027-03-01 }";
        let cases = [
            ("{ ca: old.pem, until: 2027-03-01 }", "needs `ca` and `name`; or `verify: none`"),
            ("{ name: a.b, until: 2027-03-01 }", "needs `ca` and `name`"),
            ("{ verify: none, ca: old.pem, until: 2027-03-01 }", "remove one of them"),
            ("{ verify: none, key: a.pem, until: 2027-03-01 }", "needs the `certificate`"),
            ("{ verify: maybe, until: 2027-03-01 }", "unknown variant"),
            ("{ verify: none }", "missing field `until`"),
            ("{ verify: none, until: 2027-02-30 }", "write a date"),
            ("{ ca: a, name: 'a b', until: 2027-03-01 }", "no name of DNS"),
            // Not what the other service does there.
            ("{ verify: none, until: 2027-03-01 }", "speaks TLS there"),
        ];
        for (other, wanted) in cases {
            let text = SITE.replacen(tls, other, 1);
            let error = snapshot::parse(&text, "site.yaml", &TrustBundles::new()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{other}: {error}");
        }
        let text = SITE.replacen(&format!("    tls: {tls}\n"), "", 1);
        let error = snapshot::parse(&text, "site.yaml", &TrustBundles::new()).unwrap_err();
        let wanted = "service old.shop: endpoints[0].target: service other.shop speaks TLS there";
        assert!(error.to_string().contains(wanted), "{error}");
        let text = SITE.replacen(
            "plaintext: true",
            "proxy: 127.0.0.1:1, identity: spiffe://west.example/ns/shop/sa/old",
            1,
        );
        let error = snapshot::parse(&text, "site.yaml", &TrustBundles::new()).unwrap_err();
        assert!(error.to_string().contains("is for endpoints in `plaintext`"), "{error}");
    }
}
