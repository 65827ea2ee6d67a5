//! The secret that Pomerium's services share: 32 bytes, configured as base64.
//!
//! The rules are Pomerium's, so that a value that works there works here and one that fails there fails here for the same
//! reason. The bytes leave this type for two purposes only, to make a token and to check one; nothing prints them.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

/// How long the secret is, in bytes.
pub const SECRET_LENGTH: usize = 32;

/// Standard alphabet with padding, as lenient towards the unused bits of the last character as Go is.
const DECODER: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The shared secret. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret([u8; SECRET_LENGTH]);

/// The secrets that callers may have. `Debug` shows nothing of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// What callers prove themselves with, and what this process makes tokens with.
    pub current: SharedSecret,
    /// The one from before, which is accepted too while it is being replaced.
    pub previous: Option<SharedSecret>,
    /// Whether the current one was made for this run, since none is configured and nobody but this machine is served.
    pub generated: bool,
}

impl From<&SharedSecret> for Secrets {
    fn from(secret: &SharedSecret) -> Self {
        Self {
            current: secret.clone(),
            previous: None,
            generated: false,
        }
    }
}

impl From<&Secrets> for Secrets {
    fn from(secrets: &Secrets) -> Self {
        secrets.clone()
    }
}

/// Why a text is no shared secret. The messages hold nothing of the text.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    /// There is nothing.
    #[error("empty shared secret")]
    Empty,
    /// It begins or ends with white space.
    #[error("shared secret contains whitespace")]
    Whitespace,
    /// It is not base64 of the standard alphabet.
    #[error("shared secret is not standard base64 with padding{0}")]
    NotBase64(&'static str),
    /// It is base64 of another number of bytes.
    #[error("shared secret: got {0} bytes but want {SECRET_LENGTH}")]
    Length(usize),
}

impl SharedSecret {
    /// Reads the secret as it is configured: base64 of the standard alphabet with padding, with no white space around it.
    /// Line ends within it are passed over.
    ///
    /// # Errors
    ///
    /// See [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        if text.trim() != text {
            return Err(SecretError::Whitespace);
        }
        let joined: String = text
            .chars()
            .filter(|character| !matches!(character, '\r' | '\n'))
            .collect();
        let bytes = DECODER.decode(&joined).map_err(|_| {
            let url_alphabet = joined.contains(['-', '_']);
            SecretError::NotBase64(if url_alphabet {
                " (it has - or _, which the URL alphabet has)"
            } else {
                ""
            })
        })?;
        let length = bytes.len();
        bytes.try_into().map(Self).map_err(|_| SecretError::Length(length))
    }

    /// A new secret from the operating system's random numbers.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The secret as it is configured.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The bytes, to make and check tokens with.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SharedSecret")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Base64 of the bytes 0 to 31.
    const GOOD: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn accepts_and_refuses_what_pomerium_does() {
        let cases: &[(&str, Result<u8, SecretError>)] = &[
            (GOOD, Ok(31)),
            // Line ends inside are passed over, and so are the unused bits of the last character.
            ("AAECAwQFBgcICQoLDA0O\r\nDxAREhMUFRYXGBkaGxwdHh8=", Ok(31)),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=", Ok(31)),
            ("", Err(SecretError::Empty)),
            (
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
                Err(SecretError::Whitespace),
            ),
            (
                " AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                Err(SecretError::Whitespace),
            ),
            ("\t", Err(SecretError::Whitespace)),
            (
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
                Err(SecretError::NotBase64("")),
            ),
            (
                "AAECAwQFBgcICQoL DA0ODxAREhMUFRYXGBkaGxwdHh8=",
                Err(SecretError::NotBase64("")),
            ),
            (
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH_8=",
                Err(SecretError::NotBase64(" (it has - or _, which the URL alphabet has)")),
            ),
            ("not base64!", Err(SecretError::NotBase64(""))),
            ("AAEC", Err(SecretError::Length(3))),
            (
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gIQ==",
                Err(SecretError::Length(34)),
            ),
            ("🔑", Err(SecretError::NotBase64(""))),
        ];
        for (text, expected) in cases {
            let last_byte = SharedSecret::parse(text).map(|secret| *secret.as_bytes().last().unwrap());
            assert_eq!(&last_byte, expected, "{text:?}");
        }
    }

    #[test]
    fn is_not_shown_by_debug() {
        let secret = SharedSecret::parse(GOOD).unwrap();
        let shown = format!("{secret:?} {:?}", Some(&secret));
        assert!(!shown.contains("AAEC") && !shown.contains("31"), "{shown}");
    }

    #[test]
    fn generated_secrets_can_be_configured_and_differ() {
        let (one, other) = (SharedSecret::generate(), SharedSecret::generate());
        assert!(one != other);
        assert!(SharedSecret::parse(&one.to_base64()).unwrap() == one);
    }
}
