//! Making a site: directories, keys, and the first record of its log.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use mesh_api::v1::SiteCreated;
use mesh_runtime::process::EXIT_FAILURE;

use crate::{
    authority::{Authority, LogStore, StoreError},
    ca::{CaError, CertificateAuthority, fingerprint},
    clock::Clock,
    config::{Config, ConfigFile},
};

/// Why no site was made. Nothing that was there before has changed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one.
    #[error("{0}: there is a site here already; it is not touched. Choose another --state")]
    Exists(PathBuf),
    /// There is a configuration file.
    #[error("{0}: exists and is not overwritten. Choose another --config-out, or move it away")]
    ConfigExists(PathBuf),
    /// A directory or file.
    #[error("{path}: {problem}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        problem: io::Error,
    },
    /// The configuration would not be accepted.
    #[error(transparent)]
    Config(#[from] mesh_runtime::config::ConfigError),
    /// The keys.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl InitError {
    /// The process's exit code: 78 for a wrong configuration, 77 where the
    /// system forbids it (`sysexits.h`), else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::Io { problem, .. } if problem.kind() == io::ErrorKind::PermissionDenied => {
                EXIT_NO_PERMISSION
            }
            _ => EXIT_FAILURE,
        }
    }
}

/// `EX_NOPERM` of `sysexits.h`.
const EXIT_NO_PERMISSION: u8 = 77;

/// A new site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// `SHA256:<hex>` of the root's public key.
    pub root_fingerprint: String,
}

/// Makes a site in a state directory that has none. With `config_out` also
/// writes a configuration file for it; with `root` its root is the one in that
/// directory.
pub fn init_site(
    written: &ConfigFile,
    config_out: Option<&Path>,
    root: Option<&Path>,
    clock: &Clock,
) -> Result<Made, InitError> {
    let name =
        config_out.map_or_else(|| "federation.yaml".into(), |path| path.display().to_string());
    let config = Config::check(written.clone(), &name)?;
    if let Some(path) = config_out
        && path.exists()
    {
        return Err(InitError::ConfigExists(path.to_owned()));
    }
    let made = make_state(&config, root, clock)?;
    if let Some(path) = config_out {
        write_config(path, written)?;
    }
    Ok(made)
}

fn make_state(config: &Config, root: Option<&Path>, clock: &Clock) -> Result<Made, InitError> {
    let Config { state, site, trust_domain, .. } = config;
    let keys = state.join("keys");
    for made_before in [&state.join("authority.log"), &keys] {
        if made_before.exists() {
            return Err(InitError::Exists(state.to_owned()));
        }
    }
    make_directory(state)?;
    // The keys first: a site whose log exists is complete.
    let unfinished = state.join("keys.new");
    remove_unfinished(&unfinished)?;
    make_directory(&unfinished)?;
    let root = match root {
        Some(root) => CertificateAuthority::create_under(root, &unfinished, trust_domain, clock)?,
        None => CertificateAuthority::create(&unfinished, trust_domain, clock)?,
    };
    fs::rename(&unfinished, &keys).map_err(at(&keys))?;
    let created = SiteCreated {
        name: site.to_string(),
        trust_domain: trust_domain.to_string(),
        root: root.clone(),
        restored: None,
    };
    let log = LogStore::create(state).and_then(|store| Authority::create(&store, clock, created));
    if let Err(error) = log {
        // Without its log the site does not exist; do not block the next try.
        let _ = fs::remove_dir_all(&keys);
        let _ = fs::remove_file(state.join("authority.log"));
        return Err(error.into());
    }
    give_to_owner(state)?;
    Ok(Made { root_fingerprint: fingerprint(&root) })
}

