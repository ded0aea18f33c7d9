//! Files of `io.l5d.fs` as names: a table sends any label to them, and rules are for
//! those that are there.

use std::path::Path;

use super::{
    config::Config,
    name::Name,
    world::{World, endpoints_of_file},
};
use crate::source::Source;

/// Directories within each other.
const MAX_DEPTH: usize = 6;
/// Files of one namer, at most.
const MAX_FILES: usize = 3_000;

/// Adds what namers have in their directories, which are relative to `directory`, to
/// what is known. A file that cannot be read is told of where a request comes to it.
pub fn add(config: &Config, directory: &Path, world: &mut World) {
    for namer in config.namers.iter().filter(|namer| namer.kind == "io.l5d.fs") {
        let Some(root) = namer.node.at("rootDir").and_then(|node| node.text().ok()) else {
            continue;
        };
        let mut left = MAX_FILES;
        below(&directory.join(root), &namer.prefix, MAX_DEPTH, &mut left, world);
    }
}

fn below(directory: &Path, name: &Name, depth: usize, left: &mut usize, world: &mut World) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut entries: Vec<_> = entries.flatten().take(*left).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(label) = entry.file_name().into_string() else { continue };
        if *left == 0 {
            return;
        }
        *left -= 1;
        let (path, name) = (entry.path(), name.join(&Name::of([label])));
        if path.is_dir() {
            if depth > 0 {
                below(&path, &name, depth - 1, left, world);
            }
            continue;
        }
        let Ok(source) = Source::read(&path) else { continue };
        if let Ok(endpoints) = endpoints_of_file(&source.text) {
            world.names.entry(name.to_string()).or_insert(Some(endpoints));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linkerd1::tests::{LEGACY, source};

    #[test]
    fn files_are_names() {
        let config = Config::read(&source("linkerd1-12-edge-chain.yaml")).unwrap();
        let mut world = World::of_names(["/#/io.l5d.fs/web"]);
        add(&config, Path::new(LEGACY), &mut world);
        assert_eq!(world.names["/#/io.l5d.fs/web"], None);
        let orders = world.names["/#/io.l5d.fs/orders"].as_ref().unwrap();
        assert_eq!((orders.len(), orders[1].1), (2, 3.0));
        for name in ["/#/io.l5d.fs/v2/users", "/#/legacy/shop", "/#/io.l5d.fs/legacy/shop"] {
            assert!(world.names.contains_key(name), "{name}");
        }
        assert!(!world.names.contains_key("/#/io.l5d.fs/v2"));
    }
}
