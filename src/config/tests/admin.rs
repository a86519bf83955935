//! Reading `[admin]` alone.

use super::*;

impl Files {
    fn admin(&self, text: &str) -> Result<AdminSettings, Vec<String>> {
        parse_admin("test.toml", &self.with_paths(text), [])
            .map_err(|ConfigError(errors)| errors.iter().map(|error| self.shown(error)).collect())
    }
}

#[test]
fn mistakes_in_other_sections_do_not_matter() {
    let files = Files::new();
    for other in [
        "",
        "colour = 'red'\n",
        "[auth.shell]\nsecret_file = 'DIR/missing'\n",
        "[auth.kas]\nsecret_file = 'DIR'\n",
        "[upstream]\nulr = 'http://rails'\n",
        "[upstream]\nurl = 'http://127.0.0.1:9999'\n",
        "[upstream.tls]\nca_file = 'DIR/missing'\n",
        "[[listen]]\naddress = 'localhost:8181'\n",
        "[listen]\nadmin = 1\n",
        "[hooks]\naddress = '127.0.0.1:9999'\n",
        "[cache]\nsnapshot = 'DIR/missing/cache'\n",
        "[log]\nlevel = 'loud'\n",
        "[administrator]\naddress = 'x'\n",
    ] {
        let section = "[admin]\naddress = '127.0.0.1:9999'\nconnections = 7\ntoken_file = 'DIR/admin_token'\nhosts = ['Gateway']";
        let text = format!("{other}{section}");
        assert!(files.parse(&text).is_err(), "{text}");
        let admin = files.admin(&text).unwrap();
        assert_eq!((admin.address, admin.connections), (tcp(9999), 7), "{text}");
        assert!(admin.token.unwrap().matches(b"t0ken") && admin.hosts == ["gateway"], "{text}");
        let default = files.admin(other).unwrap();
        assert_eq!(default.address, tcp(9181), "{text}");
        assert!(default.token.is_none() && default.hosts.is_empty(), "{text}");
    }
}

#[test]
fn mistakes_in_admin_are_reported_as_by_check() {
    let files = Files::new();
    for section in [
        "[admin]\nadress = '127.0.0.1:9999'",
        "[admin]\naddress = 'localhost:9181'",
        "[admin]\naddress = '127.0.0.1:8181'",
        "[admin]\nmode = '0660'",
        "[admin]\nconnections = 0",
        "[admin]\ntoken_file = 'DIR/missing'",
        "[admin]\ntoken_file = 'DIR/hook_signing_token_'\nhosts = ['a:1']",
        "[[admin]]\naddress = '127.0.0.1:9999'",
        "[admin]\naddress = 9181",
        "[admin]\n[admin]",
    ] {
        let text = format!("{BASE}{section}\n");
        let errors = files.errors(&text);
        assert!(!errors.is_empty(), "{text}");
        assert_eq!(files.admin(&text).unwrap_err(), errors, "{text}");
    }
    // A syntax error anywhere may be about what should have been `[admin]`.
    for section in ["[log]\nlevel = 'info\n[admin]\n", "[log\n", "[auth.shell]\n", "log =\n"] {
        let text = format!("{BASE}{section}");
        let (all, errors) = (files.errors(&text), files.admin(&text).unwrap_err());
        assert!(!errors.is_empty() && errors.iter().all(|error| all.contains(error)), "{text}\n{errors:?}");
    }
    let errors = files.admin("[log]\nlevel = 'loud'\n[admin]\nmode = '0660'\n").unwrap_err();
    assert_eq!(errors, ["test.toml:4: admin.mode: only a unix socket has a mode; drop the key"]);
}
