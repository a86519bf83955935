//! Passwords, codes, tokens, and the hooks around a push.

use super::*;

#[test]
fn lfs_authenticate_gives_a_password() {
    let (status, body) = post("/lfs_authenticate", "key_id=11&project=gnuwget/wget2");
    assert_eq!((status, &body["username"]), (200, &json!("root")));
    assert_eq!(body["repository_http_path"], "http://gitlab.example.com/gnuwget/wget2.git");
    assert_eq!(body["expires_in"], 1800);
    assert!(body["lfs_token"].is_string());
    let (_, body) = post("/lfs_authenticate", "key_id=18&project=ops/clusters");
    assert_eq!(body["username"], "lfs+deploy-key-18");
    for (form, message) in
        [("key_id=999&project=group/app", "404 Not found"), ("key_id=11&project=group/none", "404 Not Found")]
    {
        assert_eq!(post("/lfs_authenticate", form), (404, json!({ "message": message })));
    }
}

#[test]
fn recovery_codes_are_new_each_time() {
    let sample = SampleGitlab::new(SECRET, KAS_SECRET);
    let asked = request("POST", "/two_factor_recovery_codes", &[H, FORM], "key_id=7");
    let codes: [Vec<String>; 2] = std::array::from_fn(|_| {
        let body: Value = serde_json::from_slice(sample.respond(&asked).body()).unwrap();
        assert_eq!(body["success"], true);
        serde_json::from_value(body["recovery_codes"].clone()).unwrap()
    });
    assert!(codes.iter().flatten().all(|code| code.len() == 16));
    assert_eq!(codes[0].len(), 10);
    assert_ne!(codes[0], codes[1]);
}

#[test]
fn recovery_codes_are_refused_with_200() {
    for (form, message) in [
        ("key_id=999", "Could not find the given key"),
        ("user_id=999", "Could not find the given user"),
        ("key_id=18", "Deploy keys cannot be used to retrieve recovery codes"),
        ("key_id=13", "Two-factor authentication is not enabled for this user"),
    ] {
        let body = json!({ "success": false, "message": message });
        assert_eq!(post("/two_factor_recovery_codes", form), (200, body), "{form}");
    }
    assert_eq!(post("/two_factor_recovery_codes", "").0, 500);
}

#[test]
fn personal_access_token_is_made_as_asked() {
    let form = "user_id=29&name=mytokenname&scopes[]=read_user&scopes%5B%5D=read_repository";
    let (status, body) = post("/personal_access_token", &format!("{form}&expires_at=2030-07-24"));
    assert_eq!((status, &body["success"]), (200, &json!(true)));
    assert_eq!(body["scopes"], json!(["read_user", "read_repository"]));
    assert_eq!(body["expires_at"], "2030-07-24");
    assert_eq!(body["token"].as_str().unwrap().len(), 20);
    let by_json = r#"{"key_id":7,"name":"n","scopes":["api"],"expires_at":null}"#;
    let (_, body) = ask("POST", "/personal_access_token", &[H, JSON], by_json);
    assert_eq!((&body["success"], &body["expires_at"]), (&json!(true), &Value::Null));
}

#[test]
fn personal_access_token_is_refused_with_200() {
    for (form, message) in [
        ("key_id=999&name=n&scopes[]=api", "Could not find the given key"),
        ("user_id=999&name=n&scopes[]=api", "Could not find the given user"),
        ("key_id=18&name=n", "Deploy keys cannot be used to create personal access tokens"),
        ("key_id=7&scopes[]=api", "No token name specified"),
        ("key_id=7&name=n", "No token scopes specified"),
        (
            "key_id=7&name=n&scopes[]=fly",
            "Invalid scope: 'fly'. Valid scopes are: [\"api\", \"read_api\", \
             \"read_repository\", \"read_user\", \"sudo\", \"write_repository\"]",
        ),
        ("key_id=7&name=n&scopes[]=api&expires_at=soon", "Invalid token expiry date: 'soon'"),
    ] {
        let body = json!({ "success": false, "message": message });
        assert_eq!(post("/personal_access_token", form), (200, body), "{form}");
    }
}

#[test]
fn receive_hooks_count_and_hint() {
    let increased = json!({ "reference_counter_increased": true });
    assert_eq!(post("/pre_receive", "gl_repository=project-7"), (200, increased));
    let form = "gl_repository=project-7&identifier=user-7&changes=000 fd9 refs/heads/a/b%0A";
    let (status, body) = post("/post_receive", form);
    assert_eq!((status, &body["reference_counter_decreased"]), (200, &json!(true)));
    assert_eq!(body["messages"][0]["type"], "basic");
    let message = body["messages"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("To create a merge request for a/b, visit:"), "{message}");
    let (_, body) = post("/post_receive", "gl_repository=project-999&changes=0 1 main");
    assert_eq!(body["messages"], json!([]));
}
