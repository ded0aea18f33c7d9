//! Follows the directory of service files and keeps every service checked.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_api::v1::Health;
use mesh_runtime::{changes::Changes, config};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    Local, ServiceSpec, Services,
    check::{self, Asker},
    file,
};

/// From one look at the directory to the next where nobody tells of changes; a
/// look at unchanged files costs one `stat` each.
const POLL: Duration = Duration::from_secs(1);
/// Services of one machine, as federation accepts them.
const MAX_FILES: usize = 256;

/// Changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

/// One file as it was last read.
struct Known {
    stamp: Stamp,
    parsed: Result<Arc<ServiceSpec>, String>,
}

/// Follows `dir` for ever and keeps `services` up to date. `look` asks for a look
/// at once; whoever waits for it is told of the next read.
pub async fn run(
    dir: &Path,
    asker: &Arc<Asker>,
    services: &watch::Sender<Services>,
    look: &Changes,
) {
    let mut directory = Directory::new(dir);
    let mut checks = Checks { asker, services, tasks: JoinSet::new(), running: HashMap::new() };
    let mut asked = true;
    loop {
        let (specs, broken) = directory.read();
        checks.set(specs);
        services.send_if_modified(|services| {
            let changed = services.broken != broken;
            services.broken = broken;
            services.reads += 1;
            changed || asked
        });
        // What a link leads to changes without a word.
        asked = match directory.has_links() {
            true => look.asked_within(POLL).await,
            false => look.wait(POLL).await,
        };
    }
}

/// What the directory holds; unchanged files are not read again.
struct Directory {
    dir: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    /// The last thing said about the directory itself.
    problem: Option<String>,
}

type Specs = BTreeMap<String, Arc<ServiceSpec>>;
type Broken = BTreeMap<PathBuf, String>;

impl Directory {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), known: BTreeMap::new(), problem: None }
    }

    fn read(&mut self) -> (Specs, Broken) {
        let files = match service_files(&self.dir) {
            Ok(files) => {
                self.problem = None;
                files
            }
            // Nobody has described a service yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return self.unreadable(&error),
        };
        self.known.retain(|path, _| files.contains(path));
        for path in files {
            self.read_file(path);
        }
        self.by_instance()
    }

    fn has_links(&self) -> bool {
        self.known.keys().any(|path| path.is_symlink())
    }

    /// A directory that cannot be read says nothing about its services: they
    /// stay as they were.
    fn unreadable(&mut self, error: &io::Error) -> (Specs, Broken) {
        let problem = format!("cannot be read: {error}");
        if self.problem.as_ref() != Some(&problem) {
            log::error!("{}: {problem}; services stay as they are", self.dir.display());
        }
        let (specs, mut broken) = self.by_instance();
        broken.insert(self.dir.clone(), problem.clone());
        self.problem = Some(problem);
        (specs, broken)
    }

    fn read_file(&mut self, path: PathBuf) {
        let Ok(metadata) = fs::metadata(&path) else {
            // Gone since the directory was listed.
            self.known.remove(&path);
            return;
        };
        let stamp = Stamp {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
        };
        if self.known.get(&path).is_some_and(|known| known.stamp == stamp) {
            return;
        }
        let parsed = parse(&path);
        match &parsed {
            Ok(spec) => {
                log::info!(service = spec.service.as_str(), file:% = path.display(); "service file read");
            }
            Err(problem) => log::error!("{problem}; this file is ignored until it is mended"),
        }
        self.known.insert(path, Known { stamp, parsed });
    }

    /// Of two files that claim one instance, the first by name has it.
    fn by_instance(&self) -> (Specs, Broken) {
        let (mut specs, mut broken) = (Specs::new(), Broken::new());
        for (path, known) in &self.known {
            match &known.parsed {
                Err(problem) => {
                    broken.insert(path.clone(), problem.clone());
                }
                Ok(spec) if specs.contains_key(&spec.instance) => {
                    let problem = format!(
                        "{}: instance: {} is used by another file; write another instance",
                        path.display(),
                        spec.instance
                    );
                    broken.insert(path.clone(), problem);
                }
                Ok(spec) => {
                    specs.insert(spec.instance.clone(), spec.clone());
                }
            }
        }
        (specs, broken)
    }
}

