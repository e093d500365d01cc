//! Tests what is answered over TCP, and to whom: TLS, passwords, limits, and single containers.
//!
//! These agents have no probes: other tests check how they count, and without probes they start and
//! end at once.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use fdtracker_tests::{Agent, Cgroup, Container, Zoo, deadline, eventually, fdtracker, same};
use tempfile::TempDir;

use crate::{
    Needs::{Programs, Root},
    Test, agent, test,
};

const CURL: crate::Needs = Programs(&["curl"]);
const TLS: crate::Needs = Programs(&["curl", "openssl"]);

pub fn tests() -> Vec<Test> {
    vec![
        test("web::one_container", Programs(&["runc", "curl"]), one_container),
        test("web::no_such_container", Root, no_such_container),
        test("web::paths_stay_here", CURL, paths_stay_here),
        test("web::other_names_for_loopback", CURL, other_names_for_loopback),
        test("web::other_machines", Programs(&["curl", "ip"]), other_machines),
        test("web::only_get_and_head", CURL, only_get_and_head),
        test("web::flags", CURL, flags),
        test("web::too_many_requests", CURL, too_many_requests),
        test("web::scrapes_at_once", Root, scrapes_at_once),
        test("web::a_slow_client", Root, a_slow_client),
        test("web::tls", TLS, tls),
        test("web::a_certificate_is_replaced", TLS, a_certificate_is_replaced),
        test("web::client_certificates", TLS, client_certificates),
        test("web::passwords", CURL, passwords),
        test("web::what_is_wrong_is_told_at_the_start", Root, what_is_wrong_is_told_at_the_start),
        test("web::a_socket_of_systemd", Root, a_socket_of_systemd),
    ]
}

const LISTEN: [&str; 4] = ["--feeder", "audit", "--web.listen-address", "127.0.0.1:0"];

/// Starts an agent that counts by audits.
fn plain(arguments: &[&str]) -> Agent {
    Agent::start(&[&["--feeder", "audit", "--criu", "4.0"], arguments].concat())
}

/// Runs curl with these arguments. Returns the status, and all that curl prints. The status is 0 if
/// there was no answer.
fn curl(arguments: &[&str]) -> (u16, String) {
    answer_of(Command::new("curl").args(CURL_ARGUMENTS).args(arguments))
}

const CURL_ARGUMENTS: [&str; 5] = ["-sS", "--max-time", "15", "-w", "\n%{http_code}"];

fn answer_of(command: &mut Command) -> (u16, String) {
    let output = command.output().expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let said = String::from_utf8_lossy(&output.stderr);
    (status.parse().expect("a status"), format!("{body}{said}"))
}

fn url(agent: &Agent, path: &str) -> String {
    format!("http://{}{path}", agent.address)
}

