//! What a proxy does, in words of none of them: listeners, rules of which the first
//! that holds decides, and pools of endpoints.

mod said;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

pub use said::{Said, SaidChange};

use crate::{request::Endpoint, source::Place};

/// A whole configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Program {
    /// In order of the source.
    pub listeners: Vec<Listener>,
    /// By name.
    pub pools: BTreeMap<String, Pool>,
}

/// Where clients come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Where it is written.
    pub place: Place,
    /// Of the source, unique: a name of DNS labels without dots.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// What it takes.
    pub accepts: Accepts,
    /// How clients' TLS ends here; `None` for plaintext or TLS that passes through.
    pub tls: Option<ServerTls>,
}

/// What a listener takes.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each listener")]
pub enum Accepts {
    /// HTTP/1 and HTTP/2.
    Http {
        /// The first that holds decides.
        rules: Vec<Rule>,
        /// What is answered where none holds.
        otherwise: Reply,
        /// What becomes of `X-Forwarded-For`.
        forwarded: Forwarded,
        /// What rules see of paths.
        paths: Paths,
        /// Nobody sees headers with `_` in their names.
        drops_underscores: bool,
        /// Clients are strangers, who hear of no endpoint that failed.
        brief_errors: bool,
    },
    /// Connections.
    Tcp {
        /// The first that holds decides; none is to close it.
        rules: Vec<TcpRule>,
    },
}

/// What becomes of `X-Forwarded-For` of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarded {
    /// Nothing.
    #[default]
    Keep,
    /// The client's address is appended.
    Append,
    /// It holds the client's address and nothing else.
    Replace,
}

/// What rules and applications see of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paths {
    /// What is undone before a path is compared or changed.
    pub form: PathForm,
    /// `//` is `/`.
    pub merge_slashes: bool,
    /// Applications get what clients have sent, unless the path is changed.
    pub as_sent: bool,
}

/// The form of a path in which it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathForm {
    /// As it is sent.
    #[default]
    Sent,
    /// RFC 3986 section 6.2.2; `\` is `/`.
    Rfc3986,
    /// All escapes and dot segments undone; what cannot stand in a path otherwise is
    /// encoded again. A path without such a form is answered with 400.
    Decoded,
}

/// Certificates of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// A file, or a directory of them; of whoever asks for no name that is known.
    pub certificate: String,
    /// A file; that of the certificate where both are in one.
    pub key: String,
    /// Names that it is for, as those of others; where empty, those that are in it.
    pub names: Vec<String>,
    /// For names that clients ask for.
    pub more: Vec<ServerCertificate>,
    /// Who asks for another name, or for none, is refused.
    pub only_known_names: bool,
    /// Versions of 1.2 and 1.3 that are spoken; where empty, both.
    pub versions: Vec<TlsVersion>,
    /// Protocols that are offered (ALPN), of `h2` and `http/1.1`; both where it is not said.
    pub alpn: Option<Vec<String>>,
    /// Clients' certificates must come from these.
    pub client_roots: Option<String>,
    /// And must have one of these names; where empty, any.
    pub client_names: Vec<ClientName>,
    /// And must not be in this list.
    pub crl: Option<String>,
}

/// A version that we speak, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

impl ServerTls {
    /// Protocols of a list that are ours, too.
    pub(crate) fn offered<'p>(names: impl IntoIterator<Item = &'p str>) -> Vec<String> {
        let is_ours = |name: &&str| ["h2", "http/1.1"].contains(name);
        let mut own: Vec<String> = Vec::new();
        for name in names.into_iter().map(str::trim).filter(is_ours) {
            if !own.iter().any(|known| known == name) {
                own.push(name.to_owned());
            }
        }
        own
    }

    /// Those versions of 1.2 and 1.3 for which it holds; none where it holds for both.
    pub(crate) fn spoken(is_spoken: impl Fn(TlsVersion) -> bool) -> Vec<TlsVersion> {
        let both = [TlsVersion::Tls12, TlsVersion::Tls13];
        let spoken: Vec<_> = both.into_iter().filter(|version| is_spoken(*version)).collect();
        if spoken.len() == both.len() { Vec::new() } else { spoken }
    }
}

/// Names in certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientName {
    /// Of URIs; of DNS otherwise.
    pub is_uri: bool,
    /// How much of a name is `text`.
    pub part: NamePart,
    /// Not empty.
    pub text: String,
}

/// A part of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamePart {
    /// All of it.
    Exact,
    /// Its beginning.
    Prefix,
    /// Its end.
    Suffix,
}

