//! Sections as proxies: what `defaults` say is in them (configuration manual, 4).

use std::{collections::BTreeMap, sync::Arc};

use crate::source::{Place, Problem};

use super::{
    acl::{self, Condition, Named, Test},
    list::Files,
    rules::{self, Rule},
    sample::{self, Format},
    server::{Bind, Server, bind, server},
    tree::{Section, Statement, Tree},
    words::Word,
};

/// A `frontend`, `backend` or `listen`, with what its `defaults` say.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    /// Its first line.
    pub(super) place: Place,
    /// As it is written.
    pub(super) name: String,
    /// Clients come in: `frontend` or `listen`.
    pub(super) is_frontend: bool,
    /// Servers are behind it: `backend` or `listen`.
    pub(super) is_backend: bool,
    /// `disabled`.
    pub(super) is_disabled: bool,
    /// `mode tcp`, which is what there is where nothing is said.
    pub(super) is_tcp: bool,
    /// In order.
    pub(super) binds: Vec<Bind>,
    /// By name; several of one name are alternatives.
    pub(super) acls: BTreeMap<String, Vec<Arc<Test>>>,
    /// `tcp-request connection`, `session`, `content`, in this order.
    pub(super) tcp_request: [Vec<Rule>; 3],
    /// `tcp-request inspect-delay`.
    pub(super) inspects: bool,
    /// In order.
    pub(super) http_request: Vec<Rule>,
    /// `http-response` and `http-after-response`.
    pub(super) http_response: Vec<Rule>,
    /// `redirect` alone.
    pub(super) redirects: Vec<Rule>,
    /// `use_backend`.
    pub(super) switches: Vec<Switch>,
    /// `default_backend`.
    pub(super) default_backend: Option<(Place, String)>,
    /// `use-server`.
    pub(super) use_servers: Vec<Switch>,
    /// In order.
    pub(super) servers: Vec<Server>,
    /// `balance` and its arguments.
    pub(super) balance: Vec<String>,
    /// Requests are kept for its log: `capture.req.uri` is there.
    pub(super) captures: bool,
    /// `monitor-uri`.
    pub(super) monitor: Option<(Place, String)>,
    /// `monitor fail`.
    pub(super) monitor_fails: Vec<Condition>,
    /// `stats uri`, where there are statistics.
    pub(super) stats: Option<(Place, String)>,
    /// `stats auth`: only who says a password sees them.
    pub(super) has_stats_auth: bool,
    /// `stick on`, `stick match`: the expressions.
    pub(super) sticks: Vec<(Place, String)>,
    /// The last one of each that takes one value: `timeout connect`, `retries`,
    /// `option httpchk`, `cookie`, `mode`.
    pub(super) settings: BTreeMap<String, Statement>,
    /// All of `http-check` and `tcp-check`.
    pub(super) checks: Vec<Statement>,
}

/// `use_backend` or `use-server`.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    /// Where it is written.
    pub(super) place: Place,
    /// To whom.
    pub(super) to: Format,
    /// When.
    pub(super) when: Option<Condition>,
}

impl Proxy {
    /// Words of the last statement of this setting.
    pub(super) fn setting(&self, name: &str) -> Option<&Statement> {
        self.settings.get(name).filter(|statement| !statement.is_negated)
    }

    /// Whether this option is on.
    pub(super) fn option(&self, name: &str) -> Option<&Statement> {
        self.setting(&format!("option {name}"))
    }
}

/// All proxies of a configuration.
pub(super) fn proxies(tree: &Tree, files: &Files<'_>) -> Result<Vec<Proxy>, Problem> {
    let mut defaults: Vec<(String, Vec<&Statement>)> = Vec::new();
    let mut proxies: Vec<Proxy> = Vec::new();
    for section in &tree.sections {
        let kind = section.head.at(0);
        if !matches!(kind, "defaults" | "frontend" | "backend" | "listen") {
            continue;
        }
        let mut statements = inherited(section, &defaults)?;
        statements.extend(&section.statements);
        if kind == "defaults" {
            let name = section.head.at(1);
            let name = if name == "from" { "" } else { name };
            defaults.push((name.to_owned(), statements));
            continue;
        }
        let mut reader = Reader::new(section, files);
        for statement in statements {
            reader.statement(statement)?;
        }
        let proxy = reader.finish()?;
        let twice = proxies.iter().find(|known| {
            known.name == proxy.name
                && (known.is_frontend == proxy.is_frontend || known.is_backend == proxy.is_backend)
        });
        if let Some(twice) = twice {
            let line = twice.place.line;
            let problem = format!("{:?} is there already, at line {line}", proxy.name);
            return Err(Problem::at(&proxy.place, problem));
        }
        proxies.push(proxy);
    }
    Ok(proxies)
}

