//! Whether a link is up, and what stands in the way when none is.

use sortie_ids::LinkId;
use sortie_link::Teller;
use tokio::sync::watch;

/// A link that serves.
#[derive(Clone, Debug)]
pub(crate) struct LinkUp {
    pub(crate) id: LinkId,
    /// The edge's address as configured.
    pub(crate) edge: String,
    /// Since when, in seconds since 1970.
    pub(crate) since: i64,
    pub(crate) teller: Teller,
    /// Whether checkpoints of the audit can be published over it.
    pub(crate) takes_checkpoints: bool,
}

/// The newest link, and the newest trouble.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    pub(crate) up: Option<LinkUp>,
    /// Why there is none, in words that name the way out where there is one.
    pub(crate) trouble: Option<String>,
}

/// Where the connector writes and everybody else reads.
pub(crate) struct LinkBoard(watch::Sender<LinkState>);

impl LinkBoard {
    pub(crate) fn new() -> Self {
        let trouble = Some("the link is being dialled for the first time".to_owned());
        Self(watch::Sender::new(LinkState { up: None, trouble }))
    }

    pub(crate) fn now(&self) -> LinkState {
        self.0.borrow().clone()
    }

    /// A link serves: the newest one is the one that is shown and asked.
    pub(crate) fn up(&self, link: LinkUp) {
        self.0.send_replace(LinkState { up: Some(link), trouble: None });
    }

    /// A link has ended; nothing changes when a newer one is up.
    pub(crate) fn down(&self, id: &LinkId) {
        self.0.send_if_modified(|state| {
            let shown = state.up.as_ref().is_some_and(|up| up.id == *id);
            if shown {
                *state =
                    LinkState { up: None, trouble: Some("the link has ended and is being dialled again".to_owned()) };
            }
            shown
        });
    }

    /// A try to get a link has failed.
    pub(crate) fn trouble(&self, why: String) {
        self.0.send_if_modified(|state| {
            let shown = state.up.is_none();
            if shown {
                state.trouble = Some(why);
            }
            shown
        });
    }

    /// Completes when no link is shown as up.
    pub(crate) async fn wait_down(&self) {
        let mut states = self.0.subscribe();
        let _ = states.wait_for(|state| state.up.is_none()).await;
    }

    /// Completes when a link is up, with it.
    pub(crate) async fn wait_up(&self) -> LinkUp {
        let mut states = self.0.subscribe();
        loop {
            if let Some(up) = &states.borrow_and_update().up {
                return up.clone();
            }
            if states.changed().await.is_err() {
                // The sender is `self`: it outlives this borrow.
                std::future::pending::<()>().await;
            }
        }
    }
}
