//! `deploy/build`, with tools that only pretend: in which order what is compiled, sent and merged, and what becomes of the
//! result. What the profile is worth is measured by tests/bench/compare.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::harness::Scratch;

/// Each appends to the file `calls` what it was asked for, if that is right, and makes what it is asked to make.
pub(super) const TOOLS: [(&str, &str); 3] = [
    (
        "cargo",
        r#"#!/bin/sh
set -e
case "$*" in
"build --release --locked --bin railgate --target pretended-host --target-dir "*)
    for directory; do :; done
    mkdir -p "$directory/pretended-host/release"
    cp "$TOOLS/railgate" "$directory/pretended-host/release/railgate"
    echo "compiled $CARGO_ENCODED_RUSTFLAGS" >>"$TOOLS/calls" ;;
"test --locked --bench compare --no-run --message-format=json-render-diagnostics")
    echo '{"target":{"name":"railgate"},"executable":null}'
    echo '{"target":{"name":"compare"},"executable":"'"$TOOLS/load"'","fresh":true}' ;;
*) echo "cargo $*" >&2; exit 9 ;;
esac
"#,
    ),
    (
        "rustc",
        r#"#!/bin/sh
case "$*" in
"--version --verbose") printf 'rustc 1.95.0\nhost: pretended-host\nLLVM version: 22.1.2\n' ;;
"--print sysroot") echo "$TOOLS/sysroot" ;;
*) exit 9 ;;
esac
"#,
    ),
    (
        "load",
        r#"#!/bin/sh
set -e
[ "$1 $2" = "train --binary" ] && [ -x "$3" ]
echo "sent to ${3#"$OUTPUT"/}" >>"$TOOLS/calls"
echo counts >"$(echo "$LLVM_PROFILE_FILE" | sed "s/%p/77/")"
"#,
    ),
];

/// Merges, where all tools have the same version of LLVM.
pub(super) const PROFDATA: &str = r#"#!/bin/sh
set -e
[ "$1" != --version ] || { echo "  LLVM version 22.1.2"; exit; }
[ "$1 $2" = "merge -o" ] && grep -q counts "$4"/77.profraw
echo "merged" >>"$TOOLS/calls"
echo profile >"$3"
"#;

pub(super) fn write_executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn build(tools: &Scratch, output: &Path) -> Output {
    for (name, script) in TOOLS {
        write_executable(&tools.file(name), script);
    }
    write_executable(&tools.file("railgate"), "#!/bin/sh\n");
    let folder = tools.file("");
    let mut build = Command::new("deploy/build");
    build.current_dir(env!("CARGO_MANIFEST_DIR")).arg("--output").arg(output);
    // Without the real tools.
    build.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).env("TOOLS", folder.as_path());
    build.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    build.env("OUTPUT", output).output().unwrap()
}

#[test]
fn a_release_is_compiled_by_the_counts_of_its_own_work() {
    let tools = Scratch::new();
    write_executable(&tools.file("sysroot/lib/rustlib/pretended-host/bin/llvm-profdata"), PROFDATA);
    let output = tools.file("output");
    for _ in 0..2 {
        // What an earlier build has left counts for nothing.
        let stale = output.join("profiles/1.profraw");
        fs::create_dir_all(stale.parent().unwrap()).unwrap();
        fs::write(&stale, "of an earlier program").unwrap();
        let built = build(&tools, &output);
        let [out, err] = [built.stdout, built.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(built.status.success(), "{err}");
        assert_eq!(Path::new(out.trim_end()), output.join("release/railgate"));
        assert!(output.join("release/railgate").is_file() && !stale.exists());
        let calls = fs::read_to_string(tools.file("calls")).unwrap();
        let to = output.display();
        let expected = [
            format!("compiled -Cprofile-generate={to}/profiles"),
            "sent to counting/pretended-host/release/railgate".to_owned(),
            "merged".to_owned(),
            format!("compiled -Cprofile-use={to}/merged.profdata"),
        ];
        assert_eq!(calls.lines().collect::<Vec<_>>(), expected);
        fs::remove_file(tools.file("calls")).unwrap();
    }
}

#[test]
fn a_missing_tool_is_named_with_what_installs_it() {
    let tools = Scratch::new();
    let elsewhere = "#!/bin/sh\necho '  LLVM version 14.0.6'\n";
    write_executable(&tools.file("llvm-profdata"), elsewhere);
    write_executable(&tools.file("llvm-profdata-22"), elsewhere);
    write_executable(&tools.file("rustup"), "#!/bin/sh\necho \"rustup $*\" >>\"$TOOLS/calls\"\n");
    let built = build(&tools, &tools.file("output"));
    let err = String::from_utf8(built.stderr).unwrap();
    assert_eq!(built.status.code(), Some(1), "{err}");
    for part in
        ["llvm-profdata of LLVM 22 is missing", "rustup component add llvm-tools", "apt-get install llvm-22"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
    let calls = fs::read_to_string(tools.file("calls")).unwrap();
    assert_eq!(calls, "rustup component add llvm-tools\n");
}
