//! Tokens, held against what Pomerium makes and takes, while the secret changes, and what the log says of bad ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;
use serde_json::json;
use tonic::Code;
use tonic::metadata::MetadataValue;

use super::*;

const NOW: Duration = Duration::from_millis(1_700_000_000_500);

fn secret(text: &str) -> SharedSecret {
    SharedSecret::parse(&base64::engine::general_purpose::STANDARD.encode(format!("{text:-<32}"))).unwrap()
}

/// A token of this algorithm, these claims and this secret.
fn signed(algorithm: Algorithm, claims: &Value, secret: &SharedSecret) -> String {
    jsonwebtoken::encode(
        &Header::new(algorithm),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .unwrap()
}

/// A token with this header and these claims whose signature is made with the right secret, whatever the header says.
fn odd(header: &str, claims: &str) -> String {
    let parts = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(secret("right").as_bytes());
    format!(
        "{parts}.{}",
        jsonwebtoken::crypto::sign(parts.as_bytes(), &key, Algorithm::HS256).unwrap()
    )
}

#[test]
fn checks_tokens_as_pomerium_does() {
    let right = secret("right");
    let verifier = Verifier::new(&right);
    let hs256 = |claims: Value| signed(Algorithm::HS256, &claims, &right);
    let good = "";
    let good_token = hs256(json!({"exp": 1_700_003_600}));
    let unsigned = format!("{}.", good_token.rsplit_once('.').unwrap().0);
    let cases: Vec<(&str, String, &str)> = vec![
        ("one hour left", good_token.clone(), good),
        ("a second left", hs256(json!({"exp": 1_700_000_001})), good),
        (
            "a number with a fraction",
            hs256(json!({"exp": 1_700_000_001.25})),
            good,
        ),
        (
            "a number with an exponent",
            odd(r#"{"alg":"HS256"}"#, r#"{"exp":1.8e9}"#),
            good,
        ),
        ("far in the future", odd(r#"{"alg":"HS256"}"#, r#"{"exp":1e300}"#), good),
        (
            "no typ in the header",
            odd(r#"{"alg":"HS256"}"#, r#"{"exp":1800000000}"#),
            good,
        ),
        (
            "expired half a second ago",
            hs256(json!({"exp": 1_700_000_000})),
            "expired 0.5 s ago",
        ),
        (
            "the fraction of a second does not count",
            hs256(json!({"exp": 1_700_000_000.9})),
            "expired 0.5 s ago",
        ),
        (
            "expired an hour ago",
            hs256(json!({"exp": 1_699_996_400})),
            "it says 2023-11-14T21:13:20Z and this server's clock says 2023-11-14T22:13:20Z",
        ),
        ("expired before 1970", hs256(json!({"exp": -5})), "it says -5 and"),
        (
            "expired before all time",
            odd(r#"{"alg":"HS256"}"#, r#"{"exp":-1e300}"#),
            "expired 1000",
        ),
        ("a text", hs256(json!({"exp": "1800000000"})), "no claim exp"),
        ("null", hs256(json!({"exp": null})), "no claim exp"),
        ("no claims", hs256(json!({})), "no claim exp"),
        (
            "one more claim",
            hs256(json!({"exp": 1_800_000_000, "iat": 1})),
            "the claim \"iat\"",
        ),
        ("another claim", hs256(json!({"nbf": 1})), "the claim \"nbf\""),
        (
            "claims that are a list",
            odd(r#"{"alg":"HS256"}"#, r#"[1]"#),
            "not the JSON",
        ),
        (
            "a number beyond numbers",
            odd(r#"{"alg":"HS256"}"#, r#"{"exp":1e999}"#),
            "not the JSON",
        ),
        (
            "HS384",
            signed(Algorithm::HS384, &json!({"exp": 1_800_000_000}), &right),
            "signed with \"HS384\"",
        ),
        (
            "HS512",
            signed(Algorithm::HS512, &json!({"exp": 1_800_000_000}), &right),
            "signed with \"HS512\"",
        ),
        (
            "RS256 with an HMAC",
            odd(r#"{"alg":"RS256"}"#, r#"{"exp":1800000000}"#),
            "signed with \"RS256\"",
        ),
        (
            "none",
            odd(r#"{"alg":"none"}"#, r#"{"exp":1800000000}"#),
            "signed with \"none\"",
        ),
        (
            "a header that must be understood",
            odd(r#"{"alg":"HS256","crit":["b64"],"b64":"x"}"#, r#"{"exp":1800000000}"#),
            "malformed",
        ),
        (
            "no algorithm",
            odd(r#"{"typ":"JWT"}"#, r#"{"exp":1800000000}"#),
            "malformed",
        ),
        (
            "wrong key",
            signed(Algorithm::HS256, &json!({"exp": 1_800_000_000}), &secret("wrong")),
            "wrong key",
        ),
        (
            "wrong key and expired",
            signed(Algorithm::HS256, &json!({"exp": 5}), &secret("wrong")),
            "wrong key",
        ),
        ("no signature", unsigned, "wrong key"),
        ("one more part", format!("{good_token}.x"), "malformed"),
        ("two parts", "e30.e30".to_owned(), "not three parts"),
        ("garbage", "garbage".to_owned(), "not three parts"),
        ("nothing", String::new(), "not three parts"),
        ("dots", "..".to_owned(), "malformed"),
        (
            "padding",
            odd(r#"{"alg":"HS256"} "#, r#"{"exp":1800000000}"#).replacen('.', "=.", 1),
            "malformed",
        ),
    ];
    for (name, token, expected) in cases {
        let outcome = verifier.check(token.as_bytes(), NOW);
        match (expected, outcome) {
            ("", outcome) => assert_eq!(outcome, Ok(()), "{name}"),
            (expected, Ok(())) => unreachable!("{name} was let in instead of {expected}"),
            (expected, Err(error)) => {
                let reason = error.to_string();
                assert!(reason.contains(expected), "{name}: {reason}");
                assert!(
                    token.len() < 8 || !reason.contains(&token),
                    "{name}: the reason has the token"
                );
            }
        }
    }
}

#[test]
fn a_token_is_good_up_to_the_very_second() {
    let right = secret("right");
    let verifier = Verifier::new(&right);
    let token = signed(Algorithm::HS256, &json!({"exp": 1_700_000_000}), &right);
    let at = |now: Duration| verifier.check(token.as_bytes(), now).is_ok();
    assert!(at(Duration::from_secs(1_700_000_000)));
    assert!(!at(Duration::new(1_700_000_000, 1_000_000)));
    assert!(!at(Duration::from_secs(1_700_000_001)));
}

/// What a client is told that sends these values of `jwt`.
fn told(tokens: &[&str]) -> Result<(), (Code, String)> {
    let mut request = Request::new(());
    for token in tokens {
        request
            .metadata_mut()
            .append(METADATA_KEY, MetadataValue::try_from(*token).unwrap());
    }
    let outcome = Guard::new(&secret("right"), Arc::default()).call(request);
    outcome
        .map(|_| ())
        .map_err(|status| (status.code(), status.message().to_owned()))
}

#[test]
fn the_client_is_told_little_and_the_first_token_counts() {
    let good = token(&secret("right")).unwrap();
    let refused = |message: &str| Err((Code::Unauthenticated, message.to_owned()));
    assert_eq!(told(&[]), refused("unauthenticated"));
    assert_eq!(told(&[""]), refused("invalid JWT"));
    assert_eq!(told(&["garbage"]), refused("invalid JWT"));
    assert_eq!(told(&[&token(&secret("wrong")).unwrap()]), refused("invalid JWT"));
    assert_eq!(told(&[&good]), Ok(()));
    assert_eq!(told(&[&good, "garbage"]), Ok(()));
    assert_eq!(told(&["garbage", &good]), refused("invalid JWT"));
}

#[test]
fn the_secret_can_be_replaced_while_calls_run() {
    let (old, new) = (secret("old"), secret("new"));
    let call = |guard: &Guard, made_with: &SharedSecret| {
        let mut request = Request::new(());
        let token = MetadataValue::try_from(token(made_with).unwrap()).unwrap();
        request.metadata_mut().insert(METADATA_KEY, token);
        guard.clone().call(request).is_ok()
    };
    let guard = Guard::new(&old, Arc::default());
    assert_eq!((call(&guard, &old), call(&guard, &new)), (true, false));
    let both = Secrets {
        previous: Some(old.clone()),
        ..Secrets::from(&new)
    };
    let held_by_a_service = guard.clone();
    guard.replace(&both);
    assert_eq!((call(&guard, &old), call(&guard, &new)), (true, true));
    assert!(!call(&guard, &secret("wrong")));
    assert_eq!(guard.previous_uses(), 1);
    guard.replace(&new);
    assert_eq!(
        (call(&held_by_a_service, &old), call(&held_by_a_service, &new)),
        (false, true)
    );
    assert_eq!(guard.previous_uses(), 1);
}

#[test]
fn an_expired_token_by_the_previous_secret_is_said_to_be_expired() {
    let verifiers = Verifiers::from(Secrets {
        previous: Some(secret("old")),
        ..Secrets::from(&secret("new"))
    });
    let token = signed(Algorithm::HS256, &json!({"exp": 5}), &secret("old"));
    let error = verifiers.check(token.as_bytes(), NOW).unwrap_err();
    assert!(matches!(error, TokenError::Expired { .. }), "{error}");
}

#[test]
fn use_of_the_previous_secret_is_logged_once_in_a_while() {
    let guard = Guard::new(&secret("new"), Arc::default());
    let start = Instant::now();
    assert_eq!(guard.turn(start), Some(1));
    for _ in 0..3 {
        assert_eq!(guard.turn(start + PREVIOUS_LOG_INTERVAL / 2), None);
    }
    assert_eq!(guard.turn(start + PREVIOUS_LOG_INTERVAL), Some(4));
    assert_eq!(guard.turn(start + PREVIOUS_LOG_INTERVAL), None);
}

#[test]
fn each_reason_is_logged_once_in_a_while() {
    let log = RefusalLog::default();
    let start = Instant::now();
    assert_eq!(log.turn(&TokenError::WrongKey, start), Some(0));
    assert_eq!(log.turn(&TokenError::WrongKey, start + LOG_INTERVAL / 2), None);
    assert_eq!(log.turn(&TokenError::Missing, start + LOG_INTERVAL / 2), Some(0));
    assert_eq!(log.turn(&TokenError::WrongKey, start + LOG_INTERVAL / 2), None);
    assert_eq!(log.turn(&TokenError::WrongKey, start + LOG_INTERVAL), Some(2));
    assert_eq!(log.turn(&TokenError::WrongKey, start + LOG_INTERVAL), None);
}

proptest! {
    #[test]
    fn no_token_panics_and_none_is_let_in_by_chance(
        token in prop_oneof![
            any::<Vec<u8>>(),
            "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,50}".prop_map(String::into_bytes),
        ],
        seconds in any::<u64>(),
    ) {
        let verifier = Verifier::new(&secret("right"));
        prop_assert!(verifier.check(&token, Duration::from_secs(seconds)).is_err());
    }

    #[test]
    fn no_claims_panic(expiry in any::<f64>(), name in "\\PC{0,100}", seconds in any::<u64>()) {
        let right = secret("right");
        let now = Duration::from_secs(seconds);
        let token = signed(Algorithm::HS256, &json!({"exp": expiry}), &right);
        let _ = Verifier::new(&right).check(token.as_bytes(), now);
        let token = signed(Algorithm::HS256, &json!({name: 1}), &right);
        let _ = Verifier::new(&right).check(token.as_bytes(), now);
    }
}