fn report(agent: &Agent, name: &str) -> serde_json::Value {
    let (status, body) = agent.ask(&format!("/v1/containers/{name}"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

fn one_container() {
    let agent = agent();
    let mut container = Container::start(None, "/docker");
    let fd = container.zoo.must("open pidfd");
    let pid = container.init();
    let id = container.id.clone();
    let known = eventually("the pidfd is found", || {
        let found = match agent.ask(&format!("/v1/containers/{id}")) {
            (200, body) => serde_json::from_str::<serde_json::Value>(&body).expect("JSON"),
            (_, said) => return Err(said),
        };
        let is_found = found["look"] == "current" && found["blockers"][0]["fd"] == fd;
        if is_found { Ok(found) } else { Err(found.to_string()) }
    });
    assert_eq!(known["verdict"], "blocked");
    assert_eq!(known["state"], "blocked");
    assert_eq!(known["criu"]["version"], "4.0");
    assert_eq!(known["counts"], serde_json::json!([{"kind": "pidfd", "verdict": "blocked", "count": 1}]));
    let blocker = &known["blockers"][0];
    assert_eq!((&blocker["pid"], &blocker["comm"]), (&pid.into(), &"fdzoo".into()));
    assert_eq!((&blocker["kind"], &blocker["reason"]), (&"pidfd".into(), &"pidfd_unsupported".into()));
    let text = |field: &str| blocker[field].as_str().expect("a text").to_owned();
    assert!(text("message").starts_with(&format!("Can't dump file {fd} of that type")), "{blocker}");
    assert!(text("remedy").contains("CRIU 4.1"), "{blocker}");
    // By its name, by the beginning of its id, and over TCP.
    assert_eq!(report(&agent, &id[..12])["id"], *id);
    assert_eq!(report(&agent, &id[..20])["id"], *id);
    let (status, body) = curl(&[&url(&agent, &format!("/v1/containers/{id}"))]);
    assert_eq!(status, 200, "{body}");
    let over_tcp: serde_json::Value = serde_json::from_str(body.trim()).expect("JSON");
    assert_eq!(over_tcp["blockers"][0]["message"], blocker["message"]);

    container.zoo.must("close_range 3 100 0");
    let after = eventually("nothing stands in the way", || {
        let found = report(&agent, &id);
        if found["look"] == "current" && found["verdict"] == "ok" {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    });
    assert_eq!(after["blockers"], serde_json::json!([]));
    assert!(
        after["blocked_seconds"].as_f64() > Some(0.0) && after["last_checkpointable"].is_string(),
        "{after}"
    );
}

fn no_such_container() {
    let (agent, one, two) = (agent(), Cgroup::docker(), Cgroup::docker());
    let (_one, _two) = (Zoo::in_cgroup(&one), Zoo::in_cgroup(&two));
    eventually("both are there", || agent.container(&one.id).and_then(|_| agent.container(&two.id)));
    let (status, said) = agent.ask("/v1/containers/nobody%20here");
    assert_eq!(status, 404);
    assert!(said.starts_with("there is no container nobody here; there are "), "{said}");
    assert!(said.contains(one.name()) && said.contains(two.name()), "{said}");
    assert_eq!(agent.ask("/v1/containers/").0, 404);
    // An id begins with one of 16 digits, so that among 17 ids two begin alike.
    let more: Vec<Cgroup> = (0..15).map(|_| Cgroup::docker()).collect();
    let all = || more.iter().chain([&one, &two]).map(|cgroup| &cgroup.id);
    let first =
        "0123456789abcdef".chars().find(|digit| all().filter(|id| id.starts_with(*digit)).count() > 1);
    let first = first.expect("two ids");
    eventually("several are meant", || match agent.ask(&format!("/v1/containers/{first}")) {
        (409, said) if all().filter(|id| id.starts_with(first)).all(|id| said.contains(&id[..16])) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    let host = report(&agent, "host");
    assert_eq!((&host["look"], &host["blockers"]), (&"none".into(), &serde_json::Value::Null));
}

/// Checks that a client that may only connect to 127.0.0.1 isn't told which files others have open.
fn paths_stay_here() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open tun");
    let path = format!("/v1/containers/{}", cgroup.id);
    let blocker = eventually("it is inspected", || {
        let found = report(&agent, &cgroup.id);
        let blockers = found["blockers"].as_array().cloned().unwrap_or_default();
        blockers.into_iter().find(|b| b["link"] == "/dev/net/tun").ok_or_else(|| found.to_string())
    });
    let (status, body) = curl(&[&url(&agent, &path)]);
    assert_eq!(status, 200, "{body}");
    assert!(!body.contains("/dev/net/tun"), "{body}");
    let over_tcp: serde_json::Value = serde_json::from_str(body.trim()).expect("JSON");
    let same_fd = |b: &&serde_json::Value| b["fd"] == blocker["fd"] && b["reason"] == blocker["reason"];
    let found = over_tcp["blockers"].as_array().expect("blockers").iter().find(same_fd).expect("the same");
    assert_eq!((&found["link"], &found["kind"]), (&"".into(), &blocker["kind"]));
}

/// Checks that a web page whose name resolves to 127.0.0.1 gets metrics, but nothing about
/// processes.
fn other_names_for_loopback() {
    let agent = agent();
    let ask = |host: &str, path: &str| curl(&["-H", &format!("Host: {host}"), &url(&agent, path)]);
    assert_eq!(ask("localhost", "/v1/containers").0, 200);
    let (status, said) = ask("evil.example:10460", "/v1/containers");
    assert!(status == 403 && said.contains("not for another name"), "{status} {said}");
    assert_eq!(ask("evil.example", "/v1/events").0, 403);
    assert_eq!(ask("evil.example", "/metrics").0, 200);
}

/// Tests the agent in a network namespace with an address that isn't loopback.
fn other_machines() {
    let in_namespace = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        let script = "ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec \"$@\"";
        command.args(["--net", "sh", "-ec", script, "sh"]).arg(fdtracker());
        let listen = ["--feeder", "audit", "--web.listen-address", "192.0.2.1:0"];
        Agent::start_by(command, &[&listen, arguments].concat())
    };
    let ask = |agent: &Agent, path: &str| {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--net", "--target", &agent.pid().to_string(), "curl"]).args(CURL_ARGUMENTS);
        answer_of(nsenter.arg(url(agent, path)))
    };
    let agent = in_namespace(&[]);
    assert_eq!(ask(&agent, "/metrics").0, 200);
    for path in ["/v1/containers", "/v1/containers/host", "/v1/events"] {
        let (status, said) = ask(&agent, path);
        assert!(status == 403 && said.contains("--web.serve-processes"), "{path}: {status} {said}");
    }
    drop(agent);
    let agent = in_namespace(&["--web.serve-processes"]);
    assert_eq!(ask(&agent, "/v1/containers").0, 200);
}

fn only_get_and_head() {
    let agent = agent();
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, head) = curl(&["-i", "-X", method, &url(&agent, "/metrics")]);
        assert!(status == 405 && head.to_lowercase().contains("allow: get, head"), "{method}: {head}");
    }
    let (status, head) = curl(&["--head", &url(&agent, "/metrics")]);
    assert!(status == 200 && head.contains("version=0.0.4") && !head.contains("fdtracker_ready"), "{head}");
    assert_eq!(curl(&["--head", &url(&agent, "/v1/events")]).0, 200);
}

fn flags() {
    let agent =
        plain(&["--web.listen-address", "127.0.0.2:0", "--web.telemetry-path", "/prometheus/metrics"]);
    assert!(agent.get("/prometheus/metrics").1.contains("fdtracker_ready 1"));
    assert_eq!(agent.get("/metrics").0, 404);
    assert!(agent.get("/").1.contains("href=\"/prometheus/metrics\""));
    // Finds the port of the second address.
    let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", agent.pid())).expect("sockets");
    let listening = |line: &&str| line.contains(": 0200007F:") && line.contains(" 0A ");
    let line = sockets.lines().find(listening).expect("it listens on 127.0.0.2");
    let port = line.split("0200007F:").nth(1).and_then(|rest| rest.get(..4)).expect("a port");
    let port = u16::from_str_radix(port, 16).expect("a port");
    assert_eq!(curl(&[&format!("http://127.0.0.2:{port}/readyz")]), (200, "ready\n".into()));
}

/// A subscriber to events that stays connected.
struct Subscriber(Child, BufReader<std::process::ChildStdout>);

impl Subscriber {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new("curl")
            .args(["-sS", "--no-buffer"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run curl");
        let events = BufReader::new(child.stdout.take().expect("its output"));
        Self(child, events)
    }

    /// Reads the next event.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("read an event");
        line
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn too_many_requests() {
    let agent = plain(&["--web.max-requests", "1"]);
    let mut subscriber = TcpStream::connect(agent.address).expect("connect");
    subscriber.write_all(b"GET /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").expect("ask for events");
    // It takes the only place before anybody else can ask and take it.
    let mut status = String::new();
    BufReader::new(&subscriber).read_line(&mut status).expect("read the status");
    assert!(status.contains(" 200 "), "{status}");
    assert_eq!(agent.get("/metrics").0, 503);
    let (_, head) = curl(&["-i", &url(&agent, "/metrics")]);
    assert!(head.to_lowercase().contains("retry-after: 1") && head.contains("--web.max-requests"), "{head}");
    // Health is answered all the same, and so are requests over the unix socket.
    assert_eq!((agent.get("/livez").0, agent.get("/readyz").0, agent.ask("/metrics").0), (200, 200, 200));
    drop(subscriber);
    eventually("there is room again", || same(agent.get("/metrics").0, 200));
}

/// Checks that clients that share a rendering get none that was made before they asked.
fn scrapes_at_once() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let open = [("container", cgroup.name()), ("kind", "eventfd")];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    agent.metrics();
                }
            });
        }
        let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for opened in 1..=50 {
                zoo.must("open eventfd");
                assert_eq!(agent.metrics().get("fdtracker_open_fds", &open), f64::from(opened));
            }
        }));
        done.store(true, Ordering::Relaxed);
        counted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn a_slow_client() {
    let agent = agent();
    let mut stream = TcpStream::connect(agent.address).expect("connect");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: ").expect("send half a request");
    stream.set_read_timeout(Some(deadline() * 2)).expect("set a timeout");
    let start = Instant::now();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    // It was closed, or told that it took too long.
    assert!(read.is_ok() && (answer.is_empty() || answer.contains(" 408 ")), "{read:?} {answer}");
    assert!(start.elapsed() >= Duration::from_secs(5), "closed after {:?}", start.elapsed());
}