/// `*.yaml` and `*.yml` by name, without those that editors hide.
pub(crate) fn service_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let yaml = matches!(path.extension().and_then(OsStr::to_str), Some("yaml" | "yml"));
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if yaml && !hidden {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > MAX_FILES {
        log::warn!(files = files.len(); "more than {MAX_FILES} service files; the rest is ignored");
        files.truncate(MAX_FILES);
    }
    Ok(files)
}

/// The name of an instance whose file says none.
pub(crate) fn stem(path: &Path) -> Cow<'_, str> {
    path.file_stem().unwrap_or_default().to_string_lossy()
}

fn parse(path: &Path) -> Result<Arc<ServiceSpec>, String> {
    let label = path.display().to_string();
    let text = config::read(path).map_err(|error| error.to_string())?;
    file::parse(&text, &stem(path), &label).map(Arc::new).map_err(|error| error.to_string())
}

/// One task per service.
struct Checks<'a> {
    asker: &'a Arc<Asker>,
    services: &'a watch::Sender<Services>,
    tasks: JoinSet<()>,
    running: HashMap<String, (Arc<ServiceSpec>, AbortHandle)>,
}

impl Checks<'_> {
    /// Ends the checks of what is gone or changed, begins those of what is new.
    fn set(&mut self, specs: Specs) {
        self.running.retain(|instance, (spec, task)| {
            let kept = specs.get(instance) == Some(spec);
            if !kept {
                task.abort();
            }
            kept
        });
        self.services.send_if_modified(|now| {
            let before = now.local.len();
            now.local.retain(|instance, _| specs.contains_key(instance));
            now.local.len() != before
        });
        for (instance, spec) in specs {
            if !self.running.contains_key(&instance) {
                self.begin(instance, spec);
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    fn begin(&mut self, instance: String, spec: Arc<ServiceSpec>) {
        let local =
            Local { spec: spec.clone(), health: Health::Unspecified, detail: String::new() };
        self.services.send_modify(|now| {
            now.local.insert(instance.clone(), local);
        });
        let (services, name, checked) = (self.services.clone(), instance.clone(), spec.clone());
        let asker = self.asker.clone();
        let task = self.tasks.spawn(async move {
            check::run(&asker, &name, &checked.check, |health, detail| {
                services.send_if_modified(|now| report(now, &name, &checked, health, detail));
            })
            .await;
        });
        self.running.insert(instance, (spec, task));
    }
}

/// Writes a check's result; says whether that changed anything.
fn report(
    now: &mut Services,
    instance: &str,
    spec: &Arc<ServiceSpec>,
    health: Health,
    detail: String,
) -> bool {
    // A check that was aborted too late must not speak for its successor.
    let Some(local) = now.local.get_mut(instance).filter(|local| Arc::ptr_eq(&local.spec, spec))
    else {
        return false;
    };
    if local.health != health {
        log::info!(
            service = spec.service.as_str(), instance, detail = detail.as_str();
            "service is {}", if health == Health::Healthy { "healthy" } else { "unhealthy" }
        );
    }
    let changed = local.health != health || local.detail != detail;
    (local.health, local.detail) = (health, detail);
    changed
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use mesh_runtime::{changes, process::current_thread};

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    fn service(name: &str, port: u16) -> String {
        format!("service: {name}\nnamespace: shop\nport: {port}\ncheck: {{ interval: 100ms }}\n")
    }

    #[test]
    fn a_bad_file_does_not_hurt_the_others() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "orders.yaml", &service("orders", 80));
        write(dir.path(), "bad.yaml", "service: [\n");
        write(dir.path(), "clash.yaml", "service: a\nnamespace: b\nport: 1\ninstance: orders\n");
        write(dir.path(), "README.md", "not yaml: [");
        write(dir.path(), ".orders.yaml", "swap file");
        fs::create_dir(dir.path().join("dir.yaml")).unwrap();
        let mut directory = Directory::new(dir.path());
        let (specs, broken) = directory.read();
        assert_eq!(specs.keys().collect::<Vec<_>>(), ["orders"]);
        assert_eq!(specs["orders"].service.as_str(), "a.b", "the first file by name has it");
        let names: Vec<_> = broken.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["bad.yaml", "dir.yaml", "orders.yaml"]);
        assert!(broken[&dir.path().join("bad.yaml")].contains("bad.yaml:1:10: "), "{broken:?}");
    }

    #[test]
    fn changes_are_seen_and_a_lost_directory_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let services = dir.path().join("services.d");
        let mut directory = Directory::new(&services);
        assert_eq!(directory.read(), (Specs::new(), Broken::new()), "no directory, no services");
        fs::create_dir(&services).unwrap();
        write(&services, "orders.yaml", &service("orders", 80));
        assert_eq!(directory.read().0["orders"].ports[0].number, 80);
        let first = directory.read().0["orders"].clone();
        assert!(Arc::ptr_eq(&first, &directory.read().0["orders"]), "not read again");

        write(&services, "new", &service("orders", 81));
        fs::rename(services.join("new"), services.join("orders.yaml")).unwrap();
        assert_eq!(directory.read().0["orders"].ports[0].number, 81);

        let moved = dir.path().join("moved");
        fs::rename(&services, &moved).unwrap();
        fs::write(&services, "a file in its place").unwrap();
        let (specs, broken) = directory.read();
        assert!(specs.contains_key("orders") && broken.contains_key(&services), "{broken:?}");

        fs::remove_file(&services).unwrap();
        fs::rename(&moved, &services).unwrap();
        fs::remove_file(services.join("orders.yaml")).unwrap();
        assert_eq!(directory.read(), (Specs::new(), Broken::new()));
    }

    #[test]
    fn services_come_change_and_go() {
        current_thread().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            write(dir.path(), "orders.yaml", &service("orders", port));
            let services = watch::Sender::new(Services::default());
            let mut seen = services.subscribe();
            let look = Changes::default();
            let asker = Arc::new(check::asker());
            let follow = run(dir.path(), &asker, &services, &look);
            let drive = async {
                let health = |wanted: Health| {
                    move |now: &Services| {
                        now.local.get("orders").is_some_and(|local| local.health == wanted)
                    }
                };
                seen.wait_for(|services| services.reads > 0).await.unwrap();
                seen.wait_for(health(Health::Healthy)).await.unwrap();
                assert!(seen.borrow().settled());
                drop(listener);
                let last = seen.wait_for(health(Health::Unhealthy)).await.unwrap().clone();
                assert!(last.local["orders"].detail.contains("refused"), "{last:?}");
                fs::remove_file(dir.path().join("orders.yaml")).unwrap();
                look.ask();
                seen.wait_for(|now| now.local.is_empty()).await.unwrap();
            };
            tokio::select! {
                () = follow => unreachable!("it follows for ever"),
                done = tokio::time::timeout(Duration::from_secs(30), drive) => done.unwrap(),
            }
        });
    }

    #[test]
    fn changes_are_told_and_what_links_lead_to_is_looked_at() {
        current_thread().unwrap().block_on(async {
            let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let services = watch::Sender::new(Services::default());
            let mut seen = services.subscribe();
            let (look, asker) = (Changes::default(), Arc::new(check::asker()));
            let drive = async {
                let mut has = async |instance: &str, port: u16| {
                    let local =
                        |now: &Services| now.local.get(instance).map(|l| l.spec.ports[0].number);
                    let there = seen.wait_for(|now| local(now) == Some(port));
                    tokio::time::timeout(POLL * 4, there).await.unwrap().unwrap();
                };
                while !look.are_told() {
                    tokio::task::yield_now().await;
                }
                write(dir.path(), "orders.yaml", &service("orders", 80));
                has("orders", 80).await;
                write(elsewhere.path(), "web", &service("web", 80));
                symlink(elsewhere.path().join("web"), dir.path().join("web.yaml")).unwrap();
                has("web", 80).await;
                // Whoever was told is quiet again.
                tokio::time::sleep(POLL / 4).await;
                write(elsewhere.path(), "web", &service("web", 8080));
                has("web", 8080).await;
            };
            tokio::select! {
                () = run(dir.path(), &asker, &services, &look) => unreachable!(),
                () = changes::follow(dir.path(), &look) => unreachable!(),
                () = drive => {}
            }
        });
    }
}
