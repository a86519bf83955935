//! Keys, users and permissions.

use super::*;

#[test]
fn check_has_the_version_and_health() {
    let (status, body) = get("/check");
    assert_eq!((status, &body["api_version"], &body["redis"]), (200, &json!("v4"), &json!(true)));
    assert!(body["gitlab_version"].is_string() && body["gitlab_rev"].is_string());
}

#[test]
fn authorized_keys_finds_every_key_in_either_spelling() {
    for key in &data::KEYS {
        let unpadded = STANDARD_NO_PAD.encode(STANDARD.decode(key.blob).unwrap());
        for spelling in [key.blob, &unpadded] {
            let (status, body) = get(&authorized_keys(spelling));
            assert_eq!((status, &body["id"]), (200, &json!(key.id)), "{}", key.title);
            let line = format!("{} {} {} (gitlab.example.com)", key.kind, key.blob, key.owner.name);
            assert_eq!(body["key"], line);
            assert_eq!(body["title"], key.title);
            assert_eq!(body["created_at"], key.created_at);
        }
    }
}

fn authorized_keys(key: &str) -> String {
    format!("/authorized_keys?key={}", key.replace('+', "%2B").replace('=', "%3D"))
}

#[test]
fn authorized_keys_finds_no_part_of_a_key() {
    let blob = data::KEYS[1].blob;
    let not_found = (404, json!({ "message": "404 Key Not Found" }));
    for key in [&blob[..blob.len() - 3], "whatever!", "", &format!("ssh-ed25519 {blob}")] {
        assert_eq!(get(&authorized_keys(&key.replace(' ', "%20"))), not_found, "{key}");
    }
    let broken = (500, json!({ "message": "500 Internal Server Error" }));
    assert_eq!(get("/authorized_keys"), broken);
}

#[test]
fn discover_uses_the_first_parameter() {
    let rubi = json!({ "id": 7, "username": "rubi", "name": "Dede Eichmann" });
    let root = json!({ "id": 1, "username": "root", "name": "Administrator" });
    for (query, user) in [
        ("key_id=7", &rubi),
        ("user_id=7", &rubi),
        ("username=Rubi", &rubi),
        ("identifier=user-7", &rubi),
        ("identifier=key-7", &rubi),
        ("key_id=11&username=rubi", &root),
        ("key_id=18", &root),
        ("key_id=&username=root", &Value::Null),
        ("key_id=999", &Value::Null),
        ("username=nobody", &Value::Null),
        ("", &Value::Null),
    ] {
        assert_eq!(get(&format!("/discover?{query}")), (200, user.clone()), "{query}");
    }
    assert_eq!(send(&request("GET", "/discover", &[H], "")).body(), "null");
}

#[test]
fn allowed_gives_members_what_gitaly_needs() {
    let (status, body) =
        post("/allowed", "key_id=7&project=group/app&action=git-upload-pack&protocol=ssh&changes=_any");
    assert_eq!(status, 200);
    for (field, value) in [
        ("status", json!(true)),
        ("gl_repository", json!("project-7")),
        ("gl_project_path", json!("group/app")),
        ("gl_id", json!("user-7")),
        ("gl_username", json!("rubi")),
        ("git_config_options", json!([])),
        ("gl_console_messages", json!([])),
        ("gl_key_type", json!("key")),
        ("gl_key_id", json!(7)),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    assert_eq!(body["gitaly"]["repository"]["gl_repository"], "project-7");
    let by_json = r#"{"user_id":29,"gl_repository":"project-20","action":"git-receive-pack"}"#;
    assert_eq!(ask("POST", "/allowed", &[H, JSON], by_json).0, 200);
}

#[test]
fn allowed_refuses_with_a_reason() {
    let not_found = "The project you were looking for could not be found";
    for (form, status, message) in [
        ("key_id=7&project=group/app&action=git-receive-pack", 200, ""),
        ("key_id=11&project=/ops/clusters.git&action=git-receive-pack", 200, ""),
        ("key_id=18&project=ops/clusters&action=git-upload-archive", 200, ""),
        ("key_id=7&project=group/handbook&action=git-upload-pack", 200, ""),
        ("key_id=7&project=group/none&action=git-upload-pack", 404, not_found),
        ("key_id=7&project=ops/clusters&action=git-upload-pack", 404, not_found),
        ("key_id=18&project=group/handbook&action=git-upload-pack", 404, not_found),
        ("key_id=999&project=ops/clusters&action=git-upload-pack", 404, not_found),
        ("key_id=7&action=git-upload-pack", 404, not_found),
        ("key_id=7&project=gnuwget/wget2&action=git-receive-pack", 401, "You are not allowed to push"),
        ("key_id=18&project=ops/clusters&action=git-receive-pack", 401, "This deploy key does not"),
        ("key_id=23&project=group/app&action=git-upload-pack", 401, "Your account has been blocked."),
        ("key_id=999&project=group/app&action=git-upload-pack", 401, "You are not allowed to download"),
        ("key_id=7&project=group/app&action=git-bisect", 401, "The command you're trying"),
    ] {
        let (answered, body) = post("/allowed", form);
        assert_eq!((answered, &body["status"]), (status, &json!(status == 200)), "{form}");
        assert!(body["message"].as_str().unwrap_or_default().starts_with(message), "{form}");
    }
}
