//! Events, and the entries that they make outdated (contract §5).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::cache::purge::Selector;
use crate::route::Caching;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum EventKind {
    /// An SSH key was added: a user's, or one of another kind, such as a deploy key.
    KeyCreate = 0,
    /// An SSH key was removed.
    KeyDestroy = 1,
    /// A user was added.
    UserCreate = 2,
    /// A user was removed, with all keys.
    UserDestroy = 3,
    /// A user was renamed.
    UserRename = 4,
    /// A blocked user has tried to log in: the only event about blocking that GitLab sends.
    UserFailedLogin = 5,
    /// An event without an effect on cached entries.
    Other = 6,
}

impl EventKind {
    /// In the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::KeyCreate,
        Self::KeyDestroy,
        Self::UserCreate,
        Self::UserDestroy,
        Self::UserRename,
        Self::UserFailedLogin,
        Self::Other,
    ];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyCreate => "key_create",
            Self::KeyDestroy => "key_destroy",
            Self::UserCreate => "user_create",
            Self::UserDestroy => "user_destroy",
            Self::UserRename => "user_rename",
            Self::UserFailedLogin => "user_failed_login",
            Self::Other => "other",
        }
    }

    /// The names of events about deploy keys, LDAP keys and others differ, but end alike.
    fn from_name(name: &str) -> Self {
        match name {
            "user_create" => Self::UserCreate,
            "user_destroy" => Self::UserDestroy,
            "user_rename" => Self::UserRename,
            "user_failed_login" => Self::UserFailedLogin,
            _ if name.ends_with("key_create") => Self::KeyCreate,
            _ if name.ends_with("key_destroy") => Self::KeyDestroy,
            _ => Self::Other,
        }
    }
}

crate::counters::label!(EventKind);

/// A parsed event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) kind: EventKind,
    /// Selects the entries to purge.
    pub(super) outdated: Vec<Selector>,
}

impl Event {
    /// `None` if `body` is not an event. An event that lacks a field selects all entries that it may be about.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let Fields(fields) = serde_json::from_slice(body).ok()?;
        // Events of repositories have `object_kind` beside or instead of a name.
        let name = fields.get("event_name").or_else(|| fields.get("object_kind"))?.as_str()?;
        let kind = EventKind::from_name(name);
        let id = |name: &str| fields.get(name).and_then(Value::as_u64);
        let key_or_all = || {
            let key = fields.get("key").and_then(Value::as_str).and_then(Selector::ssh_key);
            key.unwrap_or(Selector::Route(Caching::AuthorizedKeys))
        };
        let user = |names: &[&str]| {
            let named = |name: &&str| Some(Selector::Username(fields.get(*name)?.as_str()?.to_owned()));
            let all = std::iter::once(id("user_id").map(Selector::UserId)).chain(names.iter().map(named));
            all.collect::<Option<Vec<_>>>().unwrap_or_else(|| vec![Selector::Route(Caching::Discover)])
        };
        let outdated = match kind {
            EventKind::KeyCreate | EventKind::KeyDestroy => {
                let by_id = id("id").map_or(Selector::Route(Caching::Discover), Selector::KeyId);
                vec![key_or_all(), by_id]
            }
            EventKind::UserCreate | EventKind::UserFailedLogin => user(&["username"]),
            EventKind::UserRename => user(&["username", "old_username"]),
            EventKind::UserDestroy => {
                // The event does not name the user's keys.
                let keys = Selector::Route(Caching::AuthorizedKeys);
                user(&["username"]).into_iter().chain([keys]).collect()
            }
            EventKind::Other => Vec::new(),
        };
        Some(Self { kind, outdated })
    }
}

/// The fields that are read of an event.
const FIELDS: [&str; 7] = ["event_name", "object_kind", "id", "user_id", "key", "username", "old_username"];

