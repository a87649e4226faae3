//! `sortie approvals`: at a gateway on this machine where there is one, else through the hub.

use std::collections::BTreeSet;
use std::time::Duration;

use sortie_api::{Approval, Choice, DecideApproval, List, Tunnel};
use sortie_ids::{ApprovalId, TunnelId};

use super::text;
use crate::cli::{ApprovalsAt, ApprovalsCommand, HubAccess};
use crate::client::Hub;
use crate::error::Failure;
use crate::local::LocalGateway;
use crate::output::Style;
use crate::{output, profile};

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(command: ApprovalsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    match command {
        ApprovalsCommand::List { watch: false, at } => list(output, &Place::of(&at, access)?.waiting().await?),
        ApprovalsCommand::List { watch: true, at } => watch(output, &Place::of(&at, access)?).await,
        ApprovalsCommand::Show { approval, at } => {
            let found = Place::of(&at, access)?.find(&approval).await?;
            show(output, &found)
        }
        ApprovalsCommand::Approve { approval, reason, for_, at } => {
            let for_s = for_.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
            let decide = DecideApproval { decision: Choice::Approve, reason, for_s };
            show(output, &Place::of(&at, access)?.decide(&approval, &decide).await?)
        }
        ApprovalsCommand::Deny { approval, reason, at } => {
            let decide = DecideApproval { decision: Choice::Deny, reason, for_s: None };
            show(output, &Place::of(&at, access)?.decide(&approval, &decide).await?)
        }
    }
}

/// Where approvals are asked for.
enum Place {
    Local(LocalGateway),
    Hub(Hub, Option<TunnelId>),
}

impl Place {
    /// A gateway on this machine, unless a tunnel or another hub was named.
    fn of(at: &ApprovalsAt, access: &HubAccess) -> Result<Self, Failure> {
        if at.data_dir.is_some() {
            return LocalGateway::open(at.data_dir.as_deref()).map(Self::Local);
        }
        if at.tunnel.is_none()
            && let Some(gateway) = LocalGateway::find(None)?
        {
            return Ok(Self::Local(gateway));
        }
        Ok(Self::Hub(profile::hub(access)?, at.tunnel.clone()))
    }

    async fn waiting(&self) -> Result<Vec<Approval>, Failure> {
        match self {
            Self::Local(gateway) => Ok(gateway.get::<List<Approval>>("/v1/approvals").await?.data),
            Self::Hub(hub, tunnel) => {
                let mut all = Vec::new();
                for tunnel in tunnels(hub, tunnel.as_ref()).await? {
                    let path = format!("/v1/sortie/tunnels/{tunnel}/approvals");
                    all.append(&mut hub.get::<List<Approval>>(&path).await?.data);
                }
                Ok(all)
            }
        }
    }

    async fn find(&self, id: &ApprovalId) -> Result<Approval, Failure> {
        if let Self::Local(gateway) = self {
            return gateway.get(&format!("/v1/approvals/{id}")).await;
        }
        let found = self.waiting().await?.into_iter().find(|approval| approval.id == *id);
        found.ok_or_else(|| Failure::failed(format!("no approval `{id}` is waiting")))
    }

    async fn decide(&self, id: &ApprovalId, decide: &DecideApproval) -> Result<Approval, Failure> {
        match self {
            Self::Local(gateway) => gateway.post(&format!("/v1/approvals/{id}"), decide).await,
            Self::Hub(hub, Some(tunnel)) => {
                hub.post(&format!("/v1/sortie/tunnels/{tunnel}/approvals/{id}"), decide).await
            }
            Self::Hub(hub, None) => {
                for tunnel in tunnels(hub, None).await? {
                    let path = format!("/v1/sortie/tunnels/{tunnel}/approvals");
                    let waiting = hub.get::<List<Approval>>(&path).await?.data;
                    if waiting.iter().any(|approval| approval.id == *id) {
                        return hub.post(&format!("{path}/{id}"), decide).await;
                    }
                }
                Err(Failure::failed(format!("no approval `{id}` is waiting")))
            }
        }
    }
}

