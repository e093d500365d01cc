//! Tests the names of containers: from annotations that runc keeps, and from runtimes that are
//! asked. The runtimes in these tests are mocks: sockets that answer as docker does, or don't
//! answer. Other tests ask real ones.

use std::{
    io::{Read as _, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fdtracker_tests::{
    Agent, Cgroup, Container, Zoo, eventually, fdtracker, hierarchy, random_id, same, sys,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Needs, Test, agent, containers::Tail, test, test_or_skip};

const RUNC: Needs = Needs::Programs(&["runc"]);

pub fn tests() -> Vec<Test> {
    vec![
        test("names::annotations_name_a_container", RUNC, annotations_name_a_container),
        test("names::an_id_reused_has_the_new_name", RUNC, an_id_reused_has_the_new_name),
        test("names::a_mock_of_docker_names_and_renames", RUNC, a_mock_of_docker_names_and_renames),
        test("names::without_an_agent", Needs::Root, without_an_agent),
        test("names::hostile_names_do_no_harm", Needs::Root, hostile_names_do_no_harm),
        test("names::runtimes_that_fail_delay_nothing", Needs::Root, runtimes_that_fail_delay_nothing),
        test("names::a_runtime_that_restarts", Needs::Root, a_runtime_that_restarts),
        test_or_skip("names::a_cgroup_namespace_is_refused", Needs::Root, a_cgroup_namespace_is_refused),
    ]
}

/// How a mock treats a connection.
#[derive(Clone, Debug)]
enum Manner {
    /// Answers `GET /containers/json` with this.
    Lists(Value),
    /// Answers anything with these bytes.
    Says(Vec<u8>),
    /// Says nothing, and keeps the connection.
    Hangs,
    /// Ends the connection.
    Closes,
}

/// A mock of a container engine's socket.
struct Mock {
    path: PathBuf,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicUsize>,
    _dir: TempDir,
}

impl Mock {
    fn start(manner: Manner) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let path = dir.path().join("mock.sock");
        let listener = UnixListener::bind(&path).expect("listen");
        let (manner, asked) = (Arc::new(Mutex::new(manner)), Arc::new(AtomicUsize::new(0)));
        let (how, count) = (Arc::clone(&manner), Arc::clone(&asked));
        // The thread ends with the tests.
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let manner = how.lock().expect("the manner").clone();
                kept.extend(answer(stream, &manner));
            }
        });
        Self { path, manner, asked, _dir: dir }
    }

    fn lists(containers: Value) -> Self {
        Self::start(Manner::Lists(containers))
    }

    fn becomes(&self, manner: Manner) {
        *self.manner.lock().expect("the manner") = manner;
    }

    fn address(&self, protocol: &str) -> String {
        format!("{protocol}://{}", self.path.display())
    }

    fn agent(&self) -> Agent {
        Agent::start(&[
            "--criu",
            "4.0",
            "--runtime-interval",
            "200ms",
            "--runtime-socket",
            &self.address("docker"),
        ])
    }
}

/// Answers a connection. Returns it if it must stay open.
fn answer(mut stream: UnixStream, manner: &Manner) -> Option<UnixStream> {
    let mut request = [0; 4096];
    let text = match manner {
        Manner::Hangs => return Some(stream),
        Manner::Closes => return None,
        Manner::Says(bytes) => bytes.clone(),
        Manner::Lists(list) => {
            let body = list.to_string();
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
            format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let read = stream.read(&mut request).unwrap_or_default();
    if matches!(manner, Manner::Lists(_)) && !request[..read].starts_with(b"GET /containers/json ") {
        return None;
    }
    // The client may have gone.
    let _ = stream.write_all(&text);
    None
}

/// Returns a row of docker's list.
fn row(id: &str, name: &str) -> Value {
    json!({"Id": id, "Names": [format!("/{name}")], "Image": "zoo:1", "Labels": {}, "State": "running"})
}

#[track_caller]
fn is_called(agent: &Agent, id: &str, name: &str) -> Value {
    eventually("the container has its name", || {
        let found = agent.container(id)?;
        same(&found["name"], &name.into()).map(|()| found.clone())
    })
}

fn in_pod(pod: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "zoo",
        "io.kubernetes.cri.sandbox-name": pod,
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.image-name": "docker.io/library/zoo:1",
    })
}

