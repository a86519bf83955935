//! The errors of configurations that cannot be used.

use super::all_mistakes::expected;
use super::*;

#[test]
fn a_diagnostic_has_file_line_key_and_message() {
    let ConfigError(errors) = parse("some.toml", "\n[log]\nlevel = 'loud'\n").unwrap_err();
    let expected = Mistake {
        file: "some.toml".into(),
        line: Some(3),
        key: "log.level".into(),
        message: "expected \"error\", \"warn\", \"info\" or \"debug\", found \"loud\"".into(),
    };
    assert!(errors.iter().any(|error| error.mistake == expected), "{errors:?}");
}

#[test]
fn keys_without_a_default_are_required() {
    const URL: &str = "upstream.url: is required: where Rails listens, such as \"http://127.0.0.1:8080\"";
    const SECRET: &str = "auth.shell.secret_file: is required: the file with the secret that GitLab Shell \
                          and Rails share";
    for (text, required) in [
        ("", &[(1, URL), (1, SECRET)][..]),
        ("\n[auth]\n[upstream]\n", &[(2, SECRET), (3, URL)]),
        ("\n[upstream]\nmax_idle = 1\n[auth.shell]\nmax_body = '1KiB'", &[(2, URL), (4, SECRET)]),
        (
            "[auth.kas]\naudience = 'gitlab'\n",
            &[(1, URL), (1, SECRET), (1, "auth.kas.secret_file: is required")],
        ),
    ] {
        let errors = Files::new().errors(text);
        assert_eq!(errors.len(), required.len(), "{text:?}: {errors:?}");
        for (line, required) in required {
            let begin = format!("test.toml:{line}: {required}");
            assert!(errors.iter().any(|error| error.starts_with(&begin)), "{begin}\n{errors:?}");
        }
    }
}

#[test]
fn certificates_and_keys_are_checked() {
    let files = Files::new();
    files.write("empty.pem", "");
    files.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
    files.write("other.key", &other.signing_key.serialize_pem());
    let section = "[upstream.tls]\nca_file = 'DIR/ca.pem'\n";
    for (text, expected) in [
        ("ca_file = 'DIR/missing.pem'", "upstream.tls.ca_file: DIR/missing.pem cannot be read: "),
        ("ca_file = 'DIR/empty.pem'", "upstream.tls.ca_file: DIR/empty.pem holds no certificate in PEM"),
        (
            "ca_file = 'DIR/broken.pem'",
            "upstream.tls.ca_file: DIR/broken.pem holds a certificate that cannot",
        ),
        ("ca_file = 'DIR/client.key'", "upstream.tls.ca_file: DIR/client.key holds no certificate in PEM"),
        ("certificate_file = 'DIR/client.pem'", "upstream.tls: certificate_file and key_file go together"),
        ("key_file = 'DIR/client.key'", "upstream.tls: certificate_file and key_file go together"),
        (
            "certificate_file = 'DIR/client.pem'\nkey_file = 'DIR/client.pem'",
            "upstream.tls.key_file: DIR/client.pem holds no private key in PEM",
        ),
        (
            "certificate_file = 'DIR/client.pem'\nkey_file = 'DIR/other.key'",
            "upstream.tls: certificate and key cannot be used together: ",
        ),
        ("server_name = 'a b'", "upstream.tls: \"a b\" is not a host name or IP address"),
    ] {
        let section = if text.starts_with("ca_file") { "[upstream.tls]\n" } else { section };
        let text = format!("{}{section}{text}", BASE.replace("http://127", "https://127"));
        let errors = files.errors(&text);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{text}\n{errors:?}");
    }
    let errors = files.errors(&format!("{BASE}{section}"));
    assert!(errors[0].contains("is for a url that begins with https://"), "{errors:?}");
}

