mod readings;

use self::readings::{READINGS, Verdict};
use super::*;

#[test]
fn the_credential_is_the_last_of_its_name() {
    let text = |value: &'static str| SecretToken::Text(value.as_bytes().into());
    for (raw, expected) in [
        ("", SecretToken::Absent),
        ("key=a", SecretToken::Absent),
        ("secret_token", SecretToken::Nil),
        ("secret_token=", text("")),
        ("secret_token=s3cret", text("s3cret")),
        ("a=1&secret_token=s%33cret%0A", text("s3cret\n")),
        ("secret_token=bad&secret_token=s3cret", text("s3cret")),
        ("secret_token=s3cret&secret_token=bad", text("bad")),
        ("secret_token=s3cret&secret_token", SecretToken::Nil),
        ("secret_token=a=b", text("a=b")),
        ("scopes[]=read_user&secret_token=x", text("x")),
        ("secret%5ftoken=x", text("x")),
        ("secret_token=x&%73ecret_toke%6E=y", text("y")),
        ("%73%65%63%72%65%74%5F%74%6F%6B%65%6E", SecretToken::Nil),
        ("a=b;c=d&secret_token=x", text("x")),
    ] {
        assert_eq!(Params::parse(raw.as_bytes()).secret_token(), expected, "{raw}");
    }
}

/// Where the releases agree, so does this (but for spaces behind a separator); where they differ, or Rails would get
/// something other than text, the request is refused.
#[test]
fn parameters_that_releases_of_rack_read_differently_are_ambiguous() {
    for (raw, rack_2, rack_3, verdict) in READINGS {
        let params = Params::parse(raw.as_bytes());
        let expected = match verdict {
            Verdict::Credential => SecretToken::Text(b"x"[..].into()),
            Verdict::Nil => SecretToken::Nil,
            Verdict::Absent => SecretToken::Absent,
            Verdict::Refused => SecretToken::Ambiguous,
        };
        assert_eq!(params.secret_token(), expected, "{raw}: {rack_2}, {rack_3}");
        let is_plain =
            ["secret_token=x", "my_secret_token=x", "secret_tokens=x", "SECRET_TOKEN=x"].contains(raw);
        assert_eq!(params.plain().is_some(), is_plain, "{raw}");
    }
}

#[test]
fn the_credential_can_be_removed() {
    for (raw, without) in [
        ("secret_token=x", Some("")),
        ("secret_token", Some("")),
        ("a=1&secret_token=x&b=%20", Some("a=1&b=%20")),
        ("secret_token=x&secret_token=y&a", Some("a")),
        ("a=secret_token&secret_tokens=1", None),
        ("%73ecret%5ftoken=x&a=%20", Some("a=%20")),
        ("a[secret_token]=x&+secret_token=y", None),
        ("secret_token[=x&secret_token][=y", None),
        ("", None),
    ] {
        let found = without_secret_token(raw.as_bytes());
        assert_eq!(found.as_deref(), without.map(str::as_bytes), "{raw}");
    }
}

#[test]
fn a_long_list_is_not_plain_and_kept_in_part_only() {
    let names: Vec<String> = (0..100_000).map(|number| format!("a{number}")).collect();
    let long = names.join("&") + "&secret_token=s3cret";
    let params = Params::parse(long.as_bytes());
    assert!(params.plain().is_none());
    assert_eq!(params.list.len(), MAX_PARAMS);
    assert_eq!(params.secret_token(), SecretToken::Text(b"s3cret"[..].into()));
}

proptest::proptest! {
    #[test]
    fn names_are_classified_as_in_rack_2_and_3(
        name in "([secrt_okn]|secret|_token|secret_token|%5[bBdDfF]|%73|%6[5e]|[+]|[\\[\\]]){0,6}",
    ) {
        let decoded = decode(name.as_bytes()).unwrap();
        let is_bracket = |byte: &u8| matches!(byte, b'[' | b']');
        let begin = decoded.iter().position(|byte| !is_bracket(byte)).unwrap_or(decoded.len());
        let of_rack_2 = decoded[begin..].split(is_bracket).next().unwrap();
        let is_closed = decoded[begin + of_rack_2.len()..].iter().skip_while(|b| **b == b']').ne(b"[");
        let expected = match (&*decoded == SECRET_TOKEN, of_rack_2 == SECRET_TOKEN && is_closed) {
            (true, _) => ParamName::Credential,
            (false, true) => ParamName::Ambiguous,
            (false, false) => ParamName::Other,
        };
        proptest::prop_assert_eq!(ParamName::of(name.as_bytes()), expected);
    }
}

#[test]
fn plain_parameters_are_distinct_words() {
    let params = Params::parse(b"key=a%2Bb&secret_token=x&z");
    let plain: Vec<_> = params.plain().unwrap().map(|p| (p.name().to_vec(), p.value())).collect();
    assert_eq!(plain[0].0, b"key");
    assert_eq!(plain[0].1.as_deref(), Some(&b"a+b"[..]));
    assert_eq!((plain[1].0.as_slice(), plain[1].1.is_none()), (&b"z"[..], true));
    assert_eq!(plain.len(), 2);
    for raw in ["key=a&key=b", "key[]=a", "&", "key=a&&b=1", "k%65y=a", "k+y=a", "=a&=b"] {
        assert!(Params::parse(raw.as_bytes()).plain().is_none(), "{raw}");
    }
}
