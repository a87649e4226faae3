//! `sortie mcp`: calls tools the way an agent's client does, over the path form of a route's URL.

use serde::Serialize;
use sortie_api::{List, Route};
use sortie_ids::{RouteName, TunnelId};
use sortie_mcp::client::{Endpoint, Tool, call_tool, list_tools};

use crate::cli::{HubAccess, McpCommand};
use crate::client::Hub;
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: McpCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    let routes: Vec<Route> = hub.get::<List<Route>>("/v1/sortie/routes").await?.data;
    match command {
        McpCommand::List { route, at } => {
            list(&hub, &routes, route.as_ref(), at.tunnel.as_ref(), &at.path, output).await
        }
        McpCommand::Call { route, tool, arguments, at } => {
            let arguments = serde_json::from_str(&arguments)
                .map_err(|error| Failure::usage(format!("the arguments are not a JSON object: {error}")))?;
            let found = chosen(&routes, Some(&route), at.tunnel.as_ref());
            let endpoint = match found.as_slice() {
                [one] => endpoint(&hub, one, &at.path)?,
                [] => return Err(no_route(&route, &routes)),
                _ => {
                    return Err(Failure::usage(format!(
                        "several tunnels have a route `{route}`: choose with --tunnel"
                    )));
                }
            };
            let outcome = call_tool(&endpoint, &tool, arguments).await.map_err(Failure::failed)?;
            match output {
                Style::Json => output::json(&outcome)?,
                Style::Table => println!("{}", output::printable(&outcome.text())),
            }
            if outcome.is_error { Err(Failure::failed(format!("the tool `{tool}` reports an error"))) } else { Ok(()) }
        }
    }
}

fn chosen<'r>(routes: &'r [Route], name: Option<&RouteName>, tunnel: Option<&TunnelId>) -> Vec<&'r Route> {
    let wanted = |route: &&Route| {
        name.is_none_or(|name| route.name == *name) && tunnel.is_none_or(|tunnel| route.tunnel_id == *tunnel)
    };
    routes.iter().filter(wanted).collect()
}

fn no_route(name: &RouteName, routes: &[Route]) -> Failure {
    let known: Vec<_> = routes.iter().map(|route| route.name.as_str()).collect();
    let known = if known.is_empty() {
        "no gateway is connected".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Failure::failed(format!("no connected gateway serves a route `{name}` that this key may call; {known}"))
}

fn endpoint(hub: &Hub, route: &Route, path: &str) -> Result<Endpoint, Failure> {
    let below = route.path.as_ref();
    let below = below
        .ok_or_else(|| Failure::usage(format!("`{}` is sealed: its gateway takes client certificates", route.name)))?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Endpoint {
        url: format!("{}{below}{slash}{path}", hub.base()),
        key: hub.key().clone(),
        ca_pem: hub.ca_pem().map(ToOwned::to_owned),
    })
}

/// A route's tools, or why they could not be listed.
#[derive(Serialize)]
struct Listed {
    route: RouteName,
    tunnel_id: TunnelId,
    tools: Vec<Tool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

async fn list(
    hub: &Hub,
    routes: &[Route],
    name: Option<&RouteName>,
    tunnel: Option<&TunnelId>,
    path: &str,
    output: Style,
) -> Result<(), Failure> {
    let found = chosen(routes, name, tunnel);
    if let (Some(name), []) = (name, found.as_slice()) {
        return Err(no_route(name, routes));
    }
    let mut listed = Vec::new();
    for route in found {
        let (tools, error) = match endpoint(hub, route, path) {
            Ok(endpoint) => match list_tools(&endpoint).await {
                Ok(tools) => (tools, None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            },
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        listed.push(Listed { route: route.name.clone(), tunnel_id: route.tunnel_id.clone(), tools, error });
    }
    match output {
        Style::Json => output::json(&serde_json::json!({ "data": listed }))?,
        Style::Table => {
            let mut rows = Vec::new();
            for one in &listed {
                for tool in &one.tools {
                    rows.push((one.route.to_string(), tool.name.clone(), first_line(tool.description.as_deref())));
                }
                if let Some(error) = &one.error {
                    eprintln!("{}: {}", one.route, output::printable(error));
                }
            }
            output::list(output, &rows, &["route", "tool", "what it does"], |(route, tool, what)| {
                vec![route.clone(), tool.clone(), what.clone()]
            })?;
        }
    }
    let failed = listed.iter().filter(|one| one.error.is_some()).count();
    if failed > 0 {
        Err(Failure::failed(format!("{failed} of {} routes did not answer", listed.len())))
    } else {
        Ok(())
    }
}

fn first_line(text: Option<&str>) -> String {
    let line = text.unwrap_or("").lines().next().unwrap_or("");
    let short: String = line.chars().take(80).collect();
    if short.len() < line.len() { format!("{short}...") } else { short }
}