#[test]
fn servers_have_to_belong_to_one_gitlab() {
    let server = |keys: &str| format!("[[upstream.server]]\n{keys}\n");
    let one = server("url = 'http://10.0.0.1'");
    for (text, key, expected) in [
        (
            format!("[upstream]\nurl = 'http://10.0.0.2'\n{one}"),
            "upstream.url",
            "is for one server; with [[upstream",
        ),
        ("[upstream]\nserver = []\n".to_owned(), "upstream.url", "is required"),
        (format!("{one}{}", server("backup = true")), "upstream.server.url", "is required in each"),
        (format!("{one}{}", server("url = 'rails'")), "upstream.server.url", "must begin with http"),
        (format!("{one}{one}"), "upstream.server.url", "10.0.0.1:80 is listed twice"),
        (format!("{one}{}", server("url = 'http://10.0.0.1:80/'")), "upstream.server.url", "is listed twice"),
        (
            format!("{one}{}", server("url = 'http://rails/gitlab'")),
            "upstream.server.url",
            "all servers belong to one",
        ),
        (
            server("url = 'http://rails'\nbackup = true"),
            "upstream.server.url",
            "at least one server must not",
        ),
        (server("url = 'http://rails'\nbackup = 'no'"), "upstream.server.backup", "expected true or false"),
        (
            server("url = 'http://rails'\nweight = 2"),
            "upstream.server.weight",
            "unknown key; known here: url, backup",
        ),
        (format!("{one}[upstream.tls]\n"), "upstream.tls", "is for a url that begins with https"),
        (
            format!("{one}[upstream.ejection]\npause = '2s'\nlongest_pause = '1s'"),
            "upstream.ejection.longest_pause",
            "1s is shorter than the first pause, 2s",
        ),
    ] {
        let text = format!("{text}\n[auth.shell]\nsecret_file = 'DIR/gitlab_shell_secret'\n");
        let errors = Files::new().errors(&text);
        let is_reported =
            errors.len() == 1 && errors[0].contains(&format!(" {key}: ")) && errors[0].contains(expected);
        assert!(is_reported, "{text}\n{errors:?}");
    }
    let many: String = (0..65).map(|nth| server(&format!("url = 'http://10.0.0.{nth}'"))).collect();
    let text = format!("{many}[auth.shell]\nsecret_file = 'DIR/gitlab_shell_secret'\n");
    let errors = Files::new().errors(&text);
    assert!(errors.len() == 1 && errors[0].contains("there are 65 servers; the most is 64"), "{errors:?}");
}

#[test]
fn an_upstream_secret_needs_an_upstream_credential() {
    let files = Files::new();
    for (text, expected) in [
        (
            "credential = 'plain'",
            "upstream.credential: expected \"as_presented\", \"jwt\" or \"shared_secret\"",
        ),
        ("secret_file = 'DIR/gitlab_shell_secret'", "upstream.secret_file: needs an upstream.credential"),
        (
            "credential = 'as_presented'\nsecret_file = 'DIR/gitlab_shell_secret'",
            "upstream.secret_file: has no effect while upstream.credential is \"as_presented\"",
        ),
        (
            "credential = 'jwt'\nsecret_file = 'DIR/missing'",
            "upstream.secret_file: DIR/missing cannot be read",
        ),
    ] {
        let errors = files.errors(&BASE.replace("[auth.shell]", &format!("{text}\n[auth.shell]")));
        assert!(errors.len() == 1 && errors[0].contains(expected), "{text}\n{errors:?}");
    }
    for credential in ["jwt", "shared_secret"] {
        let text = format!("credential = '{credential}'\n[auth.shell]");
        assert!(files.load(&BASE.replace("[auth.shell]", &text)).upstream_credential.is_some());
    }
}

#[test]
fn a_snapshot_needs_a_directory() {
    for text in [
        r#"[cache]
snapshot = "DIR/missing/cache"
#^ cache.snapshot: DIR/missing is not a directory; create it, for the gateway's user alone
"#,
        r#"[cache]
snapshot = "DIR"
#^ cache.snapshot: DIR is a directory; name a file
"#,
        r#"[cache]
snapshot = "/var/lib/"
#^ cache.snapshot: expected the absolute path of a file, found "/var/lib/"
"#,
    ] {
        let errors = Files::new().errors(&format!("{BASE}{text}"));
        let expected: Vec<String> = expected(&format!("{BASE}{text}"));
        assert_eq!(errors, expected, "{text}");
    }
}

