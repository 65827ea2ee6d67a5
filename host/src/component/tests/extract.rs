//! What a plugin may ask of the host when it looks into records.

use super::super::bindings::protobuf::{Error, Host as _};
use super::*;

#[test]
fn a_question_without_a_bound_is_refused() {
    let mut state = state();
    let names = |count: usize| -> Vec<String> { (0..count).map(|number| format!("f{number}")).collect() };
    let cases = [
        ("as much as is allowed", vec![vec![0; 1 << 20]; 16], names(200), true),
        ("a path too many", vec![vec![0; 1]], names(201), false),
        ("a path twice", vec![vec![0; 1]], vec!["user_id".to_owned(); 2], false),
        ("too much data", vec![vec![0; 1 << 20]; 17], names(1), false),
        ("too many fields", vec![vec![]; 5_001], names(200), false),
    ];
    for (name, data, paths, is_allowed) in cases {
        let answer = state.extract(data, paths);
        match answer {
            Ok(_) => assert!(is_allowed, "{name}"),
            Err(Error::Exhausted(text)) => {
                assert!(!is_allowed, "{name}");
                assert!(text.contains("paths in"), "{name}: {text}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}

#[test]
fn values_are_bounded_whatever_the_records_hold() {
    let mut state = state();
    // A few bytes each in the record, and a string of its own each in the answer.
    let many = vec!["x"; 300_000];
    let json = serde_json::json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": many}});
    let record = state.from_json(vec![json.to_string()]).remove(0).unwrap();
    let mut ask = |records: usize| state.extract(vec![record.clone(); records], vec!["a".to_owned()]);
    assert_eq!(ask(1).unwrap()[0][0].len(), 300_000);
    assert!(
        matches!(ask(7), Err(Error::Exhausted(_))),
        "2,100,000 values are more than 64 MiB"
    );
}