/// The [`FIELDS`] of a JSON object. All others are skipped: parsed as a tree, an event takes a hundred times as
/// much memory as it has bytes.
struct Fields(HashMap<&'static str, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(object: D) -> Result<Self, D::Error> {
        object.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Fields, A::Error> {
        let mut fields = HashMap::new();
        while let Some(name) = object.next_key::<Cow<'de, str>>()? {
            match FIELDS.into_iter().find(|field| *field == name) {
                Some(field) => drop(fields.insert(field, object.next_value()?)),
                None => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Selector::{KeyId, Route, UserId, Username};

    const LINE: &str = "ssh-ed25519 AAAAC3Nz me@home with spaces";

    fn name(name: &str) -> Selector {
        Username(name.into())
    }

    #[test]
    fn an_event_selects_the_entries_about_its_subject() {
        let (ssh, keys, users) =
            (Selector::ssh_key(LINE).unwrap(), Route(Caching::AuthorizedKeys), Route(Caching::Discover));
        let key = format!(r#""key":"{LINE}","id":7"#);
        let user = r#""user_id":41,"username":"js","name":"John","email":"js@x""#;
        for (event, fields, kind, outdated) in [
            ("key_create", key.as_str(), EventKind::KeyCreate, vec![ssh.clone(), KeyId(7)]),
            ("key_destroy", &key, EventKind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("deploykey_create", &key, EventKind::KeyCreate, vec![ssh.clone(), KeyId(7)]),
            ("deploykey_destroy", &key, EventKind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("ldapkey_destroy", &key, EventKind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("key_destroy", r#""id":7"#, EventKind::KeyDestroy, vec![keys.clone(), KeyId(7)]),
            (
                "key_destroy",
                r#""key":"?","id":"7""#,
                EventKind::KeyDestroy,
                vec![keys.clone(), users.clone()],
            ),
            ("user_create", user, EventKind::UserCreate, vec![UserId(41), name("js")]),
            ("user_destroy", user, EventKind::UserDestroy, vec![UserId(41), name("js"), keys.clone()]),
            ("user_failed_login", user, EventKind::UserFailedLogin, vec![UserId(41), name("js")]),
            (
                "user_rename",
                r#""user_id":58,"username":"new","old_username":"old""#,
                EventKind::UserRename,
                vec![UserId(58), name("new"), name("old")],
            ),
            ("user_rename", r#""name":"x""#, EventKind::UserRename, vec![users.clone()]),
            ("project_create", user, EventKind::Other, vec![]),
            ("user_add_to_team", user, EventKind::Other, vec![]),
            ("deploy_key_destroy", &key, EventKind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("user_create", r#""user_id":41"#, EventKind::UserCreate, vec![users.clone()]),
            ("user_rename", user, EventKind::UserRename, vec![users.clone()]),
            ("KEY_CREATE", &key, EventKind::Other, vec![]),
            ("", user, EventKind::Other, vec![]),
        ] {
            let body = format!(r#"{{"event_name":"{event}",{fields}}}"#);
            assert_eq!(Event::parse(body.as_bytes()), Some(Event { kind, outdated }), "{body}");
        }
    }

    #[test]
    fn a_body_that_is_no_event_differs_from_an_event_of_another_kind() {
        assert_eq!(Event::parse(br#"{"object_kind":"push"}"#).unwrap().kind, EventKind::Other);
        // Of repeated fields the last one counts, as in most readers; other fields may be anything.
        let twice = br#"{"event_name":"push","x":[{"event_name":1}],"event\u005fname":"key_create"}"#;
        assert_eq!(Event::parse(twice).unwrap().kind, EventKind::KeyCreate);
        for none in [
            "",
            "[]",
            r#"["key_create"]"#,
            "{} {}",
            "null",
            "{}",
            r#"{"event_name":7}"#,
            r#"{"event_name":"key_create""#,
        ] {
            assert_eq!(Event::parse(none.as_bytes()), None, "{none}");
        }
    }
}
