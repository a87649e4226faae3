//! Publishing the audit's checkpoints: to the hub over the link, and to the places that the settings name.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sortie_audit::{Continuity, Log};
use sortie_ids::LinkId;
use sortie_link::protos::{CheckpointVerdict, ContinuityProof, FromGateway, PublishedNote};
use sortie_sinks::publish::{self, Place, PlaceBoard, PlaceStatus, Unpublished};
use tokio::sync::oneshot;

use crate::gateway::Shared;
use crate::probe::printable;

/// How long the hub may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// The name of the hub among the places.
const HUB: &str = "hub";

/// Where checkpoints are published, and what is waited for.
#[derive(Default)]
pub(crate) struct Publishing {
    boards: Mutex<Vec<PlaceBoard>>,
    /// Whoever waits for what the hub says over this link.
    asked: Mutex<Option<(LinkId, oneshot::Sender<CheckpointVerdict>)>>,
}

impl Publishing {
    /// How it stands with each place.
    pub(crate) fn status(&self) -> Vec<PlaceStatus> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner).iter().map(PlaceBoard::status).collect()
    }

    /// Takes what the hub said over a link.
    pub(crate) fn verdict(&self, link: &LinkId, verdict: CheckpointVerdict) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = asked.take_if(|(asked, _)| asked == link) {
            // An error means that nobody waits any more.
            let _ = answer.send(verdict);
        }
    }

    fn ask(&self, link: LinkId) -> oneshot::Receiver<CheckpointVerdict> {
        let (answer, answered) = oneshot::channel();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((link, answer));
        answered
    }
}

/// Begins to publish what the log of this gateway signs. Blocks: reads files.
///
/// # Errors
/// Something that a place of the settings needs is not there.
pub(crate) fn start(shared: &Arc<Shared>, log: &Log) -> Result<(), String> {
    let served = shared.served();
    let places = publish::start(log, served.config.audit.publish.clone(), &served.vaults, &shared.tasks)?;
    let board = PlaceBoard::new(HUB);
    let mut boards = shared.publishing.boards.lock().unwrap_or_else(PoisonError::into_inner);
    boards.push(board.clone());
    boards.extend(places);
    drop(boards);
    let continuity = Arc::new(Mutex::new(Continuity::new(&log.dir())));
    let place = ToHub { shared: shared.clone(), key: log.verifying_key().to_string(), continuity };
    let tasks = shared.tasks.clone();
    shared.tasks.spawn("audit-publish", publish::run(place, board, log.checkpoints(), tasks));
    Ok(())
}

/// The hub, over the newest link.
struct ToHub {
    shared: Arc<Shared>,
    key: String,
    continuity: Arc<Mutex<Continuity>>,
}

impl Place for ToHub {
    async fn publish(&mut self, note: &str, size: u64) -> Result<(), Unpublished> {
        match self.tell(note, None).await? {
            CheckpointVerdict::Prove { from } => {
                let proof = self.prove(from, size).await?;
                settled(self.tell(note, Some(proof)).await?)
            }
            verdict => settled(verdict),
        }
    }
}

impl ToHub {
    async fn tell(&self, note: &str, proof: Option<ContinuityProof>) -> Result<CheckpointVerdict, Unpublished> {
        let link = self.shared.link.now().up.ok_or_else(|| Unpublished::later("no link is up"))?;
        if !link.takes_checkpoints {
            return Err(Unpublished::later("the hub takes no checkpoints: its version is older"));
        }
        let answered = self.shared.publishing.ask(link.id);
        let (key, note) = (self.key.clone(), note.to_owned());
        if !link.teller.tell(FromGateway::Checkpoint(PublishedNote { key, note, proof })) {
            return Err(Unpublished::later("the link takes no messages"));
        }
        let answered = tokio::time::timeout(ANSWER, answered).await;
        let answered = answered.map_err(|_| Unpublished::later("the hub did not answer in time"))?;
        answered.map_err(|_| Unpublished::later("the link has ended"))
    }

    async fn prove(&self, from: u64, to: u64) -> Result<ContinuityProof, Unpublished> {
        let continuity = self.continuity.clone();
        let proven = tokio::task::spawn_blocking(move || {
            continuity.lock().unwrap_or_else(PoisonError::into_inner).prove(from, to)
        });
        let proven = proven.await.map_err(|_| Unpublished::later("reading the log was interrupted"))?;
        let hashes = proven.map_err(|error| Unpublished::later(format!("the log cannot be read: {error}")))?;
        let hashes = hashes.map(|hashes| hashes.iter().map(ToString::to_string).collect());
        Ok(ContinuityProof { from, hashes })
    }
}

fn settled(verdict: CheckpointVerdict) -> Result<(), Unpublished> {
    match verdict {
        CheckpointVerdict::Kept => Ok(()),
        CheckpointVerdict::Refused { reason } => {
            Err(Unpublished::contradicted(format!("the hub refuses it: {}", printable(&reason))))
        }
        // Another link, or another gateway with the same log, was faster.
        CheckpointVerdict::Prove { .. } => Err(Unpublished::later("the hub wants the proof of something else")),
        CheckpointVerdict::Later | CheckpointVerdict::Unknown => Err(Unpublished::later("the hub cannot take it now")),
    }
}
