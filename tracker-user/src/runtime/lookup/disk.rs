//! Reads names in the files of engines, which a rename changes: podman (`containers.json` of its
//! storage), docker (`config.v2.json` of each container), and the specifications in containerd's
//! bundles, for runtimes that keep no state of their own.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tokio::{sync::oneshot, time::timeout};

use super::{LookupError, apart};
use crate::runtime::{
    directory::List,
    files::{self, Budget, Stamp, subdirs},
    names::{Names, is_engine_id},
    oci::Spec,
};

/// The largest file about one container, and about all of them.
const LARGEST: u64 = 4 << 20;
const LARGEST_OF_ALL: u64 = 32 << 20;

/// The most drivers of storage layers; podman uses one.
const DRIVERS: usize = 8;

/// The most users whose files are read, the first in `/etc/passwd`.
const USERS: usize = 100;

/// How many bytes are read of all users' files at a time.
const OF_USERS: u64 = 32 << 20;

/// Where a user's own engines keep their files, below the home directory.
const USERS_STORAGE: &str = ".local/share/containers/storage";
const USERS_DOCKER: &str = ".local/share/docker";

/// The first id of a person, as in `/etc/login.defs`.
const FIRST_USER: u32 = 1_000;

/// Where containerd keeps the bundles of running containers, one directory for each namespace:
/// containerd on its own, in k3s and in k0s.
const BUNDLES: [&str; 3] = [
    "/run/containerd/io.containerd.runtime.v2.task/*",
    "/run/k3s/containerd/io.containerd.runtime.v2.task/*",
    "/run/k0s/containerd/io.containerd.runtime.v2.task/*",
];

/// The files of the machine's engines, or of all users' engines. Remembers those that haven't
/// changed.
#[derive(Debug)]
pub(super) struct EngineFiles {
    of_users: bool,
    known: HashMap<PathBuf, (Stamp, List)>,
}

impl EngineFiles {
    pub(super) fn machine() -> Self {
        Self { of_users: false, known: HashMap::new() }
    }

    pub(super) fn users() -> Self {
        Self { of_users: true, known: HashMap::new() }
    }

    pub(super) fn name(&self) -> &'static str {
        if self.of_users { "users-files" } else { "files" }
    }

    fn read(&mut self) -> Vec<(Option<u32>, List)> {
        let before = std::mem::take(&mut self.known);
        let mut reading = Reading { before, now: HashMap::new(), budget: Budget::machine() };
        let lists = if self.of_users {
            let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
            let homes = homes(&passwd).into_iter();
            let mut left = OF_USERS;
            let list = |(user, home): (u32, PathBuf)| {
                let bytes = Budget::user().bytes.min(left);
                reading.budget = Budget { bytes, ..Budget::user() };
                let mut list = reading.podman(&home.join(USERS_STORAGE), LARGEST);
                list.extend(reading.docker(&home.join(USERS_DOCKER)));
                left -= bytes - reading.budget.bytes;
                (Some(user), list)
            };
            // Users who have no container any more are listed, too, so that old names go.
            homes.map(list).collect()
        } else {
            let mut list = reading.bundles();
            list.extend(reading.podman(&storage(), LARGEST_OF_ALL));
            list.extend(reading.docker(&docker_root()));
            vec![(None, list)]
        };
        self.known = reading.now;
        lists
    }
}

/// The result of a read.
type ReadResult = (EngineFiles, Vec<(Option<u32>, List)>);

/// Reads files on a separate thread, because a home directory may be on a server that doesn't
/// answer.
pub(super) struct BackgroundReader {
    idle: Option<EngineFiles>,
    busy: Option<oneshot::Receiver<ReadResult>>,
}

impl BackgroundReader {
    pub(super) fn new(files: EngineFiles) -> Self {
        Self { idle: Some(files), busy: None }
    }

    /// Reads the files. If a read doesn't end, no other is started: the next call waits for the
    /// same one.
    ///
    /// # Errors
    /// When no thread can be started, or the read doesn't end in time.
    pub(super) async fn read(&mut self, patience: Duration) -> Result<Vec<(Option<u32>, List)>, LookupError> {
        if let Some(mut files) = self.idle.take() {
            let work = move || {
                let lists = files.read();
                (files, lists)
            };
            let receiver = apart(work).map_err(LookupError::Connect)?;
            self.busy = Some(receiver);
        }
        let ended = || LookupError::Refused("its reader has ended".into());
        let receiver = self.busy.as_mut().ok_or_else(ended)?;
        let (files, lists) =
            timeout(patience, receiver).await.map_err(|_| LookupError::Timeout)?.map_err(|_| ended())?;
        (self.idle, self.busy) = (Some(files), None);
        Ok(lists)
    }
}