#[test]
fn invalid_secrets_are_refused() {
    let files = Files::new();
    files.write("empty", "\n");
    files.write("short", &STANDARD.encode([7; 31]));
    for text in [
        r#"[auth.shell]
secret_file = "DIR/empty"
#^ auth.shell.secret_file: DIR/empty is empty; it must hold the secret; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR"
#^ auth.shell.secret_file: DIR is a directory; name a regular file
"#,
        r#"[auth.shell]
secret_file = ""
#^ auth.shell.secret_file: expected the path of a file, found ""
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
accept = []
#^ auth.shell.accept: must name "jwt", "shared_secret" or both: with neither, every request would be refused
[auth.kas]
secret_file = "DIR/empty"
#^ auth.kas.secret_file: DIR/empty is empty; it must hold the secret; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
[auth.kas]
secret_file = "DIR/short"
#^ auth.kas.secret_file: DIR/short has 31 bytes once decoded; a kas secret is exactly 32 bytes in Base64; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
[auth.kas]
secret_file = "DIR/gitlab_shell_secret"
#^ auth.kas.secret_file: DIR/gitlab_shell_secret is not strict Base64 (standard alphabet, padded, one line); copy the file that GitLab uses
"#,
    ] {
        let text = format!("{text}[upstream]\nurl = 'http://127.0.0.1:8080'\n");
        assert_eq!(files.errors(&text), expected(&text), "{text}");
    }
}

#[test]
fn invalid_urls_are_refused() {
    for (url, expected) in [
        ("127.0.0.1:8080", "must begin with http://, https:// or http+unix://"),
        ("http://", "needs a host name or an address, as in http://127.0.0.1:8080"),
        ("http://h:99999", "needs a port from 1 to 65535, or none"),
        (
            "http://[fe80::1%eth0]",
            "has a zone, which only link-local addresses have, as in http://[fe80::1%25",
        ),
        ("http://[fe80::1]:8080", "is a link-local address, which needs a zone"),
        (&format!("http+unix://%2F{}", "a".repeat(107)), "names a socket by more than 107 bytes"),
        ("http://user:pass@rails", "must not hold a user or a password"),
        ("http+unix:///run/gitlab.socket", "needs the socket's absolute path, percent-encoded"),
        ("http://rails/?a=b", "may end in a plain path (the relative URL root), without query"),
    ] {
        let errors = Files::new().errors(&BASE.replace("http://127.0.0.1:8080", url));
        let begin = format!("test.toml:2: upstream.url: {expected}");
        assert!(errors.len() == 1 && errors[0].starts_with(&begin), "{url}: {errors:?}");
        let listed =
            BASE.replace("url = \"http://127.0.0.1:8080\"", &format!("server = [{{url = \"{url}\"}}]"));
        let errors = Files::new().errors(&listed);
        let begin = format!("test.toml:2: upstream.server.url: {expected}");
        assert!(errors.len() == 1 && errors[0].starts_with(&begin), "{url}: {errors:?}");
    }
}

#[test]
fn syntax_errors_are_reported_with_their_line() {
    for (text, line) in [("[log]\nlevel = \n", 2), ("[log\n", 1), ("\n\n[log]\nlevel = 'info\n", 4)] {
        let errors = Files::new().errors(&format!("{text}{BASE}"));
        assert!(
            errors.iter().any(|error| error.starts_with(&format!("test.toml:{line}: "))),
            "{text:?}: {errors:?}"
        );
    }
    let twice = Files::new().errors(&format!("{BASE}secret_file = 'DIR/gitlab_kas_secret'"));
    assert_eq!(
        twice,
        ["test.toml:5: duplicate key: the same name is already used further up; put both together"]
    );
}

#[test]
fn the_rest_of_a_broken_file_is_still_read() {
    let errors = Files::new().errors(&format!("{BASE}[log]\nlevel =\nfromat = 'json'\n"));
    assert!(errors[0].starts_with("test.toml:6: "), "{errors:?}");
    assert_eq!(errors.last().unwrap(), "test.toml:7: log.fromat: unknown key; did you mean \"format\"?");
}

#[test]
fn a_missing_file_is_reported() {
    let errors = load(Path::new("/nowhere/railgate.toml")).unwrap_err().to_string();
    assert!(errors.starts_with("/nowhere/railgate.toml: cannot be read: No such file"), "{errors}");
}

