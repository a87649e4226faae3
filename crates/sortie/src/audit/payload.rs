//! `sortie audit keygen` and `sortie audit decrypt`: payloads that records hold sealed.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::{Deserialize, Serialize};
use sortie_audit::Records;
use sortie_tls::{OpeningKey, Sealed, write_private, write_public};

use super::unread;
use crate::error::Failure;
use crate::output::{self, Style};

/// What the purpose of every payload begins with (`info` of RFC 9180).
const PURPOSE: &str = "sortie-audit-payload-v1";

#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// The file of the private key, which has to be new; the public one is put beside it, with `.pub` at its end.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct DecryptArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    /// The file of the private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Only those of this request.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

/// A record, as far as it matters here.
#[derive(Deserialize)]
struct Holder {
    seq: u64,
    #[serde(default)]
    id: Option<String>,
    event: String,
    #[serde(default)]
    payload: Option<Payload>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    info: String,
    #[serde(default)]
    enc: String,
    #[serde(default)]
    ciphertext: String,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    cut: bool,
}

/// One that was opened.
#[derive(Serialize)]
struct Opened<'a> {
    seq: u64,
    id: &'a str,
    event: &'a str,
    /// How long all of it was.
    bytes: u64,
    /// Whether only its beginning was recorded.
    cut: bool,
    /// What was sent or answered; bytes that are no UTF-8 replaced.
    payload: String,
}

pub(crate) fn keygen(args: &KeygenArgs, style: Style) -> Result<(), Failure> {
    let private = &args.file;
    let mut public = private.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [private, &public] {
        if path.exists() {
            let reason = format!("{} exists: what was sealed for its key opens with it alone", path.display());
            return Err(Failure::usage(reason));
        }
    }
    let (opening, sealing) = OpeningKey::generate().map_err(Failure::failed)?;
    let wrote = |path: &Path, done: std::io::Result<()>| {
        done.map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
    };
    wrote(private, write_private(private, opening.to_text().as_bytes()))?;
    wrote(&public, write_public(&public, format!("{sealing}\n").as_bytes()))?;
    let made = serde_json::json!({ "id": sealing.id(), "private": private, "public": public });
    let rows = [
        ("key", sealing.id()),
        ("private", private.display().to_string()),
        ("public", format!("{}; for key_file under [audit.payload]", public.display())),
    ];
    output::one(style, &made, &rows)
}

/// Prints one line of JSON for each payload that opens.
pub(crate) fn decrypt(args: &DecryptArgs) -> Result<(), Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::usage(format!("--key {}: {error}", args.key.display()));
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(&args.key).map_err(|error| named(&error))?);
    let key: OpeningKey = text.parse().map_err(|error| named(&error))?;
    let dir = super::dir(args.dir.as_deref())?;
    let (first, _) = sortie_audit::span(&dir).map_err(unread)?;
    let mut records = Records::open(&dir, first).map_err(unread)?;
    let (mut opened, mut closed) = (0u64, 0u64);
    while let Some(record) = records.read().map_err(unread)? {
        let Ok(Holder { seq, id: Some(id), event, payload: Some(payload) }) = serde_json::from_slice(record.line)
        else {
            continue;
        };
        if args.id.as_ref().is_some_and(|wanted| *wanted != id) {
            continue;
        }
        match open(&key, &id, &payload) {
            Some(text) => {
                let Payload { bytes, cut, .. } = payload;
                let payload = String::from_utf8_lossy(&text).into_owned();
                let line = Opened { seq, id: &id, event: &event, bytes, cut, payload };
                println!("{}", serde_json::to_string(&line).map_err(Failure::failed)?);
                opened += 1;
            }
            None => closed += 1,
        }
    }
    if closed > 0 {
        eprintln!("{closed} payloads do not open: they were sealed for another key, or were changed since");
    }
    if opened == 0 && closed > 0 {
        return Err(Failure::failed("nothing opens with this key"));
    }
    Ok(())
}

/// What a payload holds, if it is of this key and of this request.
fn open(key: &OpeningKey, id: &str, payload: &Payload) -> Option<Vec<u8>> {
    if !payload.info.starts_with(&format!("{PURPOSE} {id} ")) {
        return None;
    }
    let sealed =
        Sealed { enc: STANDARD.decode(&payload.enc).ok()?, ciphertext: STANDARD.decode(&payload.ciphertext).ok()? };
    key.open(payload.info.as_bytes(), b"", &sealed).ok()
}