/// Left by an attempt that was interrupted before anything counted.
fn remove_unfinished(keys: &Path) -> Result<(), InitError> {
    match fs::remove_dir_all(keys) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(keys)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn make_directory(path: &Path) -> Result<(), InitError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Root makes sites for the user of federation: what is in the directory
/// belongs to the owner of the directory.
pub(crate) fn give_to_owner(directory: &Path) -> Result<(), InitError> {
    let owner = fs::metadata(directory).map_err(at(directory))?;
    if owner.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).map_err(at(&directory))? {
            let path = entry.map_err(at(&directory))?.path();
            std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
                .map_err(at(&path))?;
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

fn write_config(path: &Path, written: &ConfigFile) -> Result<(), InitError> {
    let text =
        serde_yaml_ng::to_string(written).map_err(|error| at(path)(io::Error::other(error)))?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at(directory))?;
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(at(path))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(at(path))
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> InitError + use<> {
    let path = path.to_owned();
    move |problem| InitError::Io { path: path.clone(), problem }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

    use super::*;

    fn written(state: &Path) -> ConfigFile {
        let state = state.to_owned();
        ConfigFile { state, ..ConfigFile::new("west".into(), "west.example".into()) }
    }

    /// Every file with its bytes.
    fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    files.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        files
    }

    #[test]
    fn a_site_is_made_once_and_its_keys_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let (state, out) = (directory.path().join("state"), directory.path().join("etc/fed.yaml"));
        let made = init_site(&written(&state), Some(&out), None, &Clock::system()).unwrap();
        assert!(made.root_fingerprint.starts_with("SHA256:"), "{made:?}");
        assert_eq!(made.root_fingerprint.len(), 7 + 64);
        for (path, mode) in
            [("", 0o700), ("keys", 0o700), ("keys/root.key", 0o600), ("keys/issuing.pem", 0o600)]
        {
            let found = fs::metadata(state.join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{path}: {found:o}");
        }
        Config::load(&out).unwrap();
        let authority = Authority::open(LogStore::open(&state).unwrap(), Clock::system()).unwrap();
        assert_eq!(authority.state().site().name.as_str(), "west");
        drop(authority);

        let keys = contents(&state.join("keys"));
        let log = fs::read(state.join("authority.log")).unwrap();
        let again = init_site(&written(&state), None, None, &Clock::system()).unwrap_err();
        assert!(matches!(again, InitError::Exists(_)), "{again}");
        let elsewhere = written(&directory.path().join("other"));
        let again = init_site(&elsewhere, Some(&out), None, &Clock::system()).unwrap_err();
        assert!(matches!(again, InitError::ConfigExists(_)), "{again}");
        assert!(!directory.path().join("other").exists(), "nothing is made halfway");
        assert_eq!(contents(&state.join("keys")), keys);
        assert_eq!(fs::read(state.join("authority.log")).unwrap(), log);
    }

    #[test]
    fn a_site_may_have_a_root_that_is_kept_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let domain = "west.example".parse().unwrap();
        let root = CertificateAuthority::create_root(&kept, &domain, &Clock::system()).unwrap();
        // Twice: what was lost with the state comes back under the same root.
        for state in ["one", "two"] {
            let written = written(&directory.path().join(state));
            let made = init_site(&written, None, Some(&kept), &Clock::system()).unwrap();
            assert_eq!(made.root_fingerprint, fingerprint(&root));
        }
        let again = CertificateAuthority::create_root(&kept, &domain, &Clock::system());
        assert!(again.is_err(), "nothing is overwritten");
        let other = tempfile::tempdir().unwrap();
        CertificateAuthority::create_root(other.path(), &domain, &Clock::system()).unwrap();
        fs::copy(other.path().join("root.key"), kept.join("root.key")).unwrap();
        let state = directory.path().join("three");
        let error = init_site(&written(&state), None, Some(&kept), &Clock::system()).unwrap_err();
        assert!(error.to_string().contains("does not belong to root.key"), "{error}");
        assert!(!state.join("keys").exists());
    }

    #[test]
    fn an_interrupted_attempt_does_not_stand_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys.new")).unwrap();
        fs::write(directory.path().join("keys.new/root.key"), "half").unwrap();
        init_site(&written(directory.path()), None, None, &Clock::system()).unwrap();
        let trust_domain = "west.example".parse().unwrap();
        CertificateAuthority::open(&directory.path().join("keys"), &trust_domain, Clock::system())
            .unwrap();
    }

    #[test]
    fn a_name_that_is_none_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let wrong = ConfigFile { site: "No".into(), ..written(&state) };
        let error = init_site(&wrong, None, None, &Clock::system()).unwrap_err();
        assert_eq!(error.exit_code(), 78, "{error}");
        assert!(!state.exists());
    }
}
