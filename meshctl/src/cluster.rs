//! Sockets of other machines, through a command that runs `meshctl pipe` there: what
//! goes in and comes out of it is the connection. For the control plane of a cluster
//! that is kubectl. meshctl itself speaks to no API server; who may do that in the
//! pod is the cluster's decision.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
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
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, Join},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::spawn_blocking,
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
        let words = ["kubectl", "--context", &self.context, "--namespace", SYSTEM_NAMESPACE];
        let exec = ["exec", "--stdin", POD, "--container", CONTAINER, "--", "meshctl", "pipe"];
        let command = words.iter().chain(&exec).map(ToString::to_string).collect();
        let look = format!("kubectl --context {} -n {SYSTEM_NAMESPACE} get pods", self.context);
        let remedy = format!(
            "`{look}` shows whether {POD} runs, `kubectl config get-contexts` which clusters there are"
        );
        Piped::channel(&format!("context {}", self.context), command, &remedy).await
    }
}

/// A command elsewhere that ends in `meshctl pipe`.
#[derive(Debug, Clone)]
struct Way(Arc<[String]>);

impl Way {
    fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    async fn connect(&self) -> io::Result<Piped> {
        let program = self.program();
        let mut child = Command::new(program)
            .args(self.0.get(1..).unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other(format!("{program}: without pipes")));
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let greeted = timeout(CONNECT_TIMEOUT, (&mut stdout).take(64).read_line(&mut line)).await;
        match greeted {
            Ok(Ok(_)) if line.trim_end() == GREETING => {}
            Ok(_) => return Err(io::Error::other(problem_of(program, child).await)),
            Err(_) => {
                let problem =
                    format!("{program} has not answered within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
        }
        Ok(Piped { io: tokio::io::join(stdout, stdin), _child: child })
    }
}

/// The last thing that it said.
async fn problem_of(program: &str, mut child: Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(MAX_PROBLEM);
        // What was read until then is told.
        let _ = timeout(Duration::from_secs(2), stderr.read_to_end(&mut text)).await;
    }
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let nothing =
        format!("{program} ended without a word; is this meshctl much newer than what runs there?");
    last.map_or(nothing, |last| last.trim().to_owned())
}

/// Of the process elsewhere to this one; it ends with it.
pub(crate) struct Piped {
    io: Join<BufReader<ChildStdout>, ChildStdin>,
    _child: Child,
}

impl Piped {
    /// A connection through `command`, which runs `meshctl pipe` elsewhere; others
    /// follow when it ends. `to` and `remedy` are for people.
    pub(crate) async fn channel(
        to: &str,
        command: Vec<String>,
        remedy: &str,
    ) -> Result<Channel, Failure> {
        let way = Way(command.into());
        let first = way.connect().await.map_err(|problem| {
            let remedy = match problem.kind() {
                io::ErrorKind::NotFound => {
                    format!("install {}; it is what reaches it", way.program())
                }
                _ => remedy.to_owned(),
            };
            Failure::new(format!("{to}: {problem}")).exit(Exit::Unreachable).remedy(remedy)
        })?;
        let connector = Connector { way, first: Arc::new(Mutex::new(Some(first))) };
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
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
    way: Way,
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
        let way = self.way.clone();
        Box::pin(async move {
            match first {
                Some(first) => Ok(TokioIo::new(first)),
                None => way.connect().await.map(TokioIo::new),
            }
        })
    }
}

/// The other end: carries stdin and stdout to a socket, until either ends.
pub(crate) async fn pipe(socket: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(format!("{}: {error}", socket.display())).exit(Exit::Unreachable)
    };
    let mut reader = UnixStream::connect(socket).map_err(failed)?;
    let writer = reader.try_clone().map_err(failed)?;
    // Pipes in a container, sockets under sshd, and unbuffered.
    let file = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(failed);
    let (mut stdin, mut stdout) = (file(io::stdin().as_fd())?, file(io::stdout().as_fd())?);
    stdout.write_all(format!("{GREETING}\n").as_bytes()).map_err(failed)?;
    // It ends with the process, whatever it reads from.
    std::thread::spawn(move || {
        let _ = carry(&mut stdin, &mut &writer);
        let _ = writer.shutdown(Shutdown::Write);
    });
    let carried = spawn_blocking(move || carry(&mut reader, &mut stdout)).await;
    carried.map_err(Failure::new)?.map_err(failed)
}

/// What is there at once: `io::copy` lets the kernel gather.
fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}
