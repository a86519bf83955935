//! The files for containers, Kubernetes and releases: linted, rendered, and read for the fields that matter. What runs
//! them is not installed here. Their configurations are tested in `src/config/tests/shipped.rs`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

const SERVICE_PORT: i64 = 8181;
const ADMIN_PORT: i64 = 9181;

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn documents(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn only(name: &str) -> Yaml {
    let mut all = documents(name);
    assert_eq!(all.len(), 1, "{name}");
    all.remove(0)
}

/// Runs a program that has to succeed. Returns what it has printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): tests/run installs it"));
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

#[test]
fn all_yaml_is_well_formed() {
    let rules = "{line-length: disable, document-start: disable, truthy: {check-keys: false}}";
    let options = format!("{{extends: default, rules: {rules}}}");
    run("yamllint", &["--strict", "-d", &options, "deploy", ".github"]);
    let files = run("yamllint", &["--list-files", "deploy", ".github"]);
    assert!(files.lines().count() > 10, "{files}");
}

#[test]
fn kustomize_renders_the_base() {
    let rendered = run("kubectl", &["kustomize", "deploy/kubernetes/base"]);
    let all = YamlLoader::load_from_str(&rendered).unwrap();
    let mut kinds: Vec<_> = all.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"]);
    let pod = &of_kind(&all, "Deployment")["spec"]["template"]["spec"];
    // The name has a hash of the file, so that another configuration starts other pods.
    let config_map = of_kind(&all, "ConfigMap");
    let name = config_map["metadata"]["name"].as_str().unwrap();
    let sources = named(&pod["volumes"], "config")["projected"]["sources"].as_vec().unwrap();
    assert!(name.len() > "railgate-".len(), "{name}");
    assert!(sources.iter().any(|source| source["configMap"]["name"].as_str() == Some(name)), "{rendered}");
    let file = config_map["data"]["railgate.toml"].as_str().unwrap();
    assert_eq!(file, read("deploy/kubernetes/base/railgate.toml"));
    let image = named(&pod["containers"], "railgate")["image"].as_str().unwrap();
    assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image}");
}

/// The one of this kind.
fn of_kind<'d>(all: &'d [Yaml], kind: &str) -> &'d Yaml {
    all.iter().find(|one| one["kind"].as_str() == Some(kind)).unwrap_or_else(|| panic!("{kind} is missing"))
}

fn named<'y>(all: &'y Yaml, name: &str) -> &'y Yaml {
    let mut all = all.as_vec().unwrap().iter();
    all.find(|one| one["name"].as_str() == Some(name)).unwrap_or_else(|| panic!("{name} is missing"))
}

/// What every container with the gateway has.
fn assert_safe_container(container: &Yaml) {
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"].as_bool(), Some(false));
    assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(security["capabilities"]["drop"][0].as_str(), Some("ALL"));
    for kind in ["requests", "limits"] {
        assert!(container["resources"][kind]["memory"].as_str().is_some(), "{kind}");
    }
    let port = container["livenessProbe"]["httpGet"]["port"].as_str().unwrap();
    assert_eq!(named(&container["ports"], port)["containerPort"].as_i64(), Some(ADMIN_PORT));
    assert_eq!(container["livenessProbe"]["httpGet"]["path"].as_str(), Some("/live"));
    let mount = named(
        &container["volumeMounts"],
        container["volumeMounts"]
            .as_vec()
            .unwrap()
            .iter()
            .find(|mount| mount["mountPath"].as_str() == Some("/etc/railgate"))
            .unwrap()["name"]
            .as_str()
            .unwrap(),
    );
    assert_eq!(mount["readOnly"].as_bool(), Some(true));
}

/// The files that a projected volume has.
fn projected(volumes: &Yaml, name: &str) -> BTreeSet<String> {
    let sources = named(volumes, name)["projected"]["sources"].as_vec().unwrap();
    let items = sources.iter().filter_map(|source| source["secret"]["items"].as_vec()).flatten();
    items.map(|item| item["path"].as_str().unwrap().to_owned()).collect()
}

