//! The image of deploy/Containerfile, built by `buildah` and run without root. Its two base images are not downloaded:
//! small ones take their names, of which that with Rust only pretends to compile and to measure.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::net::UnixStream;

use super::client::{Address, Request, eventually};
use super::demo::Process;
use super::fake_rails::FakeRails;
use super::harness::Scratch;
use super::optimised_build::{PROFDATA, TOOLS, write_executable};

/// The base image with Rust, whose tools only pretend: what they compile is the binary of the tests.
const RUST: &str = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), "-bookworm");
const RUSTUP: &str = "#!/bin/sh
set -e
[ \"$*\" = 'component add llvm-tools' ]
[ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -f src/main.rs ] && [ -f config/README.md ] && [ -f config/railgate.toml ]
[ -f tests/bench/compare.rs ] && [ -f tests/bench/instructions.rs ] && [ -x deploy/build ]
mkdir -p $TOOLS/sysroot/lib/rustlib/pretended-host/bin
cp $TOOLS/merges $TOOLS/sysroot/lib/rustlib/pretended-host/bin/llvm-profdata
";
/// What `deploy/build` needs of the system.
const PROGRAMS: [&str; 11] = [
    "/bin/sh",
    "/bin/bash",
    "/bin/cp",
    "/bin/grep",
    "/bin/mkdir",
    "/bin/rm",
    "/bin/sed",
    "/usr/bin/dirname",
    "/usr/bin/env",
    "/usr/bin/install",
    "/usr/bin/realpath",
];
/// The base image of the result.
const DISTROLESS: &str = "gcr.io/distroless/cc-debian12:nonroot";
/// The one that the image gives itself.
const USER: u32 = 65532;

/// Images and containers in a folder of their own.
struct Buildah {
    dir: Scratch,
}

impl Buildah {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        let [store, state] = ["store", "state"].map(|name| self.dir.file(name));
        command.arg("--root").arg(store).arg("--runroot").arg(state).args(["--storage-driver", "vfs"]);
        command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output();
        let output =
            output.unwrap_or_else(|error| panic!("buildah cannot be run ({error}): tests/run installs it"));
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "buildah {arguments:?}: {out}{err}");
        out
    }

    /// An image with the files of this folder.
    fn build_base(&self, name: &str, files: &Path) {
        let recipe = self.dir.file("base.containerfile");
        let path = "ENV PATH=/usr/local/bin:/usr/bin:/bin TOOLS=/usr/local/bin OUTPUT=/build/target/pgo";
        fs::write(&recipe, format!("FROM scratch\nCOPY . /\n{path}\n")).unwrap();
        let [recipe, files] = [&recipe, files].map(|path| path.display().to_string());
        self.run(&["bud", "--isolation", "chroot", "--tag", name, "--file", &recipe, &files]);
    }

    /// Runs a command of the image, with the two folders that an operator mounts.
    fn in_container(&self, container: &str, command: &[&str]) -> Command {
        let mounts = [format!("{}:/etc/railgate:ro", self.dir.file("etc").display())];
        let run = format!("{}:/run/railgate", self.dir.file("run").display());
        let options =
            ["run", "--isolation", "chroot", "--volume", &mounts[0], "--volume", &run, container, "--"];
        self.command(&[&options[..], command].concat())
    }
}

/// Copies a file into a folder, with the same path.
fn copy_into(folder: &Path, file: &str) {
    let target = folder.join(file.trim_start_matches('/'));
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(file, &target).unwrap_or_else(|error| panic!("{file}: {error}"));
}

/// The libraries that a program needs.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with("/lib")).map(str::to_owned).collect()
}

/// As small as the packages' binary.
fn stripped_binary(dir: &Scratch) -> std::path::PathBuf {
    let binary = dir.file("railgate");
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(&binary).arg(env!("CARGO_BIN_EXE_railgate"));
    assert!(strip.status().unwrap().success());
    binary
}

