//! What single settings are to ours.

use crate::ledger::Verdict;

use super::super::{tree::Statement, words::Word};
use super::{checks, cookies, pools};

/// Of `http-after-response`.
const AFTER: &str = "answers of the proxy itself are not changed by it: they do not get it";

pub(super) fn dropped(meaning: &str) -> Verdict {
    Verdict::Dropped { meaning: meaning.to_owned() }
}

fn approximated(how: &str) -> Verdict {
    Verdict::Approximated { how: how.to_owned() }
}

fn decision(question: &str, choices: &[&str]) -> Verdict {
    let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
    Verdict::Decision { question: question.to_owned(), choices }
}

/// Of `global`.
pub(super) fn of_global(statement: &Statement) -> Verdict {
    match statement.at(0) {
        "daemon" | "user" | "uid" | "group" | "gid" | "chroot" | "pidfile" | "nbproc"
        | "nbthread" | "cpu-map" | "master-worker" | "set-dumpable" | "ulimit-n" => {
            dropped("the process is run by systemd or Kubernetes")
        }
        "log" | "log-tag" | "log-send-hostname" => dropped("logs go to standard output"),
        "stats" => dropped("the socket of HAProxy is not there: use meshctl"),
        "setenv" | "presetenv" | "unsetenv" | "resetenv" | "set-var" | "set-var-fmt" => {
            Verdict::Exact
        }
        "maxconn" | "maxconnrate" | "maxsessrate" | "maxsslconn" => {
            dropped("clients are not limited by number")
        }
        name if name.starts_with("tune.") => dropped("buffers and the like are ours"),
        "ca-base" | "crt-base" => Verdict::Exact,
        name if name.starts_with("ssl-") => {
            approximated("TLS 1.2 and 1.3 with our own choice of ciphers")
        }
        name if name.starts_with("lua-") => {
            decision("Lua is not run", &["leave it so", "move it to the application"])
        }
        name => dropped(&format!("`{name}` has no counterpart")),
    }
}

/// Of `defaults`, `frontend`, `backend` and `listen`; rules are told by the walk.
pub(super) fn of_proxy(statement: &Statement) -> Verdict {
    let first = statement.at(1);
    let asks_for_hello = |word: &Word| {
        word.text.contains("req.ssl_hello_type") || word.text.contains("req_ssl_hello_type")
    };
    if statement.words.iter().any(asks_for_hello) {
        return approximated("connections without TLS are taken like those with it");
    }
    match statement.at(0) {
        "acl" | "use_backend" | "default_backend" | "use-server" | "redirect" | "mode"
        | "disabled" | "enabled" | "monitor-uri" | "monitor" | "stick" => match statement.at(0) {
            "stick" => stick(first),
            "mode" if !matches!(first, "http" | "tcp") => {
                decision("this mode has no counterpart", &["leave it so"])
            }
            _ => Verdict::Exact,
        },
        "http-after-response" => approximated(AFTER),
        "http-request" | "http-response" => action(first),
        "tcp-request" if first == "inspect-delay" => {
            approximated("TLS names are waited for as long as ours does")
        }
        "tcp-request" => action(statement.at(2)),
        "bind" => bind(statement),
        "dispatch" => Verdict::Exact,
        "server" => parameters(statement, 3),
        "server-template" => parameters(statement, 4),
        "default-server" => parameters(statement, 1),
        "balance" => balance(statement),
        "timeout" => timeout(first),
        "retries" | "retry-on" => {
            approximated("repetitions go to another endpoint, if there is one")
        }
        "option" => option(statement),
        "http-check" => http_check(statement),
        "tcp-check" => tcp_check(statement),
        "cookie" => {
            let (question, choices) = cookies::of(statement);
            decision(&question, choices)
        }
        "hash-type" => approximated("the hash is ours: each key has one endpoint, maybe another"),
        "stick-table" => dropped("nothing is remembered of clients"),
        "stats" => dropped("the page of statistics is not there: use meshctl top"),
        "log" | "log-format" | "log-format-sd" | "log-tag" | "error-log-format" | "capture" => {
            dropped("our access log has its own format")
        }
        "unique-id-format" | "unique-id-header" => dropped("requests get no id by it"),
        "maxconn" | "backlog" | "fullconn" | "rate-limit" => {
            dropped("clients are not limited by number")
        }
        "errorfile" | "errorfiles" | "http-error" => {
            dropped("pages of errors are ours, with the status of the failure itself")
        }
        "errorloc" | "errorloc302" | "errorloc303" => dropped(
            "clients are not sent elsewhere: they get our answer, with the status of the failure",
        ),
        "compression" => dropped("answers are not compressed"),
        "http-reuse" => approximated("connections are shared where that is safe"),
        "description" | "id" | "guid" => Verdict::Exact,
        "filter" => decision("filters are not run", &["leave it so"]),
        "force-persist" | "ignore-persist" | "persist" => {
            decision("who sticks to a server is not a question of rules", &["leave it so"])
        }
        name => decision(
            &format!("`{name}` is not known here: it is left out"),
            &["leave it so", "write it by hand"],
        ),
    }
}

