//! What this machine offers a gateway: open files, the directories of its sockets, the policy of its kernel.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use railgate::config::GatewayConfig;
use railgate::gateway::file_demand;
use railgate::server::ListenAddress;
use rustix::process::{Resource, getrlimit};

use super::finding::Finding;

pub(super) fn findings(config: &GatewayConfig) -> Vec<Finding> {
    let mut found = vec![check_open_files(getrlimit(Resource::Nofile).maximum, file_demand(config).total())];
    let hooks = config.hooks.iter().map(|hooks| &hooks.address);
    let addresses =
        config.listen.iter().map(|listen| &listen.address).chain([&config.admin.address]).chain(hooks);
    for address in addresses {
        if let ListenAddress::Unix { path, mode, .. } = address {
            found.extend(check_socket(path, *mode));
        }
    }
    let is_enforcing = fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with(b"1"));
    found.extend(check_selinux(is_enforcing));
    found
}

/// `limit`: the hard limit of this process; `None` if there is none. That of a service may differ.
fn check_open_files(limit: Option<u64>, needed: usize) -> Finding {
    match limit {
        Some(limit) if limit < needed as u64 => Finding::warning(
            format!(
                "{limit} files may be open here (ulimit -Hn), and the configured connections may need {needed}"
            ),
            Some(
                "raise LimitNOFILE= of the service, or lower limits.connections; else fewer connections are accepted",
            ),
        ),
        _ => Finding::ok(format!(
            "the limit of open files suffices for all connections, which may need {needed}"
        )),
    }
}

fn check_socket(path: &Path, mode: u32) -> Vec<Finding> {
    let name = path.display();
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    match fs::metadata(directory) {
        Ok(data) if !data.is_dir() => found.push(Finding::failed(
            format!("{} is not a directory, so {name} cannot be made there", directory.display()),
            "choose another path for the socket",
        )),
        Ok(data) if data.mode() & 0o1002 == 0o002 => found.push(Finding::warning(
            format!("every user of this machine can replace {name}: all may write to its directory"),
            Some("give the directory to the user of the gateway, with the mode 0755 or less"),
        )),
        Ok(_) => {}
        Err(error) => found.push(Finding::failed(
            format!("the directory of {name} cannot be used: {error}"),
            "create it, for the user of the gateway (RuntimeDirectory= in its unit), and let the callers pass",
        )),
    }
    match fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => found.push(Finding::failed(
            format!("{name} is there, and is not a socket"),
            "remove it, or choose another path: the gateway replaces only sockets",
        )),
        _ => {}
    }
    if mode & 0o002 != 0 {
        found.push(Finding::warning(
            format!("every user of this machine may connect to {name}: its mode is {mode:04o}"),
            Some("set mode = \"0660\", and put the callers into the group of the socket"),
        ));
    } else if found.is_empty() {
        found.push(Finding::ok(format!("{name} can be made, with the mode {mode:04o}")));
    }
    found
}

fn check_selinux(is_enforcing: bool) -> Option<Finding> {
    is_enforcing.then(|| {
        Finding::note(
            "SELinux is enforcing: sshd may only connect to ports and sockets of certain types",
            "see \"SELinux\" in deploy/README.md; what is refused is listed by `ausearch -m avc -ts recent`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn too_few_files_are_a_warning() {
        assert_eq!(check_open_files(Some(1_024), 25_000).level, Level::Warning);
        assert_eq!(check_open_files(Some(25_000), 25_000).level, Level::Ok);
        assert_eq!(check_open_files(None, 25_000).level, Level::Ok);
    }

    #[test]
    fn selinux_is_mentioned_where_it_is_enforcing() {
        assert_eq!(check_selinux(false), None);
        assert!(check_selinux(true).is_some_and(|finding| finding.to_string().contains("ausearch")));
    }
}
