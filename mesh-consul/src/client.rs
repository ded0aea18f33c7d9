//! One Consul agent over HTTP.
//!
//! Consul says errors as plain text, and leaves out of lists what the token may
//! not read. [`Answer`] has what its headers say of that. Clones share connections
//! and token.

mod error;
mod figures;
mod query;
mod tls;
mod token;

use std::{sync::Arc, time::Duration};

use reqwest::{Method, Response, StatusCode, Url, header::HeaderMap};
use serde::Serialize;

use self::{error::refused, token::Token};
pub use self::{
    error::{BuildError, Error},
    figures::Figures,
    query::{CatalogOf, HealthOf, Listing, Query, Services},
    tls::TlsFiles,
};
use crate::wire::{AgentSelf, AgentServices, CheckUpdate, Registration};

/// The longest answer that is read, in bytes: ten thousand instances with their
/// checks are about a tenth of it.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The longest error text that is kept, in characters.
const MAX_ERROR: usize = 300;
/// Until a connection is there.
const CONNECT: Duration = Duration::from_secs(5);
/// A call that blocks for nothing.
const CALL: Duration = Duration::from_secs(10);
/// Beyond what a blocking query may take.
const SLACK: Duration = Duration::from_secs(10);
/// Tells a peer that is gone from one that has nothing to say.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where an agent is, and as whom it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// `http://127.0.0.1:8500`, or https.
    pub address: String,
    /// Holds an ACL token, alone in its file; read again when it changes.
    pub token_file: Option<std::path::PathBuf>,
    /// Required for https.
    pub tls: Option<TlsFiles>,
    /// Reads ask any server, not only the leader: they go on while there is none.
    pub stale: bool,
}

/// A connection to one agent.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
    stale: bool,
    figures: Figures,
}

/// When a query that blocks answers at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// What `X-Consul-Index` was.
    pub index: u64,
    /// At most 10 min; Consul adds up to a sixteenth.
    pub wait: Duration,
}

/// What Consul answers to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The body.
    pub data: T,
    /// `X-Consul-Index`.
    pub index: u64,
    /// `X-Consul-KnownLeader` is not `false`.
    pub has_leader: bool,
    /// Something may have been left out by access control: Consul says so, or it
    /// denies by default and nobody has said who asks.
    pub filtered: bool,
}

impl Client {
    /// Reads the files that `connection` names; connects when it is first asked.
    ///
    /// # Errors
    ///
    /// If the address is none, or a file cannot be used.
    pub fn new(connection: &Connection) -> Result<Self, BuildError> {
        let base = base(&connection.address)?;
        let config = tls::client_config(&base, connection.tls.as_ref())?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            // The token would go there.
            .no_proxy()
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .build()
            .map_err(BuildError::Http)?;
        let token = connection.token_file.clone().map(Token::read).transpose()?;
        if token.is_some() && base.scheme() == "http" && !is_loopback(&base) {
            log::warn!(address:% = base; "consul: the token goes there unencrypted; use https");
        }
        let inner =
            Inner { http, base, token, stale: connection.stale, figures: Figures::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What was counted so far.
    pub fn figures(&self) -> &Figures {
        &self.inner.figures
    }

    /// Asks for a list: at once, or when it is no longer that of `block.index`.
    pub async fn read<Q: Query>(
        &self,
        query: &Q,
        block: Option<Block>,
    ) -> Result<Answer<Q::Data>, Error> {
        let answer = self.figures().counted(self.list(query, block).await)?;
        self.figures().answered(answer.index);
        Ok(answer)
    }

    async fn list<Q: Query>(
        &self,
        query: &Q,
        block: Option<Block>,
    ) -> Result<Answer<Q::Data>, Error> {
        let mut call = Call::new(Method::GET, &query.path());
        call.parameters = query.parameters();
        if self.inner.stale {
            call.parameters.push(("stale", String::new()));
        }
        if let Some(Block { index, wait }) = block {
            call.parameters.push(("index", index.to_string()));
            call.parameters.push(("wait", format!("{}ms", wait.as_millis())));
            call.deadline = wait.saturating_add(wait / 16).saturating_add(SLACK);
        }
        let reply = self.call(call).await?;
        let index = number(&reply.headers, "x-consul-index").ok_or(Error::NoIndex)?;
        let mut data = json(&reply.body)?;
        Q::settle(&mut data);
        let denies = text(&reply.headers, "x-consul-default-acl-policy") == Some("deny");
        let left_out = text(&reply.headers, "x-consul-results-filtered-by-acls") == Some("true");
        Ok(Answer {
            data,
            index,
            has_leader: text(&reply.headers, "x-consul-knownleader") != Some("false"),
            filtered: left_out || (denies && !reply.with_token),
        })
    }

    /// Who the agent is: `GET /v1/agent/self`.
    pub async fn agent(&self) -> Result<AgentSelf, Error> {
        let reply = self.counted(Call::new(Method::GET, &["agent", "self"])).await?;
        self.figures().counted(json(&reply.body))
    }

    /// What is registered at this agent: `GET /v1/agent/services`.
    ///
    /// Where access control has left something out, that it is not there means
    /// nothing: [`Error::Filtered`].
    pub async fn agent_services(&self) -> Result<AgentServices, Error> {
        let reply = self.counted(Call::new(Method::GET, &["agent", "services"])).await?;
        let services: AgentServices = self.figures().counted(json(&reply.body))?;
        let denies = text(&reply.headers, "x-consul-default-acl-policy") == Some("deny");
        if services.is_empty() && denies && !reply.with_token {
            return self.figures().counted(Err(Error::Filtered));
        }
        Ok(services)
    }

    /// Registers at this agent; checks that the instance had and that are not in
    /// `registration` go: `PUT /v1/agent/service/register`.
    pub async fn register(&self, registration: &Registration) -> Result<(), Error> {
        let mut call = Call::new(Method::PUT, &["agent", "service", "register"]);
        call.parameters.push(("replace-existing-checks", "true".into()));
        self.counted(call.json(registration)?).await.map(drop)
    }

    /// Takes an instance from this agent; one that is not there is fine.
    pub async fn deregister(&self, id: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, &["agent", "service", "deregister", id]);
        match self.call(call).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => self.figures().counted(Err(error)),
        }
    }

