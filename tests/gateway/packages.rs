//! The packages of `deploy/package`, with the binary of the tests. They are installed into a folder, so that this
//! machine stays as it is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::client::{Address, Request};
use super::demo::Process;
use super::fake_rails::FakeRails;
use super::harness::{Scratch, Setup};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const CONFIG: &str = "etc/railgate/railgate.toml";

fn missing(program: &str, error: &std::io::Error) -> String {
    format!(
        "{program} cannot be run ({error}): tests/run installs it (packages dpkg, rpm, rpmlint and systemd)"
    )
}

/// Runs a program that has to succeed. Returns what it has printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).current_dir(REPOSITORY).output();
    let output = output.unwrap_or_else(|error| panic!("{}", missing(program, &error)));
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

/// Builds a package, and returns its path.
fn package(kind: &str, dir: &Scratch) -> String {
    let output = dir.path().display().to_string();
    let binary = env!("CARGO_BIN_EXE_railgate");
    run("deploy/package", &[kind, "--binary", binary, "--output", &output]).trim_end().to_owned()
}

/// A folder in which dpkg installs.
struct Root {
    path: PathBuf,
}

impl Root {
    fn new(dir: &Scratch) -> Self {
        let path = dir.file("root");
        for folder in ["var/lib/dpkg/updates", "var/lib/dpkg/info", "etc"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        fs::write(path.join("var/lib/dpkg/status"), "").unwrap();
        Self { path }
    }

    /// The C library is not installed there. The scripts run without a chroot, as `DPKG_ROOT` allows. Who is asked
    /// about a changed file says nothing, so the file is kept.
    fn dpkg(&self, action: &str, package: &str) {
        let root = format!("--root={}", self.path.display());
        let log = format!("--log={}", self.path.join("dpkg.log").display());
        let forced = "--force-not-root,depends,script-chrootless,confold,confdef";
        run("dpkg", &[&root, &log, forced, action, package]);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The files of the package, below the root.
    fn files(&self) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        collect(&self.path, &self.path, &mut files);
        files.retain(|file| file.contains("railgate") && !file.starts_with("var/lib/dpkg"));
        files
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            files.insert(path.strip_prefix(root).unwrap().display().to_string());
        }
    }
}

/// The installed configuration, as an operator fills it in: where Rails and its secret are, and where to listen.
fn fill_in(root: &Root, setup: &Setup, rails: &FakeRails) {
    let mut text = root.read(CONFIG);
    let secret = format!("secret_file = \"{}\"", setup.dir.file("shell_secret").display());
    let socket = format!("address = \"unix:{}\"", setup.socket().display());
    for (key, section, line) in [
        ("url = ", "[upstream]", format!("url = \"{}\"", rails.address.url())),
        ("secret_file = ", "[auth.shell]", secret),
        ("address = ", "[[listen]]", socket),
        ("address = ", "[admin]", "address = \"127.0.0.1:0\"".to_owned()),
    ] {
        let begin = text.find(&format!("\n{section}")).unwrap_or_else(|| panic!("{section}"));
        let at = begin + text[begin..].find(&format!("\n{key}")).unwrap_or_else(|| panic!("{key}")) + 1;
        let end = at + text[at..].find('\n').unwrap();
        text.replace_range(at..end, &line);
    }
    fs::write(root.file(CONFIG), text).unwrap();
}