/// One more certificate of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// As in [`ServerTls`].
    pub certificate: String,
    /// As in [`ServerTls`].
    pub key: String,
    /// Names that it is for, or `*.` and one for all below; where empty, those that are
    /// in it. Each [can be asked for](is_asked_for).
    pub names: Vec<String>,
}

/// Whether a client can ask for this name by SNI, or, with `*.` before it, for some
/// below (RFC 6066 section 3).
pub fn is_asked_for(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let is_inside = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|c| c.is_ascii_digit());
    name.len() <= 253
        && name.split('.').all(is_label)
        && !name.rsplit('.').next().is_none_or(is_number)
}

/// What is done with some requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The line that says so.
    pub place: Place,
    /// Which.
    pub when: Condition,
    /// What.
    pub then: Then,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "answers are what most rules have")]
pub enum Then {
    /// The proxy answers itself.
    Reply(Reply),
    /// It goes on.
    Forward(Box<Forward>),
}

/// An answer of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Status of HTTP.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What it says.
    pub body: String,
    /// More headers, made of the request; one that is empty is left out.
    pub told: Vec<(String, Said)>,
    /// What it says instead, made of the request.
    pub text: Option<Said>,
    /// For redirects: where to.
    pub location: Option<Location>,
}

/// Where a redirect leads: what is absent is as in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Location {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Without a port.
    pub host: Option<String>,
    /// With it.
    pub port: Option<u16>,
    /// Instead of the request's.
    pub path: Option<PathChange>,
    /// Whether the query is left out.
    pub strip_query: bool,
}

/// Where a request goes, and as what.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forward {
    /// Pools by weight.
    pub pools: Vec<(String, u32)>,
    /// Another path; the query stays, unless there is a `?` in what comes out.
    pub path: Option<PathChange>,
    /// The client's query is not sent on.
    pub strip_query: bool,
    /// Another `Host`.
    pub host: Option<String>,
    /// Replaced, names in lower case.
    pub set: Vec<(String, String)>,
    /// Replaced by what the request says, names in lower case; removed where it says
    /// nothing.
    pub tell: Vec<(String, Said)>,
    /// The same, added to those that are there; nothing where it is empty.
    pub tell_more: Vec<(String, Said)>,
    /// Added to those that are there.
    pub add: Vec<(String, String)>,
    /// Removed.
    pub remove: Vec<String>,
    /// In order, after all these.
    pub sometimes: Vec<Sometimes>,
    /// The same for answers.
    pub set_answer: Vec<(String, String)>,
    /// The same for answers.
    pub add_answer: Vec<(String, String)>,
    /// The same for answers.
    pub remove_answer: Vec<String>,
    /// Of the whole request, repetitions included.
    pub request_timeout: Option<Duration>,
    /// Of one attempt.
    pub attempt_timeout: Option<Duration>,
    /// When it is repeated.
    pub retry: Option<Retry>,
    /// Pools that get a copy, in percent.
    pub mirrors: Vec<(String, f64)>,
    /// What changes with one of several pools, beside all this.
    pub own: Vec<OfPool>,
}

/// A header that changes with some requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Sometimes {
    /// With which, as the client has sent them.
    pub when: Condition,
    /// In lower case.
    pub name: String,
    /// How.
    pub change: Change,
}

/// What becomes of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is this; it is removed where that is empty.
    Set(Said),
    /// This, too; nothing where it is empty.
    Add(Said),
    /// Nothing is left of it.
    Remove,
}

/// Headers that change with one of several pools; names in lower case, none of those that
/// change with all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OfPool {
    /// Which, by its place in [`Forward::pools`].
    pub at: usize,
    /// Of requests: replaced.
    pub set: Vec<(String, String)>,
    /// Added to those that are there.
    pub add: Vec<(String, String)>,
    /// Removed.
    pub remove: Vec<String>,
    /// The same for answers.
    pub set_answer: Vec<(String, String)>,
    /// The same for answers.
    pub add_answer: Vec<(String, String)>,
    /// The same for answers.
    pub remove_answer: Vec<String>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// This one.
    Whole(String),
    /// The first `from` characters that matched are replaced, as text.
    Prefix {
        /// What the path begins with.
        from: String,
        /// What it begins with then.
        to: String,
    },
    /// As `regex` replaces: `$1`, `${name}`.
    Pattern {
        /// Unanchored.
        pattern: String,
        /// With references to groups.
        substitution: String,
        /// Every match, or the first one.
        all: bool,
    },
}

/// When an attempt is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retry {
    /// Repetitions of one request, at most.
    pub attempts: u32,
    /// Statuses of answers that are repeated.
    pub statuses: Vec<u16>,
    /// Of gRPC.
    pub grpc_statuses: Vec<u32>,
    /// Not only idempotent methods.
    pub any_method: bool,
    /// Where nothing was answered after it was sent.
    pub on_reset: bool,
    /// Before the first; it grows.
    pub backoff: Option<Duration>,
}

