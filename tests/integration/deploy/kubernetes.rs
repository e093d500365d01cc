//! Tests the manifests for Kubernetes, and the chart.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{must, path, understood};
use crate::{Needs, Test, test_or_skip};

pub fn tests() -> Vec<Test> {
    vec![
        test_or_skip("deploy::manifests_are_valid", KUSTOMIZE, manifests_are_valid),
        test_or_skip(
            "deploy::manifests_start_what_is_understood",
            KUSTOMIZE,
            manifests_start_what_is_understood,
        ),
        test_or_skip("deploy::the_daemonset_is_confined", KUSTOMIZE, the_daemonset_is_confined),
        test_or_skip("deploy::the_chart_is_valid", MANIFESTS, the_chart_is_valid),
        test_or_skip("deploy::the_chart_mounts_a_web_config", MANIFESTS, the_chart_mounts_a_web_config),
        test_or_skip("deploy::the_chart_is_the_base", KUSTOMIZE, the_chart_is_the_base),
        test_or_skip(
            "deploy::the_chart_refuses_what_it_does_not_know",
            MANIFESTS,
            the_chart_refuses_what_it_does_not_know,
        ),
    ]
}

/// What `manifests.py` needs. [`script`] checks for its modules.
pub const MANIFESTS: Needs = Needs::Programs(&["python3"]);
const KUSTOMIZE: Needs = Needs::Programs(&["python3", "kubectl"]);

const CHART: &str = "deploy/helm/fdtracker";

/// What `manifests.py` returned: documents, and what is wrong with them.
struct Found {
    documents: Vec<Value>,
    wrong: Vec<Value>,
}

impl Found {
    #[track_caller]
    fn right(self) -> Vec<Value> {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        self.documents
    }
}

