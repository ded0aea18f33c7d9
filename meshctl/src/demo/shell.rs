//! Runs `meshctl` as a child process, alone or as `a | b`, exactly as printed.

use std::{ffi::OsString, path::PathBuf, process::Stdio, time::Duration};

use tokio::io::AsyncWriteExt;

use super::{
    child,
    tell::{SITES_VARIABLE, Teller},
};
use crate::failure::Failure;

/// `join` and `link cluster` end by themselves before this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Types commands.
#[derive(Debug)]
pub(crate) struct Shell<'a> {
    pub(crate) teller: &'a Teller,
    /// Value of `ISTHMUS_SITES`.
    pub(crate) sites: PathBuf,
}

impl Shell<'_> {
    /// `meshctl <words>`.
    pub(crate) async fn run(&self, words: &str) -> Result<(), Failure> {
        self.teller.command(&format!("meshctl {words}"));
        let output = self.one(words, "").await?;
        self.teller.said(&output);
        Ok(())
    }

    /// `meshctl <first> | meshctl <second>`: what passes between stays unseen.
    pub(crate) async fn pipe(&self, first: &str, second: &str) -> Result<(), Failure> {
        self.teller.command(&format!("meshctl {first} | meshctl {second}"));
        let passed = self.one(first, "").await?;
        let output = self.one(second, &passed).await?;
        self.teller.said(&output);
        Ok(())
    }

    /// Runs one command with `input` on its stdin; returns its stdout.
    async fn one(&self, words: &str, input: &str) -> Result<String, Failure> {
        let args: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        let mut command = child::command(&std::env::current_exe()?, &args)?;
        command.env(SITES_VARIABLE, &self.sites).env_remove("ISTHMUS_RUN");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = piped.spawn()?;
        let stdin = process.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its stdin may have closed it.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let work = async { tokio::join!(feed, process.wait_with_output()).1 };
        let output = tokio::time::timeout(COMMAND_TIMEOUT, work).await.map_err(|_| {
            Failure::new(format!("meshctl {words}: no end within {COMMAND_TIMEOUT:?}"))
        })??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("meshctl {words}\n  {}", said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