/// A directory with certificates, and the agent's web config.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().expect("a directory"));
        keys.authority("ca");
        keys.leaf("server", "ca");
        keys
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path").to_owned()
    }

    fn authority(&self, name: &str) {
        self.openssl(name, &["-addext", "keyUsage=critical,keyCertSign"]);
    }

    fn leaf(&self, name: &str, authority: &str) {
        let (cert, key) = (format!("{authority}.crt"), format!("{authority}.key"));
        let extensions = ["subjectAltName=IP:127.0.0.1,DNS:localhost", "basicConstraints=critical,CA:FALSE"];
        self.openssl(
            name,
            &["-CA", &cert, "-CAkey", &key, "-addext", extensions[0], "-addext", extensions[1]],
        );
    }

    fn openssl(&self, name: &str, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN={name}")])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes the web config, and returns its path.
    fn config(&self, text: &str) -> String {
        fs::write(self.path("web.yml"), text).expect("write the web config");
        self.text("web.yml")
    }
}

const SERVER: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

fn https(agent: &Agent, path: &str) -> String {
    format!("https://{}{path}", agent.address)
}

fn tls() {
    let keys = Keys::new();
    let headers =
        "  min_version: TLS13\nhttp_server_config:\n  headers:\n    X-Content-Type-Options: nosniff\n";
    let agent = plain(&["--web.config.file", &keys.config(&format!("{SERVER}{headers}"))]);
    let ca = keys.text("ca.crt");
    let (status, answer) = curl(&["-i", "--cacert", &ca, &https(&agent, "/metrics")]);
    assert!(status == 200 && answer.contains("fdtracker_ready 1"), "{status} {answer}");
    assert!(answer.to_lowercase().contains("x-content-type-options: nosniff"), "{answer}");
    let old = curl(&["--tls-max", "1.2", "--cacert", &ca, &https(&agent, "/metrics")]);
    assert_eq!(old.0, 0, "{}", old.1);
    let plain = curl(&[&url(&agent, "/metrics")]);
    assert_eq!(plain.0, 0, "{}", plain.1);
}

