//! `sortie routes`.

use sortie_api::Route;

use crate::cli::{HubAccess, RoutesCommand};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: RoutesCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        RoutesCommand::List => {
            let routes: Vec<Route> = hub.get::<sortie_api::List<Route>>("/v1/sortie/routes").await?.data;
            output::list(output, &routes, &["route", "tunnel", "mode", "url", "gateways"], |route| {
                vec![
                    route.name.to_string(),
                    route.tunnel_id.to_string(),
                    route.mode.clone(),
                    route.url.clone(),
                    route.gateways.to_string(),
                ]
            })
        }
    }
}
