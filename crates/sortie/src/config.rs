//! `sortie config`: the gateway's files of settings, without a gateway.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use sortie_gateway::GatewayConfig;
use sortie_hub::ModelsConfig;

use crate::cli::{ConfigCommand, Output};
use crate::error::Failure;
use crate::output::{self, Style, printable};

/// What `config check` found.
#[derive(Serialize)]
struct Report {
    ok: bool,
    /// How many routes the file has; absent when it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<usize>,
    /// What is wrong, one sentence each.
    problems: Vec<String>,
    /// What is different from what the file asks for, one sentence each.
    notes: Vec<String>,
}

pub(crate) async fn run(command: ConfigCommand, output: Option<Output>) -> Result<(), Failure> {
    let style = match output {
        None | Some(Output::Table) => Ok(Style::Table),
        Some(Output::Json) => Ok(Style::Json),
        Some(Output::Toml) => Err("--output toml is for config show; write table or json"),
        Some(Output::Dir(_)) => Err("--output dir:DIR is for setup; write table or json"),
    };
    match command {
        ConfigCommand::Check { file, models: true, .. } => {
            told(&file, of_models(&file), style.map_err(Failure::usage)?)
        }
        ConfigCommand::Check { file, online, .. } => {
            told(&file, of_gateway(&file, online).await, style.map_err(Failure::usage)?)
        }
        ConfigCommand::Show { file } if output == Some(Output::Toml) => {
            let config = absolute(&file)?;
            print!("{}", printable(&config.to_toml().map_err(Failure::failed)?));
            Ok(())
        }
        ConfigCommand::Show { file } => show(&file, style.map_err(Failure::usage)?),
        ConfigCommand::Schema => output::json(&GatewayConfig::schema()),
    }
}

fn of_models(file: &Path) -> Report {
    let problems = match ModelsConfig::load(file) {
        Err(error) => vec![error.to_string()],
        Ok(config) => config.check(),
    };
    Report { ok: problems.is_empty(), routes: None, problems, notes: Vec::new() }
}

async fn of_gateway(file: &Path, online: bool) -> Report {
    match GatewayConfig::load(file) {
        Err(error) => Report { ok: false, routes: None, problems: vec![error.to_string()], notes: Vec::new() },
        Ok(config) => {
            let mut problems = config.check_files();
            if online {
                problems.extend(config.check_hosts().await);
            }
            let notes = config.notes().to_vec();
            Report { ok: problems.is_empty(), routes: Some(config.routes.len()), problems, notes }
        }
    }
}

fn told(file: &Path, report: Report, style: Style) -> Result<(), Failure> {
    let failure = (!report.ok).then(|| match style {
        Style::Table => Failure::usage(report.problems.join("\nsortie: ")),
        Style::Json => Failure::usage(format!("{}: see problems", file.display())),
    });
    match style {
        Style::Json => output::json(&report)?,
        Style::Table => {
            report.notes.iter().for_each(|note| println!("note: {}", printable(note)));
            match (report.ok, report.routes) {
                (true, Some(routes)) => {
                    println!("{}: good, {routes} {}", file.display(), if routes == 1 { "route" } else { "routes" });
                }
                (true, None) => println!("{}: good", file.display()),
                (false, _) => {}
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn show(file: &Path, style: Style) -> Result<(), Failure> {
    let config = absolute(file)?;
    let settings = config.to_json().map_err(Failure::failed)?;
    let mut rows = Vec::new();
    flatten("", &settings, &mut rows);
    let rows: Vec<_> = rows.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    output::one(style, &settings, &rows)
}

/// The settings with paths that hold wherever they are used.
fn absolute(file: &Path) -> Result<GatewayConfig, Failure> {
    let file = std::path::absolute(file).map_err(Failure::usage)?;
    GatewayConfig::load(&file).map_err(Failure::usage)
}

/// One row for each setting, by its full name.
fn flatten(outer: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(inner) => {
            for (key, value) in inner {
                let name = if outer.is_empty() { key.clone() } else { format!("{outer}.{key}") };
                flatten(&name, value, rows);
            }
        }
        Value::Array(items) => rows.push((outer.to_owned(), items.iter().map(plain).collect::<Vec<_>>().join(", "))),
        value => rows.push((outer.to_owned(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}