/// What the `defaults` of this section say.
fn inherited<'t>(
    section: &'t Section,
    defaults: &[(String, Vec<&'t Statement>)],
) -> Result<Vec<&'t Statement>, Problem> {
    let head = &section.head;
    let from = (1..=2).find(|n| head.at(*n) == "from");
    let known = match from {
        Some(n) => {
            let name = head.at(n + 1);
            let known = defaults.iter().rev().find(|(known, _)| known == name && !name.is_empty());
            Some(
                known
                    .ok_or_else(|| head.expected(n + 1, "the name of a defaults section above"))?,
            )
        }
        None if head.at(0) == "defaults" => None,
        None => defaults.last(),
    };
    Ok(known.map(|(_, statements)| statements.clone()).unwrap_or_default())
}

struct Reader<'f, 'o> {
    proxy: Proxy,
    files: &'f Files<'o>,
    default_server: Vec<Statement>,
    stats: Option<Place>,
    stats_uri: Option<String>,
    dispatch: Option<Server>,
}

impl<'f, 'o> Reader<'f, 'o> {
    fn new(section: &Section, files: &'f Files<'o>) -> Self {
        let kind = section.head.at(0);
        let proxy = Proxy {
            place: section.head.place.clone(),
            name: section.head.at(1).to_owned(),
            is_frontend: kind != "backend",
            is_backend: kind != "frontend",
            is_disabled: false,
            is_tcp: true,
            binds: Vec::new(),
            acls: BTreeMap::new(),
            tcp_request: [Vec::new(), Vec::new(), Vec::new()],
            inspects: false,
            http_request: Vec::new(),
            http_response: Vec::new(),
            redirects: Vec::new(),
            switches: Vec::new(),
            default_backend: None,
            use_servers: Vec::new(),
            servers: Vec::new(),
            balance: Vec::new(),
            captures: false,
            monitor: None,
            monitor_fails: Vec::new(),
            stats: None,
            has_stats_auth: false,
            sticks: Vec::new(),
            settings: BTreeMap::new(),
            checks: Vec::new(),
        };
        Self {
            proxy,
            files,
            default_server: Vec::new(),
            stats: None,
            stats_uri: None,
            dispatch: None,
        }
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), Problem> {
        let files = self.files;
        let proxy = &mut self.proxy;
        let at = |n| statement.at(n);
        proxy.captures |= captures(statement);
        match at(0) {
            "bind" if proxy.is_frontend => proxy.binds.push(bind(statement, self.files)?),
            "acl" => {
                if statement.words.len() < 3 {
                    return Err(statement.expected(statement.words.len(), "an expression"));
                }
                let test = Arc::new(acl::test(statement.from(2), files)?);
                proxy.acls.entry(at(1).to_owned()).or_default().push(test);
            }
            "http-request" => proxy.http_request.push(rules::rule(statement, 1, files)?),
            "http-response" | "http-after-response" => {
                proxy.http_response.push(rules::rule(statement, 1, files)?);
            }
            "tcp-request" => match at(1) {
                "connection" => proxy.tcp_request[0].push(rules::rule(statement, 2, files)?),
                "session" => proxy.tcp_request[1].push(rules::rule(statement, 2, files)?),
                "content" => proxy.tcp_request[2].push(rules::rule(statement, 2, files)?),
                "inspect-delay" => proxy.inspects = true,
                _ => {
                    let what = "connection, session, content or inspect-delay";
                    return Err(statement.expected(1, what));
                }
            },
            "redirect" => proxy.redirects.push(rules::redirect(statement, files)?),
            "use_backend" if proxy.is_frontend => proxy.switches.push(switch(statement, files)?),
            "use-server" if proxy.is_backend => proxy.use_servers.push(switch(statement, files)?),
            "default_backend" if proxy.is_frontend => {
                if at(1).is_empty() {
                    return Err(statement.expected(1, "the name of a backend"));
                }
                proxy.default_backend = Some((statement.place.clone(), at(1).to_owned()));
            }
            "server" | "server-template" if proxy.is_backend => {
                proxy.servers.push(server(statement, &self.default_server)?);
            }
            "dispatch" if proxy.is_backend => self.dispatch = Some(dispatch(statement)?),
            "default-server" => self.default_server.push(statement.clone()),
            "balance" => proxy.balance = texts(statement, 1),
            "mode" => match at(1) {
                "http" => proxy.is_tcp = false,
                "tcp" | "health" | "log" | "spop" | "haterm" => proxy.is_tcp = true,
                _ => return Err(statement.expected(1, "`http` or `tcp`")),
            },
            "disabled" => proxy.is_disabled = true,
            "enabled" => proxy.is_disabled = false,
            "monitor-uri" => proxy.monitor = Some((statement.place.clone(), at(1).to_owned())),
            "monitor" if at(1) == "fail" => {
                proxy.monitor_fails.extend(rules::condition(statement, 2, files)?);
            }
            "stats" => self.statistics(statement),
            // The others only remember.
            "stick" if matches!(at(1), "on" | "match") => {
                proxy.sticks.push((statement.place.clone(), at(2).to_owned()));
            }
            "stick" => {}
            "http-check" | "tcp-check" => proxy.checks.push(statement.clone()),
            keyword => {
                let name = match keyword {
                    "option" | "timeout" => format!("{keyword} {}", at(1)),
                    _ => keyword.to_owned(),
                };
                proxy.settings.insert(name, statement.clone());
            }
        }
        Ok(())
    }

