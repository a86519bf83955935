use super::*;

#[test]
fn chomp_drops_exactly_one_line_break() {
    for (text, chomped) in [
        ("a\n\n", "a\n"),
        ("\n", ""),
        (" a \n", " a "),
        ("a\r\n", "a"),
        ("a\r", "a"),
        ("a\n\r", "a\n"),
        ("a", "a"),
        ("", ""),
    ] {
        assert_eq!(chomp(text.as_bytes()), chomped.as_bytes(), "{text:?}");
    }
}

#[test]
fn a_shell_secret_matches_itself_with_or_without_one_line_break() {
    let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
    for good in ["s3cret", "s3cret\n", "s3cret\r\n"] {
        assert!(secret.matches(good.as_bytes()), "{good:?}");
    }
    for text in ["czNjcmV0", "", "s3cret", "czNjcmV", "czNjcmV1", "czNjcmV0Cg=="] {
        assert_eq!(secret.matches_base64(text.as_bytes()), text == "czNjcmV0", "{text:?}");
    }
    for bad in ["", "\n", "s3cre", "s3cret2", "S3cret", "s3cret\n\n", " s3cret"] {
        assert!(!secret.matches(bad.as_bytes()), "{bad:?}");
    }
    for text in ["s3cret\n", "s3cret\r"] {
        let secret = ShellSecret::from_text(format!("{text}\r\n").as_bytes()).unwrap();
        assert!(!secret.matches(text.as_bytes()), "{text:?}");
        assert!(!secret.matches_base64(STANDARD.encode(text).as_bytes()), "{text:?}");
    }
}

#[test]
fn blank_secrets_are_refused() {
    for blank in ["", "\n", " \n", "\t", "\r\n"] {
        let refused = ShellSecret::from_text(blank.as_bytes());
        assert!(matches!(refused, Err(SecretError::Empty)), "{blank:?}");
    }
}

#[test]
fn control_characters_are_refused_and_several_lines_are_detected() {
    for bad in ["s3c\0ret", "s\x003\x00\n\0", "\0", "s3cret\x7f", "\x1b[0ms3cret", "s3cret\x1a\r\n"] {
        let refused = ShellSecret::from_text(bad.as_bytes());
        assert!(matches!(refused, Err(SecretError::ControlCharacter)), "{bad:?}");
    }
    for (text, has_several) in
        [("s3cret\n", false), ("s3\tcret", false), ("s3\ncret", true), ("s\r\nt\n", true)]
    {
        assert_eq!(
            ShellSecret::from_text(text.as_bytes()).unwrap().has_several_lines(),
            has_several,
            "{text:?}"
        );
    }
}

#[test]
fn a_kas_secret_is_strict_base64_of_32_bytes() {
    let good = STANDARD.encode([7u8; 32]);
    assert!(KasSecret::from_text(good.as_bytes()).is_ok());
    assert!(KasSecret::from_text(format!("{good}\n").as_bytes()).is_ok());
    let short = STANDARD.encode([7u8; 31]);
    assert!(matches!(KasSecret::from_text(short.as_bytes()), Err(SecretError::WrongLength(31))));
    for bad in [format!("{good}\n\n"), format!(" {good}"), good.replace('=', ""), "?".into()] {
        let refused = KasSecret::from_text(bad.as_bytes());
        assert!(matches!(refused, Err(SecretError::NotBase64)), "{bad:?}");
    }
    assert!(matches!(KasSecret::from_text(b"\n"), Err(SecretError::Empty)));
}

#[test]
fn a_bearer_token_is_one_word_and_matches_its_header() {
    let token = BearerToken::from_text(b" t0ken\n").unwrap();
    for (header, matches) in [
        ("Bearer t0ken", true),
        ("bearer t0ken", true),
        ("Bearer t0ke", false),
        ("Bearer t0ken ", false),
        ("Bearer  t0ken", false),
        ("Basic t0ken", false),
        ("t0ken", false),
        ("Bearer", false),
        ("", false),
    ] {
        assert_eq!(token.matches_authorization(header.as_bytes()), matches, "{header:?}");
    }
    assert!(token.matches_authorization(token.to_authorization().unwrap().as_bytes()));
    assert!(matches!(BearerToken::from_text(b" \n"), Err(SecretError::Empty)));
    assert!(matches!(BearerToken::from_text(b"a b"), Err(SecretError::NotVisibleAscii)));
    assert!(!format!("{token:?}").contains("t0ken"));
}

/// The test vector of Standard Webhooks.
#[test]
fn a_signing_token_verifies_its_signatures() {
    let token = SigningToken::from_text(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let (id, time) = (b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330");
    let signed = |body| -> [&[u8]; 5] { [id, b".", time, b".", body] };
    let (body, right) = (br#"{"test": 2432232314}"#, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    let wrong = right.replace('g', "h");
    let many = |count: usize, last: &str| vec![wrong.as_str(); count].join(" ") + " " + last;
    for good in [right, &format!("{wrong} {right} v1a,AAAA"), &format!("v1,AAAA  {right}"), &many(7, right)] {
        let signatures = Signatures::parse(good).unwrap();
        assert!(token.verifies(&signed(body), &signatures), "{good}");
        assert!(!token.verifies(&signed(&body[1..]), &signatures), "{good}");
    }
    assert!(!token.verifies(&signed(body), &Signatures::parse(&wrong).unwrap()));
    for none in [
        "",
        " ",
        "v1,",
        "v1,g0hM",
        "v1",
        &right.replace("v1", "v2"),
        &right[3..],
        &right.replace('=', ""),
        &right.replace("v1", "w1"),
        &right.replace("OE=", "O=="),
        &format!("{right},"),
        &format!("{right} x"),
        &format!("{right} v1,\u{e9}"),
        &many(8, right),
        &"v1,AAAA ".repeat(10_000),
    ] {
        assert!(Signatures::parse(none).is_none(), "{none}");
    }
    for none in ["MfKQ", "whsec_?", "", "whsec"] {
        let refused = SigningToken::from_text(none.as_bytes());
        assert!(matches!(refused, Err(SecretError::NotASigningToken)), "{none}");
    }
    assert!(matches!(SigningToken::from_text(b"whsec_"), Err(SecretError::Empty)));
    assert_eq!(format!("{token:?}"), "SigningToken([redacted])");
}

#[test]
fn debug_output_has_no_secret() {
    let secret = ShellSecret::from_text(b"s3cret").unwrap();
    assert!(!format!("{secret:?}").contains("s3cret"));
}
