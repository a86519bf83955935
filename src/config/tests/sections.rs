//! Sections with the wrong number of brackets, and values that are nearly valid.

use super::*;

#[test]
fn a_wrong_number_of_brackets_is_reported_and_the_section_is_read() {
    let files = Files::new();
    let server = "[upstream]\n[upstream.server]\nurl = 'http://rails'\nbackup = 'no'\n[auth.shell]\nsecret_file = 'DIR/gitlab_shell_secret'";
    for (text, expected) in [
        (
            format!("{BASE}[listen]\naddress = '127.0.0.1:8181'"),
            &["5: listen: has one bracket, [listen]; write two, [[listen]]: there may be several"][..],
        ),
        (
            format!("{BASE}[listen]\nadress = '127.0.0.1:8181'"),
            &[
                "5: listen: has one bracket",
                "5: listen.address: is required",
                "6: listen.adress: unknown key; did you",
            ],
        ),
        (format!("listen.address = '127.0.0.1:8181'\n{BASE}"), &["1: listen: has one bracket"]),
        (
            format!("listen = '127.0.0.1:8181'\n{BASE}"),
            &["1: listen: expected sections with two brackets each"],
        ),
        (
            format!("listen = ['127.0.0.1:8181']\n{BASE}"),
            &["1: listen: expected sections with two brackets each"],
        ),
        (
            format!("{BASE}[listen]\naddress = '127.0.0.1:8181'\n[[listen]]\naddress = '127.0.0.1:8182'"),
            &["5: listen: has one bracket", "7: duplicate key: the same name is already used"],
        ),
        (
            server.to_owned(),
            &["2: upstream.server: has one bracket", "4: upstream.server.backup: expected true"],
        ),
        (
            format!("{BASE}[[admin]]\naddress = '127.0.0.1:9181'\n[[admin]]\n"),
            &["5: admin: has two brackets, [[admin]]; write one, [admin]: there is only one such section"],
        ),
        (
            format!("{BASE}[[cache.discover]]\nttl = '60'"),
            &["5: cache.discover: has two brackets", "6: cache.discover.ttl: expected a duration"],
        ),
        (
            format!("{BASE}[[log]]\nlevle = 'info'"),
            &["5: log: has two brackets", "6: log.levle: unknown key"],
        ),
        (format!("{BASE}[cache]\n[cache.check]\n[cache]\n"), &["7: duplicate key: "]),
        (format!("log = 'json'\n{BASE}"), &["1: log: expected a section, [log], found the string \"json\""]),
        (
            format!("log = ['json']\n{BASE}"),
            &["1: log: expected a section, [log], found a value of type array"],
        ),
    ] {
        let errors = files.errors(&text);
        assert_eq!(errors.len(), expected.len(), "{text}\n{errors:#?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(&format!("test.toml:{expected}")), "{text}\n{errors:#?}");
        }
    }
}

#[test]
fn white_space_in_a_value_is_reported_with_the_valid_spelling() {
    let files = Files::new();
    for (line, expected) in [
        ("[cache.discover]\nttl = '60 s'", "found \"60 s\"; write \"60s\", without white space"),
        ("[cache.discover]\nttl = ' 60s'", "found \" 60s\"; write \"60s\", without white space"),
        ("[cache.discover]\nttl = '6 0 s '", "found \"6 0 s \"; write \"60s\", without white space"),
        ("[cache]\nmax_body = '64 KiB'", "found \"64 KiB\"; write \"64KiB\", without white space"),
        ("[log]\nlevel = 'info '", "found \"info \"; write \"info\", without white space"),
        ("[admin]\naddress = '127.0.0.1: 9181'", "write \"127.0.0.1:9181\", without white space"),
    ] {
        let errors = files.errors(&format!("{BASE}{line}"));
        assert!(errors.len() == 1 && errors[0].ends_with(expected), "{line}\n{errors:?}");
    }
    let hopeless = files.errors(&format!("{BASE}[cache.discover]\nttl = '60 sec'"));
    assert!(hopeless.len() == 1 && hopeless[0].ends_with("found \"60 sec\""), "{hopeless:?}");
}
