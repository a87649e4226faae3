//! A witness: it keeps the newest checkpoint that it has seen of a log, and signs only what continues it (C2SP
//! tlog-witness, tlog-cosignature).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, StatusCode};
use sortie_audit::{Checkpoint, Continuity, Log};
use sortie_runtime::TaskSet;
use url::Url;

use super::url::unpublished;
use super::{Place, STEP, Unpublished};
use crate::client::{Answer, Client};
use crate::spec::Tls;

/// The type of an Ed25519 cosignature (C2SP tlog-cosignature).
const TYPE_COSIGNATURE: u8 = 4;
/// Cosigned checkpoints that are kept, the newest.
const KEPT: usize = 256;
/// How far ahead of ours the clock of a witness may be, in seconds.
const AHEAD: u64 = 300;

/// What the cosignatures of a witness are verified with: `NAME+HASH+KEY` (C2SP signed-note), with an Ed25519 key of type 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    id: [u8; 4],
    key: [u8; 32],
}

/// A cosignature that cannot be believed, or a text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CosignatureError {
    /// A text that is no key.
    #[error("not the key of a witness: write NAME+HASH+KEY as it publishes it, an Ed25519 key of type 4")]
    NoKey,
    /// There is no cosignature of this key.
    #[error("it has no cosignature of {0}")]
    Absent(String),
    /// The cosignature is wrong.
    #[error("the cosignature of {0} is wrong")]
    Forged(String),
}

impl FromStr for WitnessKey {
    type Err = CosignatureError;

    fn from_str(text: &str) -> Result<Self, CosignatureError> {
        let wrong = || CosignatureError::NoKey;
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let bytes = STANDARD.decode(key).map_err(|_| wrong())?;
        let Some((&TYPE_COSIGNATURE, key)) = bytes.split_first() else { return Err(wrong()) };
        let key = <[u8; 32]>::try_from(key).map_err(|_| wrong())?;
        let mut id = [0; 4];
        let hashed = digest(&SHA256, &[name.as_bytes(), &[b'\n', TYPE_COSIGNATURE], &key].concat());
        id.iter_mut().zip(hashed.as_ref()).for_each(|(to, from)| *to = *from);
        let written: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control());
        match plain && written == hash {
            true => Ok(Self { name: name.to_owned(), id, key }),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+", self.name)?;
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        let key = [&[TYPE_COSIGNATURE], self.key.as_slice()].concat();
        write!(f, "+{}", STANDARD.encode(key))
    }
}

impl WitnessKey {
    /// The name of the witness.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Finds the cosignature of this key among signature lines, checks that it is of this text, and returns its line and
    /// its time, in seconds since 1970.
    ///
    /// # Errors
    /// There is none, or a wrong one.
    pub fn find<'a>(&self, text: &str, lines: &'a str) -> Result<(&'a str, u64), CosignatureError> {
        for line in lines.lines() {
            let Some((name, encoded)) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let Ok(bytes) = STANDARD.decode(encoded) else { continue };
            let Some((id, rest)) = bytes.split_first_chunk::<4>() else { continue };
            if name != self.name || *id != self.id {
                continue;
            }
            let forged = || CosignatureError::Forged(self.name.clone());
            let (time, signature) = rest.split_first_chunk::<8>().ok_or_else(forged)?;
            let time = u64::from_be_bytes(*time);
            let message = format!("cosignature/v1\ntime {time}\n{text}");
            let key = UnparsedPublicKey::new(&ED25519, &self.key);
            key.verify(message.as_bytes(), signature).map_err(|_| forged())?;
            return Ok((line, time));
        }
        Err(CosignatureError::Absent(self.name.clone()))
    }
}

pub(super) struct Witness {
    client: Client,
    url: Url,
    key: WitnessKey,
    /// How many records the witness has seen, as far as is known.
    seen: u64,
    continuity: Arc<Mutex<Continuity>>,
    kept: PathBuf,
}

impl Witness {
    pub(super) fn new(url: Url, key: WitnessKey, tls: &Tls, log: &Log, tasks: &TaskSet) -> Result<Self, String> {
        let client = Client::new(&url, tls, None, STEP, &BTreeMap::new(), tasks)?;
        let text = format!("{}/add-checkpoint", url.as_str().trim_end_matches('/'));
        let url = Url::parse(&text).map_err(|error| error.to_string())?;
        let continuity = Arc::new(Mutex::new(Continuity::new(&log.dir())));
        Ok(Self { client, url, key, seen: 0, continuity, kept: log.dir().join("witnessed") })
    }

