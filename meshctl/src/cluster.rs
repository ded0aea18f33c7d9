//! The control plane of a cluster, through kubectl: a connection to federation is
//! what goes in and comes out of `meshctl pipe` in its pod. meshctl itself speaks
//! to no API server; who may do that in the pod is the cluster's decision.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use mesh_core::name::SYSTEM_NAMESPACE;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Join},
    net::{UnixStream, unix::pipe},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Exit, Failure};

/// Pod and container of federation, as the chart has them.
const POD: &str = "isthmus-0";
const CONTAINER: &str = "federation";
/// What comes before the bytes of a connection: it is there.
const GREETING: &str = "isthmus pipe 1";
/// Until then, with an API server that is far away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// As for a socket.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// What kubectl says of itself.
const MAX_PROBLEM: u64 = 4096;

/// A context of kubectl's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    context: String,
}

impl Cluster {
    /// Nothing is asked yet.
    pub(crate) fn new(context: &str) -> Self {
        Self { context: context.to_owned() }
    }

    /// A connection to federation; others follow when it ends.
    pub(crate) async fn channel(&self) -> Result<Channel, Failure> {
        let first = self.connect().await.map_err(|problem| {
            let look =
                format!("kubectl --context {} -n {SYSTEM_NAMESPACE} get pods", self.context);
            let remedy = match problem.kind() {
                io::ErrorKind::NotFound => "install kubectl; it is what reaches the cluster".into(),
                _ => format!("`{look}` shows whether {POD} runs, `kubectl config get-contexts` which clusters there are"),
            };
            Failure::new(format!("context {}: {problem}", self.context))
                .exit(Exit::Unreachable)
                .remedy(remedy)
        })?;
        let connector =
            Connector { cluster: self.clone(), first: Arc::new(Mutex::new(Some(first))) };
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    async fn connect(&self) -> io::Result<Piped> {
        let mut kubectl = Command::new("kubectl")
            .args(["--context", &self.context, "--namespace", SYSTEM_NAMESPACE])
            .args(["exec", "--stdin", POD, "--container", CONTAINER, "--", "meshctl", "pipe"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("kubectl: {error}")))?;
        let (Some(stdin), Some(stdout)) = (kubectl.stdin.take(), kubectl.stdout.take()) else {
            return Err(io::Error::other("kubectl: without pipes"));
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let greeted = timeout(CONNECT_TIMEOUT, (&mut stdout).take(64).read_line(&mut line)).await;
        match greeted {
            Ok(Ok(_)) if line.trim_end() == GREETING => {}
            Ok(_) => return Err(io::Error::other(problem_of(kubectl).await)),
            Err(_) => {
                let problem =
                    format!("kubectl has not answered within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
        }
        Ok(Piped { io: tokio::io::join(stdout, stdin), _kubectl: kubectl })
    }
}

/// The last thing that kubectl said.
async fn problem_of(mut kubectl: Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = kubectl.stderr.take() {
        let mut stderr = stderr.take(MAX_PROBLEM);
        // What was read until then is told.
        let _ = timeout(Duration::from_secs(2), stderr.read_to_end(&mut text)).await;
    }
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let nothing =
        "kubectl ended without a word; is this meshctl much newer than the control plane?";
    last.unwrap_or(nothing).trim().to_owned()
}

/// Of the process in the pod to this one; it ends with it.
struct Piped {
    io: Join<BufReader<ChildStdout>, ChildStdin>,
    _kubectl: Child,
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Gives a channel its connections.
#[derive(Clone)]
struct Connector {
    cluster: Cluster,
    /// Not used yet.
    first: Arc<Mutex<Option<Piped>>>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Piped>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Piped>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let cluster = self.cluster.clone();
        Box::pin(async move {
            match first {
                Some(first) => Ok(TokioIo::new(first)),
                None => cluster.connect().await.map(TokioIo::new),
            }
        })
    }
}

/// The other end: carries stdin and stdout to a socket, until either ends.
pub(crate) async fn pipe(socket: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(format!("federation at {}: {error}", socket.display())).exit(Exit::Unreachable)
    };
    let mut stream = UnixStream::connect(socket).await.map_err(failed)?;
    // A container's are pipes.
    let pipe_of = |io: BorrowedFd<'_>| io.try_clone_to_owned();
    let stdin = pipe_of(io::stdin().as_fd()).and_then(pipe::Receiver::from_owned_fd);
    let stdout = pipe_of(io::stdout().as_fd()).and_then(pipe::Sender::from_owned_fd);
    let (stdin, mut stdout) = (stdin.map_err(Failure::usage)?, stdout.map_err(Failure::usage)?);
    stdout.write_all(format!("{GREETING}\n").as_bytes()).await.map_err(failed)?;
    let mut here = tokio::io::join(stdin, stdout);
    tokio::io::copy_bidirectional(&mut here, &mut stream).await.map_err(failed)?;
    Ok(())
}