/// The named tunnel, or all of the workspace.
async fn tunnels(hub: &Hub, named: Option<&TunnelId>) -> Result<Vec<TunnelId>, Failure> {
    match named {
        Some(tunnel) => Ok(vec![tunnel.clone()]),
        None => {
            let all: Vec<Tunnel> = hub.all("/v1/tunnels?include_archived=false").await?;
            Ok(all.into_iter().map(|tunnel| tunnel.id).collect())
        }
    }
}

/// Shows what waits, and everything that comes, until Ctrl-C.
async fn watch(output: Style, place: &Place) -> Result<(), Failure> {
    let mut seen: BTreeSet<ApprovalId> = BTreeSet::new();
    loop {
        let waiting = place.waiting().await?;
        let fresh: Vec<_> = waiting.iter().filter(|approval| !seen.contains(&approval.id)).cloned().collect();
        if !fresh.is_empty() {
            match output {
                Style::Json => {
                    for approval in &fresh {
                        println!("{}", serde_json::to_string(approval).map_err(Failure::failed)?);
                    }
                }
                Style::Table => list(output, &fresh)?,
            }
        }
        seen = waiting.into_iter().map(|approval| approval.id).collect();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn list(output: Style, approvals: &[Approval]) -> Result<(), Failure> {
    output::list(output, approvals, &["id", "waiting", "caller", "route", "call", "why"], |approval| {
        vec![
            approval.id.to_string(),
            format!("{} s", approval.waiting_s),
            caller(approval),
            approval.route.clone(),
            call(approval),
            approval.reason.clone(),
        ]
    })
}

fn show(output: Style, approval: &Approval) -> Result<(), Failure> {
    let pairs = |members: &std::collections::BTreeMap<String, String>| {
        members.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
    };
    let caller_of = &approval.caller;
    let mut rows = vec![
        ("id", approval.id.to_string()),
        ("status", approval.status.as_str().to_owned()),
        ("caller", caller(approval)),
        ("proven", format!("{} by {}", caller_of.assurance, caller_of.issuer)),
        ("workspace", text(caller_of.workspace.as_ref())),
        ("session", text(caller_of.session.as_ref())),
        ("route", approval.route.clone()),
        ("call", call(approval)),
    ];
    if let Some(arguments) = &approval.arguments {
        let more = if arguments.cut { ", ..." } else { "" };
        rows.push(("arguments", format!("{}{more}", pairs(&arguments.members))));
        rows.push(("sha-256", format!("{} ({} bytes)", arguments.sha256, arguments.bytes)));
    }
    rows.extend([
        ("facts", pairs(&approval.facts)),
        ("policies", approval.policies.join(", ")),
        ("why", approval.reason.clone()),
        ("asked", approval.asked_at.to_string()),
        ("waiting", format!("{} s, at most until {}", approval.waiting_s, approval.expires_at)),
        ("request", approval.request_id.clone()),
    ]);
    if let Some(decision) = &approval.decision {
        rows.push(("decided", format!("by {} at {}", decision.by, decision.at)));
        rows.push(("reason", text(decision.reason.as_ref())));
        if let Some(seconds) = decision.for_s {
            rows.push(("lasts", format!("{seconds} s, for this caller and these arguments")));
        }
    }
    output::one(output, approval, &rows)
}

fn caller(approval: &Approval) -> String {
    let caller = &approval.caller;
    let further = [("agent", &caller.agent), ("user", &caller.user)];
    let further = further.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!(" {name} {value}")));
    format!("{}{}", caller.subject, further.collect::<String>())
}

fn call(approval: &Approval) -> String {
    match &approval.target {
        Some(target) => format!("{} {target}", approval.method),
        None => approval.method.clone(),
    }
}
