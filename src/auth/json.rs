//! Finds one member of a JSON object in one pass, without building a tree: its memory is that of the member and
//! of the longest text with escapes.
//!
//! Invalid JSON (RFC 8259), invalid UTF-8 and lone surrogates are an error wherever they are, and so is nesting
//! deeper than Ruby's JSON reads. Ruby is more lenient in all of this but the depth: it accepts comments,
//! unknown escapes, lone surrogates and numbers of any size. So what is found here, Rails finds too.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Levels of arrays and objects, the outermost included (`max_nesting` of Ruby's JSON). It bounds the stack too.
const MAX_NESTING: u8 = 100;

/// Bytes of the shortest document that is nested too deeply: each level has two brackets.
pub(super) const MIN_TOO_DEEP: usize = 2 * (MAX_NESTING as usize + 1);

/// The value of a member.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Member<'a> {
    /// There is none; an array has no members.
    Absent,
    Null,
    Text(Cow<'a, [u8]>),
    /// A number, a truth value, an array or an object.
    Other,
}

/// The member `name` of the document; the last one of that name counts, as in Ruby.
pub(super) fn find_member<'a>(json: &'a [u8], name: &str) -> Result<Member<'a>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let member = reader.deserialize_any(RootVisitor { name })?;
    reader.end()?;
    Ok(member)
}

/// Whether a document that is valid otherwise is nested deeper than Ruby reads. All of its text counts, also a
/// member that a later one of the same name replaces.
pub(super) fn is_too_deep(json: &[u8]) -> bool {
    json.len() >= MIN_TOO_DEEP && find_member(json, "").is_err()
}

/// Visits the outermost value.
struct RootVisitor<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for RootVisitor<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let mut found = Member::Absent;
        while let Some(is_named) = map.next_key_seed(KeyMatcher(self.name))? {
            let value =
                map.next_value_seed(ValueVisitor { levels_left: MAX_NESTING - 1, is_wanted: is_named })?;
            if is_named {
                found = value;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Member<'de>, A::Error> {
        ValueVisitor { levels_left: MAX_NESTING, is_wanted: false }.visit_seq(seq)?;
        Ok(Member::Absent)
    }
}

/// Whether a key is the name, however it is escaped.
struct KeyMatcher<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for KeyMatcher<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyMatcher<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Visits any other value. Unwanted values are parsed in full too, since serde's `IgnoredAny` accepts invalid
/// UTF-8, lone surrogates, numbers out of range and any depth.
#[derive(Clone, Copy)]
struct ValueVisitor {
    /// Levels of arrays and objects that may still be opened.
    levels_left: u8,
    /// Whether a text is returned, or dropped.
    is_wanted: bool,
}

impl ValueVisitor {
    /// For the items of an array or object.
    fn inner<E: Error>(self) -> Result<Self, E> {
        let levels_left = self.levels_left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { levels_left, is_wanted: false })
    }
}

impl<'de> DeserializeSeed<'de> for ValueVisitor {
    type Value = Member<'de>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Member<'de>, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Member<'de>, E> {
        Ok(Member::Null)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Member<'de>, E> {
        Ok(Member::Text(text.as_bytes().into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Member<'de>, E> {
        Ok(if self.is_wanted { Member::Text(text.as_bytes().to_vec().into()) } else { Member::Other })
    }

    fn visit_bool<E>(self, _: bool) -> Result<Member<'de>, E> {
        Ok(Member::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Member<'de>, E> {
        Ok(Member::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Member<'de>, E> {
        Ok(Member::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Member<'de>, E> {
        Ok(Member::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Member<'de>, A::Error> {
        let inner = self.inner()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(Member::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let inner = self.inner()?;
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(Member::Other)
    }
}

#[cfg(test)]
mod tests;
