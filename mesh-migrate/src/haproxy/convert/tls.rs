//! TLS of `bind` lines.

use crate::program::{ServerCertificate, ServerTls, TlsVersion, is_asked_for};

use super::{
    super::{
        Config,
        certificates::{self, Certificates},
        list::List,
        server::Bind,
    },
    notes::Notes,
};

/// Parameters of a line of a list that say which clients it takes.
const ABOUT_CLIENTS: &[&str] = &["verify", "ca-file", "ca-verify-file", "crl-file"];

/// How clients' TLS ends at this line. The first certificate is that of clients that ask
/// for no name of one, as up to HAProxy 2.9.
pub(super) fn server(config: &Config, bind: &Bind, notes: &mut Notes) -> Option<ServerTls> {
    bind.settings.get("ssl")?;
    let value = |name: &str| bind.settings.get(name).and_then(|values| values.first());
    let is_asked = value("verify").is_some_and(|verify| verify == "required");
    let of_clients = |name: &str| {
        let path = value(name).filter(|_| is_asked)?;
        Some(based(config, "ca-base", path))
    };
    let mut tls = ServerTls {
        only_known_names: bind.settings.contains_key("strict-sni"),
        client_roots: is_asked.then(|| of_clients("ca-file").unwrap_or_default()),
        crl: of_clients("crl-file"),
        versions: versions(config, bind),
        alpn: match value("alpn") {
            Some(offered) => Some(ServerTls::offered(offered.split(','))),
            None => bind.settings.contains_key("no-alpn").then(Vec::new),
        },
        ..ServerTls::default()
    };
    let mut all = Vec::new();
    for certificates in &bind.certificates {
        match certificates {
            Certificates::At(path) => {
                all.push(certificate(based(config, "crt-base", path), Vec::new()));
            }
            Certificates::Listed(list) => listed(config, bind, list, &mut all, &mut tls, notes),
        }
    }
    let Some(first) = all.first() else { return Some(tls) };
    (tls.certificate, tls.key) = (first.certificate.clone(), first.key.clone());
    // One that has names of its own is for these, too.
    let from = usize::from(first.names.is_empty());
    tls.more = all.split_off(from);
    if tls.more.iter().any(|one| one.names.iter().any(|name| name.starts_with("*."))) {
        let how = "`*.` in a list of certificates stands for names of any depth, not of one label";
        notes.approximated(&bind.place, how);
    }
    Some(tls)
}

/// Versions that are spoken at this line: the lowest and the highest are those of
/// `ssl-default-bind-options` where it names none.
fn versions(config: &Config, bind: &Bind) -> Vec<TlsVersion> {
    let globals = config.tree.sections.iter().filter(|section| section.head.at(0) == "global");
    let options = globals
        .flat_map(|section| &section.statements)
        .filter(|statement| statement.at(0) == "ssl-default-bind-options")
        .flat_map(|statement| statement.from(1));
    let mut words: Vec<&str> = options.map(|word| word.text.as_str()).collect();
    for (name, values) in &bind.settings {
        words.push(name);
        words.extend(values.iter().map(String::as_str));
    }
    let last = |name: &str| {
        let at = words.iter().rposition(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let has = |name: &str| words.contains(&name);
    let (least, most) = (last("ssl-min-ver"), last("ssl-max-ver"));
    ServerTls::spoken(|version| match version {
        TlsVersion::Tls12 => least != Some("TLSv1.3") && !has("no-tlsv12") && !has("force-tlsv13"),
        TlsVersion::Tls13 => {
            most.is_none_or(|most| most == "TLSv1.3") && !has("no-tlsv13") && !has("force-tlsv12")
        }
    })
}

/// What lines of a list name. A line that asks for certificates of clients is for one
/// name only there, and would be for none here: nobody comes in until it is said.
fn listed(
    config: &Config,
    bind: &Bind,
    list: &List,
    all: &mut Vec<ServerCertificate>,
    tls: &mut ServerTls,
    notes: &mut Notes,
) {
    if let Some(problem) = &list.problem {
        let question = format!("{problem}: no certificate is taken from {}", list.name);
        notes.decision(&bind.place, question, &["give the file", "name the certificates here"]);
    }
    for entry in &list.entries {
        let line = certificates::line(&entry.key);
        let at = format!("{}, line {}", list.name, entry.place.line);
        if line.parameters.iter().any(|word| ABOUT_CLIENTS.contains(word)) {
            let question = format!(
                "{at}: clients that ask for some names show a certificate, or another one; a \
                 listener of ours asks all of its clients for one of the same CA"
            );
            let choices = ["an address of its own for these names", "the same for all"];
            notes.decision(&bind.place, question, &choices);
            tls.client_roots = Some(String::new());
        } else if !line.parameters.is_empty() {
            notes.approximated(&bind.place, format!("{at}: its own parameters of TLS are ours"));
        }
        if !line.but.is_empty() {
            let how = format!("{at}: names with ! get this certificate, too");
            notes.approximated(&bind.place, how);
        }
        let (names, not): (Vec<_>, Vec<_>) =
            line.names.iter().map(|name| name.to_ascii_lowercase()).partition(|n| is_asked_for(n));
        if !not.is_empty() {
            let how = format!("{at}: no client asks for {}", not.join(", "));
            notes.approximated(&bind.place, how);
        }
        // Without names it would be for those that are in it.
        if !names.is_empty() || line.names.is_empty() || all.is_empty() {
            all.push(certificate(based(config, "crt-base", line.path), names));
        }
    }
}

/// Both are in one file, or the key beside it.
fn certificate(path: String, names: Vec<String>) -> ServerCertificate {
    ServerCertificate { key: path.clone(), certificate: path, names }
}

/// A path as `ca-base` or `crt-base` mean it.
pub(in super::super) fn based(config: &Config, base: &str, path: &str) -> String {
    let globals = config.tree.sections.iter().filter(|section| section.head.at(0) == "global");
    let mut statements = globals.flat_map(|section| &section.statements);
    let is_relative = !path.starts_with('/') && !path.starts_with('@');
    match statements.rfind(|statement| statement.at(0) == base).filter(|_| is_relative) {
        Some(base) => format!("{}/{path}", base.at(1).trim_end_matches('/')),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests;