/// Runs `manifests.py`. Returns what is missing if it can't run.
fn script(arguments: &[&str], input: &str) -> Result<Found, String> {
    const MODULES: &str = "FDTRACKER_TEST_PYTHON";
    let Some(modules) = std::env::var_os(MODULES) else {
        return Err(format!("{MODULES} isn't set (cargo xtask test sets it)"));
    };
    let mut child = Command::new("python3")
        .arg(path("tests/integration/deploy/manifests.py"))
        .args(arguments)
        .env("PYTHONPATH", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start python3");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("feed it");
    let output = child.wait_with_output().expect("wait for it");
    assert!(output.status.success(), "manifests.py: {}", output.status);
    let mut found: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let mut list = |name: &str| found[name].as_array_mut().map(std::mem::take).expect("a list");
    Ok(Found { documents: list("documents"), wrong: list("wrong") })
}

/// Returns the documents of a file, in which nothing may be wrong.
pub fn read_yaml(text: &str) -> Result<Vec<Value>, String> {
    Ok(script(&["read"], text)?.right())
}

pub fn kustomized(name: &str) -> Result<Vec<Value>, String> {
    read_yaml(&must(Command::new("kubectl").arg("kustomize").arg(path(name))))
}

fn chart(values: &Value) -> Result<Found, String> {
    let directory = path(CHART);
    script(&["chart", directory.to_str().expect("a path of text")], &values.to_string())
}

#[track_caller]
pub fn one(documents: &[Value], kind: &str) -> Value {
    let mut of_kind = documents.iter().filter(|document| document["kind"] == kind);
    let found = of_kind.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(of_kind.next().is_none(), "more than one {kind}");
    found.clone()
}

fn container(documents: &[Value]) -> Value {
    one(documents, "DaemonSet")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn manifests_are_valid() -> Result<(), String> {
    let base = kustomized("deploy/kubernetes/base")?;
    for kind in ["Namespace", "ServiceAccount", "DaemonSet", "NetworkPolicy"] {
        one(&base, kind);
    }
    let monitoring = kustomized("deploy/kubernetes/prometheus-operator")?;
    let endpoint = one(&monitoring, "PodMonitor")["spec"]["podMetricsEndpoints"][0].clone();
    assert_eq!(endpoint["honorLabels"], true);
    let ports = container(&base)["ports"].clone();
    assert!(ports.as_array().is_some_and(|ports| ports.iter().any(|port| port["name"] == endpoint["port"])));
    one(&monitoring, "PrometheusRule");
    Ok(())
}

fn arguments(container: &Value) -> Vec<String> {
    let list = container["args"].as_array().expect("arguments");
    list.iter().map(|argument| argument.as_str().expect("text").to_owned()).collect()
}

fn manifests_start_what_is_understood() -> Result<(), String> {
    let values = json!({"criu": "4.1", "extraArgs": ["--audit-interval=10s"]});
    for documents in [kustomized("deploy/kubernetes/base")?, chart(&values)?.right()] {
        let arguments = arguments(&container(&documents));
        understood(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }
    Ok(())
}

fn the_daemonset_is_confined() -> Result<(), String> {
    let documents = kustomized("deploy/kubernetes/base")?;
    let pod = one(&documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    assert_eq!(
        (&pod["hostPID"], &pod["hostNetwork"], &pod["hostIPC"]),
        (&true.into(), &Value::Null, &Value::Null)
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = container(&documents);
    let security = &container["securityContext"];
    assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&false.into(), &true.into()));
    assert_eq!(security["allowPrivilegeEscalation"], false);
    // The tests in `privileges` run the agent with the same ones.
    let capabilities = json!({"drop": ["ALL"], "add": ["BPF", "PERFMON", "DAC_READ_SEARCH", "SYS_PTRACE"]});
    assert_eq!(security["capabilities"], capabilities);
    for (probe, page) in
        [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
    {
        assert_eq!(container[probe]["httpGet"]["path"], page, "{probe}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string());
    // Nothing on the host is written.
    let volumes = pod["volumes"].as_array().expect("volumes");
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let volume = volumes.iter().find(|v| v["name"] == mount["name"]).expect("a volume for the mount");
        assert!(volume["hostPath"].is_null() || mount["readOnly"] == true, "{mount}");
    }
    Ok(())
}

fn the_chart_is_valid() -> Result<(), String> {
    let everything = json!({
        "criu": "4.1.1",
        "details": true,
        "podAnnotations": {"a": "b"},
        "imagePullSecrets": [{"name": "secret"}],
        "extraEnv": [{"name": "FDTRACKER_LOG_LEVEL", "value": "debug"}],
        "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
    });
    let documents = chart(&everything)?.right();
    assert_eq!(one(&documents, "PodMonitor")["metadata"]["labels"]["release"], "prometheus");
    let rules = read_yaml(&super::read(super::RULES))?.remove(0);
    assert_eq!(one(&documents, "PrometheusRule")["spec"], rules);
    let security = &container(&documents)["securityContext"];
    // Kubernetes refuses `false` together with this.
    assert_eq!(security["allowPrivilegeEscalation"], true);
    let added = security["capabilities"]["add"].as_array().expect("capabilities");
    for name in ["SYS_ADMIN", "SYS_CHROOT", "NET_ADMIN"] {
        assert!(added.contains(&name.into()), "{name}");
    }
    let least = json!({"networkPolicy": {"enabled": false}, "priorityClassName": "", "tolerations": null});
    let kinds: Vec<_> = chart(&least)?.right().iter().map(|document| document["kind"].clone()).collect();
    assert_eq!(kinds, ["DaemonSet", "ServiceAccount"]);
    Ok(())
}

/// Checks that a Secret with TLS and passwords is mounted where the agent looks for it, and that
/// probes use the same protocol as the agent.
fn the_chart_mounts_a_web_config() -> Result<(), String> {
    let user =
        json!({"username": {"name": "web", "key": "user"}, "password": {"name": "web", "key": "pass"}});
    let values = |tls: bool| {
        json!({
            "web": {"config": {"secret": "web", "key": "config.yml", "tls": tls}},
            "podMonitor": {"enabled": true, "basicAuth": user, "tlsConfig": {"serverName": "node"}},
        })
    };
    for (tls, scheme) in [(true, json!("HTTPS")), (false, Value::Null)] {
        let documents = chart(&values(tls))?.right();
        let container = container(&documents);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["scheme"], scheme, "{probe}");
        }
        let arguments = arguments(&container);
        understood(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let file = arguments.iter().find_map(|argument| argument.strip_prefix("--web.config.file="));
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let mount = mounts.iter().find(|mount| mount["name"] == "web").expect("the Secret's mount");
        assert_eq!(
            file,
            Some(format!("{}/config.yml", mount["mountPath"].as_str().expect("a path")).as_str())
        );
        let volumes = one(&documents, "DaemonSet")["spec"]["template"]["spec"]["volumes"].clone();
        let volume = volumes.as_array().expect("volumes").iter().find(|volume| volume["name"] == "web");
        let secret = json!({"secretName": "web", "defaultMode": 0o400});
        assert_eq!(volume.map(|volume| &volume["secret"]), Some(&secret));
        let endpoint = &one(&documents, "PodMonitor")["spec"]["podMetricsEndpoints"][0];
        assert_eq!(endpoint["scheme"], if tls { json!("https") } else { Value::Null });
        assert_eq!((&endpoint["basicAuth"], &endpoint["tlsConfig"]["serverName"]), (&user, &json!("node")));
    }
    Ok(())
}

/// Checks that both ways to install give the same objects.
fn the_chart_is_the_base() -> Result<(), String> {
    let mut specs = Vec::new();
    let monitors = json!({"podMonitor": {"enabled": true}});
    let mut base = kustomized("deploy/kubernetes/base")?;
    base.extend(kustomized("deploy/kubernetes/prometheus-operator")?);
    for documents in [base, chart(&monitors)?.right()] {
        let mut of_these = Vec::new();
        for kind in ["DaemonSet", "NetworkPolicy", "PodMonitor"] {
            let mut spec = one(&documents, kind)["spec"].clone();
            // The chart adds a label that tells its releases apart.
            for at in ["/selector/matchLabels", "/podSelector/matchLabels", "/template/metadata/labels"] {
                if let Some(labels) = spec.pointer_mut(at).and_then(Value::as_object_mut) {
                    labels.remove("app.kubernetes.io/instance");
                }
            }
            if let Some(container) =
                spec.pointer_mut("/template/spec/containers/0").and_then(Value::as_object_mut)
            {
                container.remove("imagePullPolicy");
            }
            of_these.push(spec);
        }
        specs.push(of_these);
    }
    assert_eq!(specs[0], specs[1]);
    Ok(())
}

fn the_chart_refuses_what_it_does_not_know() -> Result<(), String> {
    for (values, said) in [
        (json!({"privileged": true}), "privileged"),
        (json!({"web": {"port": "10460"}}), "port"),
        (json!({"criu": "newest"}), "criu"),
        (json!({"web": {"config": {"tls": true}}}), "secret"),
        (json!({"runtime": {"directory": "run/containerd", "socket": "containerd.sock"}}), "directory"),
    ] {
        let found = chart(&values)?;
        let wrong: Vec<String> = found.wrong.iter().map(Value::to_string).collect();
        assert!(wrong.iter().any(|line| line.contains(said)), "{values}: {wrong:?}");
        assert!(found.documents.is_empty(), "{values} is rendered all the same");
    }
    Ok(())
}
