//! Where the other programs of the mesh are.

use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};

/// The program beside this one, else the first on `PATH`.
pub fn find(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let beside = own.parent().map(|dir| dir.join(name)).filter(|path| path.is_file());
    let found = beside.or_else(|| on_path(name, std::env::var_os("PATH")?.as_ref()));
    found.ok_or_else(|| {
        Failure::new(format!("{name}: not beside {} and not on PATH", own.display()))
            .exit(Exit::Config)
            .remedy(format!("build it: cargo build -p {name}"))
    })
}

fn on_path(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir: PathBuf| dir.join(name))
        .find(|path: &PathBuf| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_remedy() {
        let failure = find("isthmus-no-such-program").expect_err("it does not exist");
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.remedy.contains("cargo build"), "{}", failure.remedy);
    }

    #[test]
    fn the_path_is_searched_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("tool"), "").expect("a file");
        let path = std::env::join_paths([Path::new("/nonexistent"), dir.path()]).expect("a path");
        assert_eq!(on_path("tool", &path), Some(dir.path().join("tool")));
        assert_eq!(on_path("other", &path), None);
    }
}
