//! Signed checkpoints: C2SP tlog-checkpoint in a C2SP signed-note, by Ed25519.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::hash::Hash;

/// The type of an Ed25519 key in a signed note.
const TYPE_ED25519: u8 = 1;
/// Largest note that is read, in bytes.
const MAX_NOTE: usize = 16 * 1024;

/// The root of a log's tree at one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: the name of its key.
    pub origin: String,
    /// How many records.
    pub size: u64,
    /// The root of their tree.
    pub root: Hash,
}

/// A checkpoint that cannot be believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoteError {
    /// It is no signed note, or its text is no checkpoint.
    #[error("not a signed checkpoint: {0}")]
    Malformed(&'static str),
    /// It has no signature of this key.
    #[error("not signed by the key {0}")]
    OtherKey(String),
    /// The signature of this key is wrong.
    #[error("the signature of {0} is wrong")]
    Forged(String),
    /// It is of another log.
    #[error("a checkpoint of {0}, not of this log")]
    OtherLog(String),
    /// A text that is no key.
    #[error("not a verifying key: NAME+HASH+KEY as C2SP signed-note writes it, with an Ed25519 key")]
    NoKey,
    /// Bytes that are no private key.
    #[error("not an Ed25519 private key in PKCS#8")]
    NoPrivateKey,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.as_bytes()))
    }

    /// Reads a signed checkpoint, and checks the signature of this key on it. Signatures of others (witnesses) are let be.
    ///
    /// # Errors
    /// It is malformed, or this key has not signed it.
    pub fn open(note: &str, key: &VerifyingKey) -> Result<Self, NoteError> {
        let (text, signatures) = split(note)?;
        let checkpoint = Self::parse(text)?;
        let mut found = false;
        for line in signatures.lines() {
            let rest = line.strip_prefix("\u{2014} ").ok_or(NoteError::Malformed("a line that is no signature"))?;
            let (name, signature) = rest.split_once(' ').ok_or(NoteError::Malformed("a signature without a name"))?;
            let signature =
                STANDARD.decode(signature).map_err(|_| NoteError::Malformed("a signature is not base64"))?;
            let Some((id, signature)) = signature.split_first_chunk::<4>() else {
                return Err(NoteError::Malformed("a signature without a key id"));
            };
            if name != key.name || *id != key.id() {
                continue;
            }
            let trusted = UnparsedPublicKey::new(&ED25519, &key.key);
            trusted.verify(text.as_bytes(), signature).map_err(|_| NoteError::Forged(key.name.clone()))?;
            found = true;
        }
        match found {
            true if checkpoint.origin == key.name => Ok(checkpoint),
            true => Err(NoteError::OtherLog(checkpoint.origin)),
            false => Err(NoteError::OtherKey(key.to_string())),
        }
    }

    /// The checkpoint in a note, whoever signed it: to say what it claims, never to believe it.
    ///
    /// # Errors
    /// It is malformed.
    pub fn peek(note: &str) -> Result<Self, NoteError> {
        Self::parse(split(note)?.0)
    }

    fn parse(text: &str) -> Result<Self, NoteError> {
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(NoteError::Malformed("fewer than three lines"));
        };
        if !is_name(origin) {
            return Err(NoteError::Malformed("its origin is no name"));
        }
        let number: u64 = size.parse().map_err(|_| NoteError::Malformed("its size is no number"))?;
        if number.to_string() != size {
            return Err(NoteError::Malformed("its size is not written plainly"));
        }
        let bytes = STANDARD.decode(root).map_err(|_| NoteError::Malformed("its root is not base64"))?;
        let root = <[u8; 32]>::try_from(bytes).map_err(|_| NoteError::Malformed("its root is no hash"))?;
        Ok(Self { origin: origin.to_owned(), size: number, root: root.into() })
    }
}

/// The text with its last end of line, and the lines of signatures.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    if note.len() > MAX_NOTE {
        return Err(NoteError::Malformed("larger than 16 KiB"));
    }
    if note.chars().any(|c| c.is_control() && c != '\n') {
        return Err(NoteError::Malformed("it has control characters"));
    }
    let at = note.rfind("\n\n").ok_or(NoteError::Malformed("no blank line before the signatures"))?;
    let (text, signatures) = note.split_at(at + 1);
    let signatures = signatures.strip_prefix('\n').unwrap_or_default();
    match signatures.is_empty() || !signatures.ends_with('\n') {
        true => Err(NoteError::Malformed("no signature")),
        false => Ok((text, signatures)),
    }
}