/// Checks that new connections get the new certificate, that open connections go on, and that a
/// file that can't be read changes nothing.
fn a_certificate_is_replaced() {
    let keys = Keys::new();
    let agent = plain(&["--web.config.file", &keys.config(SERVER)]);
    let cgroup = Cgroup::docker();
    let mut subscriber = Subscriber::start(&["--cacert", &keys.text("ca.crt"), &https(&agent, "/v1/events")]);
    let trusts = |ca: &str| curl(&["--cacert", &keys.text(ca), &https(&agent, "/metrics")]).0 == 200;
    assert!(trusts("ca.crt"));
    keys.authority("other");
    keys.leaf("next", "other");
    for kind in ["crt", "key"] {
        fs::rename(keys.path(&format!("next.{kind}")), keys.path(&format!("server.{kind}")))
            .expect("replace");
    }
    eventually("it is read", || same(trusts("other.crt"), true));
    assert!(!trusts("ca.crt"));
    fs::write(keys.path("server.crt"), "nonsense").expect("write");
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert!(trusts("other.crt"));
    }
    // A subscriber from before the change still gets events. Without probes, the event is that a
    // container is blocked.
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open io_uring");
    let line = subscriber.line();
    assert!(line.contains("\"event\""), "{line:?}");
}

fn client_certificates() {
    let keys = Keys::new();
    keys.leaf("client", "ca");
    keys.authority("other");
    keys.leaf("stranger", "other");
    let client = "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n";
    let agent = plain(&["--web.config.file", &keys.config(&format!("{SERVER}{client}"))]);
    let ask = |who: Option<&str>, path: &str| {
        let mut arguments = vec!["--cacert".to_owned(), keys.text("ca.crt"), https(&agent, path)];
        if let Some(who) = who {
            arguments.extend(["--cert".into(), keys.text(&format!("{who}.crt"))]);
            arguments.extend(["--key".into(), keys.text(&format!("{who}.key"))]);
        }
        // A client that has shown a certificate may use any host name for the agent.
        arguments.extend(["-H".into(), "Host: node.example".into()]);
        curl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).0
    };
    assert_eq!((ask(Some("client"), "/metrics"), ask(Some("client"), "/v1/containers")), (200, 200));
    assert_eq!((ask(None, "/metrics"), ask(Some("stranger"), "/metrics")), (0, 0));
}

