//! The users, keys, projects and the agent of the sample GitLab.
//!
//! Ids and names follow the examples in GitLab's description of its internal API, so that the
//! curl lines printed there work here as they are. The keys are real public keys of `ssh-keygen`,
//! whose private halves were deleted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::digest::sha256_hex;

/// The public host name of this GitLab.
pub(super) const HOST: &str = "gitlab.example.com";
/// Of the Gitaly with its repositories.
pub(super) const GITALY_ADDRESS: &str = "tcp://gitaly.example.com:8075";
/// The credential for that Gitaly.
pub(super) const GITALY_TOKEN: &str = "sample-gitaly-token";

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: u64,
    pub(crate) username: &'static str,
    /// The name that is shown to people.
    pub(crate) name: &'static str,
    /// Is a member of every project.
    pub(super) is_admin: bool,
    pub(super) is_blocked: bool,
    pub(super) has_two_factor: bool,
}

/// A public key that may log in.
#[derive(Debug)]
pub(crate) struct SampleKey {
    pub(crate) id: u64,
    pub(crate) title: &'static str,
    /// The algorithm, first word of a line in `authorized_keys`.
    pub(crate) kind: &'static str,
    /// The key itself in padded Base64, second word of that line.
    pub(crate) blob: &'static str,
    /// Its user; of a deploy key, the one who created it.
    pub(crate) owner: &'static User,
    /// Belongs to projects rather than to a user, and only reads.
    pub(crate) is_deploy_key: bool,
    pub(super) created_at: &'static str,
}

/// Who may read a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Without an account too.
    Public,
    /// All users.
    Internal,
    /// Only members.
    Private,
}

/// A project and its repository.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) id: u64,
    pub(crate) path: &'static str,
    pub(super) namespace_id: u64,
    pub(crate) visibility: Visibility,
    /// Ids of the users who may read and push.
    pub(super) members: &'static [u64],
    /// Ids of the deploy keys that may read.
    pub(super) deploy_keys: &'static [u64],
}

/// A Kubernetes agent, known by its token.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) id: u64,
    pub(crate) name: &'static str,
    pub(crate) token: &'static str,
    pub(crate) project: &'static Project,
}

/// Defaults.
const PLAIN: User =
    User { id: 0, username: "", name: "", is_admin: false, is_blocked: false, has_two_factor: false };

#[rustfmt::skip]
static ROOT: User = User {
    id: 1, username: "root", name: "Administrator", is_admin: true, has_two_factor: true, ..PLAIN
};
#[rustfmt::skip]
static RUBI: User =
    User { id: 7, username: "rubi", name: "Dede Eichmann", has_two_factor: true, ..PLAIN };
#[rustfmt::skip]
static MORGAN: User = User { id: 29, username: "morgan", name: "Morgan Castillo", ..PLAIN };
#[rustfmt::skip]
static LEE: User =
    User { id: 31, username: "lee", name: "Lee Ferrante", is_blocked: true, ..PLAIN };

pub(super) static USERS: [&User; 4] = [&ROOT, &RUBI, &MORGAN, &LEE];

