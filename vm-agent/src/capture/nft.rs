//! `nft(8)`, which does what a text says, all or nothing.

use std::{
    io,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Where it is; PATH of a service need not say so.
const PLACES: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];
/// The longest that one transaction may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what it says about a mistake, in bytes.
const MAX_SAID: usize = 1024;

/// Why the kernel does not have the rules.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It is not there.
    #[error("nft is not installed; apt install nftables")]
    Missing,
    /// It cannot be run.
    #[error("nft cannot be run: {0}")]
    Run(io::Error),
    /// It does not end.
    #[error("nft has not ended within {PATIENCE:?}")]
    Late,
    /// It or the kernel refuses.
    #[error("nft refuses the rules: {0}")]
    Refused(String),
}

/// Loads a text as one transaction.
///
/// # Errors
///
/// Nothing has changed then, unless nft did not end in time.
pub async fn load(text: &str) -> Result<(), NftError> {
    let output = run(&["-f", "-"], text).await?;
    if output.status.success() {
        return Ok(());
    }
    let said = output.stderr.get(..output.stderr.len().min(MAX_SAID)).unwrap_or_default();
    Err(NftError::Refused(String::from_utf8_lossy(said).trim().to_owned()))
}

/// Whether a table of ours is there.
pub async fn has_table(table: &str) -> Result<bool, NftError> {
    let output = run(&["list", "table", "inet", table], "").await?;
    Ok(output.status.success())
}

async fn run(arguments: &[&str], input: &str) -> Result<Output, NftError> {
    let place = PLACES.iter().find(|place| Path::new(place).exists()).unwrap_or(&"nft");
    let spawned = Command::new(place)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NftError::Missing,
        _ => NftError::Run(error),
    })?;
    let mut stdin = child.stdin.take();
    let ended = timeout(PATIENCE, async {
        if let Some(stdin) = &mut stdin {
            // One that does not read to the end says why when it ends.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    });
    ended.await.map_err(|_| NftError::Late)?.map_err(NftError::Run)
}
