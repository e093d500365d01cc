//! Tests the configuration: the file, the environment and flags; reloads; what the service manager
//! is told.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use fdtracker_tests::{
    Cgroup, Metrics, Zoo, deadline, eventually, fdtracker, feeder_arguments, listening_address_in, request,
    same, sys::wait_within,
};
use tempfile::TempDir;

use crate::{
    Needs::{Nobody, Root},
    Test, test,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("config::check_prints_what_it_comes_to", Nobody, check_prints_what_it_comes_to),
        test("config::check_finds_what_is_wrong", Nobody, check_finds_what_is_wrong),
        test("config::the_example", Nobody, the_example),
        test("config::a_reload", Root, a_reload),
        test("config::the_service_manager", Root, the_service_manager),
    ]
}

/// A directory with a configuration file.
struct Config {
    dir: TempDir,
}

impl Config {
    fn new(text: &str) -> Self {
        let config = Self { dir: tempfile::tempdir().expect("a directory") };
        config.write(text);
        config
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fdtracker.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("write the configuration");
    }

    /// Returns a command of the agent that reads only this file, and the environment.
    fn command(&self) -> Command {
        let mut command = Command::new(fdtracker());
        command.arg("agent").arg("--config.file").arg(self.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FDTRACKER_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn check(&self, variables: &[(&str, &str)], flags: &[&str]) -> Output {
        let mut command = self.command();
        command.arg("--config.check").args(flags).envs(variables.iter().copied());
        command.output().expect("run fdtracker")
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn check_prints_what_it_comes_to() {
    let config = Config::new(
        "audit-interval = \"10s\"\njudge-interval = \"10s\"\nfile-locks = true\ncriu = \"4.0\"\n[web]\nlisten-address = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n",
    );
    let variables = [
        ("FDTRACKER_JUDGE_INTERVAL", "11s"),
        ("FDTRACKER_CRIU", "4.1"),
        ("FDTRACKER_EXTERNAL", "unix[1],unix[2]"),
        ("FDTRACKER_AUDIT_INTERVALL", "1s"),
    ];
    let output = config.check(&variables, &["--criu", "4.1.1", "--file-locks=false", "--link-remap"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for line in [
        r#"audit-interval = "10s" # file, line 1"#,
        r#"judge-interval = "11s" # environment: FDTRACKER_JUDGE_INTERVAL"#,
        r#"criu = "4.1.1" # flag"#,
        "file-locks = false # flag",
        "link-remap = true # flag",
        "tcp-close = false # default",
        r#"external = ["unix[1]", "unix[2]"] # environment: FDTRACKER_EXTERNAL"#,
        r#"web.listen-address = ["127.0.0.1:1", "127.0.0.1:2"] # file, line 6"#,
        "# feeder is not set",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    let warning = "FDTRACKER_AUDIT_INTERVALL sets nothing: did you mean FDTRACKER_AUDIT_INTERVAL?";
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    // What it prints can be read as a configuration.
    let again = Config::new(&text).check(&[], &[]);
    let values = |text: &str| -> Vec<String> {
        text.lines().skip(1).map(|line| line.split(" # ").next().expect("a value").to_owned()).collect()
    };
    assert_eq!(
        (again.status.code(), values(&stdout(&again))),
        (Some(0), values(&text)),
        "{}",
        stderr(&again)
    );
}

fn check_finds_what_is_wrong() {
    let config = Config::new("");
    let fails = |output: &Output, with: &str| {
        assert_eq!((output.status.code(), stdout(output).as_str()), (Some(2), ""), "{}", stderr(output));
        assert!(stderr(output).contains(with), "no {with:?} in {}", stderr(output));
        assert_eq!(stderr(output).lines().count(), 1, "{}", stderr(output));
    };
    for (text, expected) in [
        (
            "\naudit-intervall = \"1s\"",
            "fdtracker.toml:2: no setting is called audit-intervall: did you mean audit-interval?",
        ),
        ("criu = 4.1", "fdtracker.toml:1: criu = 4.1: it must be a string, such as \"4.1\""),
        ("judge-interval = \"soon\"", "not a duration of at least 100ms, such as 30s"),
        ("max-fds = 1", "1 is not in 64..=16777216"),
        ("rules = [\"/nonexistent/rules.toml\"]", "read /nonexistent/rules.toml"),
        ("[web", "fdtracker.toml:1: "),
    ] {
        config.write(text);
        fails(&config.check(&[], &[]), expected);
        // The agent doesn't start with it, either.
        fails(&config.command().output().expect("run fdtracker"), expected);
    }
    config.write("");
    let variable = ("FDTRACKER_AUDIT_INTERVAL", "soon");
    fails(&config.check(&[variable], &[]), "environment: FDTRACKER_AUDIT_INTERVAL = \"soon\": ");
    fs::remove_file(config.path()).expect("remove the file");
    fails(&config.check(&[], &[]), "fdtracker.toml: No such file or directory");
}

fn the_example() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/fdtracker.toml");
    let text = fs::read_to_string(path).expect("the example");
    let output = Config::new(&text).check(&[], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stdout(&output).contains("# file"), "{}", stdout(&output));
    // Even with all defaults written out, every value is the default.
    let is_default =
        |line: &&str| line.starts_with('#') && line.chars().nth(1).is_some_and(|c| c.is_ascii_lowercase());
    let defaults: Vec<&str> = text.lines().filter(is_default).map(|line| &line[1..]).collect();
    assert!(defaults.len() >= 10, "{defaults:?}");
    let written = Config::new(&defaults.join("\n")).check(&[], &[]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    assert_eq!(stdout(&written).matches("# file, line").count(), defaults.len(), "{}", stdout(&written));
    let values = |output: &Output| -> Vec<String> {
        stdout(output)
            .lines()
            .skip(1)
            .filter_map(|line| line.split(" # ").next().map(str::to_owned))
            .collect()
    };
    assert_eq!(values(&written), values(&output));
}

/// A running agent, started as a service manager starts it.
struct Service {
    child: Child,
    config: Config,
    manager: UnixDatagram,
}

impl Service {
    fn start(text: &str, watchdog: &str) -> Self {
        let config = Config::new(text);
        let (socket, dir) = (config.dir.path().join("notify"), config.dir.path());
        let manager = UnixDatagram::bind(&socket).expect("a socket");
        manager.set_read_timeout(Some(deadline())).expect("set a timeout");
        let log = fs::File::create(dir.join("log")).expect("a file for the log");
        let child = config
            .command()
            .args(["--web.listen-address", "127.0.0.1:0", "--socket"])
            .arg(dir.join("agent.sock"))
            .args(feeder_arguments())
            .env("NOTIFY_SOCKET", socket)
            .env("WATCHDOG_USEC", watchdog)
            .stderr(log)
            .spawn()
            .expect("start the agent");
        Self { child, config, manager }
    }

    /// Waits for a message with this line, and returns it with all that came before.
    #[track_caller]
    fn told(&self, line: &str) -> Vec<String> {
        let (start, mut told) = (Instant::now(), Vec::new());
        while start.elapsed() < deadline() {
            let mut bytes = [0; 4096];
            let n = self
                .manager
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("{line}: {error}, after {told:?}"));
            let message = String::from_utf8_lossy(&bytes[..n]).into_owned();
            let found = message.lines().any(|found| found == line);
            told.push(message);
            if found {
                return told;
            }
        }
        panic!("never told {line}, only {told:?}");
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child hasn't been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn log(&self) -> String {
        fs::read_to_string(self.config.dir.path().join("log")).expect("the log")
    }

    #[track_caller]
    fn logs(&self, text: &str) {
        eventually("the log says it", || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(format!("no {text:?} in\n{log}")) }
        });
    }

    fn get(&self, path: &str) -> (u16, String) {
        let log = self.log();
        request(listening_address_in(&log).expect("it listens"), "GET", path)
    }

    fn metrics(&self) -> Metrics {
        Metrics(self.get("/metrics").1)
    }

    /// Writes another configuration, and has the agent read it.
    fn reload(&self, text: &str) {
        self.config.write(text);
        self.signal(libc::SIGHUP);
    }

    /// Asks the agent to end, and waits. Returns its exit code; `None` if it had to be killed.
    fn end(&mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        if let Ok(Some(status)) = wait_within(&mut self.child, deadline() * 2) {
            return status.code();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

fn a_reload() {
    let service = Service::start("criu = \"4.0\"\njudge-interval = \"1h\"\naudit-interval = \"1h\"\n", "0");
    service.told("READY=1");
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    let is = |verdict: &str, checkpointable: f64| {
        eventually("the verdict is that of this CRIU", || {
            let metrics = service.metrics();
            let (name, pidfds) = (("container", cgroup.name()), ("kind", "pidfd"));
            same(metrics.find("fdtracker_open_fds", &[name, pidfds, ("verdict", verdict)]), Some(1.0))?;
            // The container is inspected again, although no timer asks for it.
            same(metrics.find("fdtracker_container_checkpointable", &[name]), Some(checkpointable))
        });
    };
    is("blocked", 0.0);

    let audits = || service.metrics().sum("fdtracker_audits_total");
    let before = audits();
    service.reload("criu = \"4.1\"\naudit-interval = \"100ms\"\nring-size = 8192\nmax-fds = 70_000\nlog-level = \"debug\"\n");
    service.logs(r#"these take effect only when the agent is restarted settings=["max-fds", "ring-size"]"#);
    is("ok", 1.0);
    assert_eq!(service.metrics().get("fdtracker_criu_info", &[("version", "4.1")]), 1.0);
    eventually("audits come more often", || {
        if audits() > before + 3.0 { Ok(()) } else { Err(format!("{} after {before}", audits())) }
    });
    service.logs("DEBUG fdtracker::agent::audits: audited");

    for (wrong, said) in [
        ("criu = \"four\"\n", "fdtracker.toml:1: criu = "),
        ("rules = [\"/nonexistent\"]", "read /nonexistent"),
    ] {
        service.reload(wrong);
        service.logs(said);
        assert_eq!(service.metrics().get("fdtracker_criu_info", &[("version", "4.1")]), 1.0);
    }
    assert!(service.log().contains("the old one stays"));

    service.reload("criu = \"3.17\"\n");
    is("blocked", 0.0);
}

fn the_service_manager() {
    let mut service = Service::start("criu = \"4.0\"\n", "400000");
    let told = service.told("READY=1");
    let start = Instant::now();
    // It isn't ready before it has counted what was open already.
    assert_eq!(service.get("/readyz").0, 200);
    assert!(told.iter().any(|message| message == "STATUS=counting what is open already\n"), "{told:?}");
    let ready = told.last().expect("a message");
    assert!(ready.contains("STATUS=counting") && ready.contains("CRIU 4.0"), "{ready}");

    // The first comes at once, the others each 200 ms.
    for _ in 0..6 {
        service.told("WATCHDOG=1");
    }
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());

    service.reload("criu = \"4.1\"\n");
    let reloading = service.told("RELOADING=1").pop().expect("a message");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = service.told("READY=1").pop().expect("a message");
    assert!(ready.contains("CRIU 4.1"), "{ready}");
    service.reload("criu = 4.1\n");
    service.told("RELOADING=1");
    let ready = service.told("READY=1").pop().expect("a message");
    assert!(ready.contains("wrong") && ready.contains("fdtracker.toml:1: criu = 4.1"), "{ready}");

    assert_eq!(service.end(), Some(0));
    service.told("STOPPING=1");
}
