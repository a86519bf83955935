use super::*;
use proptest::prelude::*;

const NAME: &str = "secret_token";

fn text(text: &'static str) -> Member<'static> {
    Member::Text(text.as_bytes().into())
}

/// `count` nested arrays.
fn arrays(count: usize) -> String {
    "[".repeat(count) + &"]".repeat(count)
}

/// `count` nested objects.
fn objects(count: usize) -> String {
    r#"{"a":"#.repeat(count) + "1" + &"}".repeat(count)
}

#[test]
fn the_last_member_of_that_name_counts() {
    for (json, expected) in [
        ("{}", Member::Absent),
        ("[]", Member::Absent),
        (r#"[{"secret_token":"s3cret"}]"#, Member::Absent),
        (r#" { "secret_token" : "s3cret" } "#, text("s3cret")),
        (r#"{"secret_token":""}"#, text("")),
        (r#"{"secret_token":null}"#, Member::Null),
        (r#"{"secret_token":"bad","a":1,"secret_token":"s3cret"}"#, text("s3cret")),
        (r#"{"secret_token":"s3cret","secret_token":"bad"}"#, text("bad")),
        (r#"{"secret_token":"s3cret","secret_token":null}"#, Member::Null),
        (r#"{"secret_token":"s3cret","secret_token":[1]}"#, Member::Other),
        (r#"{"secret_token":{"a":[1]},"secret_token":"s3cret"}"#, text("s3cret")),
        // Escaped names are the same names.
        (r#"{"secret\u005ftoken":"s3cret"}"#, text("s3cret")),
        (r#"{"\u0073\u0065cret_token":"s3\u0063ret\n"}"#, text("s3cret\n")),
        (r#"{"secret_token":"s3cret","secret\u005Ftoken":"bad"}"#, text("bad")),
        // Other names.
        (r#"{"secret_token\u0000":"s3cret"}"#, Member::Absent),
        (r#"{"Secret_token":"s3cret","secret_token ":"x","":"y"}"#, Member::Absent),
        (r#"{"a":{"secret_token":"s3cret"}}"#, Member::Absent),
        (r#"{"a":[{"secret_token":"bad"}],"secret_token":"s3cret"}"#, text("s3cret")),
        (r#"{"a":"\"secret_token\":\"bad\"","secret_token":"s3cret"}"#, text("s3cret")),
        (r#"{"secret_token":5}"#, Member::Other),
        (r#"{"secret_token":-5}"#, Member::Other),
        (r#"{"secret_token":0.5}"#, Member::Other),
        (r#"{"secret_token":true}"#, Member::Other),
        (r#"{"secret_token":["s3cret"]}"#, Member::Other),
        (r#"{"secret_token":{"secret_token":"s3cret"}}"#, Member::Other),
    ] {
        assert_eq!(find_member(json.as_bytes(), NAME).unwrap(), expected, "{json}");
    }
}

/// Each of these would hide the credential, or is read differently by Ruby.
#[test]
fn invalid_json_is_an_error_at_any_place() {
    let broken: &[&[u8]] = &[
        b"",
        b" ",
        b"null",
        b"5",
        b"\"secret_token\"",
        b"true",
        b"{",
        b"{]",
        br#"{"secret_token":"s3cret""#,
        br#"{"secret_token":"s3cret"}}"#,
        br#"{"secret_token":"s3cret"}{}"#,
        br#"{"secret_token":"s3cret",}"#,
        br#"{"secret_token":"s3cret" "a":1}"#,
        br#"{secret_token:"s3cret"}"#,
        b"{'secret_token':'s3cret'}",
        br#"{/* */"secret_token":"s3cret"}"#,
        b"\xef\xbb\xbf{\"secret_token\":\"s3cret\"}",
    ];
    for json in broken {
        assert!(find_member(json, NAME).is_err(), "{}", String::from_utf8_lossy(json));
    }
    let values: &[&[u8]] = &[
        b"\"\xff\"",
        b"\"\xc0\xaf\"",
        br#""\ud800""#,
        br#""\udc00\ud800""#,
        br#""\q""#,
        b"\"\n\"",
        b"1e999",
        b"01",
        b"NaN",
        b"-",
        b"nul",
        b"[1,]",
        br#"{"\ud800":1}"#,
        b"{\"\xff\":1}",
        br#"{"a"}"#,
    ];
    for value in values {
        let at = |json: &[&[u8]]| json.concat();
        for json in [
            at(&[br#"{"secret_token":"s3cret","a":"#, value, b"}"]),
            at(&[br#"{"a":"#, value, br#","secret_token":"s3cret"}"#]),
            at(&[br#"{"a":[{"b":"#, value, br#"}],"secret_token":"s3cret"}"#]),
            at(&[br#"{"secret_token":"#, value, b"}"]),
            at(&[br#"{"secret_token":"#, value, br#","secret_token":"s3cret"}"#]),
            at(&[b"[", value, b"]"]),
        ] {
            assert!(find_member(&json, NAME).is_err(), "{}", String::from_utf8_lossy(&json));
        }
    }
}

#[test]
fn nesting_is_limited_as_in_ruby() {
    for nested in [arrays, objects] {
        for (place, outside) in [
            (r#"{"secret_token":"s3cret","a":@}"#, 1),
            (r#"{"a":@,"secret_token":"s3cret"}"#, 1),
            (r#"{"secret_token":@,"secret_token":"s3cret"}"#, 1),
            (r#"{"a":[{"b":@}],"secret_token":"s3cret"}"#, 3),
            ("[@]", 1_usize),
        ] {
            let at = |count: usize| place.replace('@', &nested(count - outside));
            assert!(find_member(at(100).as_bytes(), NAME).is_ok(), "{place}");
            for beyond in [101, 127, 128, 200_000] {
                assert!(find_member(at(beyond).as_bytes(), NAME).is_err(), "{beyond} in {place}");
            }
        }
    }
    assert!(find_member(arrays(100).as_bytes(), NAME).is_ok());
    assert!(find_member(arrays(101).as_bytes(), NAME).is_err());
    // The number of items is not limited.
    let wide = format!(r#"{{"a":[{}0],"secret_token":"s3cret"}}"#, "[],{},".repeat(50_000));
    assert_eq!(find_member(wide.as_bytes(), NAME).unwrap(), text("s3cret"));
}

#[test]
fn a_text_without_escapes_is_borrowed() {
    let json = br#"{"a":"\u0041","secret_token":"s3cret"}"#;
    let found = find_member(json, NAME).unwrap();
    assert!(matches!(found, Member::Text(Cow::Borrowed(b"s3cret"))), "{found:?}");
}

/// The same by building a tree.
fn member_of_tree(json: &[u8]) -> Option<Member<'static>> {
    match serde_json::from_slice::<serde_json::Value>(json).ok()? {
        serde_json::Value::Array(_) => Some(Member::Absent),
        serde_json::Value::Object(object) => Some(match object.get(NAME) {
            None => Member::Absent,
            Some(serde_json::Value::Null) => Member::Null,
            Some(serde_json::Value::String(text)) => Member::Text(text.clone().into_bytes().into()),
            Some(_) => Member::Other,
        }),
        _ => None,
    }
}

/// Documents as text, so that members repeat and escapes differ.
fn document() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        Just("1e400".to_owned()),
        quoted(),
    ];
    scalar.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((key(), inner), 0..6).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("{{ {} }}", members.join(","))
            }),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(r#""secret_token""#.to_owned()),
        1 => Just(r#""secret\u005ftoken""#.to_owned()),
        1 => Just(r#""\u0073ecret_token""#.to_owned()),
        2 => quoted(),
    ]
}

fn quoted() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        any::<u16>().prop_map(|unit| format!("\"\\u{unit:04x}\"")),
    ]
}

proptest! {
    #[test]
    fn members_are_those_of_a_parsed_tree(json in document()) {
        prop_assert_eq!(find_member(json.as_bytes(), NAME).ok(), member_of_tree(json.as_bytes()), "{}", json);
    }

    /// One byte of a document is changed, removed or added.
    #[test]
    fn errors_are_those_of_a_parsed_tree(
        json in document(),
        at in any::<prop::sample::Index>(),
        byte in prop_oneof![any::<u8>(), prop::sample::select(&b"{}[],:\"\\u0"[..])],
        how in 0..3,
    ) {
        let mut json = json.into_bytes();
        let at = at.index(json.len());
        match how {
            0 => json[at] = byte,
            1 => drop(json.remove(at)),
            _ => json.insert(at, byte),
        }
        prop_assert_eq!(
            find_member(&json, NAME).ok(),
            member_of_tree(&json),
            "{}",
            String::from_utf8_lossy(&json)
        );
    }
}
