//! A check by command, as the agent sees it: it names the instance at a door
//! behind which root's own files say what is run ([`crate::exec`]), and is told
//! how it went.

use std::{io, path::PathBuf, time::Duration};

use mesh_tunnel::Net;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};

/// Commands at once; more wait.
const AT_ONCE: usize = 16;
/// What may pass besides the command's own time: units are started and stopped.
const GRACE: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 4096;
const PASSED: &str = "passed\n";
const FAILED: &str = "failed\n";

/// Where commands are asked for.
#[derive(Debug)]
pub struct Door {
    socket: PathBuf,
    places: Semaphore,
}

impl Door {
    /// Of `isthmus-check.socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, places: Semaphore::new(AT_ONCE) }
    }

    /// Has the command of this instance run. Whoever drops this has it killed.
    pub async fn ask(
        &self,
        net: &dyn Net,
        instance: &str,
        timeout: Duration,
    ) -> Result<(), String> {
        let _place = self.places.acquire().await.expect("it is never closed");
        let asking = tokio::time::timeout(timeout + GRACE, self.asked(net, instance));
        asking.await.unwrap_or_else(|_| Err(self.unclear("no answer")))
    }

    async fn asked(&self, net: &dyn Net, instance: &str) -> Result<(), String> {
        let mut stream = net.dial_unix(&self.socket).await.map_err(|error| self.missing(&error))?;
        let broken = |error: io::Error| self.unclear(&error.to_string());
        stream.write_all(format!("{instance}\n").as_bytes()).await.map_err(broken)?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await.map_err(broken)?;
        if answer == PASSED {
            return Ok(());
        }
        Err(match answer.strip_prefix(FAILED) {
            Some(detail) => detail.to_owned(),
            None => self.unclear("closed without an answer"),
        })
    }

    fn missing(&self, error: &io::Error) -> String {
        format!(
            "{}: {error}; commands are run by isthmus-check.socket of the package \
             isthmus-vm-agent: systemctl start isthmus-check.socket",
            self.socket.display()
        )
    }

    fn unclear(&self, problem: &str) -> String {
        let socket = self.socket.display();
        format!("{socket}: {problem}; see journalctl -u 'isthmus-check@*'")
    }
}

/// The answer to who has asked.
pub fn answer(outcome: &Result<(), String>) -> String {
    match outcome {
        Ok(()) => PASSED.to_owned(),
        Err(detail) => format!("{FAILED}{detail}"),
    }
}

#[cfg(test)]
mod tests {
    use mesh_runtime::process::current_thread;
    use mesh_tunnel::RealNet;
    use tokio::{io::BufReader, net::UnixListener};

    use super::*;

    fn door() -> (tempfile::TempDir, Door) {
        let dir = tempfile::tempdir().unwrap();
        let door = Door::new(dir.path().join("check.sock"));
        (dir, door)
    }

    async fn answered(bytes: &[u8]) -> Result<(), String> {
        let (_dir, door) = door();
        let listener = UnixListener::bind(&door.socket).unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut name = [0; 7];
            stream.read_exact(&mut name).await.unwrap();
            assert_eq!(&name, b"orders\n");
            // Who has read enough does not wait for the rest.
            let _ = stream.write_all(bytes).await;
        };
        tokio::join!(door.ask(&RealNet, "orders", Duration::from_secs(5)), serve).0
    }

    #[test]
    fn an_answer_is_what_was_said() {
        current_thread().unwrap().block_on(async {
            for outcome in [Ok(()), Err("status 2: DISK CRITICAL".to_owned()), Err(String::new())] {
                assert_eq!(answered(answer(&outcome).as_bytes()).await, outcome);
            }
            let endless = vec![b'x'; 1 << 20];
            for nonsense in [&b""[..], b"passed", b"passed\nfailed\n", b"\xff\n", &endless] {
                let shown = answered(nonsense).await.unwrap_err();
                assert!(shown.contains("isthmus-check@*"), "{nonsense:?}: {shown}");
            }
        });
    }

    #[test]
    fn where_nobody_runs_commands_it_says_what_is_missing() {
        current_thread().unwrap().block_on(async {
            let (_dir, door) = door();
            let shown = door.ask(&RealNet, "orders", Duration::from_secs(5)).await.unwrap_err();
            assert!(shown.contains("start isthmus-check.socket"), "{shown}");
        });
    }

    #[test]
    fn so_many_at_once_and_more_wait() {
        current_thread().unwrap().block_on(async {
            let (_dir, door) = door();
            let listener = UnixListener::bind(&door.socket).unwrap();
            let many = futures_util::future::join_all(
                (0..AT_ONCE + 1).map(|_| door.ask(&RealNet, "orders", Duration::from_secs(5))),
            );
            let serve = async {
                let mut streams = Vec::new();
                for _ in 0..AT_ONCE {
                    streams.push(listener.accept().await.unwrap().0);
                }
                let soon = Duration::from_millis(200);
                let early = tokio::time::timeout(soon, listener.accept()).await;
                assert!(early.is_err(), "one more than {AT_ONCE}");
                streams.clear();
                listener.accept().await.unwrap();
            };
            let (outcomes, ()) = tokio::join!(many, serve);
            assert_eq!(outcomes.len(), AT_ONCE + 1);
        });
    }
}