/// The installed binary answers with its installed configuration.
async fn assert_runs(root: &Root, setup: &Setup, rails: &FakeRails) {
    let mut command = Command::new(root.file("usr/bin/railgate"));
    command.arg("run").arg("--config").arg(root.file(CONFIG));
    let mut gateway = Process::spawn_piped(command);
    gateway.wait_for_output(r#""message":"ready""#).await;
    let before = rails.request_count();
    let answer = Address::Unix(setup.socket()).send(&Request::post("allowed").with_secret()).await;
    assert_eq!((answer.status, rails.request_count()), (200, before + 1), "{answer}");
    gateway.signal("-TERM");
    assert_eq!(gateway.wait_for_end().await.code(), Some(0));
}

/// The same package with a higher version, and with other defaults in its configuration.
fn next_version(package: &str, dir: &Scratch) -> String {
    let (files, next) = (dir.file("next"), dir.file("next.deb").display().to_string());
    let unpacked = files.display().to_string();
    run("dpkg-deb", &["-R", package, &unpacked]);
    let control = fs::read_to_string(files.join("DEBIAN/control")).unwrap();
    let version = format!("Version: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(control.contains(&version), "{control}");
    fs::write(files.join("DEBIAN/control"), control.replace(&version, "Version: 999.0.0\n")).unwrap();
    let config = fs::read_to_string(files.join(CONFIG)).unwrap();
    fs::write(files.join(CONFIG), config + "# A new default.\n").unwrap();
    run("dpkg-deb", &["--root-owner-group", "-Zgzip", "-z1", "--build", &unpacked, &next]);
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_debian_package_is_installed_run_upgraded_removed_and_purged() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let dir = Scratch::new();
    let (package, root) = (package("deb", &dir), Root::new(&dir));
    root.dpkg("--install", &package);
    assert_eq!(root.read(CONFIG), include_str!("../../config/railgate.toml"));
    assert_eq!(
        root.read("usr/lib/systemd/system/railgate.service"),
        include_str!("../../deploy/railgate.service")
    );
    assert!(root.read("etc/passwd").starts_with("railgate:"), "sysusers has made the user");
    let secrets = fs::metadata(root.file("etc/railgate/secrets")).unwrap();
    assert_eq!(secrets.permissions().mode() & 0o7777, 0o750, "tmpfiles has made the folder");
    let enabled = root.files().into_iter().filter(|file| file.contains(".wants/")).collect::<Vec<_>>();
    assert_eq!(enabled, [""; 0], "nothing starts by surprise");
    fill_in(&root, &setup, &rails);
    assert_runs(&root, &setup, &rails).await;

    let mine = root.read(CONFIG);
    root.dpkg("--install", &next_version(&package, &dir));
    assert_eq!(root.read(CONFIG), mine, "an upgrade keeps what the operator has written");
    assert!(root.read(&format!("{CONFIG}.dpkg-dist")).ends_with("# A new default.\n"));
    assert!(root.read("var/lib/dpkg/status").contains("Version: 999.0.0"));
    assert_runs(&root, &setup, &rails).await;

    fs::create_dir_all(root.file("var/lib/railgate")).unwrap();
    fs::write(root.file("var/lib/railgate/cache"), "").unwrap();
    root.dpkg("--remove", "railgate");
    assert_eq!(root.read(CONFIG), mine, "removed, but not purged");
    let left: Vec<String> = root.files().into_iter().collect();
    assert_eq!(left, [CONFIG, &format!("{CONFIG}.dpkg-dist"), "var/lib/railgate/cache"]);
    root.dpkg("--purge", "railgate");
    assert_eq!(root.files(), BTreeSet::new());
    assert!(!root.file("etc/railgate").exists() && !root.file("var/lib/railgate").exists());
}

#[test]
fn the_rpm_has_the_same_files_and_keeps_the_configuration() {
    let dir = Scratch::new();
    let (rpm, deb) = (package("rpm", &dir), package("deb", &dir));
    let listed = run("rpm", &["-qp", "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]", &rpm]);
    let in_rpm: BTreeSet<&str> = listed
        .lines()
        .filter(|line| !line.starts_with('d'))
        .filter_map(|line| line.split_once(' ').map(|(_, name)| name))
        .collect();
    let in_deb = run("dpkg-deb", &["-c", &deb]);
    let in_deb: BTreeSet<&str> = in_deb
        .lines()
        .filter(|line| !line.starts_with('d'))
        .filter_map(|line| line.rsplit_once(" .").map(|(_, name)| name))
        .collect();
    assert_eq!(in_rpm, in_deb);
    for file in ["bin/railgate", "share/man/man1/railgate.1.gz", "share/bash-completion/completions/railgate"]
    {
        assert!(in_rpm.contains(&*format!("/usr/{file}")), "{file}: {in_rpm:?}");
    }
    assert_eq!(run("rpm", &["-qp", "--configfiles", &rpm]).trim_end(), format!("/{CONFIG}"));
    // Bit 4: %config(noreplace).
    let flags = run("rpm", &["-qp", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", &rpm]);
    assert!(flags.lines().any(|line| line == format!("/{CONFIG} cn")), "{flags}");
    let parsed = run("rpmspec", &["--parse", "deploy/railgate.spec"]);
    let version = format!("Version:        {}", env!("CARGO_PKG_VERSION"));
    assert!(parsed.contains(&version), "the default of the recipe is the version of Cargo.toml: {parsed}");
}

/// What rpmlint says of a package or recipe: `E: name` for each error, and so on. Its exit code is of no use: it has no
/// configuration for this.
fn rpmlint(file: &str) -> BTreeSet<String> {
    let output = Command::new("rpmlint").arg(file).current_dir(REPOSITORY).output();
    let output = output.unwrap_or_else(|error| panic!("{}", missing("rpmlint", &error)));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" checked; "), "{text}");
    let found = text.lines().filter_map(|line| {
        let (_, found) = line.split_once(": E: ").or_else(|| line.split_once(": W: "))?;
        let kind = if line.contains(": E: ") { "E" } else { "W" };
        Some(format!("{kind}: {}", found.split_whitespace().next()?))
    });
    found.collect()
}

#[test]
fn rpmlint_finds_nothing_but_what_is_meant() {
    let dir = Scratch::new();
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let package = rpmlint(&package("rpm", &dir));
    let meant = of(&[
        // A repository signs; packager and group are SUSE's.
        "E: no-signature",
        "E: no-packager-tag",
        "E: no-group-tag",
        // Names in backtraces; and the units are below /usr/lib.
        "W: unstripped-binary-or-object",
        "W: only-non-binary-in-usr-lib",
        // Debian's rpmlint knows neither gzip nor any license.
        "W: manpage-not-compressed",
        "W: no-manual-page-for-binary",
        "W: invalid-license",
    ]);
    assert!(package.is_subset(&meant), "{package:?}");
    let recipe = rpmlint("deploy/railgate.spec");
    // The binary is built elsewhere, and systemd wants its files below /usr/lib.
    let meant = of(&[
        "W: no-buildroot-tag",
        "W: no-%prep-section",
        "W: no-%build-section",
        "E: hardcoded-library-path",
    ]);
    assert!(recipe.is_subset(&meant), "{recipe:?}");
}

#[test]
fn the_scripts_of_the_packages_are_valid() {
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &["-n", &format!("deploy/debian/{script}")]);
    }
    run("bash", &["-n", "deploy/package"]);
    let dir = Scratch::new();
    for (number, script) in include_str!("../../deploy/railgate.spec")
        .split("\n%")
        .filter(|part| part.starts_with('p'))
        .enumerate()
    {
        let (_, script) = script.split_once('\n').unwrap();
        let file = dir.file(&format!("script-{number}"));
        fs::write(&file, script).unwrap();
        run("sh", &["-n", &file.display().to_string()]);
    }
}