#[test]
fn tracing_needs_a_collector_and_usable_headers() {
    let files = Files::new();
    for (name, text) in [
        ("no_colon", "Authorization Bearer hidden\n"),
        ("no_name", "a: b\n: hidden\n"),
        ("bad_name", "\n\nX Key: hidden\n"),
        ("control", "X-Key: hidd\u{1}en\n"),
        ("own", "Content-Type: hidden\n"),
    ] {
        files.write(name, text);
    }
    let url = "endpoint = 'http://127.0.0.1:4318'\n";
    for (text, expected) in [
        ("", "tracing.endpoint: is required in [tracing]: where the collector takes OTLP over HTTP"),
        (
            "endpoint = '127.0.0.1:4318'",
            "tracing.endpoint: must begin with http://, https:// or http+unix://",
        ),
        ("endpoint = 4318", "tracing.endpoint: expected a URL in quotes, such as \"http://127.0.0.1:4318\""),
        (
            "endpoint = 'http://127.0.0.1:8181'",
            "tracing.endpoint: leads to the gateway's own listener on 127.0.0.1:8181",
        ),
        (
            "URLsample_ratio = 2",
            "tracing.sample_ratio: expected a number from 0 to 1, such as 0.01, found the number 2",
        ),
        (
            "URLsample_ratio = -0.1",
            "tracing.sample_ratio: expected a number from 0 to 1, such as 0.01, found",
        ),
        ("URLsample_ratio = nan", "tracing.sample_ratio: expected a number from 0 to 1, such as 0.01, found"),
        (
            "URLsample_ratio = '1%'",
            "tracing.sample_ratio: expected a number from 0 to 1, such as 0.01, found",
        ),
        ("URLsample_ratio = 0x1", "tracing.sample_ratio: expected a number from 0 to 1, such as 0.01, found"),
        ("URLservice_name = ''", "tracing.service_name: expected a name of 1 to 255 characters"),
        ("URLqueue = 0", "tracing.queue: expected a whole number from 1 to 1000000"),
        ("URLtimeout = '0s'", "tracing.timeout: expected a duration from 1ms to 1h"),
        ("URLprotocol = 'grpc'", "tracing.protocol: unknown key; known here: endpoint, tls, sample_ratio"),
        ("URLheaders_file = 'DIR/missing'", "tracing.headers_file: DIR/missing cannot be read"),
        (
            "URLheaders_file = 'DIR/no_colon'",
            "tracing.headers_file: DIR/no_colon has no header in line 1; write NAME: VALUE",
        ),
        (
            "URLheaders_file = 'DIR/no_name'",
            "tracing.headers_file: DIR/no_name has no header in line 2; write NAME: VALUE",
        ),
        (
            "URLheaders_file = 'DIR/bad_name'",
            "tracing.headers_file: DIR/bad_name has no header in line 3; write NAME: VALUE",
        ),
        (
            "URLheaders_file = 'DIR/control'",
            "tracing.headers_file: DIR/control has no header in line 1; write NAME: VALUE",
        ),
        (
            "URLheaders_file = 'DIR/own'",
            "tracing.headers_file: DIR/own sets content-type in line 1, which the gateway sets itself",
        ),
        ("URL[tracing.tls]", "tracing.tls: is for a url that begins with https://"),
        (
            "endpoint = 'https://c:4318'\n[tracing.tls]\nca_file = 'DIR/client.key'",
            "tracing.tls.ca_file: DIR/client.key holds no certificate",
        ),
        (
            "endpoint = 'https://c:4318'\n[tracing.tls]\nkey_file = 'DIR/client.key'",
            "tracing.tls: certificate_file and key_file go together",
        ),
    ] {
        let text = format!("{BASE}[tracing]\n{}", text.replace("URL", url));
        let errors = files.errors(&text);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{text}\n{errors:?}");
        assert!(!errors[0].contains("hidd"), "{errors:?}");
    }
    for (ratio, expected) in [("0", 0.0), ("1", 1.0), ("1.0", 1.0), ("0.25", 0.25), ("1e-3", 0.001)] {
        let config = files.load(&format!("{BASE}[tracing]\n{url}sample_ratio = {ratio}"));
        let ratio = config.tracing.unwrap().sample_ratio;
        assert!((ratio - expected).abs() < 1e-12, "{ratio}");
    }
}