/// The key that a log is signed with. Cleared from memory when dropped.
pub struct SigningKey {
    name: String,
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    /// A new one. Its name is `PREFIX/` and the first 16 hexadecimal digits of the SHA-256 of the public key.
    pub fn generate(prefix: &str) -> Self {
        let pair = Ed25519KeyPair::generate().expect("the operating system gives random bytes");
        let pkcs8 = pair.to_pkcs8v1().expect("a fresh key can be written");
        Self::from_pkcs8(prefix, pkcs8.as_ref()).expect("a fresh key can be read")
    }

    /// One that was kept.
    ///
    /// # Errors
    /// The bytes are no Ed25519 key.
    pub fn from_pkcs8(prefix: &str, pkcs8: &[u8]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| NoteError::NoPrivateKey)?;
        let short = digest(&SHA256, pair.public_key().as_ref()).as_ref().iter().take(8).fold(
            String::new(),
            |mut text, byte| {
                use std::fmt::Write as _;
                write!(text, "{byte:02x}").expect("a string takes all");
                text
            },
        );
        let name = format!("{prefix}/{short}");
        if !is_name(&name) {
            return Err(NoteError::NoKey);
        }
        Ok(Self { name, pair, pkcs8: Zeroizing::new(pkcs8.to_vec()) })
    }

    /// The private key, to be kept: PKCS#8.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// What its signatures are verified with.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey { name: self.name.clone(), key }
    }

    /// Signs the root of a tree of this size. The result is a whole note, with its last end of line.
    pub fn sign(&self, size: u64, root: Hash) -> String {
        let text = Checkpoint { origin: self.name.clone(), size, root }.text();
        let mut signature = self.verifying_key().id().to_vec();
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n\u{2014} {} {}\n", self.name, STANDARD.encode(signature))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the signatures of a log are verified with. Written as C2SP signed-note does: `NAME+HASH+KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    key: [u8; 32],
}

impl VerifyingKey {
    /// The name of the key, which is that of the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key id in signatures.
    fn id(&self) -> [u8; 4] {
        let mut input = self.name.clone().into_bytes();
        input.extend_from_slice(&[b'\n', TYPE_ED25519]);
        input.extend_from_slice(&self.key);
        let mut id = [0; 4];
        digest(&SHA256, &input).as_ref().iter().zip(&mut id).for_each(|(from, to)| *to = *from);
        id
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![TYPE_ED25519];
        key.extend_from_slice(&self.key);
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(key))
    }
}

impl std::str::FromStr for VerifyingKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim_end_matches('\n').splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::NoKey);
        };
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::NoKey)?;
        let (kind, key) = bytes.split_first().ok_or(NoteError::NoKey)?;
        let key = <[u8; 32]>::try_from(key).map_err(|_| NoteError::NoKey)?;
        let found = Self { name: name.to_owned(), key };
        match *kind == TYPE_ED25519 && is_name(name) && hex::encode(found.id()) == id {
            true => Ok(found),
            false => Err(NoteError::NoKey),
        }
    }
}

/// Whether a text can name a key: not empty, and no blanks or plus signs (C2SP signed-note).
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_believed_and_nothing_else() {
        let key = SigningKey::generate("log");
        let note = key.sign(42, Hash::of_empty());
        let verifying = key.verifying_key();
        let opened = Checkpoint::open(&note, &verifying).expect("opens");
        assert_eq!((opened.size, opened.root), (42, Hash::of_empty()));
        assert_eq!(verifying.to_string().parse(), Ok(verifying.clone()));
        assert_eq!(Checkpoint::peek(&note), Ok(opened));

        let other = SigningKey::generate("log").verifying_key();
        assert!(matches!(Checkpoint::open(&note, &other), Err(NoteError::OtherKey(_))));
        assert!(matches!(Checkpoint::open(&note.replace("42", "43"), &verifying), Err(NoteError::Forged(_))));
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(Checkpoint::open(&text, &verifying).is_err(), "byte {at}");
        }
        let again = SigningKey::from_pkcs8("log", key.pkcs8()).expect("key");
        assert_eq!(again.verifying_key(), verifying);
    }

    #[test]
    fn a_note_of_somebody_else_is_read() {
        // The example of C2SP tlog-checkpoint.
        let note = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
            \u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
        assert_eq!(Checkpoint::peek(note).map(|read| read.size), Ok(20_852_163));
    }
}
