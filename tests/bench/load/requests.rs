//! The bytes of the requests.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;

use super::Options;
use crate::credentials::{self, KAS_HEADER, SHELL_HEADER, SHELL_TOKEN_HEADER};
use crate::keys::{self, RandomNumbers};

/// The kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Kind {
    AuthorizedKeys,
    /// The same for keys that Rails does not know.
    UnknownKeys,
    Discover,
    Allowed,
    Kas,
    Blob,
    Upload,
}

/// The credential of callers other than kas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Credential {
    Secret,
    Token,
}

fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Kind {
    pub(crate) fn name(self) -> String {
        name_of(&self)
    }

    /// The status of the responses.
    pub(super) fn status(self) -> u16 {
        if self == Self::UnknownKeys { 404 } else { 200 }
    }
}

impl Credential {
    pub(crate) fn name(self) -> String {
        name_of(&self)
    }
}

/// The most requests that are built in advance, to save memory.
const MAX_PREBUILT: u64 = 20_000;

/// All requests of a run.
pub(super) struct Requests {
    options: Options,
    /// The header line with the credential.
    credential: String,
    prebuilt: Vec<String>,
    /// The number of the next unknown key.
    unknown: u64,
    rng: RandomNumbers,
}

impl Requests {
    pub(super) fn new(options: &Options) -> Self {
        let credential = match (options.kind, options.credential) {
            (Kind::Kas, _) => format!("{KAS_HEADER}: {}", credentials::kas_token()),
            (_, Credential::Secret) => format!("{SHELL_HEADER}: {}", credentials::shared_secret()),
            (_, Credential::Token) => format!("{SHELL_TOKEN_HEADER}: {}", credentials::shell_token()),
        };
        // Far above all other numbers, and those of earlier runs.
        let unknown = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let mut requests = Self {
            options: options.clone(),
            credential,
            prebuilt: Vec::new(),
            unknown,
            rng: RandomNumbers(7),
        };
        if options.keys <= MAX_PREBUILT {
            requests.prebuilt = (0..options.keys).map(|number| requests.make(number)).collect();
        }
        requests
    }

    /// Writes request `number`. Returns how many bytes of a body must follow.
    pub(super) fn write(&mut self, number: u64, out: &mut Vec<u8>) -> u64 {
        out.clear();
        let prebuilt = self.prebuilt.get((number % self.options.keys) as usize);
        if self.options.misses > 0 && self.rng.next() % 100 < self.options.misses {
            self.unknown += 1;
            out.extend_from_slice(self.authorized_keys(self.unknown).as_bytes());
        } else if let Some(request) = prebuilt {
            out.extend_from_slice(request.as_bytes());
        } else {
            out.extend_from_slice(self.make(number).as_bytes());
        }
        if self.options.kind == Kind::Upload { self.options.mebibytes << 20 } else { 0 }
    }

    fn make(&self, number: u64) -> String {
        let key = self.options.first_key + (number % self.options.keys) * self.options.stride;
        let mebibytes = self.options.mebibytes;
        match self.options.kind {
            Kind::AuthorizedKeys | Kind::UnknownKeys => self.authorized_keys(key),
            Kind::Discover => self.shell("GET", &format!("discover?key_id={}", key + 1), "\r\n"),
            Kind::Allowed => self.shell("POST", "allowed", &form(key)),
            Kind::Blob => self.shell("GET", &format!("blob?mb={mebibytes}"), "\r\n"),
            Kind::Upload => {
                let length = mebibytes << 20;
                let rest =
                    format!("Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n");
                self.shell("POST", "upload", &rest)
            }
            Kind::Kas => format!(
                "GET /api/v4/internal/kubernetes/agent_info HTTP/1.1\r\nHost: localhost:8080\r\n\
                 User-Agent: gitlab-kas/v13.6\r\n{}\r\nAuthorization: Bearer 8a5ab3c0e1f1aa77d1f9\r\n\
                 Accept-Encoding: gzip\r\n\r\n",
                self.credential
            ),
        }
    }

    fn authorized_keys(&self, key: u64) -> String {
        let key = keys::escaped(&keys::key(key));
        self.shell("GET", &format!("authorized_keys?key={key}"), "\r\n")
    }

    fn shell(&self, method: &str, path: &str, rest: &str) -> String {
        format!(
            "{method} /api/v4/internal/{path} HTTP/1.1\r\nHost: localhost:8080\r\n\
             User-Agent: GitLab-Shell\r\n{}\r\nAccept-Encoding: gzip\r\n{rest}",
            self.credential
        )
    }
}

/// An access check is a form of 200 bytes.
fn form(key: u64) -> String {
    let mut form = format!(
        "action=git-upload-pack&changes=_any&check_ip=10.0.0.7&env=%7B%7D&gl_repository=project-3\
         &key_id={}&project=gnuwget%2Fwget2.git&protocol=ssh&padding=",
        1000 + key
    );
    let missing = 200_usize.saturating_sub(form.len());
    form.push_str(&"x".repeat(missing));
    let mut rest = String::new();
    let _ = write!(
        rest,
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    rest
}
