use super::*;

#[test]
fn a_callers_request_id_is_kept_only_if_rails_would_keep_it() {
    let given = HeaderValue::from_static("01ARZ3NDEKTSV4RRFFQ69G5FAV");
    assert_eq!(request_id(Some(&given)), given);
    for bad in ["", "a b", "{\"x\":1}"] {
        let made = request_id(Some(&HeaderValue::from_str(bad).unwrap()));
        assert!(is_request_id(made.as_bytes()));
        assert_ne!(made, bad);
    }
    assert_ne!(request_id(None), request_id(None));
}
