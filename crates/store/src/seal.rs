//! Secrets at rest: AES-256-GCM (NIST SP 800-38D) under a master key in a file of its own, so that a copy of the
//! database alone gives nothing away. Each secret is bound to its place, so that one cannot be moved to another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use crate::StoreError;

/// The format of a sealed value: this byte, the nonce, the cipher text with its tag.
const FORMAT: u8 = 1;
/// Bytes of the master key.
const KEY_LEN: usize = 32;

/// The key that seals every other secret.
pub(crate) struct MasterKey(RandomizedNonceKey);

impl MasterKey {
    /// Reads the key from its file; makes both when `may_create` and there is none. Mode 0600.
    pub(crate) fn load(path: &Path, may_create: bool) -> Result<Self, StoreError> {
        let file_error = |doing| move |source| StoreError::File { doing, path: path.to_owned(), source };
        let bytes = match File::open(path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(file_error("reading"))?.mode();
                if mode & 0o077 != 0 {
                    return Err(StoreError::MasterKeyExposed(path.to_owned()));
                }
                let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LEN + 1));
                let limit = u64::try_from(KEY_LEN).unwrap_or(u64::MAX).saturating_add(1);
                (&mut file).take(limit).read_to_end(&mut bytes).map_err(file_error("reading"))?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_create => {
                let mut bytes = Zeroizing::new(vec![0; KEY_LEN]);
                aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError::Seal)?;
                write_new(path, &bytes).map_err(file_error("writing"))?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::MasterKeyMissing(path.to_owned()));
            }
            Err(error) => return Err(file_error("reading")(error)),
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes);
        key.map(Self).map_err(|_| StoreError::MasterKeyWrong(path.to_owned()))
    }

    /// Seals a secret for the place with this name.
    pub(crate) fn seal(&self, place: &str, secret: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut text = secret.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(place.as_bytes()), &mut text);
        let nonce = nonce.map_err(|_| StoreError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + text.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// Opens what was sealed for the same place; `None` for everything else.
    pub(crate) fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.strip_prefix(&[FORMAT])?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(place.as_bytes()), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

/// Writes a file that is either there in full or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_open_in_their_place_with_their_key_only() {
        let dir = tempfile::tempdir().expect("dir");
        let key = MasterKey::load(&dir.path().join("a.key"), true).expect("key");
        let other = MasterKey::load(&dir.path().join("b.key"), true).expect("key");
        let sealed = key.seal("place", b"secret").expect("sealed");
        assert_ne!(sealed, key.seal("place", b"secret").expect("sealed"), "nonces differ");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.open("place", &sealed).expect("open").as_slice(), b"secret");
        assert!(key.open("another", &sealed).is_none());
        assert!(other.open("place", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open("place", &altered).is_none(), "byte {at}");
            assert!(key.open("place", &sealed[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn the_key_file_is_private_and_lasting() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("store.key");
        assert!(matches!(MasterKey::load(&path, false), Err(StoreError::MasterKeyMissing(_))));
        let sealed = MasterKey::load(&path, true).expect("made").seal("p", b"s").expect("sealed");
        assert_eq!(fs::metadata(&path).expect("file").mode() & 0o777, 0o600);
        assert!(MasterKey::load(&path, true).expect("read again").open("p", &sealed).is_some());

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(MasterKey::load(&path, true), Err(StoreError::MasterKeyExposed(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        for wrong in [&b"short"[..], &[0; 33], b""] {
            fs::write(&path, wrong).expect("write");
            assert!(matches!(MasterKey::load(&path, true), Err(StoreError::MasterKeyWrong(_))));
        }
    }
}