fn passwords() {
    let keys = Keys(tempfile::tempdir().expect("a directory"));
    let hash = bcrypt::hash("right", 10).expect("a hash");
    let agent = plain(&["--web.config.file", &keys.config(&format!("basic_auth_users:\n  me: {hash}\n"))]);
    let ask = |user: &str, path: &str| {
        let start = Instant::now();
        (curl(&["-u", user, "-H", "Host: node.example", &url(&agent, path)]).0, start.elapsed())
    };
    assert_eq!((ask("me:right", "/metrics").0, ask("me:right", "/v1/containers").0), (200, 200));
    assert_eq!((ask("me:wrong", "/metrics").0, ask("you:right", "/metrics").0), (401, 401));
    let (status, head) = curl(&["-i", &url(&agent, "/metrics")]);
    assert!(status == 401 && head.to_lowercase().contains("www-authenticate: basic"), "{head}");
    // Health checks need no password.
    assert_eq!((agent.get("/livez").0, agent.get("/readyz").0, agent.get("/").0), (200, 200, 401));
    let quickest = |user: &str| (0..5).map(|_| ask(user, "/metrics").1).min().expect("five times");
    let (known, wrong, unknown) = (quickest("me:right"), quickest("me:wrong"), quickest("you:wrong"));
    assert!(unknown * 2 > wrong && wrong * 2 > unknown, "unknown {unknown:?}, wrong {wrong:?}");
    assert!(known < wrong, "what was right is remembered: {known:?}, {wrong:?}");
    // A user who is removed from the file has no access any more.
    let other = bcrypt::hash("other", 4).expect("a hash");
    let mut subscriber = Subscriber::start(&["-u", "me:right", &url(&agent, "/v1/events")]);
    let followed = || agent.get("/livez").0 == 200 && ask("me:right", "/metrics").0 == 200;
    assert!(followed() && subscriber.0.try_wait().expect("its status").is_none());
    keys.config(&format!("basic_auth_users:\n  you: {other}\n"));
    // No request comes meanwhile.
    eventually("who followed events does so no more", || {
        subscriber.0.try_wait().expect("its status").map(drop).ok_or("it goes on")
    });
    eventually("the file is read", || same(ask("you:other", "/metrics").0, 200));
    assert_eq!(ask("me:right", "/metrics").0, 401);
}

fn what_is_wrong_is_told_at_the_start() {
    let keys = Keys(tempfile::tempdir().expect("a directory"));
    let config = keys.config("tls_server_confg: {}\n");
    let socket = keys.text("agent.sock");
    let start = |arguments: &[&str]| {
        let output = Command::new(fdtracker())
            .args(["agent", "--socket", &socket])
            .args(arguments)
            .output()
            .expect("start the agent");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = start(&[&LISTEN[..], &["--web.config.file", &config]].concat());
    assert!(code == Some(2) && said.contains(&config) && said.contains("tls_server_confg"), "{said}");
    let (code, said) = start(&["--web.systemd-socket"]);
    assert!(code == Some(2) && said.contains("LISTEN_FDS"), "{said}");
    let (code, said) = start(&["--web.telemetry-path", "/livez"]);
    assert!(code == Some(2) && said.contains("something else is answered there"), "{said}");
    assert!(!Path::new(&socket).exists());
}

/// Starts the agent as systemd does with a socket: fd 3, and the variables that say whom it is for.
fn a_socket_of_systemd() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address: SocketAddr = listener.local_addr().expect("an address");
    let fd = listener.as_raw_fd();
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(fdtracker());
    // SAFETY: dup2 is safe after a fork. Fd 3 of the child is nobody's yet, or the listener itself.
    unsafe {
        command.pre_exec(move || match fd {
            3 => fdtracker_tests::sys::check(libc::fcntl(3, libc::F_SETFD, 0).into()).map(drop),
            _ => fdtracker_tests::sys::check(libc::dup2(fd, 3).into()).map(drop),
        });
    }
    let agent = Agent::start_by(command, &["--feeder", "audit", "--web.systemd-socket"]);
    drop(listener);
    assert_eq!(agent.address, address);
    assert!(agent.get("/metrics").1.contains("fdtracker_ready 1"));
}
