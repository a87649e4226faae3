//! The file in which the pins of one route are kept: `DATA_DIR/pins/ROUTE.json`, replaced in one step, or damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sortie_mcp::list::Greeting;

use super::state::{Approved, Held, Pin, Pins, Why};
use super::{Definition, MAX_BYTES};

/// The directory in the data directory.
pub(super) const DIRECTORY: &str = "pins";
/// Largest file that is read, in bytes: all that is kept of a route, and what stands around it.
const MAX_FILE: usize = 4 * MAX_BYTES;
/// What the file says that it is.
const VERSION: u32 = 1;

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damaged {
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it is not what this program writes: {0}")]
    Form(serde_json::Error),
    #[error("it is of version {0}, and this program knows version {VERSION}")]
    Version(u32),
    #[error("it is of the route `{0}`")]
    OtherRoute(String),
    #[error("the definition of `{0}` is not the one that its digest says")]
    Digest(String),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    route: String,
    tools: BTreeMap<String, FilePin>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    instructions: BTreeMap<FileGreeting, FilePin>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
enum FileGreeting {
    #[serde(rename = "initialize")]
    Initialize,
    #[serde(rename = "server/discover")]
    Discover,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FilePin {
    approved: Vec<FileApproved>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<FileHeld>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FileApproved {
    digest: String,
    since: i64,
    by: String,
    definition: Box<RawValue>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FileHeld {
    digest: String,
    why: Why,
    first_seen: i64,
    last_seen: i64,
    definition: Box<RawValue>,
}

/// Where the pins of a route are kept.
pub(super) fn path(data_dir: &Path, route: &str) -> PathBuf {
    data_dir.join(DIRECTORY).join(format!("{route}.json"))
}

/// Reads what was kept; `None` where nothing was. Blocks.
pub(super) fn load(path: &Path, route: &str) -> Result<Option<Pins>, Damaged> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(Damaged::Read)?,
    };
    let (mut bytes, most) = (Vec::new(), u64::try_from(MAX_FILE).unwrap_or(u64::MAX));
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(Damaged::Read)?;
    if bytes.len() > MAX_FILE {
        return Err(Damaged::TooLarge);
    }
    let file: File = serde_json::from_slice(&bytes).map_err(Damaged::Form)?;
    if file.version != VERSION {
        return Err(Damaged::Version(file.version));
    }
    if file.route != route {
        return Err(Damaged::OtherRoute(file.route));
    }
    let mut pins = Pins::default();
    for (name, pin) in file.tools {
        let pin = pin.into_pin(&name)?;
        pins.insert_tool(name, pin);
    }
    for (greeting, pin) in file.instructions {
        let greeting = match greeting {
            FileGreeting::Initialize => Greeting::Initialize,
            FileGreeting::Discover => Greeting::Discover,
        };
        pins.insert_instructions(greeting, pin.into_pin("instructions")?);
    }
    Ok(Some(pins))
}

/// What the file has to hold.
pub(super) fn text(pins: &Pins, route: &str) -> Result<Vec<u8>, io::Error> {
    let instructions = pins.instructions().map(|(greeting, pin)| {
        let greeting = match greeting {
            Greeting::Initialize => FileGreeting::Initialize,
            Greeting::Discover => FileGreeting::Discover,
        };
        Ok((greeting, FilePin::of(pin)?))
    });
    let file = File {
        version: VERSION,
        route: route.to_owned(),
        tools: pins.tools().map(|(name, pin)| Ok((name.to_owned(), FilePin::of(pin)?))).collect::<io::Result<_>>()?,
        instructions: instructions.collect::<io::Result<_>>()?,
    };
    Ok(serde_json::to_vec_pretty(&file)?)
}

/// Puts it in place of the one before, in one step; it is on the disk when this returns. Blocks.
pub(super) fn save(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).create(directory)?;
    }
    sortie_tls::write_private(path, text)
}

/// Removes what a death in the middle of [`save`] has left. Blocks.
pub(super) fn sweep(data_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(data_dir.join(DIRECTORY)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            // What cannot be removed does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl FilePin {
    fn of(pin: &Pin) -> io::Result<Self> {
        let raw = |definition: &Definition| {
            definition.raw().map(ToOwned::to_owned).ok_or_else(|| io::Error::other("a definition is not JSON"))
        };
        let approved = pin.approved.iter().map(|one| {
            let (digest, definition) = (one.definition.digest.to_string(), raw(&one.definition)?);
            Ok(FileApproved { digest, since: one.since, by: one.by.clone(), definition })
        });
        let held = pin.held.iter().map(|one| {
            let (digest, definition) = (one.definition.digest.to_string(), raw(&one.definition)?);
            let (first_seen, last_seen) = (one.first_seen, one.last_seen);
            Ok(FileHeld { digest, why: one.why.clone(), first_seen, last_seen, definition })
        });
        Ok(Self { approved: approved.collect::<io::Result<_>>()?, held: held.collect::<io::Result<_>>()? })
    }

    fn into_pin(self, name: &str) -> Result<Pin, Damaged> {
        let kept = |digest: &str, raw: &RawValue| {
            Definition::kept(digest, raw).ok_or_else(|| Damaged::Digest(crate::probe::printable(name)))
        };
        let mut pin = Pin::default();
        for one in self.approved {
            let definition = kept(&one.digest, &one.definition)?;
            pin.approved.push(Approved { definition, since: one.since, by: one.by });
        }
        for one in self.held {
            let definition = kept(&one.digest, &one.definition)?;
            pin.held.push(Held { definition, why: one.why, first_seen: one.first_seen, last_seen: one.last_seen });
        }
        Ok(pin)
    }
}