fn build(buildah: &Buildah) {
    let binary = stripped_binary(&buildah.dir);
    let rust = buildah.dir.file("rust");
    for program in PROGRAMS {
        copy_into(&rust, program);
        for library in libraries(Path::new(program)) {
            copy_into(&rust, &library);
        }
    }
    let tools = rust.join("usr/local/bin");
    let pretended = TOOLS.into_iter().chain([("rustup", RUSTUP), ("merges", PROFDATA)]);
    for (name, script) in pretended {
        write_executable(&tools.join(name), script);
    }
    fs::copy(&binary, tools.join("railgate")).unwrap();
    buildah.build_base(RUST, &rust);
    let base = buildah.dir.file("base");
    for library in libraries(&binary) {
        copy_into(&base, &library);
    }
    buildah.build_base(DISTROLESS, &base);
    let format = ["--isolation", "chroot", "--format", "docker", "--pull-never", "--tag", "railgate"];
    buildah.run(&[&["bud"], &format[..], &["--file", "deploy/Containerfile", "."]].concat());
}

/// A container without `CAP_SYS_ADMIN` lets nobody mount, and `buildah` has to.
fn may_mount() -> bool {
    Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_is_built_and_answers_without_root() {
    if !may_mount() {
        println!("the image is not built: nothing can be mounted here");
        return;
    }
    let rails = FakeRails::listen_tcp().await;
    let buildah = Buildah { dir: Scratch::new() };
    let buildah = tokio::task::spawn_blocking(move || {
        build(&buildah);
        buildah
    });
    let buildah = buildah.await.unwrap();
    let image = buildah.run(&["inspect", "--type", "image", "railgate"]);
    for part in [
        r#"\"Healthcheck\":{\"Test\":[\"CMD\",\"railgate\",\"health\","#,
        r#"\"User\":\"65532:65532\""#,
        r#"\"Entrypoint\":[\"railgate\"]"#,
        r#"\"Cmd\":[\"run\",\"--config\",\"/etc/railgate/railgate.toml\"]"#,
    ] {
        assert!(image.contains(part), "{part}: {image}");
    }

    let (etc, run) = (buildah.dir.file("etc"), buildah.dir.file("run"));
    for folder in [&etc, &run] {
        fs::create_dir(folder).unwrap();
    }
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(etc.join("secret"), super::credentials::SHELL_SECRET).unwrap();
    let config = format!(
        "upstream.url = '{}'\nauth.shell.secret_file = '/etc/railgate/secret'\nadmin.address = \
         'unix:/run/railgate/admin.sock'\n[[listen]]\naddress = 'unix:/run/railgate/gateway.sock'\nmode = '0666'\n",
        rails.address.url()
    );
    fs::write(etc.join("railgate.toml"), config).unwrap();
    let container = buildah.run(&["from", "--pull-never", "railgate"]);
    let container = container.trim_end();
    // What the image runs by itself: its entry point and command.
    let mut gateway = Process::spawn_piped(
        buildah.in_container(container, &["railgate", "run", "--config", "/etc/railgate/railgate.toml"]),
    );
    gateway.wait_for_output(r#""message":"ready""#).await;
    let socket = run.join("gateway.sock");
    let answer = Address::Unix(socket.clone()).send(&Request::post("allowed").with_secret()).await;
    assert_eq!((answer.status, rails.request_count()), (200, 1), "{answer}");
    let peer = UnixStream::connect(&socket).await.unwrap().peer_cred().unwrap();
    assert_eq!(peer.uid(), USER);
    let health = ["railgate", "health", "--config", "/etc/railgate/railgate.toml"];
    let health = buildah.in_container(container, &health).output().unwrap();
    assert!(health.status.success() && health.stdout == b"live\n", "{health:?}");
    // To the gateway itself: buildah would kill it.
    let pid = peer.pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = gateway.wait_for_end().await;
    assert_eq!(status.code(), Some(0), "{}", gateway.printed());
    eventually("the last line", || std::future::ready(gateway.printed().contains("stopped").then_some(())))
        .await;
}