/// The files in /etc/railgate that a configuration names.
fn named_in(configuration: &str) -> BTreeSet<String> {
    let parts = configuration.split("\"/etc/railgate/").skip(1);
    parts.map(|part| part.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn the_base_for_kubernetes_is_complete() {
    let base = |name: &str| format!("deploy/kubernetes/base/{name}");
    let kustomization = only(&base("kustomization.yaml"));
    let listed: Vec<&str> =
        kustomization["resources"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    let all: Vec<Yaml> = listed.iter().flat_map(|name| documents(&base(name))).collect();
    assert_eq!(all.len(), 4);
    let generator = &kustomization["configMapGenerator"][0];
    assert_eq!(
        (generator["name"].as_str(), generator["files"][0].as_str()),
        (Some("railgate"), Some("railgate.toml"))
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(kustomization["images"][0]["newTag"].as_str(), Some(version));

    let deployment = of_kind(&all, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false));
    let container = named(&pod["containers"], "railgate");
    assert_safe_container(container);
    assert_eq!(container["readinessProbe"]["httpGet"]["path"].as_str(), Some("/ready"));
    // Longer than preStop and limits.drain_timeout together.
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_i64().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_i64().unwrap() > pause + 30);
    assert_eq!(projected(&pod["volumes"], "config"), named_in(&read(&base("railgate.toml"))));

    // All of them mean the same pods.
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(of_kind(&all, "Service")["spec"]["selector"], *labels);
    assert_eq!(of_kind(&all, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], *labels);
    let policy = &of_kind(&all, "NetworkPolicy")["spec"];
    assert_eq!(policy["podSelector"]["matchLabels"], *labels);
    let ports: Vec<i64> = policy["ingress"]
        .as_vec()
        .unwrap()
        .iter()
        .filter_map(|rule| rule["ports"][0]["port"].as_i64())
        .collect();
    assert_eq!(ports, [SERVICE_PORT, ADMIN_PORT]);
    assert!(
        policy["ingress"].as_vec().unwrap().iter().all(|rule| rule["from"].as_vec().is_some()),
        "nobody else"
    );
    assert_eq!(policy["policyTypes"].as_vec().unwrap().len(), 2);

    // Several, which are a fleet: what one is told, all hear. They may reach what it needs.
    assert!(deployment["spec"]["replicas"].as_i64().unwrap() >= 3);
    let configuration = read(&base("railgate.toml"));
    let [_, fleet] = [0, 1].map(|nth| configuration.split("\n[fleet]\n").nth(nth).unwrap_or_default());
    assert!(fleet.starts_with('#') && fleet.contains(":6379\"\n"), "{configuration}");
    let egress = policy["egress"].as_vec().unwrap();
    assert!(egress.iter().any(|rule| rule["ports"][0]["port"].as_i64() == Some(6_379)));
}

#[test]
fn the_sidecar_for_the_chart_is_a_native_one() {
    let values = only("deploy/kubernetes/helm-values.sidecar.yaml");
    let shell = &values["gitlab"]["gitlab-shell"];
    let at = (shell["workhorse"]["host"].as_str(), shell["workhorse"]["port"].as_i64());
    assert_eq!(at, (Some("127.0.0.1"), Some(SERVICE_PORT)));
    let parsed = |name: &str| YamlLoader::load_from_str(shell[name].as_str().unwrap()).unwrap().remove(0);
    let containers = parsed("extraInitContainers");
    let container = named(&containers, "railgate");
    assert_safe_container(container);
    assert_eq!(container["restartPolicy"].as_str(), Some("Always"), "or GitLab Shell would wait for its end");
    assert!(container["startupProbe"]["httpGet"]["path"].as_str() == Some("/ready"), "sshd starts after it");
    assert!(container["image"].as_str().unwrap().ends_with(concat!(":", env!("CARGO_PKG_VERSION"))));
    let configuration = read("deploy/kubernetes/sidecar.toml");
    assert_eq!(projected(&parsed("extraVolumes"), "railgate-config"), named_in(&configuration));

    let values = only("deploy/kubernetes/helm-values.service.yaml");
    for caller in ["gitlab-shell", "gitaly"] {
        let workhorse = &values["gitlab"][caller]["workhorse"];
        assert_eq!(workhorse["host"].as_str(), Some("railgate.NAMESPACE.svc"), "the Service of the base");
        assert_eq!(workhorse["port"].as_i64(), Some(SERVICE_PORT));
    }
}

#[test]
fn the_sidecar_of_rails_is_safe() {
    let all = documents("deploy/kubernetes.yaml");
    let pod = &of_kind(&all, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert_safe_container(named(&pod["containers"], "railgate"));
    let configuration = of_kind(&all, "ConfigMap")["data"]["railgate.toml"].as_str().unwrap();
    assert_eq!(projected(&pod["volumes"], "config"), named_in(configuration));
    let policy = &of_kind(&all, "NetworkPolicy")["spec"]["ingress"];
    assert!(policy.as_vec().unwrap().iter().all(|rule| rule["from"].as_vec().is_some()), "nobody else");
}

/// A listener that every pod can reach allows no change without a token.
#[test]
fn configurations_for_containers_have_a_token() {
    let kubernetes = documents("deploy/kubernetes.yaml");
    let example = of_kind(&kubernetes, "ConfigMap")["data"]["railgate.toml"].as_str().unwrap().to_owned();
    let files = ["deploy/kubernetes/base/railgate.toml", "deploy/kubernetes/sidecar.toml"];
    for text in files.map(read).into_iter().chain([example]) {
        let (_, admin) = text.split_once("[admin]").unwrap();
        let admin = admin.split("\n[").next().unwrap();
        assert!(admin.contains("0.0.0.0") && admin.contains("\ntoken_file = "), "{text}");
    }
    assert!(read("deploy/Containerfile").contains("token_file"));
}

#[test]
fn the_image_does_not_run_as_root() {
    let text = read("deploy/Containerfile");
    let (_, last) = text.rsplit_once("\nFROM ").unwrap();
    assert!(last.contains("\nUSER 65532:65532\n") && last.contains("\nHEALTHCHECK "), "{last}");
    let rust = format!("FROM rust:{}-bookworm AS build", env!("CARGO_PKG_RUST_VERSION"));
    assert!(text.contains(&rust), "the version of Cargo.toml: {rust}");
}

#[test]
fn a_release_is_checked_before_it_is_built_and_published() {
    let jobs = &only(".github/workflows/release.yml")["jobs"];
    let steps = |job: &str| {
        let steps = jobs[job]["steps"].as_vec().unwrap_or_else(|| panic!("{job}"));
        steps.iter().filter_map(|step| step["run"].as_str()).collect::<Vec<_>>().join("\n")
    };
    assert!(steps("check").contains("tests/run"));
    for (job, does) in [("packages", "deploy/package"), ("image", "deploy/Containerfile")] {
        assert_eq!(jobs[job]["needs"].as_str(), Some("check"), "{job}");
        assert!(steps(job).contains(does), "{job}");
    }
    let needs: Vec<&str> =
        jobs["publish"]["needs"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    assert_eq!(needs, ["packages", "image"]);
    assert!(steps("publish").contains("gh release create"));
    for (name, job) in jobs.as_hash().unwrap() {
        assert!(job["timeout-minutes"].as_i64().is_some(), "{name:?}");
    }
}