struct Reading {
    before: HashMap<PathBuf, (Stamp, List)>,
    now: HashMap<PathBuf, (Stamp, List)>,
    budget: Budget,
}

impl Reading {
    fn file(&mut self, path: PathBuf, limit: u64, parse: impl FnOnce(&[u8]) -> Option<List>) -> List {
        let Some(stamp) = Stamp::of(&path) else { return List::new() };
        let (stamp, mut list) = match self.before.remove(&path) {
            Some(known) if known.0 == stamp => known,
            before => match (self.budget.read(&path, limit), before) {
                // A file that is just being written is understood the next time.
                (Ok(json), before) => {
                    (stamp, parse(&json).or(before.map(|(_, list)| list)).unwrap_or_default())
                }
                (Err(_), Some(before)) => before,
                (Err(_), None) => return List::new(),
            },
        };
        let room = &mut self.budget.containers;
        list.retain(|id, _| is_engine_id(id) && room.checked_sub(1).map(|left| *room = left).is_some());
        self.now.insert(path, (stamp, list.clone()));
        list
    }

    /// Reads podman's files, for each driver of storage layers.
    fn podman(&mut self, storage: &Path, limit: u64) -> List {
        let mut list = List::new();
        let is_drivers = |dir: &PathBuf| dir.to_string_lossy().ends_with("-containers");
        for dir in subdirs(storage).into_iter().filter(is_drivers).take(DRIVERS) {
            for name in ["containers.json", "volatile-containers.json"] {
                list.extend(self.file(dir.join(name), limit, podman));
            }
        }
        list
    }

    fn docker(&mut self, root: &Path) -> List {
        let mut list = List::new();
        for dir in subdirs(&root.join("containers")).into_iter().take(self.budget.containers) {
            list.extend(self.file(dir.join("config.v2.json"), LARGEST, docker));
        }
        list
    }

    fn bundles(&mut self) -> List {
        let mut list = List::new();
        let bundles = BUNDLES.iter().flat_map(|pattern| files::expand(pattern));
        for dir in bundles.flat_map(|namespace| subdirs(&namespace)).take(self.budget.containers) {
            let Some(id) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            list.extend(self.file(dir.join("config.json"), LARGEST, |json| bundle(id, json)));
        }
        list
    }
}

/// Returns users and their homes, as `/etc/passwd` lists them.
fn homes(passwd: &str) -> Vec<(u32, PathBuf)> {
    let home = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let user = fields.next()?.parse().ok()?;
        let home = fields.nth(2).filter(|home| home.len() > 1)?;
        (user >= FIRST_USER).then(|| (user, home.into()))
    };
    let mut homes: Vec<(u32, PathBuf)> = passwd.lines().filter_map(home).collect();
    homes.dedup_by_key(|(user, _)| *user);
    homes.truncate(USERS);
    homes
}

/// Returns the machine's storage: containers-storage.conf(5).
fn storage() -> PathBuf {
    let config = fs::read_to_string("/etc/containers/storage.conf").unwrap_or_default();
    graph_root(&config).unwrap_or_else(|| "/var/lib/containers/storage".into())
}

fn graph_root(config: &str) -> Option<PathBuf> {
    let table: toml::Table = config.parse().ok()?;
    let root = table.get("storage")?.get("graphroot")?.as_str()?;
    Path::new(root).is_absolute().then(|| root.into())
}

fn docker_root() -> PathBuf {
    let config = fs::read("/etc/docker/daemon.json").unwrap_or_default();
    data_root(&config).unwrap_or_else(|| "/var/lib/docker".into())
}

fn data_root(config: &[u8]) -> Option<PathBuf> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let root = config.get("data-root")?.as_str()?;
    Path::new(root).is_absolute().then(|| root.into())
}

/// Parses `containers.json`: containers with their names, and what podman or CRI-O noted of them
/// when they were made, which is JSON in a string.
fn podman(json: &[u8]) -> Option<List> {
    #[derive(Deserialize)]
    struct Row {
        id: String,
        #[serde(default)]
        names: Option<Vec<String>>,
        #[serde(default)]
        metadata: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Metadata {
        #[serde(rename = "image-name", default)]
        image: String,
        /// Only CRI-O's containers have one. Their names here are put together from others, which
        /// the annotations contain.
        #[serde(rename = "pod-name", default)]
        pod: String,
    }
    let rows: Vec<Row> = serde_json::from_slice(json).ok()?;
    let names = |row: Row| {
        let metadata: Metadata =
            row.metadata.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let name = row.names.iter().flatten().next().filter(|_| metadata.pod.is_empty());
        (row.id, Names::plain(name.map_or("", String::as_str), Some(&metadata.image)))
    };
    Some(rows.into_iter().map(names).collect())
}

/// Parses `config.v2.json`.
fn docker(json: &[u8]) -> Option<List> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Container {
        #[serde(rename = "ID")]
        id: String,
        name: String,
        config: Config,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        image: String,
        #[serde(default)]
        labels: Option<HashMap<String, String>>,
    }
    let container: Container = serde_json::from_slice(json).ok()?;
    let labels = container.config.labels.unwrap_or_default();
    let by_labels = Names::from_annotations(|key| labels.get(key).map(String::as_str));
    let names = by_labels.or(&Names::plain(&container.name, Some(&container.config.image)));
    Some(List::from([(container.id, names)]))
}