    fn statistics(&mut self, statement: &Statement) {
        self.stats = Some(statement.place.clone());
        self.proxy.has_stats_auth |= statement.at(1) == "auth";
        if statement.at(1) == "uri" {
            self.stats_uri = Some(statement.at(2).to_owned());
        }
    }

    fn finish(mut self) -> Result<Proxy, Problem> {
        let uri = self.stats_uri.unwrap_or_else(|| "/haproxy?stats".to_owned());
        if self.proxy.servers.is_empty() {
            self.proxy.servers.extend(self.dispatch.take());
        }
        self.proxy.stats = self.stats.map(|place| (place, uri));
        let rules = self.proxy.tcp_request.iter().flatten().chain(&self.proxy.http_request);
        let rules = rules.chain(&self.proxy.http_response).chain(&self.proxy.redirects);
        let switches = self.proxy.switches.iter().chain(&self.proxy.use_servers);
        let conditions = rules.filter_map(|rule| rule.when.as_ref());
        let conditions = conditions.chain(switches.filter_map(|switch| switch.when.as_ref()));
        let conditions = conditions.chain(&self.proxy.monitor_fails);
        let mut missing = BTreeMap::new();
        for literal in conditions.flat_map(|condition| condition.any.iter().flatten()) {
            if let Named::Acl(name) = &literal.of
                && !self.proxy.acls.contains_key(name)
            {
                missing.insert(name.clone(), literal.place.clone());
            }
        }
        for (name, place) in missing {
            let Some(words) = acl::predefined(&name) else {
                let problem = format!("there is no ACL {name:?} in {}", self.proxy.name);
                return Err(Problem::at(&place, problem));
            };
            let words = words.iter().map(|&text| Word { text: text.into(), place: place.clone() });
            let test = acl::test(&words.collect::<Vec<_>>(), self.files)?;
            self.proxy.acls.insert(name, vec![Arc::new(test)]);
        }
        Ok(self.proxy)
    }
}

/// The address of `dispatch`, as a server.
fn dispatch(statement: &Statement) -> Result<Server, Problem> {
    let name = Word { text: "dispatch".to_owned(), place: statement.place.clone() };
    let mut words = vec![name.clone(), name];
    words.extend(statement.from(1).first().cloned());
    server(&Statement { words, ..statement.clone() }, &[])
}

/// Whether a statement has the request kept as it came: logs do, and formats that look
/// at HTTP.
fn captures(statement: &Statement) -> bool {
    const VARIABLES: &[&str] = &["%r", "%HU", "%HP", "%HQ", "%HM", "%HV", "}r"];
    matches!(statement.at(1), "httplog" | "httpslog")
        || (statement.at(0) == "use_backend" && statement.at(1).contains('%'))
        || statement.words.iter().any(|word| {
            word.text.contains("capture.req.")
                || VARIABLES.iter().any(|name| word.text.contains(name))
                || word.text.split("%[").skip(1).any(is_of_http)
        })
}

fn is_of_http(expression: &str) -> bool {
    const OTHERS: &[&str] = &["src", "dst", "var", "str", "int", "bool", "ssl", "rand", "date"];
    let expression = expression.trim_start();
    let end = expression.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(expression.len());
    !OTHERS.contains(&&expression[..end])
}

fn texts(statement: &Statement, n: usize) -> Vec<String> {
    statement.from(n).iter().map(|word| word.text.clone()).collect()
}

fn switch(statement: &Statement, files: &Files<'_>) -> Result<Switch, Problem> {
    let Some(name) = statement.words.get(1) else {
        return Err(statement.expected(1, "a name"));
    };
    Ok(Switch {
        place: statement.place.clone(),
        to: sample::format(&name.text, &name.place, files)?,
        when: rules::condition(statement, 2, files)?,
    })
}
