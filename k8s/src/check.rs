//! Whether what was installed answers: what `helm test` runs.

use std::{fmt, io, str::FromStr, time::Duration};

use anyhow::bail;
use clap::Args;
use mesh_runtime::config::HumanDuration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// For one attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two.
const PAUSE: Duration = Duration::from_millis(500);
/// Of an answer, no more is read than this, in bytes.
const MAX_ANSWER: u64 = 4096;

/// Who is asked, and for how long.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  isthmus-k8s check http://isthmus:8448/ready http://isthmus:8449/ready tcp://isthmus-gateway:8443")]
pub struct Options {
    /// http://HOST:PORT/PATH, which must answer 200, or tcp://HOST:PORT, which must be open
    #[arg(required = true, value_name = "URL")]
    pub targets: Vec<Target>,
    /// How long to try
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    pub timeout: HumanDuration,
}

/// Something that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    authority: String,
    /// Of an HTTP request; without, that it is open will do.
    path: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?}: write http://<host>:<port>/<path> or tcp://<host>:<port>");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (authority, path) = match (scheme, rest.split_once('/')) {
            ("http", Some((authority, path))) => (authority, Some(format!("/{path}"))),
            ("http", None) => (rest, Some("/".to_owned())),
            ("tcp", None) => (rest, None),
            _ => return Err(wrong()),
        };
        let port = authority.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        let plain = authority.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
            return Err(wrong());
        }
        Ok(Self { authority: authority.to_owned(), path })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "http://{}{path}", self.authority),
            None => write!(f, "tcp://{}", self.authority),
        }
    }
}

/// Prints a line for each; fails if one has not answered in time.
pub async fn check(options: Options) -> anyhow::Result<()> {
    let until = Instant::now() + options.timeout.0;
    let mut failed = 0;
    for target in &options.targets {
        match answers(target, until).await {
            Ok(()) => println!("ok      {target}"),
            Err(problem) => {
                failed += 1;
                println!("failed  {target}: {problem}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} do not answer; kubectl get pods tells which", options.targets.len());
    }
    Ok(())
}

async fn answers(target: &Target, until: Instant) -> Result<(), String> {
    loop {
        let asked = timeout(ATTEMPT, target.ask()).await;
        let Err(problem) = asked.unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT:?}")))
        else {
            return Ok(());
        };
        if Instant::now() >= until {
            return Err(problem);
        }
        sleep(PAUSE).await;
    }
}

impl Target {
    async fn ask(&self) -> Result<(), String> {
        let told = |error: io::Error| error.to_string();
        let mut stream = TcpStream::connect(&self.authority).await.map_err(told)?;
        let Some(path) = &self.path else { return Ok(()) };
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.authority);
        stream.write_all(head.as_bytes()).await.map_err(told)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(told)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let mut status = head.lines().next().unwrap_or_default().split(' ');
        match (status.next(), status.next()) {
            (Some("HTTP/1.1"), Some("200")) => Ok(()),
            (Some("HTTP/1.1"), Some(status)) => Err(format!("{status} {}", body.trim())),
            _ => Err("it does not speak HTTP/1.1".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_target_says_where_and_what() {
        for good in ["http://isthmus:8448/ready", "http://[fd00::1]:80/", "tcp://gateway:8443"] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        let bad = [
            "isthmus:8448",
            "https://a:1/",
            "http://a/ready",
            "tcp://a:1/x",
            "http://:80/",
            "tcp://a:0",
            "tcp://a b:1",
        ];
        for bad in bad {
            assert!(bad.parse::<Target>().unwrap_err().contains("write http://"), "{bad}");
        }
    }

    /// What a server that says this once is told to be.
    async fn asked(answer: &'static str, scheme: &str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        };
        let target: Target =
            format!("{scheme}://{at}{}", if scheme == "http" { "/ready" } else { "" })
                .parse()
                .unwrap();
        tokio::join!(target.ask(), serve).0
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        asked("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "http").await.unwrap();
        let not =
            asked("HTTP/1.1 503 Service Unavailable\r\n\r\nfederation: starting\n", "http").await;
        assert_eq!(not.unwrap_err(), "503 federation: starting");
        assert!(asked("220 mail ESMTP\r\n", "http").await.unwrap_err().contains("HTTP"));
        asked("", "tcp").await.unwrap();
        let nobody: Target = "tcp://127.0.0.1:1".parse().unwrap();
        let problem = answers(&nobody, Instant::now()).await.unwrap_err();
        assert!(problem.contains("refused"), "{problem}");
    }
}
