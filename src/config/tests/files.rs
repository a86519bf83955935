//! Files that are named in a configuration, and are not what they should be.

use super::*;

const KAS: &str = "[auth.kas]\nsecret_file = 'FILE'\n";

/// A configuration in which a key names `FILE`, and what the key is called.
fn users() -> Vec<(String, &'static str)> {
    let tls = |keys: &str| {
        format!("{}[upstream.tls]\nca_file = 'DIR/ca.pem'\n{keys}", LEAST.replace("http:", "https:"))
    };
    vec![
        (LEAST.replace("DIR/gitlab_shell_secret", "FILE"), "auth.shell.secret_file"),
        (format!("{LEAST}{KAS}"), "auth.kas.secret_file"),
        (format!("{LEAST}[admin]\ntoken_file = 'FILE'"), "admin.token_file"),
        (format!("{LEAST}[hooks]\naddress = '127.0.0.1:1'\ntoken_file = 'FILE'"), "hooks.token_file"),
        (
            format!("{LEAST}[hooks]\naddress = '127.0.0.1:1'\nsigning_token_file = 'FILE'"),
            "hooks.signing_token_file",
        ),
        (
            LEAST.replace("[auth.shell]", "credential = 'jwt'\nsecret_file = 'FILE'\n[auth.shell]"),
            "upstream.secret_file",
        ),
        (tls("").replace("DIR/ca.pem", "FILE"), "upstream.tls.ca_file"),
        (tls("certificate_file = 'FILE'\nkey_file = 'DIR/client.key'"), "upstream.tls.certificate_file"),
        (tls("certificate_file = 'DIR/client.pem'\nkey_file = 'FILE'"), "upstream.tls.key_file"),
    ]
}

#[test]
fn whatever_a_key_names_it_is_told_and_reading_ends() {
    let files = Files::new();
    assert!(std::process::Command::new("mkfifo").arg(files.dir.join("pipe")).status().unwrap().success());
    fs::File::create(files.dir.join("huge")).unwrap().set_len(1 << 40).unwrap();
    let mut marked = b"\xef\xbb\xbf".to_vec();
    marked.extend(fs::read(files.dir.join("client.pem")).unwrap());
    fs::write(files.dir.join("marked"), marked).unwrap();
    fs::write(files.dir.join("utf16"), b"\xff\xfes\x003\x00").unwrap();
    for (text, key) in users() {
        for (file, told) in [
            ("/dev/zero", "is a device; name a regular file"),
            ("/dev/null", "is a device; name a regular file"),
            ("DIR/pipe", "is a pipe; name a regular file"),
            ("DIR", "is a directory; name a regular file"),
            ("DIR/huge", "bytes; is it the right file?"),
            ("DIR/marked", "begins with a byte order mark; save it as UTF-8 without one"),
            ("DIR/utf16", "begins with a byte order mark; save it as UTF-8 without one"),
            ("DIR/missing", "os error 2); check the path, and that this user may read it"),
        ] {
            let problems = files.problems(&text.replace("FILE", file));
            let is_told =
                |problem: &String| problem.contains(&format!(": {key}: {file} ")) && problem.contains(told);
            assert!(problems.len() == 1 && problems.iter().all(is_told), "{key} = {file}: {problems:?}");
        }
    }
}

#[test]
fn a_secret_that_is_no_text_is_refused_and_one_of_several_lines_gives_a_warning() {
    let files = Files::new();
    let text = LEAST.replace("gitlab_shell_secret", "odd");
    for odd in ["s3c\0ret\n", "s\x003\0c\0\n\0", "s3cret\x1a"] {
        files.write("odd", odd);
        let problems = files.problems(&text);
        let told =
            "DIR/odd holds a NUL or another control character: is it UTF-16, or no text at all?; copy the";
        assert!(problems.len() == 1 && problems[0].contains(told), "{odd:?}: {problems:?}");
    }
    files.write("odd", "s3cret\nan0ther\n");
    let warnings = files.warnings(&text);
    assert!(warnings.len() == 1 && warnings[0].contains("the file has several lines"), "{warnings:?}");
}

#[test]
fn whatever_config_names_it_is_told_and_reading_ends() {
    let files = Files::new();
    let least = LEAST.replace("DIR", files.dir.to_str().unwrap());
    let at = |name: &str| files.dir.join(name);
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    files.write("large", &"#\n".repeat(1 << 19 | 1));
    fs::write(at("utf16"), b"\xff\xfe[\0").unwrap();
    fs::write(at("latin1"), [least.as_bytes(), b"# caf\xe9\n"].concat()).unwrap();
    for (name, told) in [
        ("/dev/zero", ": is a device; name a regular file; --config wants"),
        ("pipe", ": is a pipe; name a regular file; --config wants"),
        (".", ": is a directory; name a regular file; --config wants"),
        ("large", ": has more than 1048576 bytes; is it the right file?; --config wants"),
        ("utf16", ": is UTF-16; save it as UTF-8"),
        ("latin1", ":5: holds bytes that are not UTF-8; save the file as UTF-8"),
    ] {
        let problems = load(&at(name)).unwrap_err().to_string();
        assert!(problems.contains(told) && problems.lines().count() == 1, "{name}: {problems}");
    }
    // TOML knows the mark of UTF-8, and several links may lead to a file, as in Kubernetes.
    files.write("marked", &format!("\u{feff}{least}"));
    std::os::unix::fs::symlink("marked", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data", at("link")).unwrap();
    assert!(load(&at("link")).is_ok());
}