fn bundle(id: &str, json: &[u8]) -> Option<List> {
    let spec: Spec = serde_json::from_slice(json).ok()?;
    Some(List::from([(id.to_owned(), spec.names())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_storage() {
        let json = br#"[
            {"id":"a1","names":["web"],"image":"c0ffee","layer":"1","metadata":
             "{\"image-name\":\"docker.io/library/alpine:latest\",\"name\":\"web\"}","created":"2026-11-23T16:01:53Z"},
            {"id":"b2","names":["k8s_nginx_front-1_shop_UID_0"],"metadata":
             "{\"pod-name\":\"k8s_front-1_shop\",\"image-name\":\"nginx:1\"}"},
            {"id":"c3","names":["old"],"metadata":"garbage"},
            {"id":"d4"}]"#;
        let found = podman(json).unwrap();
        assert_eq!(found["a1"], Names::plain("web", Some("docker.io/library/alpine:latest")));
        assert_eq!(found["b2"], Names { image: Some("nginx:1".into()), ..Names::default() });
        assert_eq!(found["c3"], Names::plain("old", None));
        assert_eq!(found["d4"], Names::default());
    }

    #[test]
    fn dockers_state() {
        let json = br#"{"StreamConfig":{},"State":{"Running":true,"Pid":7},"ID":"a1","Name":"/web","Config":
            {"Hostname":"x","Image":"nginx:1","Labels":{"a":"b"}},"Image":"sha256:77"}"#;
        assert_eq!(docker(json).unwrap()["a1"], Names::plain("web", Some("nginx:1")));
    }

    #[test]
    fn containerds_bundles() {
        let json = br#"{"annotations":{"io.kubernetes.cri.container-name":"nginx",
            "io.kubernetes.cri.sandbox-name":"front-1","io.kubernetes.cri.sandbox-namespace":"shop"}}"#;
        assert_eq!(bundle("a1", json).unwrap()["a1"], Names::in_pod("shop", "front-1", "nginx", None));
    }

    #[test]
    fn what_is_too_much_at_once_is_read_later() {
        let root = std::env::temp_dir().join(format!("fdtracker-files-{}", std::process::id()));
        for n in 0..5 {
            let (id, dir) = (format!("{n:064}"), root.join(format!("containers/{n}")));
            fs::create_dir_all(&dir).unwrap();
            let json = format!(r#"{{"ID":"{id}","Name":"/web","Config":{{"Image":"nginx"}}}}"#);
            fs::write(dir.join("config.v2.json"), json).unwrap();
        }
        let mut before = HashMap::new();
        let found: Vec<usize> = (0..3)
            .map(|_| {
                let budget = Budget { containers: 4, bytes: 300 };
                let mut reading =
                    Reading { before: std::mem::take(&mut before), now: HashMap::new(), budget };
                let found = reading.docker(&root).len();
                before = reading.now;
                found
            })
            .collect();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [2, 4, 4]);
    }

    #[test]
    fn garbage_is_survived() {
        for json in ["", "[", "{}", "7", "[{}]", "null", r#"{"ID":7}"#] {
            let json = json.as_bytes();
            assert_eq!((podman(json), docker(json)), (None, None));
        }
        assert_eq!(bundle("a", b"["), None);
    }

    #[test]
    fn where_things_are() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nnobody:x:65534:1::/:/x\nbad\n";
        assert_eq!(homes(passwd), [(1000, PathBuf::from("/home/me"))]);
        let config = "[storage]\ndriver = \"overlay\"\ngraphroot = \"/srv/containers\"\n";
        assert_eq!(graph_root(config), Some("/srv/containers".into()));
        assert_eq!((graph_root(""), graph_root("[storage]\ngraphroot='x'")), (None, None));
        assert_eq!(data_root(br#"{"data-root":"/srv/docker"}"#), Some("/srv/docker".into()));
        assert_eq!(data_root(b""), None);
    }
}
