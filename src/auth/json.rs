//! Finds one member of a JSON object in one pass, without building a tree: what it costs is the time to read the
//! document, and the memory of that member and of the longest text with escapes.
//!
//! What is no JSON (RFC 8259), in UTF-8 and without lone surrogates, is an error wherever it stands, and so is
//! nesting deeper than Ruby's JSON reads. Ruby is more lenient in all of this but the depth: it takes comments,
//! unknown escapes, lone surrogates and numbers of any size. So whatever is found here, Rails finds too.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// How many arrays and objects may stand in each other, the outermost included (`max_nesting` of Ruby's
/// JSON). It bounds the stack too.
const MAX_NESTING: u8 = 100;

/// What an object holds under a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Member<'a> {
    /// Nothing; or the document is an array, which has no names.
    Absent,
    Null,
    Text(Cow<'a, [u8]>),
    /// A number, a truth value, an array or an object.
    Other,
}

/// The member `name` of the document; the last one of that name counts, as in Ruby.
pub(super) fn member<'a>(json: &'a [u8], name: &str) -> Result<Member<'a>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let member = reader.deserialize_any(Document { name })?;
    reader.end()?;
    Ok(member)
}

/// The outermost value.
struct Document<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let mut found = Member::Absent;
        while let Some(is_named) = map.next_key_seed(IsNamed(self.name))? {
            let value = map.next_value_seed(Value { left: MAX_NESTING - 1, is_wanted: is_named })?;
            if is_named {
                found = value;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Member<'de>, A::Error> {
        Value { left: MAX_NESTING, is_wanted: false }.visit_seq(seq)?;
        Ok(Member::Absent)
    }
}

/// Whether a key is the name, however it is escaped.
struct IsNamed<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for IsNamed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for IsNamed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Any other place of the document. All that stands there is read as if it were wanted, since serde's
/// `IgnoredAny` lets invalid UTF-8, lone surrogates, numbers out of range and any depth pass.
#[derive(Clone, Copy)]
struct Value {
    /// How many more arrays and objects may be opened.
    left: u8,
    /// Whether a text is handed out, or dropped.
    is_wanted: bool,
}

impl Value {
    /// What stands in an array or object here.
    fn inner<E: Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { left, is_wanted: false })
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Member<'de>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Member<'de>, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
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
