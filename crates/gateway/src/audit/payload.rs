//! What was sent and answered, sealed for a key whose other half is not on this machine.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sortie_ids::RequestId;
use sortie_tls::SealingKey;

use crate::config::PayloadConfig;
use crate::served::read_text;

/// What the purpose of every payload begins with (`info` of RFC 9180).
const PURPOSE: &str = "sortie-audit-payload-v1";

/// How payloads are recorded.
pub(crate) struct Payloads {
    key: SealingKey,
    id: String,
    /// Whether answers are recorded, too.
    pub(crate) answers: bool,
    /// How much of each, in bytes.
    pub(crate) most: usize,
}

/// Which part of a call a payload is. It opens as that alone.
pub(super) enum Part {
    /// The arguments of the message with this number.
    Arguments(usize),
    Answer,
}

impl Payloads {
    /// Reads the key. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or holds no public key.
    pub(crate) fn open(config: &PayloadConfig) -> Result<Self, String> {
        let PayloadConfig { key_file, answers, max_bytes } = config;
        let wrong = |path: &Path, why: String| format!("{}: {why}", path.display());
        let text = read_text(key_file).map_err(|error| wrong(key_file, error.to_string()))?;
        let key: SealingKey = text.parse().map_err(|error| wrong(key_file, format!("{error}")))?;
        Ok(Self { id: key.id(), key, answers: *answers, most: *max_bytes })
    }

    /// What a record says of a payload. `bytes`: how long all of it is.
    pub(super) fn seal(&self, request: &RequestId, part: &Part, text: &[u8], bytes: u64) -> Value {
        let kept = text.get(..self.most).unwrap_or(text);
        let info = match part {
            Part::Arguments(message) => format!("{PURPOSE} {request} arguments {message}"),
            Part::Answer => format!("{PURPOSE} {request} answer"),
        };
        let cut = u64::try_from(kept.len()).is_ok_and(|kept| kept < bytes);
        match self.key.seal(info.as_bytes(), b"", kept) {
            Ok(sealed) => json!({
                "kem": "DHKEM(X25519, HKDF-SHA256)",
                "kdf": "HKDF-SHA256",
                "aead": "AES-256-GCM",
                "key": self.id,
                "info": info,
                "enc": STANDARD.encode(sealed.enc),
                "ciphertext": STANDARD.encode(sealed.ciphertext),
                "bytes": bytes,
                "cut": cut,
            }),
            Err(error) => {
                tracing::error!("a payload is not recorded: {error}");
                json!({"key": self.id, "bytes": bytes, "failed": true})
            }
        }
    }
}