fn annotations_name_a_container() {
    let agent = agent();
    let mut container = Container::start_annotated(None, "/docker", in_pod("front-1"));
    container.zoo.must("open pidfd");
    let found = is_called(&agent, &container.id, "zoo");
    assert_eq!((&found["namespace"], &found["pod"]), (&"shop".into(), &"front-1".into()));
    assert_eq!(found["image"], "docker.io/library/zoo:1");
    let mut tail = Tail::start(&agent, &["--container", "zoo"]);
    let line: Value = serde_json::from_str(&tail.first_line(&mut container.zoo)).expect("JSON");
    assert_eq!((&line["container"], &line["pod"]), (&"zoo".into(), &"front-1".into()), "{line}");
    // Without an agent, `check` finds it by the pod.
    let check = |target: &str| {
        let output = Command::new(fdtracker())
            .args(["check", target, "--runtime-socket", "none", "--criu", "4.0", "-o", "json"])
            .output()
            .expect("run check");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{output:?}: {error}"))
    };
    for target in ["pod/shop/front-1", "pod/shop/front-1/zoo", "zoo"] {
        assert_eq!(check(target)["tree"][0]["pid"], container.init(), "{target}");
    }
}

fn an_id_reused_has_the_new_name() {
    let agent = agent();
    let id = random_id();
    for pod in ["first", "second"] {
        let container = Container::start_annotated(Some(&id), "/docker", in_pod(pod));
        eventually("it has the pod's name", || same(&agent.container(&container.id)?["pod"], &pod.into()));
    }
}

/// Tests names and renames with a mock of docker; runc runs the container.
fn a_mock_of_docker_names_and_renames() {
    let mock = Mock::lists(json!([]));
    let agent = mock.agent();
    let mut container = Container::start(None, "/docker");
    container.zoo.must("open pidfd");
    let id = container.id.clone();
    is_called(&agent, &id, &id[..12]);
    mock.becomes(Manner::Lists(json!([row(&id, "web"), row(&random_id(), "elsewhere")])));
    let found = is_called(&agent, &id, "web");
    assert_eq!((&found["image"], &found["pod"]), (&"zoo:1".into(), &Value::Null));
    assert_eq!(found["counts"][0]["count"], 1);
    mock.becomes(Manner::Lists(json!([row(&id, "shop")])));
    is_called(&agent, &id, "shop");
    // Only the name has changed.
    assert_eq!(agent.counts(&id).expect("its counts")["pidfd"], 1);
    let labels = [("container", "shop"), ("kind", "pidfd")];
    assert_eq!(agent.metrics().get("fdtracker_fds_opened_total", &labels), 1.0);
    // The container keeps its name when the runtime doesn't list it any more.
    mock.becomes(Manner::Lists(json!([])));
    let asked = mock.asked.load(Ordering::Relaxed);
    eventually("it was asked again", || {
        if mock.asked.load(Ordering::Relaxed) > asked + 1 { Ok(()) } else { Err("not yet") }
    });
    is_called(&agent, &id, "shop");
}

fn without_an_agent() {
    let cgroup = Cgroup::docker();
    let zoo = Zoo::in_cgroup(&cgroup);
    let (mock, silent) = (Mock::lists(json!([row(&cgroup.id, "web")])), Mock::start(Manner::Hangs));
    let run = |arguments: &[&str]| {
        let sockets =
            ["--runtime-socket", &mock.address("docker"), "--runtime-socket", &silent.address("cri")];
        let output = Command::new(fdtracker()).args(arguments).args(sockets).output().expect("run it");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{output:?}: {error}"))
    };
    let ls = run(&["ls", "-o", "json", "--socket", "/nowhere/agent.sock"]);
    let found = ls["containers"].as_array().expect("a list").iter().find(|c| c["id"] == cgroup.id).cloned();
    assert_eq!(found.expect("the container")["name"], "web");
    assert_eq!(run(&["check", "web", "-o", "json"])["tree"][0]["pid"], zoo.pid());
}

fn hostile_names_do_no_harm() {
    let cgroups = [Cgroup::docker(), Cgroup::docker(), Cgroup::docker(), Cgroup::docker()];
    let _zoos: Vec<Zoo> = cgroups
        .iter()
        .map(|cgroup| {
            let mut zoo = Zoo::in_cgroup(cgroup);
            zoo.must("open pidfd");
            zoo
        })
        .collect();
    let long = "x".repeat(10_000);
    let names = ["host", "other", "a\nfdtracker_ready 7\n\u{1b}[2J\"", &long];
    let mock = Mock::lists(cgroups.iter().zip(names).map(|(cgroup, name)| row(&cgroup.id, name)).collect());
    let agent = mock.agent();
    is_called(&agent, &cgroups[0].id, "docker/host");
    is_called(&agent, &cgroups[1].id, "docker/other");
    is_called(&agent, &cgroups[2].id, "a\u{fffd}fdtracker_ready 7\u{fffd}\u{fffd}[2J\"");
    is_called(&agent, &cgroups[3].id, &long[..253]);
    let metrics = agent.metrics();
    assert_eq!(metrics.get("fdtracker_ready", &[]), 1.0);
    let open = |name| metrics.find("fdtracker_open_fds", &[("container", name), ("kind", "pidfd")]);
    assert_eq!((open("docker/host"), open("docker/other"), open("other")), (Some(1.0), Some(1.0), None));
}

