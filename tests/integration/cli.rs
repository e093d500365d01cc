//! What users type, including wrong input.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use fdtracker_tests::{Cgroup, Zoo, eventually, fdtracker, same};

use crate::{
    Needs::{Nobody, Root},
    Test, agent, test,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("cli::help_and_version", Nobody, help_and_version),
        test("cli::wrong_arguments", Nobody, wrong_arguments),
        test("cli::not_root", Root, not_root),
        test("cli::doctor", Root, doctor),
        test("cli::a_taken_port", Root, a_taken_port),
        test("cli::a_taken_socket", Root, a_taken_socket),
        test("cli::an_unknown_container", Root, an_unknown_container),
        test("cli::ls_prints_a_table", Root, ls_prints_a_table),
        test("cli::a_closed_pipe_ends_tail", Root, a_closed_pipe_ends_tail),
    ]
}

fn run(arguments: &[&str]) -> Output {
    Command::new(fdtracker()).args(arguments).stdin(Stdio::null()).output().expect("run fdtracker")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn fails(output: &Output, with: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    assert!(stderr(output).contains(with), "no {with:?} in {}", stderr(output));
}

fn help_and_version() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("fdtracker 0."));
    for command in ["agent", "tail", "ls", "doctor"] {
        let help = run(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: fdtracker"));
    }
}

fn wrong_arguments() {
    fails(&run(&["tail", "--kind", "pidfds"]), "userfaultfd");
    fails(&run(&["tail", "--colour"]), "unexpected argument '--colour'");
    fails(&run(&["ls", "-o", "yaml"]), "[possible values: table, json]");
    fails(&run(&["agent", "--audit-interval", "soon"]), "such as 30s");
    fails(&run(&["agent", "--criu", "newest"]), "such as 4.1.1");
    fails(&run(&[]), "Usage");
}

fn not_root() {
    // A copy that anybody can run: the build's own directory may be closed to others.
    let dir = tempfile::tempdir().expect("a directory");
    let copy = dir.path().join("fdtracker");
    std::fs::copy(fdtracker(), &copy).expect("copy fdtracker");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("open the directory");
    for command in [["ls", "--socket", "/nonexistent/s"], ["tail", "--socket", "/nonexistent/s"]] {
        let output = Command::new(&copy).args(command).uid(65_534).gid(65_534).output().expect("run it");
        fails(&output, "CAP_BPF is missing");
        let errors: Vec<String> =
            stderr(&output).lines().filter(|l| l.contains("missing")).map(str::to_owned).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
    let doctor = Command::new(&copy).arg("doctor").uid(65_534).gid(65_534).output().expect("run it");
    assert_eq!(doctor.status.code(), Some(1));
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.contains("CAP_BPF") && doctor.contains("CAP_SYS_PTRACE"), "{doctor}");
}

fn doctor() {
    let mut command = Command::new(fdtracker());
    // Whoever starts the agent may leave files open in it. They must not confuse the self-test.
    // SAFETY: the child only makes a system call.
    unsafe {
        command.pre_exec(
            || {
                if libc::eventfd(0, 0) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            },
        );
    }
    let output = command.args(["doctor", "-o", "json"]).stdin(Stdio::null()).output().expect("run fdtracker");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()), "{report}");
    let names: Vec<&str> =
        report["findings"].as_array().expect("a list").iter().filter_map(|f| f["name"].as_str()).collect();
    for name in
        ["kernel", "capabilities", "BTF", "lockdown", "tracefs", "cgroups", "feeder", "details", "CRIU"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    let is_live = |f: &serde_json::Value| f["name"] == "feeder" && f["status"] == "ok";
    assert!(report["findings"].as_array().expect("a list").iter().any(is_live), "{report}");
}

fn a_taken_port() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("its address").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let output =
        run(&["agent", "--web.listen-address", &address, "--socket", socket.to_str().expect("UTF-8")]);
    fails(&output, &format!("{address} is taken by pid {}", std::process::id()));
    assert!(!socket.exists());
}

fn a_taken_socket() {
    let agent = agent();
    let output = agent.command(&["agent", "--web.listen-address", "127.0.0.1:0"]).output().expect("run it");
    fails(&output, "another fdtracker agent answers");
    assert!(stderr(&output).contains(agent.socket.to_str().expect("UTF-8")));
}

fn an_unknown_container() {
    let agent = agent();
    let output = agent.command(&["tail", "--container", "nginx"]).output().expect("run it");
    fails(&output, r#"no container "nginx"; there are: host"#);
}

fn ls_prints_a_table() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    let table = eventually("the pidfd is counted", || {
        let output = agent.command(&["ls", "--processes"]).output().expect("run ls");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let row = table.lines().find(|line| line.starts_with(cgroup.name())).ok_or("no such row")?;
        let words: Vec<&str> = row.split_whitespace().collect();
        same(words, vec![cgroup.name(), "docker", "blocked", "1", "pidfd", "(blocked)"])?;
        Ok::<_, String>(table)
    });
    assert!(table.contains(&format!("{}", zoo.pid())), "{table}");
}

fn a_closed_pipe_ends_tail() {
    let agent = agent();
    let mut tail =
        agent.command(&["tail"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start tail");
    drop(tail.stdout.take());
    let output = tail.wait_with_output().expect("wait for tail");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}