    /// Drains an instance of this agent, or takes that back; Consul remembers.
    pub async fn maintenance(&self, id: &str, on: bool, reason: &str) -> Result<(), Error> {
        let mut call = Call::new(Method::PUT, &["agent", "service", "maintenance", id]);
        call.parameters = vec![("enable", on.to_string()), ("reason", reason.to_owned())];
        self.counted(call).await.map(drop)
    }

    /// Says how an instance with a [`TtlCheck`](crate::wire::TtlCheck) is.
    pub async fn update_check(&self, check: &str, update: &CheckUpdate) -> Result<(), Error> {
        let call = Call::new(Method::PUT, &["agent", "check", "update", check]);
        self.counted(call.json(update)?).await.map(drop)
    }

    async fn counted(&self, call: Call<'_>) -> Result<Reply, Error> {
        self.figures().counted(self.call(call).await)
    }

    async fn call(&self, call: Call<'_>) -> Result<Reply, Error> {
        let Inner { http, base, token, .. } = &*self.inner;
        let url = url(base, &call)?;
        let mut request = http.request(call.method, url).timeout(call.deadline);
        let token = token.as_ref().map(Token::current);
        let with_token = token.is_some();
        if let Some(token) = token {
            request = request.header("x-consul-token", token);
        }
        if let Some(body) = call.body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.map_err(|source| Error::transport(base, source))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            return Err(refused(status, &excerpt(&beginning(response).await)));
        }
        let body = bounded(response, MAX_ANSWER).await.map_err(|error| match error {
            Cut::TooLong => Error::TooLong,
            Cut::Broken(source) => Error::transport(base, source),
        })?;
        Ok(Reply { headers, body, with_token })
    }
}

struct Call<'a> {
    method: Method,
    path: Vec<&'a str>,
    parameters: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    deadline: Duration,
}

struct Reply {
    headers: HeaderMap,
    body: Vec<u8>,
    with_token: bool,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &[&'a str]) -> Self {
        Self { method, path: path.to_vec(), parameters: Vec::new(), body: None, deadline: CALL }
    }

    fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        self.body = Some(serde_json::to_vec(body).map_err(|e| Error::Malformed(e.to_string()))?);
        Ok(self)
    }
}

fn base(address: &str) -> Result<Url, BuildError> {
    let invalid = |problem| BuildError::Address { address: address.to_owned(), problem };
    let base: Url = address.parse().map_err(|_| invalid("is no URL"))?;
    let says_more = base.query().is_some() || base.fragment().is_some() || base.path() != "/";
    match base.scheme() {
        "http" | "https" => {}
        _ => return Err(invalid("is neither http nor https")),
    }
    if base.host_str().is_none() || says_more || !base.username().is_empty() {
        return Err(invalid("has more than scheme, host and port"));
    }
    Ok(base)
}

fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Each segment is encoded, so that a name cannot leave its place.
fn url(base: &Url, call: &Call<'_>) -> Result<Url, Error> {
    let mut url = base.clone();
    for segment in &call.path {
        let is_plain = !matches!(*segment, "" | "." | "..");
        if !is_plain || segment.len() > 512 || segment.chars().any(char::is_control) {
            return Err(Error::Name((*segment).chars().take(80).collect()));
        }
    }
    url.path_segments_mut()
        .map_err(|()| Error::Name(base.to_string()))?
        .clear()
        .push("v1")
        .extend(&call.path);
    if !call.parameters.is_empty() {
        url.query_pairs_mut().extend_pairs(&call.parameters);
    }
    Ok(url)
}

enum Cut {
    TooLong,
    Broken(reqwest::Error),
}

async fn bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, Cut> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Cut::Broken)? {
        if body.len() + chunk.len() > limit {
            return Err(Cut::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// As much of an error as is worth telling; what breaks off has ended.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 4 * MAX_ERROR {
            break;
        }
    }
    body
}

/// One line for people.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR).collect()
}

fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Malformed(error.to_string()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

#[cfg(test)]
mod tests;