    /// Asks for a cosignature, as if the witness had seen so many records.
    async fn ask(&self, note: &str, size: u64) -> Result<Answer, Unpublished> {
        let (continuity, from) = (self.continuity.clone(), self.seen);
        let proof = tokio::task::spawn_blocking(move || {
            // Nothing is to be proven of nothing, nor of the same.
            if from == 0 || from == size {
                return Ok(Some(Vec::new()));
            }
            continuity.lock().unwrap_or_else(PoisonError::into_inner).prove(from, size)
        });
        let proof = proof.await.map_err(|_| Unpublished::later("reading the log was interrupted"))?;
        let proof = proof.map_err(|error| Unpublished::later(format!("the log cannot be read: {error}")))?;
        let gone = || {
            Unpublished::contradicted(format!(
                "the witness has seen {from} records, and those behind them were moved away: it cannot be shown more"
            ))
        };
        let hashes = proof.ok_or_else(gone)?;
        let mut body = format!("old {from}\n");
        for hash in hashes {
            body.push_str(&STANDARD.encode(hash.as_bytes()));
            body.push('\n');
        }
        body.push('\n');
        body.push_str(note);
        let (url, kind) = (self.url.clone(), "text/plain; charset=utf-8");
        self.client.ask(Method::POST, url, kind, HeaderMap::new(), body.into_bytes()).await.map_err(unpublished)
    }

    /// Checks and keeps a cosignature.
    async fn keep(&self, note: &str, size: u64, answer: &Answer) -> Result<(), Unpublished> {
        let lines = String::from_utf8_lossy(&answer.body).into_owned();
        let text = Checkpoint::peek(note).map_err(|error| Unpublished::later(error.to_string()))?.text();
        let found = self.key.find(&text, &lines).map_err(|error| Unpublished::later(error.to_string()))?;
        let (line, time) = found;
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        if time > now.saturating_add(AHEAD) {
            return Err(Unpublished::later("its cosignature is of a time to come: one of the clocks is wrong"));
        }
        let (dir, whole) = (self.kept.clone(), format!("{note}{line}\n"));
        let written = tokio::task::spawn_blocking(move || write(&dir, size, &whole)).await;
        let written = written.map_err(|_| Unpublished::later("the write was interrupted"))?;
        written.map_err(|error| Unpublished::later(format!("{}: {error}", self.kept.display())))
    }
}

impl Place for Witness {
    async fn publish(&mut self, note: &str, size: u64) -> Result<(), Unpublished> {
        let mut answer = self.ask(note, size).await?;
        if answer.status == StatusCode::CONFLICT
            && let Some(seen) = std::str::from_utf8(&answer.body).ok().and_then(|text| text.trim().parse().ok())
        {
            if seen > size {
                return Err(Unpublished::contradicted(format!(
                    "the witness has seen {seen} records, and the log has {size}: it was cut, or set back"
                )));
            }
            self.seen = seen;
            answer = self.ask(note, size).await?;
        }
        match answer.status {
            StatusCode::OK => {
                self.keep(note, size, &answer).await?;
                self.seen = size;
                Ok(())
            }
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT => {
                let seen = self.seen;
                Err(Unpublished::contradicted(format!(
                    "the witness does not see that {size} records continue the {seen} that it has seen"
                )))
            }
            StatusCode::NOT_FOUND => {
                Err(Unpublished::later("the witness does not know this log: have its key added there"))
            }
            StatusCode::FORBIDDEN => Err(Unpublished::later("the witness knows another key of this log")),
            _ => Err(unpublished(answer.failure())),
        }
    }

    async fn close(&mut self) {
        self.client.close().await;
    }
}

/// Keeps a cosigned checkpoint beside the log, and so many of them.
fn write(dir: &Path, size: u64, note: &str) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let (path, unfinished) = (dir.join(format!("{size:020}")), dir.join(format!("{size:020}.new")));
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(note.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    std::fs::File::open(dir)?.sync_all()?;
    let mut all: Vec<_> = std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.sort();
    let surplus = all.len().saturating_sub(KEPT);
    all.iter().take(surplus).try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_is_read() {
        let text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        let line = "\u{2014} witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
        // The key of the example is not published: its signature is found by name and id, and cannot be believed.
        let key = WitnessKey { name: "witness.example.com/w1".into(), id: [0x8d, 0x66, 0xcf, 0x3f], key: [7; 32] };
        assert_eq!(key.find(text, line), Err(CosignatureError::Forged("witness.example.com/w1".into())));
        let other = WitnessKey { id: [0; 4], ..key };
        assert!(matches!(other.find(text, line), Err(CosignatureError::Absent(_))));
        for wrong in ["", "name", "name+00000000+BA==", "a b+00000000+AAAA"] {
            assert_eq!(wrong.parse::<WitnessKey>(), Err(CosignatureError::NoKey), "{wrong}");
        }
    }
}
