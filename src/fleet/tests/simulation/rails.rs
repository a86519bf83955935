//! A model of Rails: what is true about each question since when.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::cache::Key;
use crate::cache::purge::Selector;

/// What changes, and what purges are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// An SSH key; each change removes it, or makes it anew. GitLab's hook names it.
    Key(u64),
    /// The row of one, which is asked whose it is.
    Row(u64),
    /// A user, who always exists.
    User(u64),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question(u64);

/// How often a subject had changed when Rails looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Versions {
    /// Of the SSH key, or of its row.
    pub(super) row: usize,
    pub(super) user: usize,
}

/// What Rails says, which tells of itself in its `ETag` which question it answers, by which versions.
pub(super) struct RailsAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Rails {
    /// When each subject has changed.
    changes: HashMap<Subject, Vec<u64>>,
}

impl Question {
    fn row(self) -> u64 {
        self.0 / 4 + 1
    }

    /// Each has two key rows.
    fn user(self) -> u64 {
        self.0 / 8 + 1
    }

    /// What the answer follows from.
    pub(super) fn subjects(self) -> (Option<Subject>, Option<Subject>) {
        let user = Subject::User(self.user());
        match self.0 % 4 {
            0 => (Some(Subject::Key(self.row())), None),
            1 => (Some(Subject::Row(self.row())), Some(user)),
            _ => (None, Some(user)),
        }
    }

    /// The questions have numbers, some of them several.
    pub(super) fn new(number: u64) -> Self {
        match number % 8 {
            6 | 7 => Self(number - 4),
            _ => Self(number),
        }
    }

    pub(super) fn key(self) -> Key {
        match self.0 % 4 {
            0 => Key::of_ssh_key(blob(self.row()).as_bytes()).unwrap(),
            1 => Key::UserOfKey(self.row()),
            2 => Key::UserById(self.user()),
            _ => Key::UserByName(name(self.user()).into()),
        }
    }

    /// The questions that a change of this subject has another answer to.
    pub(super) fn about(subject: Subject) -> Vec<Self> {
        match subject {
            Subject::Key(row) => vec![Self((row - 1) * 4)],
            Subject::Row(row) => vec![Self((row - 1) * 4 + 1)],
            Subject::User(user) => [1, 2, 3, 5].map(|part| Self((user - 1) * 8 + part)).to_vec(),
        }
    }
}

impl Subject {
    /// What GitLab's hook is about.
    pub(super) fn selectors(self) -> Vec<Selector> {
        match self {
            Self::Key(row) => {
                let Key::SshKey(digest) = Question((row - 1) * 4).key() else { unreachable!() };
                vec![Selector::SshKey(digest)]
            }
            Self::Row(row) => vec![Selector::KeyId(row)],
            Self::User(user) => vec![Selector::UserId(user), Selector::Username(name(user))],
        }
    }
}

fn name(user: u64) -> String {
    format!("user{user}")
}

fn blob(row: u64) -> String {
    STANDARD.encode([b"blob".as_slice(), &row.to_be_bytes()].concat())
}

impl Rails {
    /// Returns which change it is.
    pub(super) fn change(&mut self, subject: Subject, now: u64) -> usize {
        let changes = self.changes.entry(subject).or_default();
        changes.push(now);
        changes.len()
    }

    pub(super) fn versions(&self, question: Question, at: u64) -> Versions {
        let count = |subject| {
            let changes: Option<&Vec<u64>> = self.changes.get(&subject);
            changes.map_or(0, |changes| changes.partition_point(|changed_at| *changed_at <= at))
        };
        let (row, user) = question.subjects();
        Versions { row: row.map_or(0, count), user: user.map_or(0, count) }
    }

    /// Whether there is something that the answer can be about.
    pub(super) fn exists(versions: Versions) -> bool {
        versions.row.is_multiple_of(2)
    }

    /// As of a time, which may have passed if a replica lags.
    pub(super) fn answer(&self, question: Question, at: u64) -> RailsAnswer {
        let versions = self.versions(question, at);
        let (row, user) = (question.row(), question.user());
        let exists = Self::exists(versions);
        let (status, body) = match question.0 % 4 {
            0 if !exists => (StatusCode::NOT_FOUND, r#"{"message":"404 Key Not Found"}"#.to_owned()),
            0 => (StatusCode::OK, format!(r#"{{"id":{row},"key":"ssh-ed25519 {} R (host)"}}"#, blob(row))),
            _ if !exists => (StatusCode::OK, "null".to_owned()),
            _ => (StatusCode::OK, format!(r#"{{"id":{user},"username":"{}"}}"#, name(user))),
        };
        let etag = format!("{}.{}.{}", question.0, versions.row, versions.user);
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_str(&etag).unwrap());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        RailsAnswer { status, headers, body: body.into_bytes() }
    }

    /// Which question an answer is to, and by which versions.
    pub(super) fn read(headers: &HeaderMap) -> (Question, Versions) {
        let etag = headers.get(header::ETAG).unwrap().to_str().unwrap();
        let mut parts = etag.split('.').map(|part| part.parse::<u64>().unwrap());
        let mut next = || parts.next().unwrap();
        let (question, row, user) = (next(), next(), next());
        let index = |version| usize::try_from(version).unwrap();
        (Question(question), Versions { row: index(row), user: index(user) })
    }
}
