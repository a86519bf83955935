//! Files that a configuration names and that cannot be used.

use super::*;

const KAS: &str = "[auth.kas]\nsecret_file = 'FILE'\n";

/// Configurations in which a key names `FILE`, and the name of that key.
fn texts_with_file() -> Vec<(String, &'static str)> {
    let tls = |keys: &str| {
        format!("{}[upstream.tls]\nca_file = 'DIR/ca.pem'\n{keys}", BASE.replace("http:", "https:"))
    };
    vec![
        (BASE.replace("DIR/gitlab_shell_secret", "FILE"), "auth.shell.secret_file"),
        (format!("{BASE}{KAS}"), "auth.kas.secret_file"),
        (format!("{BASE}[admin]\ntoken_file = 'FILE'"), "admin.token_file"),
        (format!("{BASE}[hooks]\naddress = '127.0.0.1:1'\ntoken_file = 'FILE'"), "hooks.token_file"),
        (
            format!("{BASE}[hooks]\naddress = '127.0.0.1:1'\nsigning_token_file = 'FILE'"),
            "hooks.signing_token_file",
        ),
        (
            BASE.replace("[auth.shell]", "credential = 'jwt'\nsecret_file = 'FILE'\n[auth.shell]"),
            "upstream.secret_file",
        ),
        (tls("").replace("DIR/ca.pem", "FILE"), "upstream.tls.ca_file"),
        (tls("certificate_file = 'FILE'\nkey_file = 'DIR/client.key'"), "upstream.tls.certificate_file"),
        (tls("certificate_file = 'DIR/client.pem'\nkey_file = 'FILE'"), "upstream.tls.key_file"),
    ]
}

#[test]
fn any_file_that_a_key_names_gives_an_error_and_reading_ends() {
    let files = Files::new();
    assert!(std::process::Command::new("mkfifo").arg(files.dir.join("pipe")).status().unwrap().success());
    fs::File::create(files.dir.join("huge")).unwrap().set_len(1 << 40).unwrap();
    let mut marked = b"\xef\xbb\xbf".to_vec();
    marked.extend(fs::read(files.dir.join("client.pem")).unwrap());
    fs::write(files.dir.join("marked"), marked).unwrap();
    fs::write(files.dir.join("utf16"), b"\xff\xfes\x003\x00").unwrap();
    for (text, key) in texts_with_file() {
        for (file, expected) in [
            ("/dev/zero", "is a device; name a regular file"),
            ("/dev/null", "is a device; name a regular file"),
            ("DIR/pipe", "is a pipe; name a regular file"),
            ("DIR", "is a directory; name a regular file"),
            ("DIR/huge", "bytes; is it the right file?"),
            ("DIR/marked", "begins with a byte order mark; save it as UTF-8 without one"),
            ("DIR/utf16", "begins with a byte order mark; save it as UTF-8 without one"),
            ("DIR/missing", "os error 2); check the path, and that this user may read it"),
        ] {
            let errors = files.errors(&text.replace("FILE", file));
            let is_reported =
                |error: &String| error.contains(&format!(": {key}: {file} ")) && error.contains(expected);
            assert!(errors.len() == 1 && errors.iter().all(is_reported), "{key} = {file}: {errors:?}");
        }
    }
}

#[test]
fn a_binary_secret_is_an_error_and_one_of_several_lines_a_warning() {
    let files = Files::new();
    let text = BASE.replace("gitlab_shell_secret", "odd");
    for odd in ["s3c\0ret\n", "s\x003\0c\0\n\0", "s3cret\x1a"] {
        files.write("odd", odd);
        let errors = files.errors(&text);
        let expected =
            "DIR/odd has a NUL or another control character: is it UTF-16, or not text at all?; copy the";
        assert!(errors.len() == 1 && errors[0].contains(expected), "{odd:?}: {errors:?}");
    }
    files.write("odd", "s3cret\nan0ther\n");
    let warnings = files.warnings(&text);
    assert!(warnings.len() == 1 && warnings[0].contains("the file has several lines"), "{warnings:?}");
}

#[test]
fn any_configuration_file_gives_an_error_and_reading_ends() {
    let files = Files::new();
    let least = BASE.replace("DIR", files.dir.to_str().unwrap());
    let at = |name: &str| files.dir.join(name);
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    files.write("large", &"#\n".repeat(1 << 19 | 1));
    fs::write(at("utf16"), b"\xff\xfe[\0").unwrap();
    fs::write(at("latin1"), [least.as_bytes(), b"# caf\xe9\n"].concat()).unwrap();
    for (name, expected) in [
        ("/dev/zero", ": is a device; name a regular file; --config takes"),
        ("pipe", ": is a pipe; name a regular file; --config takes"),
        (".", ": is a directory; name a regular file; --config takes"),
        ("large", ": has more than 1048576 bytes; is it the right file?; --config takes"),
        ("utf16", ": is UTF-16; save it as UTF-8"),
        ("latin1", ":5: holds bytes that are not UTF-8; save the file as UTF-8"),
    ] {
        let errors = load(&at(name)).unwrap_err().to_string();
        assert!(errors.contains(expected) && errors.lines().count() == 1, "{name}: {errors}");
    }
    // TOML knows the mark of UTF-8, and several links may lead to a file, as in Kubernetes.
    files.write("marked", &format!("\u{feff}{least}"));
    std::os::unix::fs::symlink("marked", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data", at("link")).unwrap();
    assert!(load(&at("link")).is_ok());
}
