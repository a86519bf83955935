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

/// How releases of Rack read a parameter that resembles the credential, by `Rack::Utils.parse_nested_query`: 2.0,
/// 2.1 and 2.2 (run: 2.2.22), 3.0, 3.1 and 3.2 (seen: 3.2.7). Where they agree, so does this; where they differ, or
/// Rails would get something other than text, the request is refused.
#[test]
fn parameters_that_releases_of_rack_read_differently_are_ambiguous() {
    const SAME: &str = "the same";
    let (absent, credential) = (SecretToken::Absent, SecretToken::Text(b"x"[..].into()));
    for (raw, rack_2, rack_3, expected) in [
        // The name percent-encoded, and names that contain it.
        ("secret%5ftoken=x", "secret_token: x", SAME, &credential),
        ("secret_token%5B%5D=x", "secret_token: [x]", SAME, &SecretToken::Ambiguous),
        ("+secret_token=x", "\" secret_token\": x", SAME, &absent),
        ("%20secret_token=x", "\" secret_token\": x", SAME, &absent),
        ("secret_token+=x", "\"secret_token \": x", SAME, &absent),
        ("secret_token%00=x", "\"secret_token\\0\": x", SAME, &absent),
        ("secret_token%0A=x", "\"secret_token\\n\": x", SAME, &absent),
        ("my_secret_token=x", "my_secret_token: x", SAME, &absent),
        ("secret_tokens=x", "secret_tokens: x", SAME, &absent),
        ("secret_token.a=x", "secret_token.a: x", SAME, &absent),
        ("SECRET_TOKEN=x", "SECRET_TOKEN: x", SAME, &absent),
        ("secret%255ftoken=x", "secret%5ftoken: x", SAME, &absent),
        ("a[secret_token]=x", "a: {secret_token: x}", SAME, &absent),
        ("a%5Bsecret_token%5D=x", "a: {secret_token: x}", SAME, &absent),
        ("a[][secret_token]=x", "a: [{secret_token: x}]", SAME, &absent),
        ("{secret_token}=x", "{secret_token}: x", SAME, &absent),
        ("|secret_token|=x&a=`^", "|secret_token|: x, a: `^", SAME, &absent),
        // Brackets: lists and hashes to all, and those that Rack 2 drops.
        ("secret_token[]=x", "secret_token: [x]", SAME, &SecretToken::Ambiguous),
        ("secret_token[a]=x", "secret_token: {a: x}", SAME, &SecretToken::Ambiguous),
        ("secret_token=x&secret_token[a]=y", "an error", SAME, &SecretToken::Ambiguous),
        ("secret_token[=x", "secret_token[: x", SAME, &SecretToken::Ambiguous),
        ("[secret_token]=x", "secret_token: x", "[secret_token]: x", &SecretToken::Ambiguous),
        ("%5Bsecret_token%5D=x", "secret_token: x", "[secret_token]: x", &SecretToken::Ambiguous),
        ("[secret_token=x", "secret_token: x", "[secret_token: x", &SecretToken::Ambiguous),
        ("secret_token]=x", "secret_token: x", "secret_token]: x", &SecretToken::Ambiguous),
        ("[]secret_token=x", "secret_token: x", "[]secret_token: x", &SecretToken::Ambiguous),
        ("][secret_token]]=x", "secret_token: x", "another name", &SecretToken::Ambiguous),
        // `;` separates to Rack 2, in a query, and not to Rack 3.
        ("a=1;b=2", "a: 1, b: 2", "a: 1;b=2", &absent),
        (";;=;", "nothing", ";;: ;", &absent),
        ("a=1;secret_token=x", "secret_token: x", "a: 1;secret_token=x", &SecretToken::Ambiguous),
        ("a=1;%73ecret_token=x", "secret_token: x", "a: 1;…", &SecretToken::Ambiguous),
        ("a=1; secret_token=x", "secret_token: x", "a: 1; …", &SecretToken::Ambiguous),
        ("a=1;[secret_token]=x", "secret_token: x", "a: 1;…", &SecretToken::Ambiguous),
        ("secret_token=x;b=1", "secret_token: x", "secret_token: x;b=1", &SecretToken::Ambiguous),
        ("secret_token=x;", "secret_token: x", "secret_token: x;", &SecretToken::Ambiguous),
        ("secret_token;a=x", "secret_token: nil", "secret_token;a: x", &SecretToken::Ambiguous),
        ("secret_token=x&a=1;b=2", "secret_token: x", SAME, &credential),
        // Spaces behind a separator are dropped, those at the very beginning are not; no client sends any.
        ("a=1& secret_token=x", "secret_token: x", SAME, &SecretToken::Ambiguous),
        ("a=1& b=2", "a: 1, b: 2", SAME, &SecretToken::Ambiguous),
        (" secret_token=x", "\" secret_token\": x", SAME, &absent),
        // Errors, which refuse the request as a whole.
        ("secret_token=%", "an error", SAME, &SecretToken::Ambiguous),
        ("secret_token=%zz", "an error", SAME, &SecretToken::Ambiguous),
        ("secret_token%=x", "an error", SAME, &SecretToken::Ambiguous),
        ("a=%f", "an error", SAME, &SecretToken::Ambiguous),
    ] {
        let params = Params::parse(raw.as_bytes());
        assert_eq!(params.secret_token(), *expected, "{raw}: {rack_2}, {rack_3}");
        let is_plain = ["my_secret_token=x", "secret_tokens=x", "SECRET_TOKEN=x"].contains(&raw);
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
        let expected = match (&*decoded == SECRET_TOKEN, of_rack_2 == SECRET_TOKEN) {
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
