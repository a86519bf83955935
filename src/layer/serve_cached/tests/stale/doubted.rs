//! Entries of which a purge may have been missed.

use super::*;

#[tokio::test]
async fn a_doubted_answer_is_served_only_if_rails_fails() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(20);
    s.cache.doubt_all();
    let answer = s.ask_with(PATH, Ok(json(503, "{}"))).await.unwrap();
    assert_eq!(status_of(&answer), format!("railgate; hit; ttl=-20{SIE}"));
    assert_eq!(text(answer).await, USER);
    assert!(s.ask_memory(PATH).await.ends_with(SIE), "no caller waits for a Rails that fails");
}

#[tokio::test]
async fn a_rails_that_answers_is_asked_what_is_in_doubt() {
    for age in [0, 70, 100] {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(age);
        s.cache.doubt_all();
        let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=miss; stored", "{age}");
        assert_eq!(text(answer).await, RENEWED);
        assert_eq!(s.ask_memory(PATH).await, "railgate; hit; ttl=60");
    }
}

/// Slow as it may be then: other stale answers are served meanwhile.
#[tokio::test]
async fn a_rails_that_has_just_come_back_is_asked_too() {
    let other = "/discover?key_id=8";
    for is_doubted in [false, true] {
        let mut s = fixture();
        for path in [PATH, other] {
            s.warm(path, USER).await;
        }
        s.after(100);
        if is_doubted {
            s.cache.doubt_all();
        }
        s.ask_with(other, refused()).await.unwrap();
        assert!(s.ask_memory(PATH).await.ends_with(SIE));
        s.after(1);
        let asked = s.ask(other);
        s.reply(Ok(json(200, USER))).await;
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE), "this one brought the news");
        let asked = s.ask(PATH);
        settle().await;
        assert_eq!(asked.is_finished(), !is_doubted);
        s.reply(Ok(json(200, RENEWED))).await;
        let expected = if is_doubted { RENEWED } else { USER };
        assert_eq!(text(asked.await.unwrap().unwrap()).await, expected);
    }
}

#[tokio::test]
async fn while_alone_an_old_answer_is_not_refreshed_behind_the_callers_back() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.cache.set_alone(Some(Duration::from_secs(10)));
    s.after(9);
    assert_eq!(s.ask_memory(PATH).await, "railgate; hit; ttl=1");
    s.after(56);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
    s.after(65);
    s.cache.set_alone(None);
    assert!(s.ask_memory(PATH).await.ends_with(SWR), "as configured again");
}