fn stick(kind: &str) -> Verdict {
    match kind {
        "store-response" => decision(
            "who answered is not remembered: a client may come to another endpoint once, with a \
             session that is known to the first one only",
            &["leave it so: sessions are shared", "a cookie of ours, in its policy"],
        ),
        "store-request" => dropped("nothing is remembered of clients"),
        // Whose key the hash has is told by the pool.
        _ => Verdict::Exact,
    }
}

/// Of an action: what the walk has to say of it comes beside.
fn action(name: &str) -> Verdict {
    let name = name.split('(').next().unwrap_or_default();
    match name {
        "set-log-level" | "capture" => dropped("our access log has its own format"),
        "set-timeout" => decision("timeouts are not another for some requests", &["leave it so"]),
        "set-nice"
        | "set-tos"
        | "set-mark"
        | "set-fc-tos"
        | "set-fc-mark"
        | "set-priority-class"
        | "set-priority-offset"
        | "set-bandwidth-limit" => dropped("requests are all alike to ours"),
        "early-hint" | "wait-for-body" | "wait-for-handshake" | "strict-mode" | "cache-store" => {
            dropped("it has no counterpart")
        }
        "add-acl" | "del-acl" | "add-map" | "set-map" | "del-map" => {
            decision("maps and lists do not change while it runs", &["leave it so"])
        }
        "expect-proxy" | "expect-netscaler-cip" => {
            decision("clients are not asked for the PROXY protocol", &["leave it so"])
        }
        name if name.starts_with("track-sc") || name.starts_with("sc-") => {
            dropped("nothing is counted by client")
        }
        _ => Verdict::Exact,
    }
}

fn timeout(name: &str) -> Verdict {
    match name {
        "check" => Verdict::Exact,
        "connect" => approximated("a connection is given up after 2 s"),
        "server" => approximated("how long an application may say nothing is not bounded"),
        "client" | "http-keep-alive" | "http-request" | "tunnel" | "client-fin" | "server-fin"
        | "queue" | "tarpit" => approximated("ours has its own limit for this"),
        _ => dropped("it has no counterpart"),
    }
}

fn balance(statement: &Statement) -> Verdict {
    let hash = "each key goes to one endpoint, though maybe another than with HAProxy";
    let has = |name: &str| statement.words.iter().any(|word| word.text == name);
    match statement.at(1) {
        "roundrobin" | "static-rr" | "leastconn" | "first" => Verdict::Exact,
        "source" | "url_param" => approximated(hash),
        "uri" if has("whole") || has("len") || has("path-only") => {
            approximated(&format!("{hash}; the hash is of the whole path"))
        }
        "uri" => approximated(hash),
        "hash" if pools::key_of(statement.at(2)).is_none() => {
            decision("this key is not hashed: round robin", &["leave it so"])
        }
        "hash" => approximated(hash),
        name if name.starts_with("hdr(") => approximated(hash),
        name if name.starts_with("random") => approximated("one is chosen by chance, not of two"),
        _ => decision("this balance has no counterpart: round robin", &["leave it so"]),
    }
}

fn option(statement: &Statement) -> Verdict {
    if statement.is_negated {
        return Verdict::Exact;
    }
    let has = |name: &str| statement.words.iter().any(|word| word.text == name);
    match statement.at(1) {
        "forwardfor" if has("header") => {
            approximated("the header holds the client's address alone, of every request")
        }
        "forwardfor" if has("except") || has("if-none") => {
            approximated("X-Forwarded-For is appended to every request, of every client")
        }
        "http-server-close" => approximated(
            "connections to applications are kept and used again, with no `Connection: close`",
        ),
        "httpclose" => approximated(
            "connections of clients and those to applications are kept and used again, with no \
             `Connection: close`",
        ),
        "forwardfor" | "allbackups" | "http-keep-alive" | "prefer-last-server" | "tcp-check"
        | "httpchk" => Verdict::Exact,
        "redispatch" => approximated("every repetition goes to another endpoint"),
        "httplog"
        | "tcplog"
        | "dontlognull"
        | "dontlog-normal"
        | "log-health-checks"
        | "log-separate-errors"
        | "logasap"
        | "tcpka"
        | "clitcpka"
        | "srvtcpka"
        | "httpslog" => dropped("logs and probes of connections are ours"),
        "mysql-check" | "pgsql-check" | "redis-check" | "smtpchk" | "ldap-check"
        | "ssl-hello-chk" | "spop-check" | "external-check" => {
            approximated("it is only asked whether a connection comes")
        }
        "originalto" | "forwarded" => decision("this header is not set", &["leave it so"]),
        "accept-invalid-http-request" | "accept-invalid-http-response" => {
            dropped("messages that are no HTTP are refused")
        }
        "transparent" | "http_proxy" | "persist" => {
            decision("it has no counterpart: it is left out", &["leave it so"])
        }
        _ => dropped("it has no counterpart"),
    }
}

