//! Sections with too few brackets or too many, and values that are nearly right.

use super::*;

#[test]
fn brackets_are_counted_and_what_is_between_them_is_read() {
    let files = Files::new();
    let server = "[upstream]\n[upstream.server]\nurl = 'http://rails'\nbackup = 'no'\n[auth.shell]\nsecret_file = 'DIR/gitlab_shell_secret'";
    for (text, told) in [
        (
            format!("{LEAST}[listen]\naddress = '127.0.0.1:8181'"),
            &["5: listen: has one bracket, [listen]; write two, [[listen]]: there may be several"][..],
        ),
        (
            format!("{LEAST}[listen]\nadress = '127.0.0.1:8181'"),
            &[
                "5: listen: has one bracket",
                "5: listen.address: is required",
                "6: listen.adress: unknown key; did you",
            ],
        ),
        (format!("listen.address = '127.0.0.1:8181'\n{LEAST}"), &["1: listen: has one bracket"]),
        (
            format!("listen = '127.0.0.1:8181'\n{LEAST}"),
            &["1: listen: expected sections with two brackets each"],
        ),
        (
            format!("listen = ['127.0.0.1:8181']\n{LEAST}"),
            &["1: listen: expected sections with two brackets each"],
        ),
        (
            format!("{LEAST}[listen]\naddress = '127.0.0.1:8181'\n[[listen]]\naddress = '127.0.0.1:8182'"),
            &["5: listen: has one bracket", "7: duplicate key: what has this name is there already"],
        ),
        (
            server.to_owned(),
            &["2: upstream.server: has one bracket", "4: upstream.server.backup: expected true"],
        ),
        (
            format!("{LEAST}[[admin]]\naddress = '127.0.0.1:9181'\n[[admin]]\n"),
            &["5: admin: has two brackets, [[admin]]; write one, [admin]: there is one such section"],
        ),
        (
            format!("{LEAST}[[cache.discover]]\nttl = '60'"),
            &["5: cache.discover: has two brackets", "6: cache.discover.ttl: expected a duration"],
        ),
        (
            format!("{LEAST}[[log]]\nlevle = 'info'"),
            &["5: log: has two brackets", "6: log.levle: unknown key"],
        ),
        (format!("{LEAST}[cache]\n[cache.check]\n[cache]\n"), &["7: duplicate key: "]),
        (format!("log = 'json'\n{LEAST}"), &["1: log: expected a section, [log], found the text \"json\""]),
        (
            format!("log = ['json']\n{LEAST}"),
            &["1: log: expected a section, [log], found a value of type array"],
        ),
    ] {
        let problems = files.problems(&text);
        assert_eq!(problems.len(), told.len(), "{text}\n{problems:#?}");
        for (problem, told) in problems.iter().zip(told) {
            assert!(problem.starts_with(&format!("test.toml:{told}")), "{text}\n{problems:#?}");
        }
    }
}

#[test]
fn white_space_in_a_value_is_told_with_the_mend() {
    let files = Files::new();
    for (line, told) in [
        ("[cache.discover]\nttl = '60 s'", "found \"60 s\"; write \"60s\", without white space"),
        ("[cache.discover]\nttl = ' 60s'", "found \" 60s\"; write \"60s\", without white space"),
        ("[cache.discover]\nttl = '6 0 s '", "found \"6 0 s \"; write \"60s\", without white space"),
        ("[cache]\nmax_body = '64 KiB'", "found \"64 KiB\"; write \"64KiB\", without white space"),
        ("[log]\nlevel = 'info '", "found \"info \"; write \"info\", without white space"),
        ("[admin]\naddress = '127.0.0.1: 9181'", "write \"127.0.0.1:9181\", without white space"),
    ] {
        let problems = files.problems(&format!("{LEAST}{line}"));
        assert!(problems.len() == 1 && problems[0].ends_with(told), "{line}\n{problems:?}");
    }
    let hopeless = files.problems(&format!("{LEAST}[cache.discover]\nttl = '60 sec'"));
    assert!(hopeless.len() == 1 && hopeless[0].ends_with("found \"60 sec\""), "{hopeless:?}");
}