/// One key of each common kind, a deploy key, and the key of a blocked user.
#[rustfmt::skip]
pub(super) static KEYS: [SampleKey; 6] = [
    SampleKey {
        id: 1, title: "security key", kind: "sk-ssh-ed25519@openssh.com",
        owner: &ROOT, is_deploy_key: false, created_at: "2022-08-02T07:15:44.310Z",
        blob: "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAHE9bmnmaW9SnwfUJUoPWBvJZbIiZISbU8t\
            Gg3FY+JkAAAABHNzaDo=",
    },
    SampleKey {
        id: 7, title: "rubi@laptop", kind: "ssh-ed25519",
        owner: &RUBI, is_deploy_key: false, created_at: "2021-03-09T11:02:37.802Z",
        blob: "AAAAC3NzaC1lZDI1NTE5AAAAIPzfb0YPNXeN8ZZSIwKExcuONXejBoqwYxzBWNqvXHPY",
    },
    SampleKey {
        id: 11, title: "admin@example.com", kind: "ssh-rsa",
        owner: &ROOT, is_deploy_key: false, created_at: "2019-06-27T15:29:02.219Z",
        blob: "AAAAB3NzaC1yc2EAAAADAQABAAABAQCloyL3TBtR5Z+TCUoeND45sIDhutvmDadM6Dbp9dsPpbclRhk8\
            SP/cjzuFPWYICbvZ7JK+LNwJxhuOmjwqthQ127UfNGU+ZvgMa2JZOl6TbcycgzZclWIFTgO9UbzZGY2U\
            ZY/B5aKPK6qorr9hxHvYk72rTBrFf79EekGAZOutUKHWKJbfHN4rGMKgnm1IcOeYgiyhEVUkuJABbhBM\
            Fm/Y+oNqVsUpcv7wmtc1DnbGkcBjE8j1DlvKkSyBB6ErrlFszBpOg7hWCFEjT559DiUeAvmcodtZjv0y\
            a1gDGWfLbrcGOtFb10SFBvu8NPWZbVmhqVnQlSmh3XkSrsi12l51",
    },
    SampleKey {
        id: 13, title: "morgan@desk", kind: "ecdsa-sha2-nistp256",
        owner: &MORGAN, is_deploy_key: false, created_at: "2021-11-30T09:41:10.006Z",
        blob: "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBE6KuCUJnVBFfSXcnUp8pacJO9Am\
            8R6mkVpzGiwMeYLN2a/WcQkK2IYA5njBcgsByWj11+u6/0p0YrjaJX2Qe+s=",
    },
    SampleKey {
        id: 18, title: "clusters, read only", kind: "ssh-ed25519",
        owner: &ROOT, is_deploy_key: true, created_at: "2022-02-14T16:20:05.667Z",
        blob: "AAAAC3NzaC1lZDI1NTE5AAAAIKVLf/CRhZA4xeXCcjS3jO/qDEzqUxgHgipqjHldwoq0",
    },
    SampleKey {
        id: 23, title: "lee@laptop", kind: "ssh-ed25519",
        owner: &LEE, is_deploy_key: false, created_at: "2020-05-05T08:00:59.120Z",
        blob: "AAAAC3NzaC1lZDI1NTE5AAAAIO/W41NjhHDgsv62qqhXE4kpTkwoD7PE1I7hlXVq04E7",
    },
];

/// A project of each visibility, and the agent's own.
#[rustfmt::skip]
pub(super) static PROJECTS: [Project; 4] = [
    Project { id: 3, path: "gnuwget/wget2", namespace_id: 2, visibility: Visibility::Public,
              members: &[], deploy_keys: &[] },
    Project { id: 7, path: "group/app", namespace_id: 5, visibility: Visibility::Public,
              members: &[7, 29], deploy_keys: &[] },
    Project { id: 12, path: "group/handbook", namespace_id: 5, visibility: Visibility::Internal,
              members: &[29], deploy_keys: &[] },
    CLUSTERS,
];
const CLUSTERS: Project = Project {
    id: 20,
    path: "ops/clusters",
    namespace_id: 9,
    visibility: Visibility::Private,
    members: &[29],
    deploy_keys: &[18],
};

/// The only agent.
pub(crate) static AGENT: Agent =
    Agent { id: 5, name: "sample-agent", token: "sample-agent-token", project: &CLUSTERS };

impl Project {
    pub(super) fn has_member(&self, user: &User) -> bool {
        user.is_admin || self.members.contains(&user.id)
    }

    /// The name by which Gitaly and the hooks call the repository.
    pub(super) fn gl_repository(&self) -> String {
        format!("project-{}", self.id)
    }

    /// Where the repository is in Gitaly's storage, which names it by a digest of the id.
    pub(super) fn relative_path(&self) -> String {
        let digest = sha256_hex(self.id.to_string().as_bytes());
        let part = |range| digest.get(range).unwrap_or_default();
        format!("@hashed/{}/{}/{digest}.git", part(0..2), part(2..4))
    }
}

/// The user with this id.
pub(super) fn user(id: &str) -> Option<&'static User> {
    let id = number(id)?;
    USERS.into_iter().find(|user| user.id == id)
}

/// The user with this name, in capitals or not.
pub(super) fn user_named(name: &str) -> Option<&'static User> {
    USERS.into_iter().find(|user| user.username.eq_ignore_ascii_case(name))
}

/// The key with this id.
pub(super) fn key(id: &str) -> Option<&'static SampleKey> {
    let id = number(id)?;
    KEYS.iter().find(|key| key.id == id)
}

/// The key with exactly these bytes.
pub(super) fn key_with_blob(bytes: &[u8]) -> Option<&'static SampleKey> {
    KEYS.iter().find(|key| STANDARD.decode(key.blob).is_ok_and(|blob| blob == bytes))
}

/// The project with this id or path.
pub(super) fn project(id_or_path: &str) -> Option<&'static Project> {
    let id = number(id_or_path);
    PROJECTS.iter().find(|project| Some(project.id) == id || project.path == id_or_path)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}