/// Which requests. Matches without case are patterns with `(?i)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Every one.
    Always,
    /// All of these; none is every request.
    All(Vec<Condition>),
    /// Any of these; none is no request.
    Any(Vec<Condition>),
    /// No other.
    Not(Box<Condition>),
    /// Path without the query.
    Path(Text),
    /// One of these methods, exactly.
    Method(Vec<String>),
    /// A value of the header; of `host` as it is sent, with its port.
    Header(String, Text),
    /// The first value of the parameter.
    Query(String, Text),
    /// The client's address is in one of these blocks (`10.0.0.0/8`).
    Source(Vec<String>),
    /// What is made of the request, which may be empty; nothing of the client's address.
    Said(Said, Text),
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Byte by byte.
    Exact(String),
    /// What it begins with, as text: `/a` takes `/ab`.
    Prefix(String),
    /// The whole text matches (syntax of the `regex` crate; without Unicode classes).
    Pattern(String),
    /// Anything: it is there.
    Present,
}

/// What is done with some connections.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpRule {
    /// The line that says so.
    pub place: Place,
    /// Names of TLS, `*.` before them for all below; none is every connection.
    pub server_names: Vec<String>,
    /// Whose connections.
    pub clients: Clients,
    /// Pools by weight; none closes it.
    pub pools: Vec<(String, u32)>,
}

impl TcpRule {
    /// Whether some of them ask for clients: names of TLS are told apart nowhere then.
    pub fn are_by_client(rules: &[Self]) -> bool {
        rules.iter().any(|rule| rule.clients != Clients::default())
    }
}

/// Clients by address (`10.0.0.0/8`); everybody by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clients {
    /// They are in one of these; none is anywhere.
    pub within: Vec<String>,
    /// And in none of these.
    pub outside: Vec<String>,
}

/// Endpoints that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Where it is written.
    pub place: Place,
    /// In order of the source.
    pub members: Vec<Member>,
    /// How one is chosen.
    pub balance: Balance,
    /// How long a connection may take to come; not carried to objects yet, as the ledger
    /// says.
    pub connect_timeout: Option<Duration>,
    /// How long nothing may be said; likewise.
    pub idle_timeout: Option<Duration>,
    /// How their health is found out.
    pub check: Option<Check>,
    /// When one is left alone for what it answers.
    pub outlier: Option<Outlier>,
    /// With less than so many per cent well, checks are not believed; 0 is never.
    pub panic_percent: Option<u32>,
    /// How it is spoken to.
    pub tls: Option<ClientTls>,
    /// HTTP/2 in plaintext or TLS.
    pub is_http2: bool,
    /// At once.
    pub limits: Limits,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it is written.
    pub place: Place,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its part, beside others; 0 takes nothing new.
    pub weight: u32,
    /// 0 first; others only while nobody of a lower one is well.
    pub priority: u32,
    /// Taken out by hand.
    pub is_disabled: bool,
    /// Requests at once; 0 is any number.
    pub max_requests: u32,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The fewest in flight.
    LeastLoaded,
    /// By chance.
    Random,
    /// The first that has room.
    First,
    /// By what the request says: the same goes to the same one.
    Hash(Key),
}

/// What a hash is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The client's address.
    Source,
    /// A header.
    Header(String),
    /// A cookie, made where absent if it has a life.
    Cookie(String, Option<Duration>),
    /// The path, so many of its parts (0 is all).
    Path(u32),
    /// A parameter of the query.
    Query(String),
}

/// How health is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// A path of HTTP; `None` connects only.
    pub path: Option<String>,
    /// With it.
    pub host: Option<String>,
    /// Statuses that are well; none is 200 to 399.
    pub statuses: Vec<u16>,
    /// Another port than that of the traffic.
    pub port: Option<u16>,
    /// Between two.
    pub interval: Duration,
    /// Of one.
    pub timeout: Option<Duration>,
    /// Failures in a row.
    pub fall: u32,
    /// Successes in a row.
    pub rise: u32,
}

/// When an endpoint is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// Failures in a row.
    pub failures: u32,
    /// For how long.
    pub ejection: Duration,
}

/// TLS towards an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// What is asked for, and must be proved.
    pub server_name: Option<String>,
    /// Who is believed; `None` believes everybody.
    pub roots: Option<String>,
    /// Who we are: certificate and key.
    pub certificate: Option<(String, String)>,
}

/// At once; 0 is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// Repetitions.
    pub retries: u32,
}
