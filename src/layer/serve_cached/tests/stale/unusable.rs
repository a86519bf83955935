//! What makes an entry unusable at any age: a refusal by Rails, an invalidation, its expiry date.

use super::*;

/// It does not matter whether the request had another form, or was sent by a follower itself.
#[tokio::test]
async fn a_refused_or_unknown_key_is_never_served_again() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    for (path, cached, status, body, drops_entry) in [
        (PATH, USER, 404, r#"{"message":"404 Not found"}"#, true),
        (PATH, USER, 401, r#"{"message":"401 Unauthorized"}"#, true),
        (PATH, USER, 401, r#"{"error":"Unauthorized"}"#, true),
        (PATH, USER, 403, r#"{"message":"403 Forbidden"}"#, true),
        (PATH, USER, 404, "{}", false),
        (PATH, USER, 200, "null", true),
        (PATH, USER, 200, USER, false),
        (PATH, USER, 200, "nul", false),
        (PATH, USER, 302, "{}", false),
        (PATH, USER, 500, "{}", false),
        (PATH, USER, 503, "{}", false),
        (key, row, 404, r#"{"message":"404 Key Not Found"}"#, true),
        (key, row, 401, r#"{"message":"401 Unauthorized - Key"}"#, true),
        (key, row, 404, r#"{"error":"404 Not Found"}"#, false),
        (key, row, 200, row, false),
    ] {
        let mut s = fixture();
        s.warm(path, cached).await;
        let conditional = call(Method::GET, path, &[("if-none-match", "\"x\"")]);
        let asked = tokio::spawn(s.service.clone().oneshot(conditional));
        s.reply(Ok(json(status, body))).await;
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=bypass; detail=request");
        assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (status, body));
        s.after(100);
        let answer = s.ask_with(path, refused()).await;
        assert_eq!(answer.is_err(), drops_entry, "{path} {status} {body}");
    }
}

#[tokio::test]
async fn a_refusal_of_a_bypassing_request_fences_off_older_fills() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (_, reply) = s.taken().await;
    // A request that bypasses the cache.
    let conditional = call(Method::GET, PATH, &[("range", "bytes=0-1")]);
    let other = tokio::spawn(s.service.clone().oneshot(conditional));
    s.reply(Ok(json(404, r#"{"message":"404 Not found"}"#))).await;
    assert_eq!(other.await.unwrap().unwrap().status(), 404);
    reply.send_response(Ok(json(200, USER)));
    assert_eq!(leads.await.unwrap().unwrap().status(), 200, "it asked before the refusal");
    s.reply(Ok(json(404, "{}"))).await;
    assert_eq!(follows.await.unwrap().unwrap().status(), 404);
    assert!(s.ask_with(PATH, refused()).await.is_err(), "nothing is stored");
}

#[tokio::test]
async fn any_other_answer_is_passed_on_and_a_refusal_drops_the_entry() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    let of_user = [(200, "null", true), (200, r#"{"id":7}"#, false)];
    let of_key = [
        (401, r#"{"message":"401 Unauthorized - Key"}"#, true),
        (404, r#"{"message":"404 Key Not Found"}"#, true),
        (200, "null", false),
    ];
    let of_both = [
        (401, r#"{"message":"401 Unauthorized"}"#, true),
        (401, r#"{"error":"Unauthorized"}"#, true),
        (403, r#"{"message":"403 Forbidden"}"#, true),
        (404, r#"{"message":"404 Not found"}"#, true),
        // Of a proxy, or a Rails without the endpoint.
        (404, r#"{"message":"no Route matched with those values"}"#, false),
        (404, r#"{"error":"404 Not Found"}"#, false),
        (404, "{}", false),
        (302, "{}", false),
        (429, "{}", false),
        (400, "{}", false),
        (200, "[]", false),
        (200, r#"{"message":"404 Not Found"}"#, false),
    ];
    for (path, cached, answers) in [(PATH, USER, &of_user[..]), (key, row, &of_key[..])] {
        for (freshness, age) in [("revalidate", 70), ("on error", 100)] {
            for (status, body, drops_entry) in answers.iter().chain(&of_both) {
                let mut s = fixture();
                s.warm(path, cached).await;
                s.after(age);
                let answer = s.ask_with(path, Ok(json(*status, body))).await.unwrap();
                if freshness == "revalidate" {
                    assert!(
                        status_of(&answer).ends_with(SWR),
                        "{status}: the caller has been answered already"
                    );
                } else {
                    assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (*status, *body));
                }
                // Beyond the TTL of a negative entry.
                s.after(30);
                let answer = s.ask_with(path, Ok(json(503, "{}"))).await.unwrap();
                assert_eq!(
                    answer.status().as_u16(),
                    if *drops_entry { 503 } else { 200 },
                    "{path} {freshness}: {status} {body}"
                );
            }
        }
    }
}

/// They may be those of a newer Rails. It does not matter how the answer came here.
#[tokio::test]
async fn a_refusal_in_unknown_words_ends_the_use_of_the_entry_if_rails_fails() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    for (path, cached) in [(PATH, USER), (key, row)] {
        for (status, body) in [
            (403, r#"{"message":"Key is blocked"}"#),
            (403, r#"{"message":"Forbidden"}"#),
            (401, r#"{"message":"Unauthorized"}"#),
            (401, "{}"),
        ] {
            // By a refresh, a fill, or a request of another form.
            for (after, headers) in [(70, &[][..]), (100, &[]), (20, &[("if-none-match", "\"x\"")])] {
                let mut s = fixture();
                s.warm(path, cached).await;
                s.after(after);
                let asked = tokio::spawn(s.service.clone().oneshot(call(Method::GET, path, headers)));
                s.reply(Ok(json(status, body))).await;
                asked.await.unwrap().unwrap();
                s.cache.run_maintenance();
                assert_eq!(s.cache.entry_counts()[0], 1, "{path} {body}: it is kept");
                s.after(90 - after.min(90));
                assert!(s.ask_with(path, refused()).await.is_err(), "{path} {status} {body} {after}");
            }
        }
    }
}

/// A newer answer has all of its time.
#[tokio::test]
async fn a_doubted_entry_is_replaced_by_the_next_answer() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(70);
    s.ask_with(PATH, Ok(json(403, "{}"))).await.unwrap();
    s.ask_with(PATH, Ok(json(200, USER))).await.unwrap();
    s.after(100);
    assert!(status_of(&s.ask_with(PATH, refused()).await.unwrap()).ends_with(SIE));
}

/// A refusal by something in front of Rails may be of any length. Its words are not looked at, whether they were received
/// at once or not.
#[tokio::test]
async fn a_long_refusal_is_passed_on_as_a_whole() {
    let object = format!(r#"{{"message":"Forbidden","why":"{}"}}"#, "x".repeat(10_000));
    let array = format!("[\"{}\"]", "x".repeat(10_000));
    for (long, of_other_form) in [(&object, false), (&object, true), (&array, false), (&array, true)] {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(100);
        let headers: &[_] = if of_other_form { &[("if-none-match", "\"x\"")] } else { &[] };
        let asked = tokio::spawn(s.service.clone().oneshot(call(Method::GET, PATH, headers)));
        s.reply(Ok(json(403, long))).await;
        let answer = asked.await.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), &text(answer).await), (403, long));
        assert!(s.ask_with(PATH, refused()).await.is_err(), "its words are unknown");
    }
}

/// It says nothing of Rails, which may be away all the same.
#[tokio::test]
async fn an_answer_of_something_in_front_of_rails_does_not_end_an_outage() {
    for (status, body, ends_outage) in [
        (200, USER, true),
        (200, "null", true),
        (403, r#"{"message":"403 Forbidden"}"#, true),
        (302, "{}", false),
        (429, "{}", false),
        (403, r#"{"message":"Forbidden"}"#, false),
        (404, "{}", false),
        (200, "[]", false),
    ] {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(100);
        assert!(status_of(&s.ask_with(PATH, refused()).await.unwrap()).ends_with(SIE));
        // Another question, so that it is not answered from memory.
        let other = "/discover?key_id=8";
        let body = body.replace(r#""id":7"#, r#""id":8"#);
        s.ask_with(other, Ok(json(status, &body))).await.unwrap();
        // The failure of a request that was sent before the answer is no news, unless the outage goes on.
        s.after(11);
        let outage = s.cache.outage(Caching::Discover);
        let now = Clock::Manual(s.time.clone()).now();
        assert_eq!(outage.is_active(now), !ends_outage, "{status} {body}");
    }
}

/// Such as a page of a proxy in front of Rails, whatever its status.
#[tokio::test]
async fn an_answer_that_is_not_json_does_not_drop_the_entry() {
    let page = |status: u16| {
        let page = Response::builder().status(status).header("content-type", "text/html");
        page.body(Body::from(Bytes::from_static(b"<html>"))).unwrap()
    };
    for status in [200, 401, 403, 404] {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(100);
        let answer = s.ask_with(PATH, Ok(page(status))).await.unwrap();
        assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (status, "<html>"));
        let answer = s.ask_with(PATH, refused()).await.unwrap();
        assert!(status_of(&answer).ends_with(SIE), "{status}");
    }
}

/// Or each attempt of a blocked user would go to Rails.
#[tokio::test]
async fn a_blocked_owner_is_cached_as_a_negative_entry() {
    let path = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    let blocked = || Ok(json(401, r#"{"message":"401 Unauthorized - Key"}"#));
    let mut s = fixture();
    s.warm(path, row).await;
    s.after(100);
    assert_eq!(s.ask_with(path, blocked()).await.unwrap().status(), 401);
    let answer = s.ask(path).await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), status_of(&answer)), (401, "railgate; hit; ttl=5"));
    s.after(5);
    assert!(s.ask_with(path, refused()).await.is_err(), "the row does not come back");
    // A refusal of the caller's own credential is not cached.
    let unauthorized = || Ok(json(401, r#"{"message":"401 Unauthorized"}"#));
    for _ in 0..2 {
        assert_eq!(s.ask_with(path, unauthorized()).await.unwrap().status(), 401);
    }
}

#[tokio::test]
async fn negative_entries_and_the_instance_are_never_served_stale() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    for (path, status, body, ttl) in [
        ("/check", 200, r#"{"api_version":"v4","redis":true}"#, 1),
        (PATH, 200, "null", 5),
        (key, 404, r#"{"message":"404 Key Not Found"}"#, 5),
    ] {
        let mut s = fixture();
        let answer = s.ask_with(path, Ok(json(status, body))).await.unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=miss; stored", "{path}");
        s.after(ttl);
        assert!(s.ask_with(path, refused()).await.is_err(), "{path}");
    }
}

#[tokio::test]
async fn an_invalidation_wins_over_refreshes_and_stale_entries() {
    for age in [70, 100] {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(age);
        let asked = s.ask(PATH);
        let (_, reply) = s.taken().await;
        s.cache.invalidate(&Key::UserOfKey(7));
        reply.send_response(Ok(json(200, USER)));
        assert!(asked.await.unwrap().is_ok());
        assert!(is_idle(&mut s.rails).await);
        assert!(s.ask_with(PATH, refused()).await.is_err(), "{age}: nothing is left to fall back on");
    }
}

#[tokio::test]
async fn an_entry_purged_during_the_request_is_not_served() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let asked = [s.ask(PATH), s.ask(PATH)];
    let (_, reply) = s.taken().await;
    s.cache.invalidate(&Key::UserOfKey(7));
    reply.send_response(refused());
    for asked in asked {
        assert!(asked.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_later_failure_does_not_bring_back_a_refused_entry() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (_, reply) = s.taken().await;
    settle().await;
    reply.send_response(Ok(json(403, r#"{"message":"403 Forbidden"}"#)));
    assert_eq!(leads.await.unwrap().unwrap().status(), StatusCode::FORBIDDEN);
    s.reply(Ok(json(503, "{}"))).await;
    assert_eq!(follows.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn the_time_that_rails_takes_is_part_of_the_age() {
    let mut s = fixture();
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    s.after(50);
    reply.send_response(Ok(json(200, USER)));
    asked.await.unwrap().unwrap();
    assert_eq!(s.ask_memory(PATH).await, "railgate; hit; ttl=10");
}

/// Whatever its age allows: fresh, stale while revalidating, stale if Rails fails.
#[tokio::test]
async fn an_expired_answer_is_not_served_at_any_age() {
    let expiring = r#"{"id":7,"username":"rubi","name":"R","expires_at":"2023-11-14T23:13:20Z"}"#;
    for after in [0, 70, 100] {
        for stepped in [0, 3_600] {
            let mut s = fixture();
            s.warm(PATH, expiring).await;
            s.after(after);
            s.time.step_wall(stepped);
            let asked = s.ask(PATH);
            settle().await;
            assert_eq!(asked.is_finished(), stepped == 0 && after < 90, "{after} {stepped}");
            if asked.is_finished() {
                assert!(asked.await.unwrap().is_ok_and(|answer| status_of(&answer).contains("; hit; ")));
                continue;
            }
            // Otherwise Rails is asked; if it fails, the entry is served unless it has expired.
            let (_, reply) = s.taken().await;
            reply.send_response(refused());
            let answer = asked.await.unwrap();
            assert_eq!(answer.is_ok(), stepped == 0, "{after} {stepped}");
        }
    }
}

/// It expires between the moment it is stored and the one at which a follower is answered.
#[tokio::test]
async fn an_answer_that_expires_meanwhile_is_not_shared() {
    for (stepped, is_shared) in [(0, true), (3_600, false)] {
        let mut s = fixture();
        let (key, now) = (Key::UserOfKey(7), Clock::Manual(s.time.clone()).now());
        let LeaderOrFollower::Leader(guard) = s.cache.lead_or_follow(&key, now) else {
            unreachable!("nothing is there")
        };
        let waiting = s.ask(PATH);
        settle().await;
        let storable = Storable {
            kind: EntryKind::Positive,
            age_limits: Lifetimes::default().age_limits(Caching::Discover, EntryKind::Positive),
            expires_at: Some(1_700_000_045),
            subject_id: None,
        };
        guard.store(StatusCode::OK, &http::HeaderMap::new(), USER.as_bytes(), storable).unwrap();
        s.time.step_wall(stepped);
        settle().await;
        assert_eq!(waiting.is_finished(), is_shared, "{stepped}");
        if !is_shared {
            let (_, reply) = s.taken().await;
            reply.send_response(Ok(json(404, "{}")));
        }
        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.status() == 200, is_shared, "{}", status_of(&answer));
    }
}