fn tcp_check(statement: &Statement) -> Verdict {
    let has = |name: &str| statement.words.iter().any(|word| word.text == name);
    let choices = ["leave it so", "name the servers that may take it"];
    match statement.at(1) {
        "connect" if has("port") => decision(
            "it is asked whether a connection comes to the port of the traffic, and not to this one",
            &choices,
        ),
        "connect" | "comment" => Verdict::Exact,
        "expect" => decision(
            "it is only asked whether a connection comes: a server that says something else, \
             as a replica does, takes traffic, too",
            &choices,
        ),
        _ => approximated("it is only asked whether a connection comes"),
    }
}

fn http_check(statement: &Statement) -> Verdict {
    let texts: Vec<&str> = statement.words.iter().map(|word| word.text.as_str()).collect();
    match statement.at(1) {
        "send" => {
            let is_known = texts[2..].iter().all(|text| !matches!(*text, "meth" | "body" | "ver"));
            let hosts = texts.windows(2).filter(|w| w[0] == "hdr");
            let only_host = hosts.clone().all(|w| w[1].eq_ignore_ascii_case("host"));
            match is_known && only_host {
                true => Verdict::Exact,
                false => approximated("checks say GET, path and host only"),
            }
        }
        "expect" if checks::statuses(&texts).is_some() && !texts.contains(&"!") => Verdict::Exact,
        "expect" => approximated("200 to 399 is well"),
        "disable-on-404" | "send-state" => dropped("it has no counterpart"),
        _ => approximated("a check is one request"),
    }
}

fn bind(statement: &Statement) -> Verdict {
    let has = |name: &str| statement.words.iter().any(|word| word.text == name);
    let is_socket = |text: &str| text.starts_with('/') || text.contains("unix@");
    if statement.at(1).split(',').any(is_socket) {
        return dropped("clients of sockets of Unix are not served");
    }
    if statement.at(1).contains('@') || statement.at(1).contains("localhost") {
        return decision("this address is not listened at", &["give an address"]);
    }
    if has("accept-proxy") || has("accept-netscaler-cip") {
        return decision(
            "clients are not asked for the PROXY protocol",
            &["leave out what is before it", "leave it so"],
        );
    }
    if has("ssl") && !has("crt") && !has("crt-list") {
        return decision("no certificate stands here", &["name one certificate"]);
    }
    if has("verify") && has("optional") {
        return approximated("clients without a certificate are served, those with one not asked");
    }
    match (has("ssl"), has("alpn") || has("no-alpn")) {
        (true, true) => approximated(
            "TLS 1.2 or 1.3 with our own choice of ciphers; a client that wants other protocols (ALPN) than these only is refused",
        ),
        (true, false) => approximated(
            "TLS 1.2 or 1.3 with our own choice of ciphers; HTTP/2 and HTTP/1.1 are offered (ALPN), as HAProxy does from 2.9 on",
        ),
        (false, _) => Verdict::Exact,
    }
}

/// Of a `server`, whose parameters begin with the n-th word.
fn parameters(statement: &Statement, n: usize) -> Verdict {
    let has = |name: &str| statement.from(n).iter().any(|word| word.text == name);
    let decisions: &[(&str, &str)] = &[
        ("send-proxy", "the PROXY protocol is not sent: the application waits for it"),
        ("send-proxy-v2", "the PROXY protocol is not sent: the application waits for it"),
        ("send-proxy-v2-ssl", "the PROXY protocol is not sent: the application waits for it"),
        ("socks4", "connections do not go by SOCKS"),
        ("source", "connections do not come from another address"),
        ("redir", "requests are not redirected to the server"),
    ];
    if let Some((_, question)) = decisions.iter().find(|(name, _)| has(name)) {
        return decision(question, &["leave it so", "change the application"]);
    }
    let differences: &[(&str, &str)] = &[
        (
            "maxconn",
            "maxconn is no limit: what is beyond it does not wait, and requests are only spread by it",
        ),
        ("minconn", "requests at once are not limited"),
        ("track", "its health is not that of another server"),
        ("agent-check", "agents are not asked"),
        ("slowstart", "a server that comes back gets its part at once"),
        ("observe", "a server is left alone for what it answers for a fixed time"),
        ("addr", "checks go to the address of the traffic"),
        ("fastinter", "checks have one interval"),
        ("downinter", "checks have one interval"),
        ("sni", "the name that is asked for is one for all requests"),
        ("ssl", "TLS 1.2 and 1.3 with our own choice of ciphers"),
        ("resolvers", "names are resolved as the system does"),
        ("init-addr", "names are resolved as the system does"),
        ("cookie", "its cookie is not sent"),
        ("on-marked-down", "sessions of a server that is down end by themselves"),
        ("on-marked-up", "sessions of backups end by themselves"),
    ];
    let mut how: Vec<&str> =
        differences.iter().filter(|(name, _)| has(name)).map(|(_, how)| *how).collect();
    how.dedup();
    match how.as_slice() {
        [] => Verdict::Exact,
        how => approximated(&how.join("; ")),
    }
}
