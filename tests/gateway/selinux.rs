//! The module for `SELinux`, compiled and put into a small policy: what it allows, and to whom. No kernel with `SELinux` is
//! needed.

use std::fs;
use std::process::Command;

use super::harness::Scratch;

/// As much of a system's policy as the module is about. `TYPES` are those that only some systems have.
const BASE: &str = "\
class dir
class sock_file
class tcp_socket
class unix_stream_socket
class process
sid kernel
common file { getattr search write }
class dir inherits file
class sock_file inherits file
class tcp_socket { name_connect }
class unix_stream_socket { connectto }
class process { transition dyntransition }
sensitivity s0;
dominance { s0 }
category c0;
level s0:c0;
mlsconstrain process { transition dyntransition } ( h1 dom h2 );
attribute file_type;
attribute pidfile;
type sshd_t;
TYPES
type kernel_t;
allow kernel_t self:process transition;
role system_r;
role system_r types { kernel_t sshd_t };
user system_u roles { system_r } level s0 range s0 - s0:c0;
sid kernel system_u:system_r:kernel_t:s0
";

/// Runs a program that has to succeed, in this folder. Returns what it has printed.
fn run(dir: &Scratch, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(dir.path()).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "{program} cannot be run ({error}): tests/run installs checkpolicy, semodule-utils and setools"
        )
    });
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

/// The rules of a policy with the module, without those of the small policy itself.
fn rules_with(types: &str) -> Vec<String> {
    let dir = Scratch::new();
    let source = |name: &str| {
        fs::read_to_string(format!("{}/deploy/selinux/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    fs::write(dir.file("base.te"), BASE.replace("TYPES", types)).unwrap();
    for name in ["railgate.te", "railgate.fc"] {
        fs::write(dir.file(name), source(name)).unwrap();
    }
    run(&dir, "checkmodule", &["-M", "-o", "base.mod", "base.te"]);
    run(&dir, "semodule_package", &["-o", "base.pp", "-m", "base.mod"]);
    // As the documentation says.
    for line in fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md")).unwrap().lines()
    {
        let mut words = line.split_whitespace();
        if let Some(program @ ("checkmodule" | "semodule_package")) =
            words.next().filter(|_| line.starts_with("    "))
        {
            run(&dir, program, &words.collect::<Vec<_>>());
        }
    }
    run(&dir, "semodule_link", &["-o", "linked.pp", "base.pp", "railgate.pp"]);
    run(&dir, "semodule_expand", &["linked.pp", "policy"]);
    let rules = run(&dir, "sesearch", &["-A", "policy"]);
    rules.lines().filter(|rule| !rule.starts_with("allow kernel_t ")).map(str::to_owned).collect()
}

#[test]
fn the_module_lets_sshd_use_the_socket_and_nothing_else() {
    const SOCKET: [&str; 2] = [
        "allow sshd_t railgate_runtime_t:dir { getattr search };",
        "allow sshd_t railgate_runtime_t:sock_file { getattr write };",
    ];
    // Debian has neither type.
    assert_eq!(rules_with(""), SOCKET);
    assert_eq!(
        rules_with("type unconfined_service_t; type intermapper_port_t;"),
        [
            "allow sshd_t intermapper_port_t:tcp_socket name_connect; [ railgate_tcp ]:True",
            SOCKET[0],
            SOCKET[1],
            "allow sshd_t unconfined_service_t:unix_stream_socket connectto;",
        ]
    );
    let contexts = include_str!("../../deploy/selinux/railgate.fc");
    let unit = include_str!("../../deploy/railgate.service");
    assert!(unit.contains("\nRuntimeDirectory=railgate\n") && contexts.contains("\n/run/railgate(/.*)?\t"));
}