/// Checks that, whatever runtimes do, a container and its events are shown at once, by its id.
fn runtimes_that_fail_delay_nothing() {
    let says = |text: &str| Manner::Says(text.as_bytes().to_vec());
    let mocks = [
        Mock::start(Manner::Hangs),
        Mock::start(Manner::Closes),
        Mock::start(Manner::Says((0..=255).cycle().take(100_000).collect())),
        Mock::start(says("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")),
        Mock::start(says("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[{\"Id\":")),
        Mock::start(says("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n[")),
        Mock::start(Manner::Lists(json!({"message": "a lie"}))),
    ];
    let addresses: Vec<String> =
        mocks.iter().flat_map(|mock| [mock.address("docker"), mock.address("cri")]).collect();
    let mut arguments = vec!["--criu", "4.0", "--runtime-interval", "200ms"];
    arguments.extend(addresses.iter().flat_map(|address| ["--runtime-socket", address]));
    arguments.extend(["--runtime-socket", "docker:///nowhere/docker.sock"]);
    let agent = Agent::start(&arguments);
    eventually("all were asked", || {
        if mocks.iter().all(|mock| mock.asked.load(Ordering::Relaxed) >= 2) { Ok(()) } else { Err("not yet") }
    });
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    eventually("the container is there", || agent.container(&cgroup.id));
    let mut tail = Tail::start(&agent, &["--container", cgroup.name()]);
    tail.first_line(&mut zoo);
    let start = Instant::now();
    let fd = zoo.must("open io_uring");
    let line = tail.until("opened", fd);
    assert!(start.elapsed() < Duration::from_secs(3), "shown after {:?}", start.elapsed());
    assert_eq!(line["container"], cgroup.name());
}

fn a_runtime_that_restarts() {
    let cgroup = Cgroup::docker();
    let _zoo = Zoo::in_cgroup(&cgroup);
    let mock = Mock::lists(json!([row(&cgroup.id, "web")]));
    let agent = mock.agent();
    is_called(&agent, &cgroup.id, "web");
    let source = mock.address("docker");
    for (manner, result) in [(Manner::Closes, "error"), (Manner::Hangs, "timeout")] {
        mock.becomes(manner);
        eventually("it was asked, and given up", || {
            let labels = [("source", source.as_str()), ("result", result)];
            let given_up = agent.metrics().get("fdtracker_runtime_lookups_total", &labels);
            if given_up > 0.0 { Ok(()) } else { Err("not yet") }
        });
        is_called(&agent, &cgroup.id, "web");
    }
    mock.becomes(Manner::Lists(json!([row(&cgroup.id, "new")])));
    is_called(&agent, &cgroup.id, "new");
}

/// Checks that the agent refuses to run in a cgroup namespace. There cgroups have other paths than
/// those that runtimes write down, and the agent would take their ids for the host's.
fn a_cgroup_namespace_is_refused() -> Result<(), String> {
    let cgroup = Cgroup::docker();
    let hierarchy = hierarchy();
    let (kind, options) = match hierarchy.controller() {
        Some(controller) => ("cgroup", controller.to_owned()),
        None => ("cgroup2", "rw".to_owned()),
    };
    // All existing mounts show the host's cgroups. A new mount shows the namespace's.
    let script = format!(
        "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t tmpfs none /sys/fs/cgroup && \
         mkdir /sys/fs/cgroup/all && mount -t {kind} -o {options} none /sys/fs/cgroup/all || exit 99; \
         shift; exec \"$@\""
    );
    let run = |arguments: &[&str]| {
        let procs = std::ffi::CString::new(cgroup.dir().join("cgroup.procs").to_str().expect("a path"));
        let procs = procs.expect("a path");
        let mut command = Command::new("unshare");
        command.args(["--cgroup", "--mount", "sh", "-c", &script, "sh", "--"]);
        command.arg(fdtracker()).args(arguments).stdin(Stdio::null());
        // SAFETY: these calls are safe after a fork.
        unsafe {
            command.pre_exec(move || {
                let fd = sys::check(libc::open(procs.as_ptr(), libc::O_WRONLY).into())?;
                sys::check(libc::write(fd as i32, c"0".as_ptr().cast(), 1) as i64).map(drop)
            })
        };
        command.output().expect("run unshare")
    };
    let socket = tempfile::tempdir().expect("a directory");
    let socket = socket.path().join("agent.sock");
    let socket = socket.to_str().expect("a path");
    let output = run(&["agent", "--web.listen-address", "127.0.0.1:0", "--socket", socket]);
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) {
        return Err(format!("a cgroup filesystem can't be mounted here: {said}"));
    }
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--cgroupns=host"), "{said}");
    let doctor = run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("--cgroupns=host"), "{doctor:?}");
    Ok(())
}
