//! The image, and the DaemonSet that runs it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use fdtracker_tests::{Container, Metrics, container::spec, eventually, fdtracker, random_id};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{kubernetes, must, path, run};
use crate::{Needs, Test, test_or_skip};

pub fn tests() -> Vec<Test> {
    vec![
        test_or_skip("deploy::the_image_is_built", Needs::Programs(&["buildah"]), the_image_is_built),
        test_or_skip(
            "deploy::the_daemonset_counts",
            Needs::Programs(&["python3", "kubectl", "runc"]),
            the_daemonset_counts,
        ),
    ]
}

/// Returns the agent without shared libraries, as it is in the image. Where there is a C library to
/// link into it, this is the agent that all tests run.
fn static_binary() -> Result<PathBuf, String> {
    let binary = fdtracker();
    // It lists the libraries, each with the file in which it was found.
    let listed = Command::new("ldd").arg(&binary).output().expect("run ldd");
    if String::from_utf8_lossy(&listed.stdout).contains("=>") {
        return Err(format!("{} needs libraries (there is no libc.a to link into it)", binary.display()));
    }
    Ok(binary)
}

fn the_image_is_built() -> Result<(), String> {
    let binary = static_binary()?;
    let dir = tempfile::tempdir().expect("a directory for the store");
    let store = |name: &str| dir.path().join(name);
    let buildah = || {
        let mut buildah = Command::new("buildah");
        buildah
            .arg("--root")
            .arg(store("root"))
            .arg("--runroot")
            .arg(store("run"))
            .args(["--storage-driver", "vfs"]);
        buildah
    };
    let context = binary.parent().expect("a directory");
    let archive = format!("oci:{}:fdtracker", store("image").display());
    let mut build = buildah();
    build
        .args(["build", "--isolation", "chroot", "--pull-never", "--file"])
        .arg(path("deploy/Containerfile"));
    must(build.args(["--tag", "fdtracker"]).arg(context));
    must(buildah().args(["push", "--quiet", "fdtracker", &archive]));

    let blob = |digest: &Value| {
        let digest = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest").to_owned();
        store("image/blobs/sha256").join(digest)
    };
    let document = |file: &Path| -> Value {
        serde_json::from_slice(&fs::read(file).expect("read the image")).expect("the image has JSON")
    };
    let index = document(&store("image/index.json"));
    let manifest = document(&blob(&index["manifests"][0]["digest"]));
    let config = document(&blob(&manifest["config"]["digest"]));
    assert_eq!(
        (&config["config"]["Entrypoint"], &config["config"]["User"]),
        (&json!(["/fdtracker"]), &"0:0".into())
    );
    let arguments = config["config"]["Cmd"].as_array().expect("arguments").iter();
    super::understood(&arguments.map(|a| a.as_str().expect("text")).collect::<Vec<_>>());
    let layers = manifest["layers"].as_array().expect("layers");
    let files = layers.iter().map(|layer| must(Command::new("tar").arg("-tzf").arg(blob(&layer["digest"]))));
    assert_eq!(files.collect::<String>().trim(), "fdtracker");
    Ok(())
}

/// A pod of the DaemonSet as it is on a node, run by runc. It goes when dropped.
struct Pod {
    id: String,
    runc: Child,
    port: u16,
    _dir: TempDir,
}

impl Pod {
    fn start(pod: &Value, binary: &Path) -> Self {
        let (id, dir) = (random_id(), tempfile::tempdir().expect("a directory for the bundle"));
        let root = dir.path().join("rootfs");
        fs::create_dir_all(&root).expect("make the root");
        fs::copy(binary, root.join("fdtracker")).expect("copy the agent");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let config = config(pod, &id, port, dir.path());
        fs::write(dir.path().join("config.json"), config.to_string()).expect("write config.json");
        let mut runc = Command::new("runc");
        runc.args(["run", "--bundle"]).arg(dir.path()).arg(&id).stdin(Stdio::null()).stdout(Stdio::null());
        Self { runc: runc.spawn().expect("start runc"), id, port, _dir: dir }
    }

    fn get(&mut self, page: &str) -> Result<String, String> {
        if let Ok(Some(status)) = self.runc.try_wait() {
            panic!("the agent ended: {status}");
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(|e| e.to_string())?;
        let request = format!("GET {page} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(answer) }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let _ = self.runc.wait();
    }
}

/// Makes the configuration that a container runtime would make of the pod. Its network is the
/// host's here.
fn config(pod: &Value, id: &str, port: u16, dir: &Path) -> Value {
    let container = &pod["containers"][0];
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned();
    let arguments = container["args"].as_array().expect("arguments").iter().map(text).map(|argument| {
        match argument.strip_prefix("--web.listen-address=") {
            Some(_) => format!("--web.listen-address=127.0.0.1:{port}"),
            None => argument,
        }
    });
    let arguments: Vec<String> = ["/fdtracker".to_owned()].into_iter().chain(arguments).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut config = spec(&format!("/kubepods/{id}"), &words);
    let security = &container["securityContext"];
    config["root"]["readonly"] = security["readOnlyRootFilesystem"].clone();
    let added = security["capabilities"]["add"].as_array().expect("capabilities").iter();
    let added: Vec<String> = added.map(|name| format!("CAP_{}", text(name))).collect();
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(added);
    }
    config["process"]["noNewPrivileges"] = json!(security["allowPrivilegeEscalation"] == false);
    config["process"]["user"]["uid"] = security["runAsUser"].clone();
    let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != "pid" || pod["hostPID"] != true);
    let mounts = config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec"]}));
    let volumes = pod["volumes"].as_array().expect("volumes");
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let volume =
            volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("the mount's volume");
        let destination = &mount["mountPath"];
        mounts.push(match volume["hostPath"]["path"].as_str() {
            Some(source) => {
                // A node has this directory of the runtime; a machine that runs tests may not.
                let source = if Path::new(source).is_dir() { Path::new(source) } else { dir };
                let access = if mount["readOnly"] == true { "ro" } else { "rw" };
                json!({"destination": destination, "type": "none", "source": source, "options": ["rbind", access]})
            }
            None => json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["mode=0755"]}),
        });
    }
    config
}

/// Checks that the agent counts a neighbour's fds with the mounts and capabilities that the
/// manifest gives, and with nothing else.
fn the_daemonset_counts() -> Result<(), String> {
    let binary = static_binary()?;
    let documents = kubernetes::kustomized("deploy/kubernetes/base")?;
    let pod = kubernetes::one(&documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    let mut agent = Pod::start(&pod, &binary);
    eventually("the agent is ready", || agent.get("/readyz"));
    let mut neighbour = Container::start(None, "/docker");
    neighbour.zoo.must("open pidfd");
    let labels = [("container", &neighbour.id[..12]), ("kind", "pidfd")];
    eventually("the neighbour's pidfd is counted", || {
        let metrics = Metrics(agent.get("/metrics")?);
        if metrics.get("fdtracker_open_fds", &labels) == 1.0 { Ok(()) } else { Err(metrics.0) }
    });
    // This is what `kubectl exec` does.
    let ls = run(Command::new("runc").args(["exec", &agent.id, "/fdtracker", "ls"]));
    let said = String::from_utf8_lossy(&ls.stdout);
    assert!(
        ls.status.success() && said.contains(&neighbour.id[..12]),
        "{said}{}",
        String::from_utf8_lossy(&ls.stderr)
    );
    Ok(())
}
