//! What an event says, and what it makes wrong (contract §5).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::cache::purge::Selector;
use crate::route::Caching;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// An SSH key was added: a user's, or one of another kind, such as a deploy key.
    KeyCreate = 0,
    /// One was removed.
    KeyDestroy = 1,
    /// A user was added.
    UserCreate = 2,
    /// One was removed, with all keys.
    UserDestroy = 3,
    /// One has another name.
    UserRename = 4,
    /// A blocked user has tried to log in: the only word of GitLab about blocking.
    UserFailedLogin = 5,
    /// Nothing that concerns us.
    Other = 6,
}

impl Kind {
    /// All of them, in the order of their numbers.
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

    /// Deploy keys, LDAP keys and the like have names of their own, which end alike.
    fn of(name: &str) -> Self {
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

/// An event, as far as it concerns us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) kind: Kind,
    /// What may not be told any more.
    pub(super) wrong: Vec<Selector>,
}

impl Event {
    /// `None` if it is no event at all. One that lacks what it should have drops what it may be about.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let Fields(said) = serde_json::from_slice(body).ok()?;
        // Events of repositories have `object_kind` beside or instead of a name.
        let name = said.get("event_name").or_else(|| said.get("object_kind"))?.as_str()?;
        let kind = Kind::of(name);
        let id = |name: &str| said.get(name).and_then(Value::as_u64);
        let key_or_all = || {
            let key = said.get("key").and_then(Value::as_str).and_then(Selector::ssh_key);
            key.unwrap_or(Selector::Route(Caching::AuthorizedKeys))
        };
        let user = |names: &[&str]| {
            let named = |name: &&str| Some(Selector::Username(said.get(*name)?.as_str()?.to_owned()));
            let all = std::iter::once(id("user_id").map(Selector::UserId)).chain(names.iter().map(named));
            all.collect::<Option<Vec<_>>>().unwrap_or_else(|| vec![Selector::Route(Caching::Discover)])
        };
        let wrong = match kind {
            Kind::KeyCreate | Kind::KeyDestroy => {
                let by_id = id("id").map_or(Selector::Route(Caching::Discover), Selector::KeyId);
                vec![key_or_all(), by_id]
            }
            Kind::UserCreate | Kind::UserFailedLogin => user(&["username"]),
            Kind::UserRename => user(&["username", "old_username"]),
            Kind::UserDestroy => {
                // Which keys were theirs, it does not say.
                let keys = Selector::Route(Caching::AuthorizedKeys);
                user(&["username"]).into_iter().chain([keys]).collect()
            }
            Kind::Other => Vec::new(),
        };
        Some(Self { kind, wrong })
    }
}

/// What is read of an event.
const FIELDS: [&str; 7] = ["event_name", "object_kind", "id", "user_id", "key", "username", "old_username"];

/// Those fields of a JSON object. All others are skipped: as a tree, an event takes a hundred times as much
/// memory as it has bytes.
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
        let mut said = HashMap::new();
        while let Some(name) = object.next_key::<Cow<'de, str>>()? {
            match FIELDS.into_iter().find(|field| *field == name) {
                Some(field) => drop(said.insert(field, object.next_value()?)),
                None => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Fields(said))
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
    fn an_event_makes_wrong_what_it_is_about() {
        let (ssh, keys, users) =
            (Selector::ssh_key(LINE).unwrap(), Route(Caching::AuthorizedKeys), Route(Caching::Discover));
        let key = format!(r#""key":"{LINE}","id":7"#);
        let user = r#""user_id":41,"username":"js","name":"John","email":"js@x""#;
        for (event, fields, kind, wrong) in [
            ("key_create", key.as_str(), Kind::KeyCreate, vec![ssh.clone(), KeyId(7)]),
            ("key_destroy", &key, Kind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("deploykey_create", &key, Kind::KeyCreate, vec![ssh.clone(), KeyId(7)]),
            ("deploykey_destroy", &key, Kind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("ldapkey_destroy", &key, Kind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("key_destroy", r#""id":7"#, Kind::KeyDestroy, vec![keys.clone(), KeyId(7)]),
            ("key_destroy", r#""key":"?","id":"7""#, Kind::KeyDestroy, vec![keys.clone(), users.clone()]),
            ("user_create", user, Kind::UserCreate, vec![UserId(41), name("js")]),
            ("user_destroy", user, Kind::UserDestroy, vec![UserId(41), name("js"), keys.clone()]),
            ("user_failed_login", user, Kind::UserFailedLogin, vec![UserId(41), name("js")]),
            (
                "user_rename",
                r#""user_id":58,"username":"new","old_username":"old""#,
                Kind::UserRename,
                vec![UserId(58), name("new"), name("old")],
            ),
            ("user_rename", r#""name":"x""#, Kind::UserRename, vec![users.clone()]),
            ("project_create", user, Kind::Other, vec![]),
            ("user_add_to_team", user, Kind::Other, vec![]),
            ("deploy_key_destroy", &key, Kind::KeyDestroy, vec![ssh.clone(), KeyId(7)]),
            ("user_create", r#""user_id":41"#, Kind::UserCreate, vec![users.clone()]),
            ("user_rename", user, Kind::UserRename, vec![users.clone()]),
            ("KEY_CREATE", &key, Kind::Other, vec![]),
            ("", user, Kind::Other, vec![]),
        ] {
            let body = format!(r#"{{"event_name":"{event}",{fields}}}"#);
            assert_eq!(Event::read(body.as_bytes()), Some(Event { kind, wrong }), "{body}");
        }
    }

    #[test]
    fn what_is_no_event_is_told_from_one_of_no_concern() {
        assert_eq!(Event::read(br#"{"object_kind":"push"}"#).unwrap().kind, Kind::Other);
        // The last of two counts, as in most readers; what is not asked for may be anything.
        let twice = br#"{"event_name":"push","x":[{"event_name":1}],"event\u005fname":"key_create"}"#;
        assert_eq!(Event::read(twice).unwrap().kind, Kind::KeyCreate);
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
            assert_eq!(Event::read(none.as_bytes()), None, "{none}");
        }
    }
}
